"""What an encoder is worth: retrieval and nearest neighbours."""
