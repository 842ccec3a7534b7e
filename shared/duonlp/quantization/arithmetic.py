"""Integers and scales of quantized layers, in NumPy: what both engines store, and the reference of what they compute.

Symmetric quantization: value = integer * scale, without zero points (Jacob et al. 2018, https://arxiv.org/abs/1712.05877, with
Z = 0; Tunstall et al. 2022, "Natural Language Processing with Transformers", chapter 8). Integers are rounded half to even.
"""

import numpy as np

from duonlp.config import LayerQuantization
from duonlp.errors import InputError

INT8_MAX = 127
"""Largest magnitude of an 8-bit integer; -128 is not used, so that negation is exact."""

SMALLEST = 1e-35
"""Largest magnitude of values that are taken for zeros: the inverse of their scale would overflow."""

INT4_MIN, INT4_MAX = -8, 7
"""Range of a 4-bit integer."""

INT4_RATIOS = np.linspace(0.7, 1.0, 13, dtype=np.float32)
"""Parts of a group's range that 4-bit scales try to cover.

On the kernels of all-MiniLM-L6-v2, in groups of 64, the root mean square error relative to the weights' is 0.115 with the scale
max / 7, 0.110 with max / 7.5, 0.106 with max / 8, and 0.101 with this search; a finer or wider grid gains less than 0.001.
Choosing the sign of the scale too, so that the largest value is always -8 steps, reaches 0.096, but scales have to be positive:
others are taken for damage when a checkpoint is read.
"""


def kernel_scales(
    kernel: np.ndarray, quantization: LayerQuantization, searches: bool = True, inputs: np.ndarray | None = None
) -> np.ndarray:
    """Return the scales float32 of a kernel [in, out]: [out], or [groups, out] with groups of inputs.

    A scale of 8 bits covers the largest magnitude. One of 4 bits covers the part of the range, among INT4_RATIOS, that has the
    smallest squared error: with 16 levels, clipping the largest values makes all others more precise.

    Args:
        kernel: [in, out].
        quantization: Bits and groups.
        searches: Whether scales of 4 bits are searched; otherwise they cover the whole range.
        inputs: Typical inputs [rows, in]: the error is then that of each group's part of the outputs, not that of the weights.
    """
    values = grouped(kernel, quantization).astype(np.float32)  # [groups, size, out]
    largest = np.abs(values).max(axis=1)  # [groups, out]
    if quantization.bits == 8 or not searches:
        scales = _scale(largest, limits(quantization)[1])
    else:
        grams = None
        if inputs is not None:
            columns = grouped(np.asarray(inputs, np.float32).T, quantization)  # [groups, size, rows]
            grams = columns @ columns.swapaxes(1, 2)  # [groups, size, size]
        # Errors are compared in parts of the largest magnitude, whose square may overflow.
        parts = values / np.where(largest > SMALLEST, largest, 1)[:, None]
        ratios, best = np.ones_like(largest), np.full_like(largest, np.inf)
        for ratio in INT4_RATIOS[::-1]:
            step = ratio / np.float32(INT4_MAX)
            difference = np.clip(np.rint(parts / step), INT4_MIN, INT4_MAX) * step - parts
            error = (difference * (difference if grams is None else grams @ difference)).sum(axis=1)
            ratios, best = np.where(error < best, ratio, ratios), np.minimum(error, best)
        scales = _scale(largest * ratios, INT4_MAX)
    return scales if quantization.group_size is not None else scales[0]


def quantize_kernel(
    kernel: np.ndarray, quantization: LayerQuantization, scales: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Round a kernel [in, out] to integers.

    Args:
        kernel: Finite values.
        quantization: Bits and groups.
        scales: Scales to use; by default those of :func:`kernel_scales`.

    Returns:
        Integers int8 [in, out], of 4 bits not yet packed, and scales float32 [out] or [groups, out].
    """
    kernel = np.asarray(kernel, np.float32)
    scales = kernel_scales(kernel, quantization) if scales is None else np.asarray(scales, np.float32)
    low, high = limits(quantization)
    integers = np.clip(np.rint(kernel / expanded(scales, len(kernel), quantization)), low, high)
    return integers.astype(np.int8), scales


def quantize_table(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round the rows of a table [rows, width] to int8 [rows, width], and return them with their scales float32 [rows]."""
    table = np.asarray(table, np.float32)
    scales = _scale(np.abs(table).max(axis=1, initial=0), INT8_MAX)
    return np.clip(np.rint(table / scales[:, None]), -INT8_MAX, INT8_MAX).astype(np.int8), scales


def dequantize_kernel(integers: np.ndarray, scales: np.ndarray, quantization: LayerQuantization) -> np.ndarray:
    """Return the kernel float32 [in, out] that integers [in, out] and scales stand for."""
    return integers.astype(np.float32) * expanded(scales, len(integers), quantization)


def dequantize_table(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the table float32 [rows, width] that integers [rows, width] and scales [rows] stand for."""
    return integers.astype(np.float32) * np.asarray(scales, np.float32)[:, None]


def pack_int4(integers: np.ndarray) -> np.ndarray:
    """Pack 4-bit integers [in, out] into bytes uint8 [ceil(in / 2), out]: rows 0, 2, ... in the low halves, each as value + 8."""
    shifted = (np.asarray(integers) + 8).astype(np.uint8)
    if len(shifted) % 2:
        shifted = np.concatenate([shifted, np.full_like(shifted[:1], 8)])
    return shifted[::2] | (shifted[1::2] << 4)


def unpack_int4(packed: np.ndarray, size: int) -> np.ndarray:
    """Return the int8 [size, out] that :func:`pack_int4` packed."""
    pairs = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1, *packed.shape[1:])
    return pairs[:size].astype(np.int8) - np.int8(8)


def quantize_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round activations [..., n] to int8 with one scale float32 [..., 1] per row, as a layer with dynamic activations does."""
    x = np.asarray(x, np.float32)
    largest = np.abs(x).max(axis=-1, keepdims=True)
    is_zero = largest <= SMALLEST
    inverse = np.where(is_zero, 0, np.float32(INT8_MAX) / np.where(is_zero, 1, largest)).astype(np.float32)
    integers = np.clip(np.rint(x * inverse), -INT8_MAX, INT8_MAX).astype(np.int8)
    return integers, (largest / np.float32(INT8_MAX)).astype(np.float32)


def quantize_static(x: np.ndarray, scale: float | np.ndarray) -> np.ndarray:
    """Round activations [..., n] to int8 with one calibrated scale."""
    inverse = np.float32(1) / np.float32(scale)
    return np.clip(np.rint(np.asarray(x, np.float32) * inverse), -INT8_MAX, INT8_MAX).astype(np.int8)


def linear(
    x: np.ndarray, integers: np.ndarray, scales: np.ndarray, quantization: LayerQuantization, bias: np.ndarray | None = None,
    input_scale: np.ndarray | None = None, channel_scale: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Return what a quantized linear layer computes: the reference of both engines.

    Args:
        x: Inputs [T, in].
        integers: int8 [in, out], not packed.
        scales: float32 [out] or [groups, out].
        quantization: How the layer is quantized.
        bias: [out], or None.
        input_scale: float32 [], for static activations.
        channel_scale: float32 [in], if the channels are scaled.

    Returns:
        float32 [T, out].
    """
    x = np.asarray(x, np.float32)
    if channel_scale is not None:
        x = x * (np.float32(1) / channel_scale)
    if quantization.activations == "float":
        y = x @ dequantize_kernel(integers, scales, quantization)
    else:
        if quantization.activations == "dynamic":
            rows, row_scales = quantize_rows(x)
        else:
            assert input_scale is not None, "static activations need input_scale"
            rows, row_scales = quantize_static(x, input_scale), np.float32(input_scale)
        y = (rows.astype(np.int32) @ integers.astype(np.int32)).astype(np.float32) * row_scales * scales
    return y if bias is None else y + np.asarray(bias, np.float32)


def limits(quantization: LayerQuantization) -> tuple[int, int]:
    """Return the smallest and the largest integer of a quantized kernel."""
    return (-INT8_MAX, INT8_MAX) if quantization.bits == 8 else (INT4_MIN, INT4_MAX)


def grouped(kernel: np.ndarray, quantization: LayerQuantization) -> np.ndarray:
    """Return a kernel [in, out] as groups of inputs [groups, size, out], the last one filled up with zeros."""
    size = quantization.group_size or len(kernel)
    groups = -(-len(kernel) // size)
    padding = groups * size - len(kernel)
    kernel = np.pad(kernel, ((0, padding), (0, 0))) if padding else kernel
    return kernel.reshape(groups, size, -1)


def expanded(scales: np.ndarray, size: int, quantization: LayerQuantization) -> np.ndarray:
    """Return the scale of each value of a kernel with ``size`` inputs: [1, out], or [in, out] with groups."""
    if quantization.group_size is None:
        return scales[None]
    return np.repeat(scales, quantization.group_size, axis=0)[:size]


def check_finite(path: str, values: np.ndarray) -> None:
    """Raise InputError if a parameter has values that no integer stands for."""
    if not np.isfinite(values).all():
        count = int(np.size(values) - np.isfinite(values).sum())
        raise InputError(
            f"{path} has {count} values that are NaN or infinite, so it has no scale; load or train the model again"
        )


def _scale(largest: np.ndarray, levels: int) -> np.ndarray:
    """Return largest / levels float32; 1 where that is 0, as for a row of zeros."""
    largest = np.asarray(largest, np.float32)
    return np.where(largest > SMALLEST, largest / np.float32(levels), np.float32(1)).astype(np.float32)
