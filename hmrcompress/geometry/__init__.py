"""Rotations and their representations."""
