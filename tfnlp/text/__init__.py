"""Tokenizers of Transformers inside TensorFlow graphs, and pipelines as SavedModels that take texts."""

from tfnlp.text.export import export_pipeline
from tfnlp.text.layer import TextTokenizer

__all__ = ["TextTokenizer", "export_pipeline"]
