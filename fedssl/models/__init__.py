"""Encoders, and the bundle whose tensor-name prefixes say what is shared."""
