"""Pipelines as SavedModels that take texts, with the tokenizer in the graph."""

from tfnlp.serving.export import export_pipeline

__all__ = ["export_pipeline"]
