"""Building blocks of a transformer layer.

Shapes: B batch, T query length, S key length, N heads, K key-value heads, H head width, D hidden.

Layers create their sublayers in ``__init__`` and their weights in ``build()``, which needs no shapes. Weights
start at zero, and model.Model fills them. ``dtype`` is a Keras dtype policy.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from duonlp.config import AttentionConfig, NormConfig, RotaryConfig
from duonlp.dtypes import FLOAT16_BOUND
from tfnlp import ops

KeyValues: TypeAlias = dict[str, tf.Tensor]
"""Keys and values of one layer: {"key": [B, K, H, S], "value": [B, K, S, H]}.

Keys are stored transposed, so that the product with a few queries reads them contiguously.
"""

Rotation: TypeAlias = tuple[tf.Tensor, tf.Tensor]
"""Cosines and sines of the angles by which queries and keys are rotated: float32 [B or 1, T, rotary size / 2] each."""


def gelu(x: tf.Tensor) -> tf.Tensor:
    """Apply exact gelu, 0.5 x (1 + erf(x / sqrt 2)) (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415)."""
    if x.dtype == tf.float16:  # in which 1 + erf(x) has few digits for negative x
        return 0.5 * x * tf.math.erfc(x * -math.sqrt(0.5))
    return 0.5 * x * (1.0 + tf.math.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: tf.Tensor) -> tf.Tensor:
    """Apply the tanh approximation of gelu that GPT-2 uses."""
    if x.dtype == tf.float16:  # in which 1 + tanh(x) has few digits for negative x
        y = tf.clip_by_value(x, -64.0, 64.0)  # beyond, the sigmoid is 0 or 1, and squares overflow
        return x * tf.sigmoid(y * (2 * math.sqrt(2 / math.pi) * (1.0 + 0.044715 * y * y)))
    return 0.5 * x * (1.0 + tf.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_10": lambda x: tf.clip_by_value(gelu(x), -10.0, 10.0),
    "quick_gelu": lambda x: x * tf.sigmoid(1.702 * x),
    "relu": tf.nn.relu,
    "relu2": lambda x: tf.square(tf.nn.relu(x)),
    "relu6": tf.nn.relu6,
    "silu": tf.nn.silu,
    "mish": lambda x: x * tf.tanh(tf.math.softplus(x)),
    "sigmoid": tf.sigmoid,
    "tanh": tf.tanh,
    "leaky_relu": lambda x: tf.nn.leaky_relu(x, alpha=0.01),
    "hardswish": lambda x: x * (tf.nn.relu6(x + 3.0) / 6.0),
    "laplace": lambda x: 0.5 * (1.0 + tf.math.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))),
    "linear": lambda x: x,
}
"""Activations by their Transformers names, see duonlp.config.ACTIVATIONS."""


def dense(size: int, name: str, dtype: keras.DTypePolicy, bias: bool = True) -> keras.layers.Dense:
    """Create a plain keras.layers.Dense, which Keras' LoRA and quantization recognize."""
    return keras.layers.Dense(size, use_bias=bias, kernel_initializer="zeros", dtype=dtype, name=name)


class Embed(keras.layers.ReversibleEmbedding):
    """Table of vectors, with which a tied language model head multiplies as well."""

    def attend(self, query: tf.Tensor) -> tf.Tensor:
        """Multiply [T, features] with the transposed table, giving [T, num_embeddings]."""
        if self.quantization_mode is not None:
            return self(query, reverse=True)
        return tf.matmul(query, tf.cast(self.embeddings, query.dtype), transpose_b=True)


def clamp(x: tf.Tensor) -> tf.Tensor:
    """Clamp float16 values to FLOAT16_BOUND; return other dtypes unchanged."""
    return tf.clip_by_value(x, -FLOAT16_BOUND, FLOAT16_BOUND) if x.dtype == tf.float16 else x


def flatten_tokens(x: tf.Tensor) -> tf.Tensor:
    """Reshape [..., D] to [tokens, D]: TensorFlow fuses matmul, bias and activation for matrices only."""
    return tf.reshape(x, [-1, x.shape[-1]])


class Dropout(keras.layers.Dropout):
    """Zero a fraction ``rate`` of the inputs, rounded to 2**-16, and scale up the rest to preserve the mean.

    Draws 16 random bits per element, where Keras draws 32 and converts them to floats. On a CPU, Keras' way
    takes up to a quarter of a training step under XLA.
    """

    def __init__(self, rate: float, **options: Any):
        # Keras would cast float32 inputs of a float16 model, which may exceed 65504.
        super().__init__(rate, autocast=False, **options)

    def call(self, inputs: tf.Tensor, training: bool | None = False) -> tf.Tensor:
        """Apply dropout to inputs of any shape and dtype."""
        dropped = round(self.rate * 2**16)  # of the 2**16 values of 16 bits
        if not training or not dropped:
            return inputs
        if dropped == 2**16:
            return tf.zeros_like(inputs)
        # Like Keras, since XLA needs an int32 seed.
        seed = tf.cast(tf.math.floormod(self.seed_generator.next(), tf.int32.max - 1), tf.int32)
        shape = tf.shape(inputs)
        size = tf.reduce_prod(shape)
        words = tf.random.stateless_uniform([(size + 3) // 4], seed, minval=None, maxval=None, dtype=tf.uint64)
        bits = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint16), [-1])[:size], shape)
        keep = tf.greater_equal(bits, tf.constant(dropped, tf.uint16))
        return tf.where(keep, inputs * tf.cast(2**16 / (2**16 - dropped), inputs.dtype), tf.zeros_like(inputs))


class LayerNorm(keras.layers.LayerNormalization):
    """Layer norm over the last axis, with statistics in float32 and the variance from centered values."""

    def __init__(
        self, size: int, epsilon: float, *, bias: bool = True, dtype: keras.DTypePolicy, name: str | None = None
    ):
        # Without autocast, the parameters stay in float32, and so do inputs that float16 cannot hold.
        super().__init__(epsilon=epsilon, center=bias, dtype=dtype, name=name, autocast=False)
        self.size = size

    def build(self, input_shape: Any = None) -> None:
        super().build((None, self.size))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalize [..., D] over the last axis."""
        x = tf.cast(inputs, tf.float32)
        centered = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centered), axis=-1, keepdims=True)
        # In the order that TensorFlow's graph optimizer recognizes as layer norm and replaces with one oneDNN
        # kernel.
        x = centered * (tf.math.rsqrt(variance + self.epsilon) * tf.cast(self.gamma, tf.float32))
        x = tf.cast(self.beta, tf.float32) + x if self.center else x
        return tf.cast(x, self.compute_dtype)


class RMSNorm(keras.layers.Layer):
    """RMS norm over the last axis, in float32 (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467).

    With ``unit_offset``, it multiplies by 1 + scale (Gemma).
    """

    def __init__(
        self, size: int, epsilon: float, *, unit_offset: bool = False, dtype: keras.DTypePolicy, name: str | None = None
    ):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.size, self.epsilon, self.unit_offset = size, epsilon, unit_offset

    def build(self, input_shape: Any = None) -> None:
        initializer = "zeros" if self.unit_offset else "ones"
        self.gamma = self.add_weight(name="gamma", shape=(self.size,), initializer=initializer)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Normalize [..., D] over the last axis."""
        y, scale = tf.cast(x, tf.float32), tf.cast(self.gamma, tf.float32)
        y = y * tf.math.rsqrt(tf.reduce_mean(tf.square(y), axis=-1, keepdims=True) + self.epsilon)
        return tf.cast(y * (1.0 + scale if self.unit_offset else scale), self.compute_dtype)


def make_norm(config: NormConfig, size: int, *, dtype: keras.DTypePolicy, name: str) -> LayerNorm | RMSNorm:
    """Create the norm layer of a configuration."""
    if config.rms:
        return RMSNorm(size, config.epsilon, unit_offset=config.unit_offset, dtype=dtype, name=name)
    return LayerNorm(size, config.epsilon, bias=config.bias, dtype=dtype, name=name)


def rotate(x: tf.Tensor, rotation: Rotation, config: RotaryConfig) -> tf.Tensor:
    """Rotate the first dimensions of heads [B, N, T, H] in pairs (Su et al. 2021, https://arxiv.org/abs/2104.09864).

    Args:
        x: Queries or keys.
        rotation: Cosines and sines of the angles.
        config: Number of rotated dimensions, and whether a pair is two neighbors or half of them apart.
    """
    cos, sin = (tf.expand_dims(table, 1) for table in rotation)  # [B or 1, 1, T, size / 2]
    half, interleaved = config.size // 2, config.interleaved
    y, rest = tf.cast(x[..., : 2 * half], tf.float32), x[..., 2 * half :]
    first, second = (y[..., ::2], y[..., 1::2]) if interleaved else (y[..., :half], y[..., half:])
    pair = first * cos - second * sin, second * cos + first * sin
    y = tf.reshape(tf.stack(pair, axis=-1), tf.shape(y)) if interleaved else tf.concat(pair, axis=-1)
    return tf.concat([tf.cast(y, x.dtype), rest], axis=-1) if rest.shape[-1] else tf.cast(y, x.dtype)


class Attention(keras.layers.Layer):
    """Multi-head self-attention or cross-attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

    Queries may share key-value heads (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245).
    """

    def __init__(self, config: AttentionConfig, hidden_size: int, *, dtype: keras.DTypePolicy, name: str = "attention"):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config, self.hidden_size = config, hidden_size
        c = config
        self.query = dense(c.size, "query", dtype, c.has_bias("query"))
        self.key = dense(c.kv_size, "key", dtype, c.has_bias("key"))
        self.value = dense(c.kv_size, "value", dtype, c.has_bias("value"))
        self.output_layer = dense(hidden_size, "output", dtype, c.has_bias("output"))
        self.dropout = Dropout(c.dropout, dtype=dtype, name="dropout")
        if c.output_dropout:
            self.output_dropout = Dropout(c.output_dropout, dtype=dtype, name="output_dropout")
        if c.qk_norm is not None:
            sizes = (c.size, c.kv_size) if c.qk_norm_over_heads else (c.head_dim, c.head_dim)
            self.query_norm = make_norm(c.qk_norm, sizes[0], dtype=dtype, name="query_norm")
            self.key_norm = make_norm(c.qk_norm, sizes[1], dtype=dtype, name="key_norm")

    def build(self, input_shape: Any = None) -> None:
        for layer in (self.query, self.key, self.value):
            layer.build((None, self.hidden_size))
        self.output_layer.build((None, self.config.size))
        if self.config.qk_norm is not None:
            self.query_norm.build()
            self.key_norm.build()

    def call(
        self, hidden_states: tf.Tensor, bias: tf.Tensor, rotation: Rotation | None = None, layer_index: int = 0,
        cache: KeyValues | None = None, cache_index: int | tf.Tensor | None = None, training: bool | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, KeyValues | None]:  # fmt: skip
        """Attend from each position of hidden_states to all keys.

        Args:
            hidden_states: [B, T, D].
            bias: Bias of the scores, float32, broadcastable to [B, N, T, S]; large and negative for masked
                keys.
            rotation: Rotation of queries and keys by their positions; required if the configuration has one.
            layer_index: Step of the stack, from 0.
            cache: Keys and values of earlier positions, or None.
            cache_index: Slot on the S axis for this call's keys and values. None with a cache means
                cross-attention: the cache already holds all keys and values, those of the source (see
                :meth:`keys_and_values`).
            training: Whether to apply dropout.

        Returns:
            Output [B, T, D], probabilities [B, N, T, S], and the cache updated with this call's keys and
            values.
        """
        c = self.config
        tokens, shape = flatten_tokens(hidden_states), tf.shape(hidden_states)
        query = self._heads(self.query(tokens), shape, "query")  # [B, N, T, H]
        if cache is not None and cache_index is None:
            key, value = cache["key"], cache["value"]
        else:
            key, value = self._heads(self.key(tokens), shape, "key"), self._heads(self.value(tokens), shape, "value")
            if c.rotary is not None:
                assert rotation is not None, "rotary attention needs the positions"
                query, key = (rotate(x, rotation, c.rotary) for x in (query, key))
        if cache is not None and cache_index is not None:
            key = tf.transpose(key, [0, 1, 3, 2])  # [B, K, H, T]
            cache = {
                name: ops.update(cache[name], tf.cast(new, cache[name].dtype), start)
                for name, new, start in (
                    ("key", key, (0, 0, 0, cache_index)),
                    ("value", value, (0, 0, cache_index, 0)),
                )
            }
            key, value = cache["key"], cache["value"]
        scale = c.head_dim**-0.5 if c.scale_by_head_dim else 1.0
        scale = scale / (layer_index + 1) if c.scale_by_layer else scale
        if c.float32_scores or query.dtype == tf.float16:  # sums of products overflow in float16
            query, key = tf.cast(query, tf.float32), tf.cast(key, tf.float32)
        scores = tf.matmul(self._grouped(query * scale), key, transpose_b=cache is None)
        scores = tf.cast(self._ungrouped(scores, shape[1]), tf.float32)  # [B, N, T, S]
        scores = scores if c.softcap is None else c.softcap * tf.tanh(scores * (1 / c.softcap))
        probabilities = tf.cast(tf.nn.softmax(scores + bias, axis=-1), value.dtype)
        dropped = self._grouped(self.dropout(probabilities, training=training))
        context = self._ungrouped(tf.matmul(dropped, value), shape[1])
        context = tf.transpose(context, [0, 2, 1, 3]) if c.num_heads > 1 else context  # [B, T, N, H]
        output = self.output_layer(tf.reshape(context, [-1, c.size]))
        output = self.output_dropout(output, training=training) if c.output_dropout else output
        return tf.reshape(output, shape), probabilities, cache

    def keys_and_values(self, source: tf.Tensor) -> KeyValues:
        """Project a source [B, S, D] to keys and values once, for all queries to come."""
        tokens, shape = flatten_tokens(source), tf.shape(source)
        key = tf.transpose(self._heads(self.key(tokens), shape, "key"), [0, 1, 3, 2])
        return {"key": key, "value": self._heads(self.value(tokens), shape, "value")}

    def _heads(self, x: tf.Tensor, shape: tf.Tensor, part: str) -> tf.Tensor:
        """Split the "query", "key" or "value" [B * T, N * H] into heads [B, N, T, H], with its norm if it has one.

        ``shape`` is [B, T, D].
        """
        c, norm = self.config, getattr(self, f"{part}_norm", None)
        x = norm(x) if norm is not None and c.qk_norm_over_heads else x
        heads = c.num_heads if part == "query" else c.kv_heads
        # A single head needs no transposition, which tf2onnx would turn into a wrong reshape.
        x = tf.reshape(x, [-1, 1, shape[1], c.head_dim] if heads == 1 else [-1, shape[1], heads, c.head_dim])
        x = x if norm is None or c.qk_norm_over_heads else norm(x)
        return x if heads == 1 else tf.transpose(x, [0, 2, 1, 3])

    def _grouped(self, x: tf.Tensor) -> tf.Tensor:
        """Reshape [B, N, T, X] to [B, K, N / K * T, X]: queries that share a key-value head become rows of one matrix."""
        if self.config.kv_heads == self.config.num_heads:
            return x
        shape = tf.shape(x)
        rows = shape[2] * (self.config.num_heads // self.config.kv_heads)
        return tf.reshape(x, [-1, self.config.kv_heads, rows, shape[3]])

    def _ungrouped(self, x: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        """Invert :meth:`_grouped` for ``length`` T."""
        if self.config.kv_heads == self.config.num_heads:
            return x
        return tf.reshape(x, [-1, self.config.num_heads, length, tf.shape(x)[3]])
