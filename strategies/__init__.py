"""Server rules: how updates become the next global model."""
