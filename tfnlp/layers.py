"""The parts of a transformer layer. Shapes: B batch, T query length, S key length, N heads, H head width, D hidden.

Every part makes its sublayers when it is constructed and their weights in ``build()``, which needs no shapes. Weights
start at zero: heads.Model fills them. ``dtype`` is a Keras dtype policy.
"""

import math

import keras
import tensorflow as tf

from duonlp.config import AttentionConfig, FeedForwardConfig, NormConfig


def gelu(x):
    """0.5 x (1 + erf(x / sqrt 2)), the exact form (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415)."""
    return 0.5 * x * (1.0 + tf.math.erf(x * math.sqrt(0.5)))


def gelu_tanh(x):
    """The tanh approximation of gelu, as GPT-2 has it."""
    return 0.5 * x * (1.0 + tf.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": lambda x: 0.5 * x * (1.0 + tf.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
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
    "hardswish": lambda x: x * tf.nn.relu6(x + 3.0) / 6.0,
    "laplace": lambda x: 0.5 * (1.0 + tf.math.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))),
    "linear": lambda x: x,
}
"""Activations by their Transformers names (duonlp.config.ACTIVATIONS)."""


def dense(size: int, name: str, dtype, bias: bool = True) -> keras.layers.Dense:
    """A plain keras.layers.Dense, so that LoRA and quantisation know it."""
    return keras.layers.Dense(size, use_bias=bias, kernel_initializer="zeros", dtype=dtype, name=name)


def flatten_tokens(x):
    """[..., D] -> [tokens, D]: TensorFlow fuses matmul, bias and activation of matrices, not of batches of them."""
    return tf.reshape(x, [-1, x.shape[-1]])


class Dropout(keras.layers.Dropout):
    """Zero a share ``rate`` of the inputs, to the nearest 2**-16, and scale up the rest so that the mean stays what it is.

    Four decisions of each 64 random bits, where Keras takes 32 bits, made a float, for each: on a CPU those are up to a
    quarter of a training step's time under XLA.
    """

    def call(self, inputs, training=False):
        """Any shape and dtype -> the same."""
        dropped = round(self.rate * 2**16)  # of the 2**16 values that 16 bits take
        if not training or not dropped:
            return inputs
        if dropped == 2**16:
            return tf.zeros_like(inputs)
        seed = tf.cast(
            tf.math.floormod(self.seed_generator.next(), tf.int32.max - 1), tf.int32
        )  # as Keras does, for XLA
        shape = tf.shape(inputs)
        size = tf.reduce_prod(shape)
        words = tf.random.stateless_uniform([(size + 3) // 4], seed, minval=None, maxval=None, dtype=tf.uint64)
        bits = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint16), [-1])[:size], shape)
        keep = tf.greater_equal(bits, tf.constant(dropped, tf.uint16))
        return tf.where(keep, inputs * tf.cast(2**16 / (2**16 - dropped), inputs.dtype), tf.zeros_like(inputs))


class LayerNorm(keras.layers.LayerNormalization):
    """Layer norm over the last axis; mean and variance in float32, the variance as the mean of squared distances."""

    def __init__(self, size: int, epsilon: float, *, dtype, name=None):
        super().__init__(epsilon=epsilon, dtype=dtype, name=name)
        self.size = size

    def build(self, input_shape=None):
        super().build((None, self.size))

    def call(self, inputs):
        """[..., D] -> [..., D]."""
        x = tf.cast(inputs, tf.float32)
        centered = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centered), axis=-1, keepdims=True)
        scale, bias = tf.cast(self.gamma, tf.float32), tf.cast(self.beta, tf.float32)
        # Written in the order that TensorFlow's graph optimiser knows as one layer norm kernel of oneDNN.
        x = bias + centered * (tf.math.rsqrt(variance + self.epsilon) * scale)
        return tf.cast(x, self.compute_dtype)


class RMSNorm(keras.layers.Layer):
    """x over its root mean square, times a scale, in float32 (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    def __init__(self, size: int, epsilon: float, *, dtype, name=None):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.size, self.epsilon = size, epsilon

    def build(self, input_shape=None):
        self.gamma = self.add_weight(name="gamma", shape=(self.size,), initializer="ones")

    def call(self, x):
        """[..., D] -> [..., D]."""
        y = tf.cast(x, tf.float32)
        y = y * tf.math.rsqrt(tf.reduce_mean(tf.square(y), axis=-1, keepdims=True) + self.epsilon)
        return tf.cast(y * tf.cast(self.gamma, tf.float32), self.compute_dtype)


def make_norm(config: NormConfig, size: int, *, dtype, name) -> keras.layers.Layer:
    """The norm that a configuration asks for."""
    return (RMSNorm if config.rms else LayerNorm)(size, config.epsilon, dtype=dtype, name=name)


class Attention(keras.layers.Layer):
    """Multi-head attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), to oneself or to a source."""

    def __init__(self, config: AttentionConfig, hidden_size: int, *, dtype, name="attention"):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config, self.hidden_size, self.inner_size = config, hidden_size, config.num_heads * config.head_dim
        self.query = dense(self.inner_size, "query", dtype, config.bias)
        self.key = dense(self.inner_size, "key", dtype, config.bias)
        self.value = dense(self.inner_size, "value", dtype, config.bias)
        self.output_layer = dense(hidden_size, "output", dtype, config.bias)
        self.dropout = Dropout(config.dropout, dtype=dtype, name="dropout")

    def build(self, input_shape=None):
        for layer in (self.query, self.key, self.value):
            layer.build((None, self.hidden_size))
        self.output_layer.build((None, self.inner_size))

    def call(self, hidden_states, bias, layer_index=0, cache=None, cache_index=None, training=None):
        """Attend from every position of hidden_states to all keys.

        Args:
            hidden_states: [B, T, D].
            bias: float32, added to the scores, broadcastable to [B, N, T, S]; large and negative where not to look.
            layer_index: which step of the stack this is, from 0.
            cache: {"key": [B, N, H, S], "value": [B, N, S, H]} of earlier positions, or None. Keys lie so that a product
                with few queries reads them in order.
            cache_index: where in S this call's keys go. None: nowhere, for the cache holds all there are, those of a source
                (:meth:`keys_and_values`).

        Returns:
            output [B, T, D], probabilities [B, N, T, S], the cache with this call's keys and values.
        """
        c = self.config
        tokens, shape = flatten_tokens(hidden_states), tf.shape(hidden_states)
        query = self._heads(self.query(tokens), shape)  # [B, N, T, H]
        if cache is not None and cache_index is None:
            key, value = cache["key"], cache["value"]
        else:
            key, value = self._heads(self.key(tokens), shape), self._heads(self.value(tokens), shape)
        if cache is not None and cache_index is not None:
            key = tf.transpose(key, [0, 1, 3, 2])  # [B, N, H, T]
            cache = {
                name: keras.ops.slice_update(cache[name], start, tf.cast(new, cache[name].dtype))
                for name, new, start in (
                    ("key", key, (0, 0, 0, cache_index)),
                    ("value", value, (0, 0, cache_index, 0)),
                )
            }
            key, value = cache["key"], cache["value"]
        scale = c.head_dim**-0.5 if c.scale_by_head_dim else 1.0
        scale = scale / (layer_index + 1) if c.scale_by_layer else scale
        if c.float32_scores or query.dtype == tf.float16:  # a sum of float16 products may pass 65504
            query, key = tf.cast(query, tf.float32), tf.cast(key, tf.float32)
        scores = tf.cast(tf.matmul(query * scale, key, transpose_b=cache is None), tf.float32)  # [B, N, T, S]
        probabilities = tf.cast(tf.nn.softmax(scores + bias, axis=-1), value.dtype)
        dropped = self.dropout(probabilities, training=training)
        context = tf.transpose(tf.matmul(dropped, value), [0, 2, 1, 3])  # [B, T, N, H]
        output = self.output_layer(tf.reshape(context, [-1, self.inner_size]))
        return tf.reshape(output, shape), probabilities, cache

    def keys_and_values(self, source):
        """A source [B, S, D] as it is attended to, once for all queries: {"key": [B, N, H, S], "value": [B, N, S, H]}."""
        tokens, shape = flatten_tokens(source), tf.shape(source)
        key = tf.transpose(self._heads(self.key(tokens), shape), [0, 1, 3, 2])
        return {"key": key, "value": self._heads(self.value(tokens), shape)}

    def _heads(self, x, shape):
        """[B * T, N * H] -> [B, N, T, H]."""
        return tf.transpose(tf.reshape(x, [-1, shape[1], self.config.num_heads, self.config.head_dim]), [0, 2, 1, 3])


class FeedForward(keras.layers.Layer):
    """Dense, activation, dense; gated where the configuration says so (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: FeedForwardConfig, hidden_size: int, *, dtype, name="feed_forward"):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config, self.hidden_size = config, hidden_size
        if config.gated:
            self.gate = dense(config.size, "gate", dtype, config.bias)
        self.up = dense(config.size, "up", dtype, config.bias)
        self.down = dense(hidden_size, "down", dtype, config.bias)
        self.dropout = Dropout(config.dropout, dtype=dtype, name="dropout")

    def build(self, input_shape=None):
        for layer in (self.gate, self.up) if self.config.gated else (self.up,):
            layer.build((None, self.hidden_size))
        self.down.build((None, self.config.size))

    def call(self, hidden_states, training=None):
        """[B, T, D] -> [B, T, D]."""
        tokens, activation = flatten_tokens(hidden_states), ACTIVATIONS[self.config.activation]
        x = self.up(tokens)
        x = activation(self.gate(tokens)) * x if self.config.gated else activation(x)
        x = self.down(self.dropout(x, training=training))
        return tf.reshape(x, tf.shape(hidden_states))
