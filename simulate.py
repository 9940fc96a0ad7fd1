"""Run one federated experiment."""
