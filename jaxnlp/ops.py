"""The array operations that decoding is written in, in JAX; see shared/duonlp/numpy_ops.py for what each does."""

import jax
import jax.numpy as jnp

cast = jnp.astype
full = jnp.full
where = jnp.where
reshape = jnp.reshape
transpose = jnp.transpose
expand_dims = jnp.expand_dims
broadcast_to = jnp.broadcast_to
concat = jnp.concatenate
stack = jnp.stack
exp = jnp.exp
log = jnp.log
sqrt = jnp.sqrt
abs = jnp.abs
minimum = jnp.minimum
maximum = jnp.maximum
isfinite = jnp.isfinite
sum = jnp.sum
max = jnp.max
min = jnp.min
any = jnp.any
all = jnp.all
top_k = jax.lax.top_k
log_softmax = jax.nn.log_softmax
update = jax.lax.dynamic_update_slice
matmul = jnp.matmul
bit_xor = jnp.bitwise_xor
bit_or = jnp.bitwise_or
while_loop = jax.lax.while_loop


def arange(n):
    """int32 [n]: 0, 1, ..."""
    return jnp.arange(n, dtype=jnp.int32)


def repeat(x, n, axis):
    """Every slice n times, one after the other."""
    return jnp.repeat(x, n, axis=axis)


def cumsum(x):
    """Along the last axis."""
    return jnp.cumsum(x, axis=-1)


def argmax(x):
    """int32: where the last axis is largest, the first of several."""
    return jnp.argmax(x, axis=-1).astype(jnp.int32)


def argsort(x):
    """int32: the order in which the last axis rises; equal values keep theirs."""
    return jnp.argsort(x, axis=-1, stable=True).astype(jnp.int32)


def take_along(x, indices, axis):
    """x at ``indices`` [..., k, ...] along an axis; the other axes are alike, or x has more of them behind."""
    indices = jnp.reshape(indices, indices.shape + (1,) * (x.ndim - indices.ndim))
    return jnp.take_along_axis(x, indices, axis)


def put_along(x, indices):
    """The inverse of taking along the last axis: result[..., indices[..., i]] = x[..., i]; indices are a permutation."""
    return jnp.put_along_axis(jnp.zeros_like(x), indices, x, -1, inplace=False)


def take(table, indices):
    """Rows of a table."""
    return jnp.take(table, indices, axis=0)


def marked(ids, wanted, size):
    """bool [rows, size]: True at the ids [rows, n] where ``wanted`` [rows, n] holds."""
    rows = jnp.expand_dims(jnp.arange(ids.shape[0]), 1)
    return jnp.zeros((ids.shape[0], size + 1), bool).at[rows, jnp.where(wanted, ids, size)].set(True)[:, :size]


def add_at(values, ids, size):
    """[rows, size]: the sum of the values [rows, n] whose id [n] it is."""
    return jnp.zeros((values.shape[0], size), values.dtype).at[:, ids].add(values)


def shift_left(x, bits):
    """Of uint32, by a uint32 or a Python int."""
    return jnp.left_shift(x, jnp.uint32(bits))


def shift_right(x, bits):
    """Of uint32, by a uint32 or a Python int, filling with zeros."""
    return jnp.right_shift(x, jnp.uint32(bits))
