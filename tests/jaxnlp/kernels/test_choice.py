"""Products and activations in bfloat16, which CPUs compute with float32 sums."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.kernels import choice
from jaxnlp.layers import add_bias, gelu, gelu_tanh
from jaxnlp.products import matmul, matmul_transposed, transpose

RNG = np.random.default_rng(0)


def rounded(shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.bfloat16)


def test_a_product_is_rounded_once_for_any_shape():
    for rows, inputs, outputs in itertools.product((1, 2, 5), (1, 7, 64), (1, 7, 64)):
        x, kernel = rounded((rows, inputs)), rounded((inputs, outputs))
        exact = np.asarray(x, np.float32) @ np.asarray(kernel, np.float32)
        for y in (jax.jit(matmul)(x, kernel), jax.jit(matmul_transposed)(x, kernel.T)):
            assert y.dtype == jnp.bfloat16
            np.testing.assert_allclose(np.asarray(y, np.float32), exact, rtol=2**-8, atol=1e-5)


def test_gradients_of_products_and_biases_are_sums_in_float32():
    x, kernel, bias = rounded((64, 24)), rounded((24, 40)), rounded((40,))
    weights = rounded((64, 40)).astype(jnp.float32)

    def loss(x, kernel, bias):
        return jnp.sum(weights * add_bias(matmul(x, kernel), bias).astype(jnp.float32))

    to_x, to_kernel, to_bias = jax.jit(jax.grad(loss, (0, 1, 2)))(x, kernel, bias)
    w = np.asarray(weights)
    for gradient, exact in (
        (to_x, w @ np.asarray(kernel, np.float32).T), (to_kernel, np.asarray(x, np.float32).T @ w), (to_bias, w.sum(0)),
    ):  # fmt: skip
        np.testing.assert_allclose(np.asarray(gradient, np.float32), exact, rtol=2**-8, atol=1e-4)


def test_transpose_copies_every_number():
    for shape in ((6, 5), (7, 5), (2, 3, 6, 5)):
        for dtype in (jnp.bfloat16, jnp.float32):
            x = rounded(shape).astype(dtype)
            assert (jax.jit(transpose)(x) == x.mT).all()


def test_activations_are_rounded_once():
    x = rounded((1000,))
    wide = x.astype(jnp.float32)
    for activation in (gelu, gelu_tanh):
        assert (jax.jit(activation)(x) == jax.jit(activation)(wide).astype(jnp.bfloat16)).all()


def test_other_dtypes_and_devices_keep_their_own(monkeypatch):
    assert choice.product_dtype("bfloat16") == choice.elementwise_dtype("bfloat16") == "float32"
    assert choice.product_dtype("float16") == "float16" and choice.product_dtype("float32") == "float32"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert choice.product_dtype("bfloat16") == choice.elementwise_dtype("bfloat16") == "bfloat16"
