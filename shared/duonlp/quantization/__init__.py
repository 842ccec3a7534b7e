"""Quantization of models: what both engines share."""

from duonlp.quantization.settings import CALIBRATIONS, ROUNDINGS, SCHEMES, QuantizationSettings

__all__ = ["CALIBRATIONS", "ROUNDINGS", "SCHEMES", "QuantizationSettings"]
