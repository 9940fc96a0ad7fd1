"""Datasets, partitions and clip sampling."""
