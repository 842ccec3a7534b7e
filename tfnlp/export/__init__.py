"""Export models to ONNX, LiteRT and SavedModel."""

from tfnlp.export.export import export_model
from tfnlp.export.session import RUNTIMES

__all__ = ["RUNTIMES", "export_model"]
