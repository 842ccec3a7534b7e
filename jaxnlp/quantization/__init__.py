"""Quantized models: layers with integer weights, and the functions that create such models."""

from jaxnlp.quantization.quantize import dequantize, prepare_qat, quantize

__all__ = ["dequantize", "prepare_qat", "quantize"]
