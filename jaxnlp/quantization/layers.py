"""Layers with integer weights, and their place in a model."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from duonlp.config import LayerQuantization, QuantizationConfig
from duonlp.parameters import Parameter, quantized_parameters
from duonlp.quantization.arithmetic import SMALLEST
from jaxnlp.kernels import int8_product
from jaxnlp.kernels.choice import FEWEST_ROWS
from jaxnlp.layers import Embed, Linear
from jaxnlp.products import matmul
from jaxnlp.quantization.simulated import SimulatedEmbed, SimulatedLinear


class QuantizedLinear(nnx.Module):
    """Linear layer with integer weights: see LayerQuantization for the kinds, and duonlp.quantization for the arithmetic.

    Args:
        in_features: Number of inputs.
        out_features: Number of outputs.
        quantization: How weights are stored and inputs are treated.
        use_bias: Whether there is a bias.
        dtype: Dtype of the outputs, and of the product if only the weights are quantized.
        param_dtype: Storage dtype of the bias.

    Attributes:
        transposed: Whether the kernel is stored as [out, in], as jaxnlp.inference does for speed.
    """

    transposed = False
    kernel: nnx.Param
    kernel_scale: nnx.Param
    input_scale: nnx.Param
    channel_scale: nnx.Param

    def __init__(
        self, in_features: int, out_features: int, quantization: LayerQuantization, *, use_bias: bool, dtype: DTypeLike,
        param_dtype: DTypeLike,
    ):  # fmt: skip
        self.in_features, self.out_features, self.quantization, self.dtype = (
            in_features,
            out_features,
            quantization,
            dtype,
        )
        for name, parameter in quantized_parameters("/kernel", (in_features, out_features), quantization).items():
            setattr(self, name.removeprefix("/"), _param(parameter))
        self.bias = nnx.Param(jnp.zeros((out_features,), param_dtype)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., in] to [..., out]."""
        rows = x.reshape(-1, self.in_features)
        if self.quantization.channel_scaled:
            rows = rows.astype(jnp.float32) * (1 / self.channel_scale[...])
        rows = self._weight_only(rows) if self.quantization.activations == "float" else self._integer(rows)
        if self.bias is not None:
            rows = rows + self.bias[...].astype(rows.dtype)
        return rows.astype(self.dtype).reshape(*x.shape[:-1], self.out_features)

    def _integer(self, x: jax.Array) -> jax.Array:
        """Multiply rows [T, in] in integers and return float32 [T, out]."""
        if self.quantization.activations == "dynamic":
            integers, scale = quantize_rows(x)
        else:
            scale = self.input_scale[...]
            integers = jnp.clip(jnp.rint(x.astype(jnp.float32) * (1 / scale)), -127, 127).astype(jnp.int8)
        return int8_product(integers, self.kernel[...], self.transposed) * scale * self.kernel_scale[...]

    def _weight_only(self, x: jax.Array) -> jax.Array:
        """Multiply rows [T, in] with the dequantized kernel in the compute dtype."""
        x, kernel, rows = x.astype(self.dtype), self._dequantized().astype(self.dtype), len(x)
        if rows < FEWEST_ROWS:
            x = jnp.pad(x, ((0, FEWEST_ROWS - rows), (0, 0)))
        return matmul(x, kernel)[:rows]

    def _dequantized(self) -> jax.Array:
        """Return the kernel float32 [in, out]."""
        kernel, scale, group = self.kernel[...], self.kernel_scale[...], self.quantization.group_size
        if self.quantization.bits == 4:
            pairs = jnp.stack([kernel & 15, kernel >> 4], axis=1).reshape(-1, self.out_features)
            kernel = pairs[: self.in_features].astype(jnp.int8) - 8
        if group is None:
            return kernel.astype(jnp.float32) * scale
        return kernel.astype(jnp.float32) * jnp.repeat(scale, group, axis=0)[: self.in_features]


class QuantizedEmbed(nnx.Module):
    """Table of vectors stored as integers with a scale per row.

    Args:
        num_embeddings: Number of rows.
        features: Width of a row.
        quantization: Whether a product with the table, as of a tied language model head, is one of integers.
        dtype: Dtype of the vectors.
    """

    embedding: nnx.Param
    embedding_scale: nnx.Param

    def __init__(self, num_embeddings: int, features: int, quantization: LayerQuantization, *, dtype: DTypeLike):
        self.num_embeddings, self.features, self.quantization, self.dtype = (
            num_embeddings,
            features,
            quantization,
            dtype,
        )
        for name, parameter in quantized_parameters("/embedding", (num_embeddings, features), quantization).items():
            setattr(self, name.removeprefix("/"), _param(parameter))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Look up ids [...], giving [..., features]."""
        rows, scale = jnp.take(self.embedding[...], ids, axis=0), jnp.take(self.embedding_scale[...], ids, axis=0)
        return (rows.astype(jnp.float32) * jnp.expand_dims(scale, -1)).astype(self.dtype)

    def attend(self, query: jax.Array) -> jax.Array:
        """Multiply [..., features] with the transposed table, giving [..., num_embeddings]."""
        rows = query.reshape(-1, self.features)
        if self.quantization.activations == "dynamic":
            integers, scale = quantize_rows(rows)
            product = int8_product(integers, self.embedding[...], transposed=True) * scale
        else:
            count = len(rows)
            padded = jnp.pad(rows, ((0, max(0, FEWEST_ROWS - count)), (0, 0)))
            table = self.embedding[...].astype(query.dtype)
            axes = ((1,), (1,)), ((), ())
            # In float32, since sums of integers that are not scaled yet overflow float16.
            product = jax.lax.dot_general(padded, table, axes, preferred_element_type=jnp.float32)[:count]
        product = (product * self.embedding_scale[...]).astype(query.dtype)
        return product.reshape(*query.shape[:-1], self.num_embeddings)


def quantize_rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Round activations [T, n] to int8 with one scale float32 [T, 1] per row; as duonlp.quantization.arithmetic does."""
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    is_zero = largest <= SMALLEST
    inverse = jnp.where(is_zero, 0, 127 / jnp.where(is_zero, 1, largest))
    return jnp.clip(jnp.rint(x * inverse), -127, 127).astype(jnp.int8), largest * jnp.float32(1 / 127)


def replace_layers(model: nnx.Module, quantization: QuantizationConfig) -> None:
    """Replace the layers of a new model that a configuration quantizes; their parameters are to be filled.

    Args:
        model: The model; paths of its modules are those of the configuration.
        quantization: Which layers are quantized, and how.
    """
    for path, module in list(nnx.iter_modules(model)):
        layer_quantization = quantization.of("/".join(map(str, path)))
        if layer_quantization is None:
            continue
        parent: Any = model
        for name in path[:-1]:
            parent = getattr(parent, str(name))
        if quantization.simulated:
            simulated: Any = module
            simulated.__class__ = SimulatedLinear if isinstance(module, Linear) else SimulatedEmbed
            simulated.quantization = layer_quantization
        else:
            setattr(parent, str(path[-1]), _quantized(module, layer_quantization))


def _quantized(module: Any, quantization: LayerQuantization) -> QuantizedLinear | QuantizedEmbed:
    if isinstance(module, Linear):
        dtypes: dict[str, Any] = {"dtype": module.dtype, "param_dtype": module.kernel.dtype}
        return QuantizedLinear(
            module.in_features, module.out_features, quantization, use_bias=module.bias is not None, **dtypes
        )  # fmt: skip
    assert isinstance(module, Embed), f"{type(module).__name__} cannot be quantized"
    return QuantizedEmbed(module.num_embeddings, module.features, quantization, dtype=module.dtype)


def _param(parameter: Parameter) -> nnx.Param:
    """Return a parameter of the stored dtype, to be filled."""
    fill = jnp.ones if parameter.init == "ones" else jnp.zeros
    return nnx.Param(fill(parameter.shape, parameter.dtype))
