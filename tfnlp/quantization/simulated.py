"""Layers that round their weights and inputs in each forward pass, for quantization-aware training.

Rounding has no useful gradient, so it passes gradients on unchanged: the straight-through estimator of Bengio et al. 2013
(https://arxiv.org/abs/1308.3432), as Jacob et al. 2018 (https://arxiv.org/abs/1712.05877) train. Scales are constants for the
gradient. They cover the largest magnitude, so that no value is clipped, except those of static activations, which were calibrated
before the training: values beyond have no gradient.
"""

from typing import Any

import keras
import tensorflow as tf

from duonlp.config import LayerQuantization
from duonlp.quantization.arithmetic import SMALLEST
from tfnlp.layers import Embed


class SimulatedLinear(keras.layers.Dense):
    """Linear layer with floating-point parameters that computes what the quantized layer will.

    Args:
        out_features: Number of outputs.
        quantization: How the layer is to be quantized.
        options: Options of keras.layers.Dense.
    """

    def __init__(self, out_features: int, quantization: LayerQuantization, **options: Any):
        # Without autocast, the kernel is rounded in float32, as that of the quantized layer is.
        super().__init__(out_features, kernel_initializer="zeros", autocast=False, **options)
        self.quantization = quantization

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Map [..., in] to [..., out]."""
        kernel = tf.cast(round_kernel(self.kernel, self.quantization), self.compute_dtype)  # with the update of LoRA
        rows = round_inputs(tf.reshape(inputs, [-1, inputs.shape[-1]]), self.quantization)
        y = tf.matmul(tf.cast(rows, kernel.dtype), kernel)
        y = y + tf.cast(self.bias, y.dtype) if self.use_bias else y
        return y if inputs.shape.rank == 2 else tf.reshape(y, tf.concat([tf.shape(inputs)[:-1], [self.units]], 0))


class SimulatedEmbed(Embed):
    """Table with floating-point rows that are rounded when they are used.

    Args:
        num_embeddings: Number of rows.
        features: Width of a row.
        quantization: How the table is to be quantized.
        options: Options of keras.layers.Embedding.
    """

    def __init__(self, num_embeddings: int, features: int, quantization: LayerQuantization, **options: Any):
        super().__init__(num_embeddings, features, embeddings_initializer="zeros", autocast=False, **options)
        self.quantization = quantization

    def call(self, inputs: tf.Tensor, reverse: bool = False) -> tf.Tensor:
        """Look up ids [...], giving [..., features]."""
        return tf.cast(round_rows(tf.gather(self.embeddings, inputs)), self.compute_dtype)

    def attend(self, query: tf.Tensor) -> tf.Tensor:
        """Multiply [T, features] with the transposed table, giving [T, num_embeddings]."""
        query = round_inputs(query, self.quantization)
        return tf.matmul(query, tf.cast(round_rows(self.embeddings), query.dtype), transpose_b=True)


def round_inputs(x: tf.Tensor, quantization: LayerQuantization) -> tf.Tensor:
    """Round the inputs x [..., n] of a layer as the quantized layer will, in x's dtype."""
    if quantization.activations == "float":
        return x
    if quantization.activations == "dynamic":
        return round_rows(x)
    scale = tf.constant(quantization.input_scale, tf.float32)
    clipped = tf.clip_by_value(tf.cast(x, tf.float32), -127.0 * scale, 127.0 * scale)
    return tf.cast(_straight_through(clipped, tf.math.rint(clipped * (1.0 / scale)) * scale), x.dtype)


def round_rows(x: tf.Tensor) -> tf.Tensor:
    """Round the rows of x [..., n] to 8 bits with one scale per row, in x's dtype."""
    wide = tf.cast(x, tf.float32)
    return _straight_through(x, _rounded(wide, tf.reduce_max(tf.abs(wide), axis=-1, keepdims=True), 127, -127))


def round_kernel(kernel: Any, quantization: LayerQuantization) -> tf.Tensor:
    """Round a kernel [in, out] to its bits with one scale per output, or per output and group of inputs."""
    kernel = tf.convert_to_tensor(kernel)
    wide, (size, outputs) = tf.cast(kernel, tf.float32), (int(length or 0) for length in kernel.shape)
    group = quantization.group_size or size
    padded = tf.reshape(tf.pad(wide, [[0, -size % group], [0, 0]]), [-1, group, outputs])
    high, low = (127, -127) if quantization.bits == 8 else (7, -8)
    rounded = _rounded(padded, tf.reduce_max(tf.abs(padded), axis=1, keepdims=True), high, low)
    return _straight_through(kernel, tf.reshape(rounded, [-1, outputs])[:size])


def _rounded(x: tf.Tensor, largest: tf.Tensor, high: int, low: int) -> tf.Tensor:
    scale = tf.where(largest > SMALLEST, largest / high, 1.0)
    return tf.clip_by_value(tf.math.rint(x / scale), low, high) * scale


def _straight_through(x: tf.Tensor, rounded: tf.Tensor) -> tf.Tensor:
    """Return the rounded values, with the gradient of x."""
    return x + tf.stop_gradient(tf.cast(rounded, x.dtype) - x)
