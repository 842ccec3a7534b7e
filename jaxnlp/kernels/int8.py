"""Exact products of 8-bit integers."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnlp.kernels.choice import FEWEST_ROWS, uses_bfloat16

EXACT_TERMS = 1024
"""Products of two 8-bit integers whose sum float32 holds exactly: 1,024 * 127 * 127 < 2^24."""


def int8_product(x: jax.Array, kernel: jax.Array, transposed: bool = False) -> jax.Array:
    """Multiply integers x int8 [T, in] with a kernel int8 [in, out], giving float32 [T, out].

    The result is the exact integer, or where float32 cannot hold it (from 2^24 on), the nearest float32.

    Args:
        x: Quantized activations, at least -127 as all quantized values are.
        kernel: Quantized weights.
        transposed: Whether the kernel is [out, in].
    """
    rows = x.shape[0]
    axes = (((1,), (1 if transposed else 0,)), ((), ()))
    if uses_bfloat16(rows):
        return _through_bfloat16(x, kernel, axes)
    if rows < FEWEST_ROWS:
        x = jnp.pad(x, ((0, FEWEST_ROWS - rows), (0, 0)))
    return jax.lax.dot_general(x, kernel, axes, preferred_element_type=jnp.int32)[:rows].astype(jnp.float32)


def _through_bfloat16(x: jax.Array, kernel: jax.Array, axes: Any) -> jax.Array:
    """Return the same numbers from products of bfloat16 numbers, which hold 8-bit integers, over parts of the inputs."""
    ((x_axis,), (kernel_axis,)), _ = axes
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    parts: list[jax.Array] = []
    for start in range(0, x.shape[1], EXACT_TERMS):
        end = min(start + EXACT_TERMS, x.shape[1])
        x_part = jax.lax.slice_in_dim(x, start, end, axis=x_axis)
        kernel_part = jax.lax.slice_in_dim(kernel, start, end, axis=kernel_axis)
        parts.append(jax.lax.dot_general(x_part, kernel_part, axes, preferred_element_type=jnp.float32))
    if len(parts) > 2:  # a sum of two is rounded once, as it should be
        parts = [part.astype(jnp.int32) for part in parts]
    return sum(parts[1:], parts[0]).astype(jnp.float32)
