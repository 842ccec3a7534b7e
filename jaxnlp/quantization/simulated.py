"""Layers that round their weights and inputs in each forward pass, for quantization-aware training.

Rounding has no useful gradient, so it passes gradients on unchanged: the straight-through estimator of Bengio et al. 2013
(https://arxiv.org/abs/1308.3432), as Jacob et al. 2018 (https://arxiv.org/abs/1712.05877) train. Scales are constants for the
gradient. They cover the largest magnitude, so that no value is clipped, except those of static activations, which were calibrated
before the training: values beyond have no gradient.
"""

import jax
import jax.numpy as jnp
from flax import nnx

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
        rows = round_inputs(x.reshape(-1, x.shape[-1]), self.quantization)
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
        return round_rows(jnp.take(self.embedding[...], inputs, axis=0)).astype(self.dtype)

    def attend(self, query: jax.Array) -> jax.Array:
        """Multiply [..., features] with the transposed table, giving [..., num_embeddings]."""
        query = round_inputs(query, self.quantization)
        return matmul_transposed(query, round_rows(self.embedding[...]).astype(query.dtype))


def simulated_paths(module: nnx.Module) -> tuple[str, ...]:
    """Return the paths of a module's layers whose parameters are rounded, and so have to keep their dtype until then."""
    layers = nnx.iter_modules(module)
    return tuple(
        "/".join(map(str, path)) for path, layer in layers if isinstance(layer, (SimulatedLinear, SimulatedEmbed))
    )


def round_inputs(x: jax.Array, quantization: LayerQuantization) -> jax.Array:
    """Round the inputs x [..., n] of a layer as the quantized layer will, in x's dtype."""
    if quantization.activations == "float":
        return x
    if quantization.activations == "dynamic":
        return round_rows(x)
    assert quantization.input_scale is not None
    scale = jnp.float32(quantization.input_scale)
    clipped = jnp.clip(x.astype(jnp.float32), -127 * scale, 127 * scale)
    return _straight_through(clipped, jnp.rint(clipped * (1 / scale)) * scale).astype(x.dtype)


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
