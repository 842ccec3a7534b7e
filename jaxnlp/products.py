"""Products with kernels and word tables, with gradients in the order that each kind of device computes fastest."""

import jax
import jax.numpy as jnp

from jaxnlp.kernels.choice import product_dtype

ROWS, COLUMNS, TRANSPOSED = (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ())), (((1,), (1,)), ((), ()))
"""The axes that x @ y, x.T @ y and x @ y.T sum over, as of jax.lax.dot_general."""


def product(x: jax.Array, y: jax.Array, axes: tuple = ROWS) -> jax.Array:
    """Multiply two matrices of the same dtype, summing over ``axes``, and round the sums once to that dtype."""
    return jax.lax.dot_general(x, y, axes, preferred_element_type=product_dtype(x.dtype)).astype(x.dtype)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply tokens x [T, in] with a kernel [in, out], giving [T, out]."""
    return product(x, kernel)


def _matmul_backward(residuals, cotangent):
    x, kernel = residuals
    return product(cotangent, kernel, TRANSPOSED), _sum_outer_products(x, cotangent)


def _sum_outer_products(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the sum over tokens of the outer products of x [T, in] and y [T, out], [in, out]: a kernel's gradient."""

    def direct(x, y):
        return product(x, y, COLUMNS)

    def via_transpose(x, y):
        # On a CPU, a product over the first axis of both takes up to twice as long as transposing the narrower first, which
        # the barriers keep XLA from undoing. (Into the transpose of a wide x it would fuse a slow, strided activation.)
        barrier = jax.lax.optimization_barrier
        if x.shape[1] <= y.shape[1]:
            return product(barrier(transpose(x)), y)
        return barrier(product(barrier(transpose(y)), x)).T

    return jax.lax.platform_dependent(x, y, cpu=via_transpose, default=direct)


def transpose(x: jax.Array) -> jax.Array:
    """Return x [..., T, D] as [..., D, T] for a product that sums over tokens; in bfloat16 on a CPU, copied in a loop.

    XLA does not look into loops. Otherwise it would hand the product the transpose as a layout, for which it has no bfloat16
    kernel, and convert both factors to float32: 31 instead of 16 ms for the gradient of a word table of 8,192 x 384
    from 2,048 tokens.
    """
    rows, columns = x.shape[-2:]
    if x.dtype != jnp.bfloat16 or rows % 2:
        return x.mT
    half = rows // 2

    def copied(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.uint16)  # XLA converts bfloat16 to float32 even to copy it

        def copy(i, result):
            part = jax.lax.dynamic_slice_in_dim(bits, i * half, half, x.ndim - 2)
            return jax.lax.dynamic_update_slice_in_dim(result, part.mT, i * half, x.ndim - 1)

        empty = jnp.zeros((*x.shape[:-2], columns, rows), bits.dtype)
        return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, 2, copy, empty), x.dtype)

    return jax.lax.platform_dependent(x, cpu=copied, default=lambda x: x.mT)


matmul.defvjp(lambda x, kernel: (matmul(x, kernel), (x, kernel)), _matmul_backward)


def matmul_transposed(x: jax.Array, table: jax.Array) -> jax.Array:
    """Multiply x [..., in] with the transpose of table [out, in], giving [..., out]."""
    if x.dtype == jnp.bfloat16 and x.size == x.shape[-1] and jax.default_backend() == "cpu":
        # Double a single row: on CPUs, XLA's bfloat16 matrix-vector product is ten times slower than
        # matrix-matrix.
        return matmul_transposed(jnp.concatenate([x.reshape(1, -1)] * 2), table)[0].reshape(*x.shape[:-1], -1)
    return _product_with_transposed(x.reshape(-1, x.shape[-1]), table).reshape(*x.shape[:-1], table.shape[0])


@jax.custom_vjp
def _product_with_transposed(x: jax.Array, table: jax.Array) -> jax.Array:
    """Multiply x [T, in] with the transpose of table [out, in], giving [T, out]."""
    return product(x, table, TRANSPOSED)


def _product_with_transposed_backward(residuals, cotangent):
    x, table = residuals

    def direct(x, cotangent):
        return product(cotangent, x, COLUMNS)

    def via_transpose(x, cotangent):
        # Transpose the [in, out] product: the cotangent is far larger for a vocabulary.
        return jax.lax.optimization_barrier(_sum_outer_products(x, cotangent)).T

    to_table = jax.lax.platform_dependent(x, cotangent, cpu=via_transpose, default=direct)
    return product(cotangent, table), to_table


_product_with_transposed.defvjp(
    lambda x, table: (_product_with_transposed(x, table), (x, table)), _product_with_transposed_backward
)
