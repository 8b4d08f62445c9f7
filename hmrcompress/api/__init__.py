"""What the command line and Python call: one module a verb, and `opening.py`, which turns strings into objects."""
