"""Flower grids on this machine: Ray and in-process."""
