"""Files: safe pickles, checkpoints, atomic writes, hashes."""
