"""From a checkpoint to the fastest model within a budget on one device."""
