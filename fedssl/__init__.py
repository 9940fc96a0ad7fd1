"""Federated learning without labels, with privacy that can be believed."""
