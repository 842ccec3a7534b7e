"""Models for other runtimes: ONNX, LiteRT, SavedModel and StableHLO files, and running them."""

from duonlp.export.driver import write_exported
from duonlp.export.files import ExportedFiles, find_exported
from duonlp.export.graphs import Graph, decode_cache, flat_cache, graphs_of, serve_inputs
from duonlp.export.model import ExportedModel
from duonlp.export.sessions import Session
from duonlp.export.settings import TOLERANCES, ExportSettings

__all__ = [
    "TOLERANCES",
    "ExportSettings",
    "ExportedFiles",
    "ExportedModel",
    "Graph",
    "Session",
    "decode_cache",
    "find_exported",
    "flat_cache",
    "graphs_of",
    "serve_inputs",
    "write_exported",
]
