"""The layers that heads are made of."""

import keras
import tensorflow as tf

from duonlp.config import LMHeadConfig, PoolingConfig
from tfnlp.layers import ACTIVATIONS, Dropout, LayerNorm, dense, flatten_tokens


class Pooler(keras.layers.Layer):
    """One vector for a sequence, as PoolingConfig says."""

    def __init__(self, config: PoolingConfig, hidden_size: int, *, dtype, name="pooler"):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config, self.hidden_size = config, hidden_size
        self.dropout = Dropout(config.dropout_before, dtype=dtype, name="dropout")
        if config.dense:
            self.dense = dense(hidden_size, "dense", dtype)

    def build(self, input_shape=None):
        if self.config.dense:
            self.dense.build((None, self.hidden_size))

    def call(self, hidden_states, last_index=None, training=None):
        """[B, T, D] -> [B, D]. last_index: int [B], the last real token, or the last that ends a text, where the
        configuration picks one of these."""
        token = self.config.token
        if token == "mean":
            x = tf.reduce_mean(hidden_states, axis=1)
        elif token in ("last_non_padding", "last_eos"):
            x = tf.gather(hidden_states, last_index, axis=1, batch_dims=1)
        else:
            x = hidden_states[:, 0 if token == "first" else -1]
        x = self.dropout(x, training=training)
        return ACTIVATIONS[self.config.activation](self.dense(x) if self.config.dense else x)


class LMHead(keras.layers.Layer):
    """Hidden states to vocabulary logits; a tied head is handed the word table, it shares no variable."""

    def __init__(
        self, config: LMHeadConfig, hidden_size: int, embedding_size: int, vocab_size: int, epsilon: float, *, dtype,
        name="lm_head",
    ):  # fmt: skip
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config, self.sizes = config, (hidden_size, embedding_size, vocab_size)
        if config.transform:
            self.transform = dense(embedding_size, "transform", dtype)
            self.norm = LayerNorm(embedding_size, epsilon, dtype=dtype, name="norm")
        if not config.tied:
            self.output_layer = dense(vocab_size, "output", dtype, bias=False)

    def build(self, input_shape=None):
        hidden_size, embedding_size, vocab_size = self.sizes
        if self.config.transform:
            self.transform.build((None, hidden_size))
            self.norm.build()
        if not self.config.tied:
            self.output_layer.build((None, embedding_size))
        if self.config.bias:
            trained = not self.config.fixed_bias
            self.bias = self.add_weight(name="bias", shape=(vocab_size,), initializer="zeros", trainable=trained)

    def call(self, hidden_states, word_embeddings):
        """[..., D] -> logits [..., V]."""
        x = flatten_tokens(hidden_states)
        x = x * x.shape[-1] ** -0.5 if self.config.scale else x
        if self.config.transform:
            x = self.norm(ACTIVATIONS[self.config.activation](self.transform(x)))
        if not self.config.tied:
            x = self.output_layer(x)
        elif word_embeddings.quantization_mode is not None:
            x = word_embeddings(x, reverse=True)
        else:
            x = tf.matmul(x, tf.cast(word_embeddings.embeddings, x.dtype), transpose_b=True)
        x = x + tf.cast(self.bias, x.dtype) if self.config.bias else x
        return tf.reshape(x, tf.concat([tf.shape(hidden_states)[:-1], [self.sizes[2]]], 0))


class Discriminator(keras.layers.Layer):
    """Was this token replaced? Dense, activation, dense to one logit."""

    def __init__(self, hidden_size: int, activation: str, *, dtype, name="discriminator"):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.hidden_size, self.activation = hidden_size, activation
        self.dense = dense(hidden_size, "dense", dtype)
        self.output_layer = dense(1, "output", dtype)

    def build(self, input_shape=None):
        self.dense.build((None, self.hidden_size))
        self.output_layer.build((None, self.hidden_size))

    def call(self, hidden_states):
        """[B, T, D] -> [B, T]."""
        return self.output_layer(ACTIVATIONS[self.activation](self.dense(hidden_states)))[..., 0]
