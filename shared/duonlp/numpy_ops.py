"""The array operations that decoding is written in, in NumPy. jaxnlp/ops.py and tfnlp/ops.py have the same functions.

Decoding (shared/duonlp/generation) is written once and handed one of these three modules. Names and arguments follow NumPy;
``axis`` may be negative, indices are int32.
"""

import numpy as np


def cast(x, dtype):
    """To "float32", "int32", "uint32" or "bool"."""
    return np.asarray(x).astype(dtype)


def full(shape, value, dtype):
    """A new array of one value."""
    return np.full(shape, value, dtype)


def arange(n):
    """int32 [n]: 0, 1, ..."""
    return np.arange(n, dtype=np.int32)


def where(condition, x, y):
    """x where the condition holds, else y; a Python number takes the other's dtype."""
    x, y = (np.asarray(v, np.float32) if isinstance(v, float) else v for v in (x, y))
    return np.where(condition, x, y)


def reshape(x, shape):
    """The same values in another shape."""
    return np.reshape(x, shape)


def transpose(x, axes):
    """The same values with axes in another order."""
    return np.transpose(x, axes)


def expand_dims(x, axis):
    """A new axis of one, or several."""
    return np.expand_dims(x, axis)


def broadcast_to(x, shape):
    """The same values, repeated along axes of one."""
    return np.broadcast_to(x, shape)


def repeat(x, n, axis):
    """Every slice n times, one after the other."""
    return np.repeat(x, n, axis=axis)


def concat(parts, axis):
    """One after the other."""
    return np.concatenate(parts, axis=axis)


def stack(parts, axis):
    """Side by side, along a new axis."""
    return np.stack(parts, axis=axis)


def exp(x):
    """e to the x."""
    return np.exp(x)


def log(x):
    """The natural logarithm."""
    with np.errstate(divide="ignore"):
        return np.log(x)


def sqrt(x):
    """The square root."""
    return np.sqrt(x)


def abs(x):
    """Without its sign."""
    return np.abs(x)


def minimum(x, y):
    """The smaller of two."""
    return np.minimum(x, y)


def maximum(x, y):
    """The larger of two."""
    return np.maximum(x, y)


def isfinite(x):
    """Neither infinite nor nan."""
    return np.isfinite(x)


def sum(x, axis, keepdims=False):
    """Over an axis."""
    return np.sum(x, axis=axis, keepdims=keepdims, dtype=np.asarray(x).dtype)


def max(x, axis, keepdims=False):
    """Over an axis."""
    return np.max(x, axis=axis, keepdims=keepdims)


def min(x, axis, keepdims=False):
    """Over an axis."""
    return np.min(x, axis=axis, keepdims=keepdims)


def any(x, axis=None, keepdims=False):
    """Over an axis, or over all."""
    return np.any(x, axis=axis, keepdims=keepdims)


def all(x, axis=None, keepdims=False):
    """Over an axis, or over all."""
    return np.all(x, axis=axis, keepdims=keepdims)


def cumsum(x):
    """Along the last axis."""
    return np.cumsum(x, axis=-1, dtype=np.asarray(x).dtype)


def argmax(x):
    """int32: where the last axis is largest, the first of several."""
    return np.argmax(x, axis=-1).astype(np.int32)


def argsort(x):
    """int32: the order in which the last axis rises; equal values keep theirs."""
    return np.argsort(x, axis=-1, kind="stable").astype(np.int32)


def top_k(x, k):
    """The k largest of the last axis, falling, and where they are; of equal values the first comes first."""
    order = np.argsort(-x, axis=-1, kind="stable")[..., :k].astype(np.int32)
    return np.take_along_axis(x, order, -1), order


def log_softmax(x):
    """Over the last axis."""
    x = x - np.max(x, axis=-1, keepdims=True)
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True, dtype=np.float32))


def take_along(x, indices, axis):
    """x at ``indices`` [..., k, ...] along an axis; the other axes are alike, or x has more of them behind."""
    indices = np.reshape(indices, indices.shape + (1,) * (x.ndim - indices.ndim))
    return np.take_along_axis(x, indices, axis)


def put_along(x, indices):
    """The inverse of taking along the last axis: result[..., indices[..., i]] = x[..., i]; indices are a permutation."""
    out = np.empty_like(x)
    np.put_along_axis(out, indices, x, -1)
    return out


def take(table, indices):
    """Rows of a table."""
    return np.take(table, indices, axis=0)


def update(x, new, start):
    """x with ``new`` (as many axes) written at ``start``, one index an axis."""
    out = np.array(x)
    out[tuple(slice(s, s + n) for s, n in zip(start, np.shape(new), strict=True))] = new
    return out


def marked(ids, wanted, size):
    """bool [rows, size]: True at the ids [rows, n] where ``wanted`` [rows, n] holds."""
    out = np.zeros((ids.shape[0], size + 1), bool)
    np.put_along_axis(out, np.where(wanted, ids, size), True, 1)
    return out[:, :size]


def add_at(values, ids, size):
    """[rows, size]: the sum of the values [rows, n] whose id [n] it is."""
    out = np.zeros((values.shape[0], size), values.dtype)
    np.add.at(out, (slice(None), ids), values)
    return out


def matmul(x, y):
    """The product of the last two axes."""
    return np.matmul(x, y)


def bit_xor(x, y):
    """Of uint32."""
    return np.bitwise_xor(x, y)


def bit_or(x, y):
    """Of uint32."""
    return np.bitwise_or(x, y)


def shift_left(x, bits):
    """Of uint32, by a uint32 or a Python int."""
    return np.left_shift(x, np.uint32(bits))


def shift_right(x, bits):
    """Of uint32, by a uint32 or a Python int, filling with zeros."""
    return np.right_shift(x, np.uint32(bits))


def while_loop(condition, body, state):
    """body(state) as long as condition(state) holds; the state is a nest of dicts of arrays and keeps its shapes."""
    while condition(state):
        state = body(state)
    return state
