"""AWQ: give the channels with large inputs more precise weights.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization", https://arxiv.org/abs/2306.00978. The weights of a channel are
multiplied by a factor before they are rounded, and the layer divides its inputs by it. As the authors' code clips weights, scales
of 4 bits are then chosen for the smallest error of the outputs instead of the weights.
"""

import numpy as np

from duonlp.config import LayerQuantization
from duonlp.quantization.arithmetic import dequantize_kernel, kernel_scales, quantize_kernel
from duonlp.quantization.statistics import InputStatistics

EXPONENTS = np.linspace(0, 0.95, 20)
"""Exponents of the mean magnitudes among which the factors are searched."""


def awq(
    kernel: np.ndarray, quantization: LayerQuantization, seen: InputStatistics
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round a kernel after scaling its channels by a power of their inputs' mean magnitude.

    The exponent is the one of EXPONENTS whose outputs on the sampled inputs have the smallest squared error. 0 is among them, and
    scales that fit the inputs are taken only if they lower that error, so the result is never worse than rounding to the nearest.

    Args:
        kernel: float32 [in, out].
        quantization: Bits and groups.
        seen: Statistics of the inputs, with a sample of rows.

    Returns:
        Integers int8 [in, out], scales float32 [out] or [groups, out], and the factors float32 [in].
    """
    inputs, magnitudes = seen.sample, seen.magnitudes / seen.rows

    def attempt(factors: np.ndarray, fits_inputs: bool) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        scaled = kernel * factors[:, None]
        scales = kernel_scales(scaled, quantization, inputs=inputs / factors if fits_inputs else None)
        integers, scales = quantize_kernel(scaled, quantization, scales)
        rounded = dequantize_kernel(integers, scales, quantization) / factors[:, None]
        error = float(np.square(inputs @ (rounded - kernel)).sum(dtype=np.float64))
        return error, integers, scales, factors

    best = min((attempt(_factors(magnitudes, exponent), False) for exponent in EXPONENTS), key=lambda result: result[0])
    if quantization.bits == 4:
        best = min(best, attempt(best[3], True), key=lambda result: result[0])
    return best[1:]


def _factors(magnitudes: np.ndarray, exponent: float) -> np.ndarray:
    """Return magnitudes^exponent float32 [in], normalized so that the largest and the smallest are each other's inverses."""
    factors = np.maximum(magnitudes, 1e-4 * max(magnitudes.max(), 1e-30)) ** exponent
    factors = factors / np.sqrt(factors.max() * factors.min())
    return factors.astype(np.float32)
