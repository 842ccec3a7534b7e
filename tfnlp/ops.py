"""The array operations of duonlp.numpy_ops in TensorFlow, for code written once for all engines, such as decoding."""

from collections.abc import Callable, Sequence
from typing import Any
from typing import cast as cast_type

import keras
import tensorflow as tf

from tfnlp.kernels.choice import is_portable

cast = tf.cast
reshape = tf.reshape
transpose = tf.transpose
broadcast_to = tf.broadcast_to
concat = tf.concat
stack = tf.stack
exp = tf.exp
log = tf.math.log
sqrt = tf.sqrt
cos = tf.cos
sin = tf.sin
abs = tf.abs
minimum = tf.minimum
maximum = tf.maximum
isfinite = tf.math.is_finite
sum = tf.reduce_sum
max = tf.reduce_max
min = tf.reduce_min
any = tf.reduce_any
all = tf.reduce_all
log_softmax = tf.nn.log_softmax
stop_gradient = tf.stop_gradient
take = tf.gather
matmul = tf.matmul
bit_xor = tf.bitwise.bitwise_xor
bit_or = tf.bitwise.bitwise_or


def full(shape: Sequence[int], value: Any, dtype: str) -> tf.Tensor:
    """Return a new array filled with one value."""
    return tf.fill(shape, tf.cast(value, dtype))


def size(x: tf.Tensor, axis: int) -> int | tf.Tensor:
    """Return the size of an axis: an int, or int32 [] where it is only known when a graph runs."""
    static = x.shape[axis]
    return tf.shape(x)[axis] if static is None else static


def arange(n: int | tf.Tensor) -> tf.Tensor:
    """Return int32 [n]: 0, 1, ..., n - 1."""
    return tf.range(n, dtype=tf.int32)


def where(condition: tf.Tensor, x: Any, y: Any) -> tf.Tensor:
    """Return x where the condition is True, else y; a Python number takes the other's dtype."""
    dtype = next((value.dtype for value in (x, y) if tf.is_tensor(value)), None)
    x, y = (value if tf.is_tensor(value) else tf.convert_to_tensor(value, dtype) for value in (x, y))
    return tf.where(condition, x, y)


def expand_dims(x: tf.Tensor, axis: int | Sequence[int]) -> tf.Tensor:
    """Insert one or several axes of size 1."""
    return keras.ops.expand_dims(x, axis)


def repeat(x: tf.Tensor, n: int, axis: int) -> tf.Tensor:
    """Repeat each slice along an axis n times in a row."""
    return tf.repeat(x, n, axis=axis)


def all_below_infinity(x: tf.Tensor) -> tf.Tensor:
    """Return whether no value of the last axis is NaN or +infinity."""
    return tf.reduce_all(x < float("inf"), axis=-1)  # in TensorFlow's XLA, a maximum with a NaN may be a number


def cumsum(x: tf.Tensor) -> tf.Tensor:
    """Return the cumulative sum along the last axis."""
    return tf.cumsum(x, axis=-1)


def argmax(x: tf.Tensor) -> tf.Tensor:
    """Return the int32 index of the maximum along the last axis, the first one of several."""
    return tf.argmax(x, axis=-1, output_type=tf.int32)


def argsort(x: tf.Tensor) -> tf.Tensor:
    """Return the int32 indices that sort the last axis in ascending order; the sort is stable."""
    return tf.math.top_k(-x, x.shape[-1]).indices


def top_k(x: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the k largest values of the last axis in descending order, and their indices; ties keep their order."""
    values, indices = tf.math.top_k(x, k)
    return values, indices


def take_along(x: tf.Tensor, indices: tf.Tensor, axis: int) -> tf.Tensor:
    """Gather x at ``indices`` [..., k, ...] along an axis.

    The axes before it match those of x; x may have more axes after those of ``indices``.
    """
    return tf.gather(x, indices, axis=axis % len(x.shape), batch_dims=axis % len(x.shape))


def put_along(x: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Invert take_along on the last axis: result[..., indices[..., i]] = x[..., i]; indices are a permutation."""
    rows = tf.broadcast_to(tf.expand_dims(tf.range(cast_type(int, x.shape[0])), 1), indices.shape)
    return tf.scatter_nd(tf.stack([rows, indices], -1), x, x.shape)


def update(x: tf.Tensor, new: tf.Tensor, start: Sequence[int | tf.Tensor]) -> tf.Tensor:
    """Return x with ``new``, of the same rank, written at ``start``, one index per axis."""
    if not is_portable():
        return keras.ops.slice_update(x, start, new)
    # In an exported graph, since slice_update is an operation of XLA: along the only axis on which an index is not 0.
    axis = next((i for i, index in enumerate(start) if not isinstance(index, int) or index), 0)
    before, end = (slice(None),) * axis, start[axis] + tf.shape(new)[axis]
    return tf.concat([x[(*before, slice(0, start[axis]))], new, x[(*before, slice(end, None))]], axis)


def marked(ids: tf.Tensor, mask: tf.Tensor, size: int) -> tf.Tensor:
    """Return bool [rows, size], True at each of the ids [rows, n] where ``mask`` [rows, n] is True."""
    rows = tf.broadcast_to(tf.expand_dims(tf.range(cast_type(int, ids.shape[0])), 1), ids.shape)
    at = tf.stack([rows, tf.where(mask, ids, size)], -1)
    out = tf.zeros((ids.shape[0], size + 1), tf.int32)
    return tf.tensor_scatter_nd_max(out, at, tf.ones(ids.shape, tf.int32))[:, :size] > 0


def add_at(values: tf.Tensor, ids: tf.Tensor, size: int) -> tf.Tensor:
    """Return [rows, size], in which column i is the sum of the values [rows, n] whose id [n] is i."""
    return tf.transpose(tf.math.unsorted_segment_sum(tf.transpose(values), ids, size))


def shift_left(x: tf.Tensor, bits: int | tf.Tensor) -> tf.Tensor:
    """Shift uint32 left by a number of bits, a uint32 or a Python int."""
    return tf.bitwise.left_shift(x, tf.cast(bits, tf.uint32))


def shift_right(x: tf.Tensor, bits: int | tf.Tensor) -> tf.Tensor:
    """Shift uint32 right by a number of bits, a uint32 or a Python int, filling with zeros."""
    return tf.bitwise.right_shift(x, tf.cast(bits, tf.uint32))


def while_loop(condition: Callable[[Any], tf.Tensor], body: Callable[[Any], Any], state: Any) -> Any:
    """Apply ``body`` to the state, nested dicts of arrays of fixed shapes, as long as ``condition`` is True."""
    return tf.while_loop(condition, lambda state: (body(state),), (state,))[0]
