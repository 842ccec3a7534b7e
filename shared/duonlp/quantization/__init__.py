"""Quantization of models: what both engines share, in NumPy."""

from duonlp.quantization.calibration import calibration_batches
from duonlp.quantization.driver import (
    Record,
    check_trainable,
    dequantized_values,
    quantized_values,
    simulated_config,
)
from duonlp.quantization.report import (
    TensorStorage,
    WeightHistograms,
    plot_histograms,
    scheme_of,
    storage_report,
    weight_histograms,
)
from duonlp.quantization.resolve import output_table, quantizable, resolve
from duonlp.quantization.settings import CALIBRATIONS, ROUNDINGS, SCHEMES, QuantizationSettings
from duonlp.quantization.statistics import InputStatistics

__all__ = [
    "CALIBRATIONS",
    "ROUNDINGS",
    "SCHEMES",
    "InputStatistics",
    "QuantizationSettings",
    "Record",
    "TensorStorage",
    "WeightHistograms",
    "calibration_batches",
    "check_trainable",
    "dequantized_values",
    "output_table",
    "plot_histograms",
    "quantizable",
    "quantized_values",
    "resolve",
    "scheme_of",
    "simulated_config",
    "storage_report",
    "weight_histograms",
]
