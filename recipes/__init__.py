"""Recipes shipped with hmrcompress (installed as hmrcompress_recipes)."""
