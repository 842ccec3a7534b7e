"""Choose implementations by the processor: the one place where tfnlp decides what depends on the hardware."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from duonlp.util.machine_info import cpu_features
from tfnlp.kernels.onednn import graph_has_onednn, onednn_product

FEWEST_ROWS = 2
"""Rows of an integer product to which fewer are padded: XLA's CPU backend hands products of matrices to a library (YNNPACK), and
computes a product with a single row in a loop that takes 20 times as long."""

XLA_MAX_TOKENS = 256
"""Largest batch, in tokens, for which XLA is faster than TensorFlow's own kernels."""

XLA_MAX_BFLOAT16_TOKENS = 32
"""The same in bfloat16, where the processor has products of bfloat16 numbers: MiniLM-L6 reads 32 tokens in 6.1 ms with XLA and
in 7.5 without, 128 tokens in 13.0 and 12.1."""

BFLOAT16_FEATURES = frozenset({"amx_bf16", "avx512_bf16"})
"""Instruction sets with products of bfloat16 numbers, for which oneDNN has kernels."""

XLA, ONEDNN, FLOAT = "XLA", "oneDNN", "float32"
"""Implementations of a product of 8-bit integers: an XLA program, the oneDNN kernel of TensorFlow's graph, and a float32 product
of the integers, which any runtime that loads an exported model has."""

_context = threading.local()


def current_product() -> str:
    """Return the implementation of integer products in what this thread is tracing or running."""
    return getattr(_context, "product", XLA)


def is_portable() -> bool:
    """Return whether what this thread is tracing is exported, so that it must not have operations that only XLA runs."""
    return current_product() == FLOAT


@contextmanager
def products(name: str) -> Iterator[None]:
    """Use an implementation of integer products while a graph is traced."""
    previous = current_product()
    _context.product = name
    try:
        yield
    finally:
        _context.product = previous


def graph_product() -> str:
    """Return the fastest implementation in a graph that XLA does not compile."""
    return ONEDNN if has_onednn() else XLA


@cache
def has_onednn() -> bool:
    """Return whether TensorFlow's graph has oneDNN's product of 8-bit integers, and it is exact.

    It is an operation that TensorFlow's graph optimizer inserts, and none that TensorFlow promises to keep: so it is tried. It
    is exact only with VNNI or AMX: other processors add pairs of products in 16 bits, which saturate for large integers.
    """
    if not cpu_features() or tf.config.list_physical_devices("GPU"):
        return False
    signs = np.where(np.random.default_rng(0).random((96, 64)) < 0.5, -1, 1)
    signs[:24], signs[24:48, ::2] = 1, 1
    factors = (127 * signs).astype(np.int8)  # the largest sums of pairs
    try:
        with tf.device("CPU"):
            return all(_is_exact(factors[:rows], factors.T) for rows in (1, 2, 96))
    except Exception:
        return False


def _is_exact(x: np.ndarray, kernel: np.ndarray) -> bool:
    """Return whether oneDNN's product of 8-bit integers gives NumPy's numbers."""
    left, right = tf.constant(x), tf.constant(kernel)
    products = tf.function(
        lambda: (onednn_product(left, right), onednn_product(left, tf.constant(kernel.T), True)), autograph=False
    )()
    return all(np.array_equal(product, x.astype(np.float32) @ kernel.astype(np.float32)) for product in products)


def with_xla(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of tensors that XLA compiles wherever it is called: eagerly, or within a graph of any kind.

    It is traced once per combination of dtypes and shapes, for any number of rows of matrices: a tf.function would be traced for
    each number, with a warning.
    """
    traced: dict[tuple, Callable[..., Any]] = {}

    def call(*arguments: Any) -> Any:
        tensors = [tf.convert_to_tensor(x) for x in arguments]
        specs = [tf.TensorSpec([None, *x.shape[1:]] if x.shape.rank == 2 else x.shape, x.dtype) for x in tensors]
        key = tuple((spec.dtype, tuple(spec.shape)) for spec in specs)
        if key not in traced:
            traced[key] = tf.function(lambda *xs: function(*xs), specs, jit_compile=True, autograph=False)
        return traced[key](*tensors)

    return call


def island(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of tensors that XLA compiles within a graph with oneDNN's products, which XLA does not compile.

    XLA fuses elementwise operations into one pass over memory, where TensorFlow's kernels make one each.
    """
    compiled = with_xla(function)
    return lambda *arguments: (compiled if current_product() == ONEDNN else function)(*arguments)


def uses_xla(tokens: int, dtype: str = "float32", multiplies_integers: bool = False) -> bool:
    """Return whether a forward pass over this many tokens is faster with XLA than as a graph of TensorFlow's own kernels.

    In bfloat16 XLA computes in float32 (see trains_with_xla), and is faster only for the fewest tokens. Integers are best
    multiplied by XLA for any number of tokens where oneDNN is not exact: with AVX2 alone, MiniLM-L6 reads 8 x 128 tokens in 294
    ms with XLA and in 376 as a graph with products of XLA, against 367 in float32.
    """
    if multiplies_integers and not has_onednn():
        return True
    return tokens <= (XLA_MAX_TOKENS if trains_with_xla(dtype) else XLA_MAX_BFLOAT16_TOKENS)


def trains_with_xla(dtype: str) -> bool:
    """Return whether a training step with this compute dtype is faster with XLA than as a graph of TensorFlow's own kernels.

    XLA's CPU backend converts the factors of TensorFlow's bfloat16 products to float32; oneDNN has kernels for AMX and for
    AVX512-BF16: 0.42 against 0.62 s a step for the small GPT-2 of ``benchmarks pretrain`` with AVX512-BF16.
    """
    if tf.config.list_physical_devices("GPU"):
        return True
    return dtype != "bfloat16" or not cpu_features() & BFLOAT16_FEATURES


def kernels() -> dict[str, str]:
    """Describe the implementations used on this machine, by what they compute."""
    if tf.config.list_physical_devices("GPU"):
        return {"all products": "TensorFlow on GPU"}
    features, small = cpu_features(), f"up to {XLA_MAX_TOKENS} tokens"
    slow = "" if features & BFLOAT16_FEATURES else ", slow: the processor computes in float32"
    graph = "TensorFlow's graph (Eigen)" if graph_has_onednn() is False else "TensorFlow's graph (oneDNN)"
    return {
        f"forward pass, {small}": "XLA",
        "forward pass, more tokens": graph,
        "bfloat16": "as float32" + slow,
        "training in float32": "XLA",
        "training in bfloat16": ("XLA" if trains_with_xla("bfloat16") else graph) + slow,
        f"int8, {small}": "XLA, int8 (YNNPACK)",
        "int8, more tokens": "oneDNN, int8" if has_onednn() else "XLA, int8 (YNNPACK)",
    }
