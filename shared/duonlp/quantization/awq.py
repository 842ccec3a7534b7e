"""AWQ: give the channels with large inputs more precise weights.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization", https://arxiv.org/abs/2306.00978. The weights of a channel are
multiplied by a factor before they are rounded, and the layer divides its inputs by it. As in AutoAWQ
(https://github.com/casper-hansen/AutoAWQ), a factor may also even out the magnitudes of the weights. As the authors' code clips
weights, scales of 4 bits are then chosen for the smallest error of the outputs instead of the weights.
"""

import numpy as np

from duonlp.config import LayerQuantization
from duonlp.quantization.arithmetic import (
    SMALLEST,
    dequantize_kernel,
    expanded,
    grouped,
    kernel_scales,
    quantize_kernel,
)
from duonlp.quantization.statistics import InputStatistics

EXPONENTS = np.linspace(0.1, 1, 10)
"""Exponents of the mean magnitudes of the inputs among which the factors are searched; 1 - exponent is that of the weights."""


def awq(
    kernel: np.ndarray, quantization: LayerQuantization, seen: InputStatistics
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round a kernel after scaling its channels by a power of their inputs' mean magnitude.

    The exponent is the one of EXPONENTS whose outputs on the sampled inputs have the smallest squared error. Rounding without
    factors is compared too, and scales that fit the inputs are taken only if they lower the error, so the result is never worse
    than rounding to the nearest.

    Args:
        kernel: float32 [in, out].
        quantization: Bits and groups.
        seen: Statistics of the inputs, with a sample of rows.

    Returns:
        Integers int8 [in, out], scales float32 [out] or [groups, out], and the factors float32 [in].
    """
    inputs, magnitudes = seen.sample, seen.magnitudes / seen.rows
    gram = inputs.T @ inputs  # [in, in]: the errors of all attempts follow from it
    sizes = np.abs(kernel) / np.maximum(_largest(kernel, quantization), SMALLEST)

    def attempt(factors: np.ndarray, fits_inputs: bool) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        scaled = kernel * factors[:, None]
        scales = kernel_scales(scaled, quantization, inputs=inputs / factors if fits_inputs else None)
        integers, scales = quantize_kernel(scaled, quantization, scales)
        rounded = dequantize_kernel(integers, scales, quantization) / factors[:, None]
        difference = rounded - kernel
        error = float((difference * (gram @ difference)).sum(dtype=np.float64))
        return error, integers, scales, factors

    ones = np.ones(len(kernel), np.float32)
    families = [[ones]]
    for weights in (np.ones(len(kernel)), sizes.mean(axis=1)):  # the paper's factors, and AutoAWQ's
        families.append([_factors(magnitudes, weights, exponent) for exponent in EXPONENTS])
    best = [min((attempt(f, False) for f in family), key=lambda result: result[0]) for family in families]
    if quantization.bits == 4:
        best += [attempt(result[3], True) for result in best]
    return min(best, key=lambda result: result[0])[1:]


def _largest(kernel: np.ndarray, quantization: LayerQuantization) -> np.ndarray:
    """Return the largest magnitude of each value's group, [1, out] or [in, out]."""
    largest = np.abs(grouped(kernel, quantization)).max(axis=1)
    return expanded(largest if quantization.group_size is not None else largest[0], len(kernel), quantization)


def _factors(magnitudes: np.ndarray, sizes: np.ndarray, exponent: float) -> np.ndarray:
    """Return magnitudes^exponent / sizes^(1 - exponent) float32 [in]; the largest and the smallest are each other's inverses."""
    magnitudes, sizes = (np.maximum(x, 1e-4 * max(x.max(), 1e-30)) for x in (magnitudes, sizes))
    factors = magnitudes**exponent / sizes ** (1 - exponent)
    return (factors / np.sqrt(factors.max() * factors.min())).astype(np.float32)
