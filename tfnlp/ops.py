"""The array operations that decoding is written in, in TensorFlow; see shared/duonlp/numpy_ops.py for what each does."""

import keras
import tensorflow as tf

cast = tf.cast
reshape = tf.reshape
transpose = tf.transpose
broadcast_to = tf.broadcast_to
concat = tf.concat
stack = tf.stack
exp = tf.exp
log = tf.math.log
sqrt = tf.sqrt
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
take = tf.gather
matmul = tf.matmul
bit_xor = tf.bitwise.bitwise_xor
bit_or = tf.bitwise.bitwise_or


def full(shape, value, dtype):
    """A new array of one value."""
    return tf.fill(shape, tf.cast(value, dtype))


def arange(n):
    """int32 [n]: 0, 1, ..."""
    return tf.range(n, dtype=tf.int32)


def where(condition, x, y):
    """x where the condition holds, else y; a Python number takes the other's dtype."""
    dtype = next((v.dtype for v in (x, y) if tf.is_tensor(v)), None)
    return tf.where(condition, *(v if tf.is_tensor(v) else tf.convert_to_tensor(v, dtype) for v in (x, y)))


def expand_dims(x, axis):
    """A new axis of one, or several."""
    return keras.ops.expand_dims(x, axis)


def repeat(x, n, axis):
    """Every slice n times, one after the other."""
    return tf.repeat(x, n, axis=axis)


def cumsum(x):
    """Along the last axis."""
    return tf.cumsum(x, axis=-1)


def argmax(x):
    """int32: where the last axis is largest, the first of several."""
    return tf.argmax(x, axis=-1, output_type=tf.int32)


def argsort(x):
    """int32: the order in which the last axis rises; equal values keep theirs."""
    return tf.math.top_k(-x, x.shape[-1]).indices


def top_k(x, k):
    """The k largest of the last axis, falling, and where they are; of equal values the first comes first."""
    return tuple(tf.math.top_k(x, k))


def take_along(x, indices, axis):
    """x at ``indices`` [..., k, ...] along an axis; the other axes are alike, or x has more of them behind."""
    return tf.gather(x, indices, axis=axis % len(x.shape), batch_dims=axis % len(x.shape))


def put_along(x, indices):
    """The inverse of taking along the last axis: result[..., indices[..., i]] = x[..., i]; indices are a permutation."""
    rows = tf.broadcast_to(tf.expand_dims(tf.range(x.shape[0]), 1), indices.shape)
    return tf.scatter_nd(tf.stack([rows, indices], -1), x, x.shape)


def update(x, new, start):
    """x with ``new`` (as many axes) written at ``start``, one index an axis."""
    return keras.ops.slice_update(x, start, new)


def marked(ids, wanted, size):
    """bool [rows, size]: True at the ids [rows, n] where ``wanted`` [rows, n] holds."""
    rows = tf.broadcast_to(tf.expand_dims(tf.range(ids.shape[0]), 1), ids.shape)
    at = tf.stack([rows, tf.where(wanted, ids, size)], -1)
    out = tf.zeros((ids.shape[0], size + 1), tf.int32)
    return tf.tensor_scatter_nd_max(out, at, tf.ones(ids.shape, tf.int32))[:, :size] > 0


def add_at(values, ids, size):
    """[rows, size]: the sum of the values [rows, n] whose id [n] it is."""
    return tf.transpose(tf.math.unsorted_segment_sum(tf.transpose(values), ids, size))


def shift_left(x, bits):
    """Of uint32, by a uint32 or a Python int."""
    return tf.bitwise.left_shift(x, tf.cast(bits, tf.uint32))


def shift_right(x, bits):
    """Of uint32, by a uint32 or a Python int, filling with zeros."""
    return tf.bitwise.right_shift(x, tf.cast(bits, tf.uint32))


def while_loop(condition, body, state):
    """body(state) as long as condition(state) holds; the state is a nest of dicts of arrays and keeps its shapes."""
    return tf.while_loop(condition, lambda state: (body(state),), (state,))[0]
