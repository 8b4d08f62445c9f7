"""Recipes: the line of commands written down, with gates."""
