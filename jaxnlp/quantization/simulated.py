"""Layers that round their weights and inputs in each forward pass, for quantization-aware training.

Rounding has no useful gradient, so it passes gradients on unchanged: the straight-through estimator of Bengio et al. 2013
(https://arxiv.org/abs/1308.3432), as Jacob et al. 2018 (https://arxiv.org/abs/1712.05877) train. Scales cover the largest
magnitude, so that no value is clipped, and are constants for the gradient.
"""

import jax
import jax.numpy as jnp

from duonlp.config import LayerQuantization
from duonlp.quantization.arithmetic import SMALLEST
from jaxnlp.layers import Embed, Linear
from jaxnlp.products import matmul, matmul_transposed


class SimulatedLinear(Linear):
    """Linear layer with floating-point parameters that computes what the quantized layer will.

    Attributes:
        quantization: How the layer is to be quantized.
    """

    quantization: LayerQuantization

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., in] to [..., out]."""
        kernel = self.kernel[...].T if self.transposed else self.kernel[...]
        kernel = round_kernel(kernel, self.quantization).astype(self.dtype)
        rows = x.reshape(-1, x.shape[-1])
        rows = round_rows(rows) if self.quantization.activations == "dynamic" else rows
        y = matmul(rows.astype(self.dtype), kernel).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class SimulatedEmbed(Embed):
    """Table with floating-point rows that are rounded when they are used.

    Attributes:
        quantization: How the table is to be quantized.
    """

    quantization: LayerQuantization

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Look up ids [...], giving [..., features]."""
        return round_rows(super().__call__(inputs))

    def attend(self, query: jax.Array) -> jax.Array:
        """Multiply [..., features] with the transposed table, giving [..., num_embeddings]."""
        query = round_rows(query) if self.quantization.activations == "dynamic" else query
        return matmul_transposed(query, round_rows(self.embedding[...]).astype(query.dtype))


def round_rows(x: jax.Array) -> jax.Array:
    """Round the rows of x [..., n] to 8 bits with one scale per row, in x's dtype."""
    wide = x.astype(jnp.float32)
    return _straight_through(x, _rounded(wide, jnp.max(jnp.abs(wide), axis=-1, keepdims=True), 127, -127))


def round_kernel(kernel: jax.Array, quantization: LayerQuantization) -> jax.Array:
    """Round a kernel [in, out] to its bits with one scale per output, or per output and group of inputs."""
    wide, size = kernel.astype(jnp.float32), len(kernel)
    group = quantization.group_size or size
    padded = jnp.pad(wide, ((0, -size % group), (0, 0))).reshape(-1, group, kernel.shape[1])
    high, low = (127, -127) if quantization.bits == 8 else (7, -8)
    rounded = _rounded(padded, jnp.max(jnp.abs(padded), axis=1, keepdims=True), high, low)
    return _straight_through(kernel, rounded.reshape(-1, kernel.shape[1])[:size])


def _rounded(x: jax.Array, largest: jax.Array, high: int, low: int) -> jax.Array:
    scale = jnp.where(largest > SMALLEST, largest / high, 1)
    return jnp.clip(jnp.rint(x / scale), low, high) * scale


def _straight_through(x: jax.Array, rounded: jax.Array) -> jax.Array:
    """Return the rounded values, with the gradient of x."""
    return x + jax.lax.stop_gradient(rounded.astype(x.dtype) - x)
