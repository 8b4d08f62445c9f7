"""Networks with the key names of the original checkpoints."""
