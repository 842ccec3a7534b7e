"""Choose implementations by the processor: the one place where jaxnlp decides what depends on the hardware."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from duonlp.util.machine_info import cpu_features

FEWEST_ROWS = 2
"""Rows of an integer product to which fewer are padded: XLA's CPU backend hands products of matrices to a library (YNNPACK), and
computes a product with a single row in a loop that takes 20 times as long (768 x 3,072: 2.6 ms against 0.11)."""

WIDE_ROWS = 512
"""Rows from which a product of integers is computed in bfloat16 where the processor has such instructions for bfloat16 alone."""


def uses_bfloat16(rows: int) -> bool:
    """Return whether a product of 8-bit integers with this many rows is faster as an exact product of bfloat16 numbers.

    XLA's CPU backend reaches 900 GFLOP/s in bfloat16 and 630 GOP/s in 8 bits on two cores with AVX512-BF16; with AMX, 195 and
    over 1,000.
    """
    if jax.default_backend() != "cpu":
        return False
    features = cpu_features()
    return rows >= WIDE_ROWS and "avx512_bf16" in features and "amx_int8" not in features


def product_dtype(dtype: DTypeLike) -> DTypeLike:
    """Return the dtype of the sums that a product of two factors of a dtype gives, before they are rounded to that dtype.

    XLA's CPU backend has kernels (YNNPACK's) for products of bfloat16 numbers with float32 sums, but none with bfloat16
    sums: it converts the factors to float32 instead, which takes twice as long with AVX512-BF16.
    """
    return elementwise_dtype(dtype)


def elementwise_dtype(dtype: DTypeLike) -> DTypeLike:
    """Return the dtype to compute an activation in, of inputs and outputs of a dtype.

    A CPU converts bfloat16 numbers to float32 and back for each single operation, which takes longer than the operation: gelu
    takes 3.3 instead of 1.2 ms on 2,048 x 1,536 numbers.
    """
    narrow = jnp.dtype(dtype) == jnp.bfloat16 and jax.default_backend() == "cpu"
    return jnp.dtype("float32") if narrow else jnp.dtype(dtype)


def kernels() -> dict[str, str]:
    """Describe the implementations used on this machine, by what they compute."""
    backend = jax.default_backend()
    if backend != "cpu":
        return {"all products": f"XLA on {backend}"}
    features = cpu_features()
    wide = "exact bfloat16 products" if uses_bfloat16(WIDE_ROWS) else "XLA, int8 (YNNPACK)"
    return {
        "float32": "XLA",
        "bfloat16": "XLA"
        + ("" if features & {"avx512_bf16", "amx_bf16"} else ", slow: the processor computes in float32"),
        f"int8, under {WIDE_ROWS} rows": "XLA, int8 (YNNPACK)",
        f"int8, {WIDE_ROWS} rows or more": wide,
    }
