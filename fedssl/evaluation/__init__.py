"""What an encoder is worth: retrieval, neighbours, probes, fine-tuning, and measures that need no labels."""
