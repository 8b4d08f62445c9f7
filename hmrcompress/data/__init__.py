"""Data-set readers, crops and mask sources: one record type."""
