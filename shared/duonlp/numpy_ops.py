"""The array operations that decoding is written in, in NumPy; ``jaxnlp/ops.py`` and ``tfnlp/ops.py`` define
the same functions.

Decoding (``duonlp.generation``) is written once and receives one of these three modules. Names and
arguments follow NumPy; ``axis`` may be negative, and indices are int32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from duonlp.typing import Array


def cast(x: Array, dtype: str) -> np.ndarray:
    """Cast to "float32", "int32", "uint32" or "bool"."""
    return np.asarray(x).astype(dtype)


def full(shape: Sequence[int], value: Array, dtype: str) -> np.ndarray:
    """Create an array filled with one value."""
    return np.full(shape, value, dtype)


def size(x: Array, axis: int) -> Array:
    """Return the size of an axis: an int, or int32 [] where it is only known when a graph runs."""
    return np.shape(x)[axis]


def arange(n: int) -> np.ndarray:
    """Return int32 [n]: 0, 1, ..., n - 1."""
    return np.arange(n, dtype=np.int32)


def where(condition: Array, x: Array, y: Array) -> np.ndarray:
    """Select x where the condition holds, else y; a Python number takes the other operand's dtype."""
    x, y = (np.asarray(v, np.float32) if isinstance(v, float) else v for v in (x, y))
    return np.where(condition, x, y)


def reshape(x: Array, shape: Sequence[int]) -> np.ndarray:
    """Reshape an array."""
    return np.reshape(x, shape)


def transpose(x: Array, axes: Sequence[int]) -> np.ndarray:
    """Permute the axes."""
    return np.transpose(x, axes)


def expand_dims(x: Array, axis: int | tuple[int, ...]) -> np.ndarray:
    """Insert one or several axes of size 1."""
    return np.expand_dims(x, axis)


def broadcast_to(x: Array, shape: Sequence[int]) -> np.ndarray:
    """Broadcast to a shape."""
    return np.broadcast_to(x, shape)


def repeat(x: Array, n: int, axis: int) -> np.ndarray:
    """Repeat every slice n times, copies next to each other."""
    return np.repeat(x, n, axis=axis)


def concat(parts: Sequence[Array], axis: int) -> np.ndarray:
    """Concatenate along an existing axis."""
    return np.concatenate(parts, axis=axis)


def stack(parts: Sequence[Array], axis: int) -> np.ndarray:
    """Stack along a new axis."""
    return np.stack(parts, axis=axis)


def exp(x: Array) -> np.ndarray:
    """Return e to the power of x."""
    return np.exp(x)


def log(x: Array) -> np.ndarray:
    """Return the natural logarithm."""
    with np.errstate(divide="ignore"):
        return np.log(x)


def sqrt(x: Array) -> np.ndarray:
    """Return the square root."""
    return np.sqrt(x)


def cos(x: Array) -> np.ndarray:
    """Return the cosine of angles in radians."""
    return np.cos(x)


def sin(x: Array) -> np.ndarray:
    """Return the sine of angles in radians."""
    return np.sin(x)


def abs(x: Array) -> np.ndarray:
    """Return the absolute value."""
    return np.abs(x)


def minimum(x: Array, y: Array) -> np.ndarray:
    """Return the elementwise minimum."""
    return np.minimum(x, y)


def maximum(x: Array, y: Array) -> np.ndarray:
    """Return the elementwise maximum."""
    return np.maximum(x, y)


def isfinite(x: Array) -> np.ndarray:
    """Return whether each value is neither infinite nor NaN."""
    return np.isfinite(x)


def sum(x: Array, axis: int, keepdims: bool = False) -> np.ndarray:
    """Sum over an axis, in the dtype of x."""
    return np.sum(x, axis=axis, keepdims=keepdims, dtype=np.asarray(x).dtype)


def max(x: Array, axis: int, keepdims: bool = False) -> np.ndarray:
    """Return the maximum over an axis."""
    return np.max(x, axis=axis, keepdims=keepdims)


def min(x: Array, axis: int, keepdims: bool = False) -> np.ndarray:
    """Return the minimum over an axis."""
    return np.min(x, axis=axis, keepdims=keepdims)


def any(x: Array, axis: int | None = None, keepdims: bool = False) -> np.ndarray:
    """Return whether any value is true, over an axis or over all."""
    return np.any(x, axis=axis, keepdims=keepdims)


def all(x: Array, axis: int | None = None, keepdims: bool = False) -> np.ndarray:
    """Return whether all values are true, over an axis or over all."""
    return np.all(x, axis=axis, keepdims=keepdims)


def all_below_infinity(x: Array) -> np.ndarray:
    """Return whether no value of the last axis is NaN or +infinity."""
    return np.max(x, axis=-1) < np.inf


def cumsum(x: Array) -> np.ndarray:
    """Return the cumulative sum along the last axis, in the dtype of x."""
    return np.cumsum(x, axis=-1, dtype=np.asarray(x).dtype)


def argmax(x: Array) -> np.ndarray:
    """Return int32 indices of the maximum of the last axis; the first one if several are equal."""
    return np.argmax(x, axis=-1).astype(np.int32)


def argsort(x: Array) -> np.ndarray:
    """Return int32 indices that sort the last axis in ascending order (stable)."""
    return np.argsort(x, axis=-1, kind="stable").astype(np.int32)


def top_k(x: Array, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest values of the last axis in descending order, and their int32 indices; ties keep their order."""
    order = np.argsort(-x, axis=-1, kind="stable")[..., :k].astype(np.int32)
    return np.take_along_axis(x, order, -1), order


def log_softmax(x: Array) -> np.ndarray:
    """Return the log softmax over the last axis."""
    x = x - np.max(x, axis=-1, keepdims=True)
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True, dtype=np.float32))


def take_along(x: Array, indices: Array, axis: int) -> np.ndarray:
    """Gather x at ``indices`` [..., k, ...] along an axis; other axes match, or x has additional trailing axes."""
    indices = np.reshape(indices, indices.shape + (1,) * (x.ndim - indices.ndim))
    return np.take_along_axis(x, indices, axis)


def put_along(x: Array, indices: Array) -> np.ndarray:
    """Invert take_along on the last axis: result[..., indices[..., i]] = x[..., i]; indices are a permutation."""
    out = np.empty_like(x)
    np.put_along_axis(out, indices, x, -1)
    return out


def stop_gradient(x: Array) -> Array:
    """Return x, through which no gradient flows."""
    return x


def take(table: Array, indices: Array) -> np.ndarray:
    """Gather rows of a table."""
    return np.take(table, indices, axis=0)


def update(x: Array, new: Array, start: Sequence[Array]) -> np.ndarray:
    """Return x with ``new`` (of the same rank) written at ``start``, one index per axis."""
    out = np.array(x)
    out[tuple(slice(s, s + n) for s, n in zip(start, np.shape(new), strict=True))] = new
    return out


def marked(ids: Array, wanted: Array, size: int) -> np.ndarray:
    """Return bool [rows, size]: True at each of ids [rows, n] where ``wanted`` [rows, n] holds."""
    out = np.zeros((ids.shape[0], size + 1), bool)
    np.put_along_axis(out, np.where(wanted, ids, size), True, 1)
    return out[:, :size]


def add_at(values: Array, ids: Array, size: int) -> np.ndarray:
    """Return [rows, size]: at each id, the sum of the values [rows, n] that have this id in ids [n]."""
    out = np.zeros((values.shape[0], size), values.dtype)
    index: Any = (slice(None), ids)
    np.add.at(out, index, values)
    return out


def matmul(x: Array, y: Array) -> np.ndarray:
    """Multiply matrices in the last two axes."""
    return np.matmul(x, y)


def bit_xor(x: Array, y: Array) -> np.ndarray:
    """Return the bitwise exclusive or of uint32."""
    return np.bitwise_xor(x, y)


def bit_or(x: Array, y: Array) -> np.ndarray:
    """Return the bitwise or of uint32."""
    return np.bitwise_or(x, y)


def shift_left(x: Array, bits: Array) -> np.ndarray:
    """Shift uint32 to the left by a uint32 or a Python int."""
    return np.left_shift(x, np.uint32(bits))


def shift_right(x: Array, bits: Array) -> np.ndarray:
    """Shift uint32 to the right by a uint32 or a Python int, filling with zeros."""
    return np.right_shift(x, np.uint32(bits))


def while_loop(condition: Callable[[Any], Array], body: Callable[[Any], Any], state: Any) -> Any:
    """Apply body while condition(state) holds; the state is a nested dict of arrays of constant shapes."""
    while condition(state):
        state = body(state)
    return state
