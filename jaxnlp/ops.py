"""The array operations of duonlp.numpy_ops in JAX, for code that is written once for all engines, such as decoding."""

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
cos = jnp.cos
sin = jnp.sin
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
stop_gradient = jax.lax.stop_gradient
update = jax.lax.dynamic_update_slice
matmul = jnp.matmul
bit_xor = jnp.bitwise_xor
bit_or = jnp.bitwise_or
while_loop = jax.lax.while_loop


def size(x: jax.Array, axis: int) -> int:
    """Return the size of an axis."""
    return x.shape[axis]


def arange(n: int | jax.Array) -> jax.Array:
    """Return int32 [n]: 0, 1, ..., n - 1."""
    return jnp.arange(n, dtype=jnp.int32)


def repeat(x: jax.Array, n: int, axis: int) -> jax.Array:
    """Repeat each slice along an axis n times in a row."""
    return jnp.repeat(x, n, axis=axis)


def all_below_infinity(x: jax.Array) -> jax.Array:
    """Return whether no value of the last axis is NaN or +infinity."""
    return jnp.max(x, axis=-1) < jnp.inf  # a maximum with a NaN is NaN; it costs nothing beside an argmax


def cumsum(x: jax.Array) -> jax.Array:
    """Return the cumulative sum along the last axis."""
    return jnp.cumsum(x, axis=-1)


def argmax(x: jax.Array) -> jax.Array:
    """Return the int32 index of the maximum along the last axis, the first one of several."""
    return jnp.argmax(x, axis=-1).astype(jnp.int32)


def argsort(x: jax.Array) -> jax.Array:
    """Return the int32 indices that sort the last axis in ascending order; the sort is stable."""
    return jnp.argsort(x, axis=-1, stable=True).astype(jnp.int32)


def take_along(x: jax.Array, indices: jax.Array, axis: int) -> jax.Array:
    """Gather x at ``indices`` [..., k, ...] along an axis.

    The axes before it match those of x; x may have more axes after those of ``indices``.
    """
    indices = jnp.reshape(indices, indices.shape + (1,) * (x.ndim - indices.ndim))
    return jnp.take_along_axis(x, indices, axis)


def put_along(x: jax.Array, indices: jax.Array) -> jax.Array:
    """Invert take_along on the last axis: result[..., indices[..., i]] = x[..., i]; indices are a permutation."""
    return jnp.put_along_axis(jnp.zeros_like(x), indices, x, -1, inplace=False)


def take(table: jax.Array, indices: jax.Array) -> jax.Array:
    """Return rows of a table."""
    return jnp.take(table, indices, axis=0)


def marked(ids: jax.Array, mask: jax.Array, size: int) -> jax.Array:
    """Return bool [rows, size], True at each of the ids [rows, n] where ``mask`` [rows, n] is True."""
    rows = jnp.expand_dims(jnp.arange(ids.shape[0]), 1)
    return jnp.zeros((ids.shape[0], size + 1), bool).at[rows, jnp.where(mask, ids, size)].set(True)[:, :size]


def add_at(values: jax.Array, ids: jax.Array, size: int) -> jax.Array:
    """Return [rows, size], in which column i is the sum of the values [rows, n] whose id [n] is i."""
    return jnp.zeros((values.shape[0], size), values.dtype).at[:, ids].add(values)


def shift_left(x: jax.Array, bits: int | jax.Array) -> jax.Array:
    """Shift uint32 left by a number of bits, a uint32 or a Python int."""
    return jnp.left_shift(x, jnp.uint32(bits))


def shift_right(x: jax.Array, bits: int | jax.Array) -> jax.Array:
    """Shift uint32 right by a number of bits, a uint32 or a Python int, filling with zeros."""
    return jnp.right_shift(x, jnp.uint32(bits))
