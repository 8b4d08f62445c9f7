"""What an exported network runs in: one file a runtime, and their registry."""
