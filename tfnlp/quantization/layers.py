"""Layers with integer weights, and their place in a model."""

from typing import Any

import keras
import tensorflow as tf

from duonlp.config import LayerQuantization, TransformerConfig
from duonlp.parameters import Parameter, parameters, quantized_parameters
from duonlp.quantization.arithmetic import SMALLEST
from tfnlp.kernels import int8_product
from tfnlp.kernels.choice import island
from tfnlp.quantization.simulated import SimulatedEmbed, SimulatedLinear


class QuantizedLinear(keras.layers.Layer):
    """Linear layer with integer weights: see LayerQuantization for the kinds, and duonlp.quantization for the arithmetic.

    Args:
        in_features: Number of inputs.
        out_features: Number of outputs.
        quantization: How weights are stored and inputs are treated.
        use_bias: Whether there is a bias.
        dtype: Keras dtype policy, of the outputs and the bias, and of the product if only the weights are quantized.
        name: Name of the layer.
    """

    def __init__(
        self, in_features: int, out_features: int, quantization: LayerQuantization, *, use_bias: bool,
        dtype: keras.DTypePolicy, name: str,
    ):  # fmt: skip
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.in_features, self.out_features, self.quantization, self.use_bias = (
            in_features,
            out_features,
            quantization,
            use_bias,
        )

    def build(self, input_shape: Any = None) -> None:
        sizes = self.in_features, self.out_features
        for name, parameter in quantized_parameters("/kernel", sizes, self.quantization).items():
            attribute = name.removeprefix("/")
            setattr(self, "_kernel" if attribute == "kernel" else attribute, _weight(self, attribute, parameter))
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.out_features,), initializer="zeros", trainable=False)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Map [..., in] to [..., out]."""
        rows = tf.reshape(x, [-1, self.in_features])
        if self.quantization.channel_scaled:
            rows = tf.cast(rows, tf.float32) * (1.0 / self.channel_scale.value)
        y = self._weight_only(rows) if self.quantization.activations == "float" else self._integer(rows)
        y = tf.cast(y, self.compute_dtype)
        return y if x.shape.rank == 2 else tf.reshape(y, tf.concat([tf.shape(x)[:-1], [self.out_features]], 0))

    def _integer(self, x: tf.Tensor) -> tf.Tensor:
        """Multiply rows [T, in] in integers and return float32 [T, out], with the bias."""
        if self.quantization.activations == "dynamic":
            integers, scale = _quantize_rows(x)
        else:
            scale = self.input_scale.value
            scaled = tf.clip_by_value(tf.math.rint(tf.cast(x, tf.float32) * (1.0 / scale)), -127.0, 127.0)
            integers = tf.cast(scaled, tf.int8)
        product = int8_product(integers, self._kernel.value)
        bias = tf.cast(self.bias.value, tf.float32) if self.use_bias else tf.zeros([self.out_features])
        return _scaled_product(product, scale, self.kernel_scale.value, bias)

    def _weight_only(self, x: tf.Tensor) -> tf.Tensor:
        """Multiply rows [T, in] with the dequantized kernel in the compute dtype, and add the bias."""
        y = tf.matmul(tf.cast(x, self.compute_dtype), tf.cast(self._dequantized(), self.compute_dtype))
        return y + tf.cast(self.bias.value, y.dtype) if self.use_bias else y

    def _dequantized(self) -> tf.Tensor:
        """Return the kernel float32 [in, out]."""
        kernel, scale, group = self._kernel.value, self.kernel_scale.value, self.quantization.group_size
        if self.quantization.bits == 4:
            pairs = tf.stack([kernel & 15, tf.bitwise.right_shift(kernel, tf.constant(4, tf.uint8))], axis=1)
            kernel = tf.cast(tf.reshape(pairs, [-1, self.out_features])[: self.in_features], tf.int8) - 8
        scale = scale if group is None else tf.repeat(scale, group, axis=0)[: self.in_features]
        return tf.cast(kernel, tf.float32) * scale


class QuantizedEmbed(keras.layers.Layer):
    """Table of vectors stored as integers with a scale per row.

    Args:
        num_embeddings: Number of rows.
        features: Width of a row.
        quantization: Whether a product with the table, as of a tied language model head, is one of integers.
        dtype: Keras dtype policy.
        name: Name of the layer.
    """

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        quantization: LayerQuantization,
        *,
        dtype: keras.DTypePolicy,
        name: str,
    ):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.num_embeddings, self.features, self.quantization = num_embeddings, features, quantization

    def build(self, input_shape: Any = None) -> None:
        sizes = self.num_embeddings, self.features
        for name, parameter in quantized_parameters("/embedding", sizes, self.quantization).items():
            attribute = name.removeprefix("/")
            setattr(self, "_embeddings" if attribute == "embedding" else attribute, _weight(self, attribute, parameter))

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        """Look up ids [...], giving [..., features]."""
        rows, scale = tf.gather(self._embeddings.value, ids), tf.gather(self.embedding_scale.value, ids)
        return tf.cast(tf.cast(rows, tf.float32) * tf.expand_dims(scale, -1), self.compute_dtype)

    def attend(self, query: tf.Tensor) -> tf.Tensor:
        """Multiply [T, features] with the transposed table, giving [T, num_embeddings]."""
        scale = self.embedding_scale.value
        if self.quantization.activations == "dynamic":
            integers, row_scale = quantize_rows(query)
            product = int8_product(integers, self._embeddings.value, transposed=True)
            return tf.cast(_scaled(product, row_scale, scale, 0.0), query.dtype)
        # In float32, since sums of integers that are not scaled yet overflow float16.
        table = tf.cast(self._embeddings.value, tf.float32)
        return tf.cast(tf.matmul(tf.cast(query, tf.float32), table, transpose_b=True) * scale, query.dtype)


def quantize_rows(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Round activations [T, n] to int8 with one scale float32 [T, 1] per row; as duonlp.quantization.arithmetic does."""
    x = tf.cast(x, tf.float32)
    largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
    is_zero = largest <= SMALLEST
    inverse = tf.where(is_zero, 0.0, 127.0 / tf.where(is_zero, 1.0, largest))
    return tf.cast(tf.clip_by_value(tf.math.rint(x * inverse), -127.0, 127.0), tf.int8), largest * (1.0 / 127.0)


def _scaled(product: tf.Tensor, row_scale: tf.Tensor, scale: tf.Tensor, bias: tf.Tensor | float) -> tf.Tensor:
    return product * row_scale * scale + bias


_quantize_rows, _scaled_product = island(quantize_rows), island(_scaled)


def replace_layers(model: Any, cfg: TransformerConfig) -> list[Any]:
    """Replace the layers of a model that its new configuration quantizes; their parameters are to be filled.

    Args:
        model: A model whose layers are not quantized.
        cfg: Its new configuration.

    Returns:
        The new layers, not built yet.
    """
    assert cfg.quantization is not None
    new = []
    for path, parameter in parameters(cfg.replace(quantization=None), model.head).items():
        layer_path, _, leaf = path.rpartition("/")
        quantization = cfg.quantization.of(layer_path) if leaf in ("kernel", "embedding") else None
        if quantization is None:
            continue
        parent, name = model, "output_layer" if layer_path.endswith("/output") else layer_path.rpartition("/")[2]
        for part in layer_path.split("/")[:-1]:
            parent = getattr(parent, part)
        old = getattr(parent, name)
        options: dict[str, Any] = {"dtype": old.dtype_policy, "name": old.name}
        first, last = parameter.shape
        is_simulated = cfg.quantization.simulated
        if leaf == "embedding":
            layer = (SimulatedEmbed if is_simulated else QuantizedEmbed)(first, last, quantization, **options)
        elif is_simulated:
            layer = SimulatedLinear(last, quantization, use_bias=old.use_bias, **options)
        else:
            layer = QuantizedLinear(first, last, quantization, use_bias=old.use_bias, **options)
        was_locked = parent._tracker.locked
        parent._tracker.unlock()
        parent._tracker.untrack(old)
        setattr(parent, name, layer)
        if was_locked:
            parent._tracker.lock()
        new.append(layer)
    return new


def _weight(layer: keras.layers.Layer, name: str, parameter: Parameter) -> keras.Variable:
    """Add a weight of the stored dtype, to be filled."""
    return layer.add_weight(
        name=name,
        shape=parameter.shape,
        initializer=parameter.init,
        dtype=parameter.dtype,
        trainable=False,
        autocast=False,
    )
