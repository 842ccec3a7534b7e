"""The parts of a transformer layer. Shapes: B batch, T query length, S key length, N heads, H head width, D hidden.

Every part makes its sublayers when it is constructed and their weights in ``build()``, which needs no shapes. Weights
start at zero: heads.Model fills them. ``dtype`` is a Keras dtype policy.
"""

import math

import keras
import tensorflow as tf

from shared.config import AttentionConfig, EmbeddingConfig, FeedForwardConfig, NormConfig


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
"""Activations by their Transformers names (shared.config.ACTIVATIONS)."""


def dense(size: int, name: str, dtype, bias: bool = True) -> keras.layers.Dense:
    """A plain keras.layers.Dense, so that LoRA and quantisation know it."""
    return keras.layers.Dense(size, use_bias=bias, kernel_initializer="zeros", dtype=dtype, name=name)


def flatten_tokens(x):
    """[..., D] -> [tokens, D]: TensorFlow fuses matmul, bias and activation of matrices, not of batches of them."""
    return tf.reshape(x, [-1, x.shape[-1]])


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


class Embeddings(keras.layers.Layer):
    """ids -> vectors: words + token types + positions, norm, dropout, projection to the hidden size."""

    def __init__(
        self, config: EmbeddingConfig, hidden_size: int, norm: NormConfig, *, dtype, name="embeddings"
    ):  # fmt: skip
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config, self.hidden_size = config, hidden_size
        options = {"embeddings_initializer": "zeros", "dtype": dtype}
        # Reversible: a tied language model head multiplies with the same table.
        self.word_embeddings = keras.layers.ReversibleEmbedding(
            config.vocab_size, config.size, name="word_embeddings", **options
        )
        self.position_embeddings = keras.layers.Embedding(
            config.max_positions, config.size, name="position_embeddings", **options
        )
        if config.type_vocab_size:
            self.token_type_embeddings = keras.layers.Embedding(
                config.type_vocab_size, config.size, name="token_type_embeddings", **options
            )
        if config.norm:
            self.norm = LayerNorm(config.size, norm.epsilon, dtype=dtype, name="norm")
        self.dropout = keras.layers.Dropout(config.dropout, dtype=dtype, name="dropout")
        if config.projection:
            self.projection = dense(hidden_size, "projection", dtype)

    def build(self, input_shape=None):
        self.word_embeddings.build()
        self.position_embeddings.build()
        if self.config.type_vocab_size:
            self.token_type_embeddings.build()
        if self.config.norm:
            self.norm.build()
        if self.config.projection:
            self.projection.build((None, self.config.size))

    def call(self, input_ids, token_type_ids, position_ids, training=None):
        """input_ids, token_type_ids (or None), position_ids: int [B, T] -> [B, T, D]."""
        x = self._lookup(self.word_embeddings, input_ids)
        if self.config.type_vocab_size:
            types = tf.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + self.token_type_embeddings(types)
        positions = self.position_embeddings
        skip = self.config.positions_skip_padding
        x = x + (self._lookup(positions, position_ids) if skip else positions(position_ids))
        if self.config.token_types_from_words and token_type_ids is not None:
            x = x + self._lookup(self.word_embeddings, token_type_ids)
        if self.config.norm:
            x = self.norm(x)
        x = self.dropout(x, training=training)
        return self.projection(x) if self.config.projection else x

    def _lookup(self, table, ids):
        """A lookup that sends no gradient to the padding row, as torch's padding_idx."""
        vectors = table(ids)
        if self.config.padding_id is None:
            return vectors
        is_padding = tf.expand_dims(tf.equal(ids, self.config.padding_id), -1)
        return tf.where(is_padding, tf.stop_gradient(vectors), vectors)


class Attention(keras.layers.Layer):
    """Multi-head attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762)."""

    def __init__(self, config: AttentionConfig, hidden_size: int, *, dtype, name="attention"):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config, self.hidden_size = config, hidden_size
        self.query = dense(hidden_size, "query", dtype, config.bias)
        self.key = dense(hidden_size, "key", dtype, config.bias)
        self.value = dense(hidden_size, "value", dtype, config.bias)
        self.output_layer = dense(hidden_size, "output", dtype, config.bias)
        self.dropout = keras.layers.Dropout(config.dropout, dtype=dtype, name="dropout")

    def build(self, input_shape=None):
        for layer in (self.query, self.key, self.value, self.output_layer):
            layer.build((None, self.hidden_size))

    def call(self, hidden_states, bias, layer_index=0, cache=None, cache_index=None, training=None):
        """Attend from every position of hidden_states to all keys.

        Args:
            hidden_states: [B, T, D].
            bias: float32, added to the scores, broadcastable to [B, N, T, S]; large and negative where not to look.
            layer_index: which step of the stack this is, from 0.
            cache: {"key": [B, N, H, S], "value": [B, N, S, H]} of earlier positions, or None. Keys lie so that a product
                with few queries reads them in order.
            cache_index: where in S this call's keys go.

        Returns:
            output [B, T, D], probabilities [B, N, T, S], the cache with this call's keys and values.
        """
        c = self.config
        tokens, shape = flatten_tokens(hidden_states), tf.shape(hidden_states)
        query, key, value = (
            self._heads(layer(tokens), shape) for layer in (self.query, self.key, self.value)
        )  # [B, N, T, H]
        if cache is not None:
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
        output = self.output_layer(tf.reshape(context, [-1, self.hidden_size]))
        return tf.reshape(output, shape), probabilities, cache

    def _heads(self, x, shape):
        """[B * T, D] -> [B, N, T, H]."""
        return tf.transpose(tf.reshape(x, [-1, shape[1], self.config.num_heads, self.config.head_dim]), [0, 2, 1, 3])


class FeedForward(keras.layers.Layer):
    """Dense, activation, dense."""

    def __init__(self, config: FeedForwardConfig, hidden_size: int, *, dtype, name="feed_forward"):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config, self.hidden_size = config, hidden_size
        self.up = dense(config.size, "up", dtype, config.bias)
        self.down = dense(hidden_size, "down", dtype, config.bias)

    def build(self, input_shape=None):
        self.up.build((None, self.hidden_size))
        self.down.build((None, self.config.size))

    def call(self, hidden_states):
        """[B, T, D] -> [B, T, D]."""
        x = self.down(ACTIVATIONS[self.config.activation](self.up(flatten_tokens(hidden_states))))
        return tf.reshape(x, tf.shape(hidden_states))
