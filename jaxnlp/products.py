"""Products with kernels and word tables, with gradients in the order that each kind of device computes fastest."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply tokens x [T, in] with a kernel [in, out], giving [T, out]."""
    return x @ kernel


def _matmul_backward(residuals, cotangent):
    x, kernel = residuals
    return cotangent @ kernel.T, _sum_outer_products(x, cotangent)


def _sum_outer_products(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the sum over tokens of the outer products of x [T, in] and y [T, out], [in, out]: a kernel's gradient."""

    def direct(x, y):
        return jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())))

    def via_transpose(x, y):
        # On a CPU, a product over the first axis of both takes up to twice as long as transposing the narrower first, which
        # the barriers keep XLA from undoing. (Into the transpose of a wide x it would fuse a slow, strided activation.)
        barrier = jax.lax.optimization_barrier
        return barrier(x.T) @ y if x.shape[1] <= y.shape[1] else barrier(barrier(y.T) @ x).T

    return jax.lax.platform_dependent(x, y, cpu=via_transpose, default=direct)


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
    return jax.lax.dot_general(x, table, (((1,), (1,)), ((), ())))


def _product_with_transposed_backward(residuals, cotangent):
    x, table = residuals

    def direct(x, cotangent):
        return jax.lax.dot_general(cotangent, x, (((0,), (0,)), ((), ())))

    def via_transpose(x, cotangent):
        # Transpose the [in, out] product: the cotangent is far larger for a vocabulary.
        return jax.lax.optimization_barrier(_sum_outer_products(x, cotangent)).T

    to_table = jax.lax.platform_dependent(x, cotangent, cpu=via_transpose, default=direct)
    return cotangent @ table, to_table


_product_with_transposed.defvjp(
    lambda x, table: (_product_with_transposed(x, table), (x, table)), _product_with_transposed_backward
)
