"""Unlearnable data: changes too small to see that keep a model from learning much; empirical, never a guarantee."""
