"""Model x data x protocol -> a table."""
