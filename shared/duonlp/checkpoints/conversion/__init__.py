"""Convert checkpoints of other layouts to safetensors."""

from duonlp.checkpoints.conversion.convert import convert

__all__ = ["convert"]
