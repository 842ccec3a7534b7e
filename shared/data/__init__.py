"""Text on disk turned into arrays of token ids: reading, splitting, packing, batching. NumPy only."""
