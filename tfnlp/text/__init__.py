"""Tokenizers of Transformers inside TensorFlow graphs."""

from tfnlp.text.layer import TextTokenizer

__all__ = ["TextTokenizer"]
