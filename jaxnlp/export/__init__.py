"""Export models to StableHLO."""

from jaxnlp.export.export import export_model
from jaxnlp.export.session import RUNTIMES

__all__ = ["RUNTIMES", "export_model"]
