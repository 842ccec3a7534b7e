"""Tokenizers of Transformers inside TensorFlow graphs, and pipelines as SavedModels that take texts."""

from tfnlp.text.export import export_pipeline

__all__ = ["export_pipeline"]
