"""Pose errors and their protocols, similarity of layers, cost."""
