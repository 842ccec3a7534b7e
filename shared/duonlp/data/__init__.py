"""Text turned into arrays of token ids: read, cleaned, split, packed into blocks, batched. NumPy and files."""
