"""GPTQ: round weights one input at a time, and let the inputs that follow make up for the error.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
https://arxiv.org/abs/2210.17323.
"""

import numpy as np

from duonlp.config import LayerQuantization
from duonlp.quantization.arithmetic import kernel_scales, limits

BLOCK = 128
"""Inputs rounded before their errors are passed on to all inputs that follow, in one product."""

DAMPING = 0.01
"""Part of the mean diagonal of the Hessian added to its diagonal, so that it can be inverted."""


def gptq(kernel: np.ndarray, quantization: LayerQuantization, hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round a kernel to the integers that keep the layer's outputs on its calibration inputs.

    Args:
        kernel: float32 [in, out].
        quantization: Bits and groups. The scales of a group are set when its first input is reached, from the weights as the
            errors before it have changed them.
        hessian: Mean of x x^T over the inputs x, [in, in].

    Returns:
        Integers int8 [in, out] and scales float32 [out] or [groups, out].
    """
    weights = kernel.astype(np.float64)
    size, group = len(weights), quantization.group_size
    upper, unused = _inverse_factor(hessian)
    weights[unused] = 0
    low, high = limits(quantization)
    integers = np.zeros(weights.shape, np.int8)
    scales = [] if group is not None else [kernel_scales(weights, quantization)]
    per_group = LayerQuantization(quantization.bits)
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        errors = np.zeros((end - start, weights.shape[1]))
        for i in range(start, end):
            if group is not None and i % group == 0:
                # The errors of this block's inputs that later groups have not received yet.
                later = slice(end, min(i + group, size))
                values = weights[i : i + group].copy()
                if i + group > end:
                    values[end - i :] -= upper[start:i, later].T @ errors[: i - start]
                scales.append(kernel_scales(values.astype(np.float32), per_group))
            row = np.clip(np.rint(weights[i] / scales[-1]), low, high)
            integers[i] = row
            errors[i - start] = (weights[i] - row * scales[-1]) / upper[i, i]
            weights[i + 1 : end] -= np.outer(upper[i, i + 1 : end], errors[i - start])
        weights[end:] -= upper[start:end, end:].T @ errors
    return integers, np.stack(scales) if group is not None else scales[0]


def output_error(kernel: np.ndarray, rounded: np.ndarray, hessian: np.ndarray) -> float:
    """Return the mean squared error of a layer's outputs over its calibration inputs, summed over outputs."""
    difference = kernel.astype(np.float64) - rounded
    return float(np.einsum("io,ij,jo->", difference, hessian, difference, optimize=True))


def _inverse_factor(hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the upper Cholesky factor of the damped inverse of a Hessian, and which inputs were always zero, bool [in]."""
    hessian = hessian.astype(np.float64)
    unused = np.diag(hessian) == 0
    hessian[unused, unused] = 1
    hessian = hessian + np.eye(len(hessian)) * (DAMPING * np.diag(hessian).mean())
    return np.linalg.cholesky(np.linalg.inv(hessian)).T, unused
