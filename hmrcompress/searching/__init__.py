"""The search for layers to merge."""
