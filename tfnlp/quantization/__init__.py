"""Quantized models: layers with integer weights, and the functions that create such models."""

from tfnlp.quantization.quantize import dequantize, quantize

__all__ = ["dequantize", "quantize"]
