"""Layer merging on state dicts and token merging on tensors."""
