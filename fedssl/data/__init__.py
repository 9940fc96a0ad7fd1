"""Datasets, partitions, packed files and clip sampling."""
