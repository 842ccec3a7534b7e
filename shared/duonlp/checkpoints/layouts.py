"""Layouts of tensors in a checkpoint, and their conversion to and from ours; see :class:`Weight`."""

import math

import numpy as np
from numpy.typing import DTypeLike

from duonlp.architectures._common import Weight
from duonlp.config import TransformerConfig
from duonlp.positions import fixed_table, interpolate_positions

WRITTEN_POSITIONS = ("positions", "decoder_positions")
"""Layouts of fixed position tables that are written although they are not parameters."""


def stored_shape(row: Weight, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in a checkpoint of a parameter of ``shape``, or of the tensor that it is a part of."""
    if row.layout == "patches":
        return row.shape
    if row.layout == "scalar":
        return (1,)
    shape = shape if row.part is None else row.part.whole_shape(shape)
    if row.layout == "packed":
        return shape[1], math.ceil(shape[0] / 4)
    if row.layout == "scale":
        return (*shape, 1)
    return shape[::-1] if row.layout == "linear" else (1, *shape) if row.layout in ("row", "image_positions") else shape


def stored_dtype(row: Weight, dtype: DTypeLike) -> np.dtype:
    """Return the dtype in a checkpoint of a parameter of ``dtype``."""
    return np.dtype(np.int32 if row.layout == "packed" else dtype)


def is_readable(row: Weight, shape: tuple[int, ...], stored: tuple[int, ...]) -> bool:
    """Return whether a tensor of shape ``stored`` holds the values of a parameter, or positions that can be interpolated."""
    if stored == stored_shape(row, shape) or (row.layout == "scalar" and stored == ()):
        return True
    if row.layout != "image_positions" or len(stored) != 3 or stored[::2] != (1, shape[1]):
        return False
    patches = stored[1] - shape[0] + math.prod(row.shape)
    return patches > 0 and math.isqrt(patches) ** 2 == patches


def our_layout(layout: str, stored: np.ndarray) -> np.ndarray:
    """Return a stored tensor in the layout of our parameters, as a view."""
    if layout == "patches":
        stored = stored.reshape(len(stored), -1)
    if layout == "packed":  # bytes hold the same pairs as ours
        return np.ascontiguousarray(stored).view(np.uint8).T
    if layout == "scale":
        return stored[:, 0]
    if layout == "scalar":
        return stored.reshape(())
    if layout in ("row", "image_positions"):
        return stored[0]
    return stored.T if layout in ("linear", "patches") else stored


def stored_layout(row: Weight, values: np.ndarray) -> np.ndarray:
    """Return values in the layout of a checkpoint; the inverse of :func:`our_layout`."""
    if row.layout in ("row", "image_positions", "scalar"):
        return values[None]
    if row.layout == "scale":
        return values[:, None]
    if row.layout == "packed":
        bytes_ = np.pad(values.T, ((0, 0), (0, -len(values) % 4)), constant_values=0x88)
        return np.ascontiguousarray(bytes_).view(np.int32)
    if row.layout == "patches":
        return values.T.reshape(row.shape)
    return values.T if row.layout == "linear" else values


def resized_positions(values: np.ndarray, tokens: int, grid: tuple[int, ...]) -> np.ndarray:
    """Return image positions [n, size] for another grid of patches.

    Args:
        values: Special tokens, then a square grid of patches.
        tokens: Number of positions of the result.
        grid: Rows and columns of patches of the result.
    """
    if len(values) == tokens:
        return values
    return interpolate_positions(values, grid[0], grid[1], tokens - math.prod(grid))


def fixed_positions(layout: str, cfg: TransformerConfig) -> np.ndarray:
    """Return the computed position table float32 [max_positions, size] that a layout or a path stands for, of either stack."""
    return fixed_table((cfg.as_decoder() if "decoder" in layout else cfg).embedding)
