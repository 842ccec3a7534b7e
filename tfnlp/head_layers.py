"""Layers used by the heads."""

from typing import Any

import keras
import tensorflow as tf

from duonlp.config import LMHeadConfig, NormConfig, PoolingConfig
from duonlp.dtypes import without_float16
from tfnlp.layers import ACTIVATIONS, Dropout, Embed, dense, flatten_tokens, make_norm


class Pooler(keras.layers.Layer):
    """Pool the hidden states of a sequence into one vector; PoolingConfig says how."""

    def __init__(
        self,
        config: PoolingConfig,
        hidden_size: int,
        norm: NormConfig,
        *,
        dtype: keras.DTypePolicy,
        name: str = "pooler",
    ):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config, self.hidden_size = config, hidden_size
        self.dropout = Dropout(config.dropout_before, dtype=dtype, name="dropout")
        if config.dense:
            self.dense = dense(config.size or hidden_size, "dense", dtype, config.dense_bias)
        if config.norm:
            self.norm = make_norm(norm, hidden_size, dtype=dtype, name="norm")

    def build(self, input_shape: Any = None) -> None:
        if self.config.dense:
            self.dense.build((None, self.hidden_size))
        if self.config.norm:
            self.norm.build()

    def call(
        self, hidden_states: tf.Tensor, last_index: tf.Tensor | None = None, attention_mask: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:  # fmt: skip
        """Pool [B, T, D] into [B, D]; or, where ``config.token`` is "all", transform [B, T, D].

        Args:
            hidden_states: [B, T, D].
            last_index: int [B], index of the last real token or of the last end-of-text token. Required where
                ``config.token`` is "last_non_padding" or "last_eos".
            attention_mask: [B, T], 1 on the real tokens, which are averaged where ``config.token`` is "mean"; None
                if all are real.
            training: Whether to apply dropout.
        """
        token = self.config.token
        if token == "all":
            x = hidden_states
        elif token in ("mean", "mean_with_padding"):
            wide = tf.cast(hidden_states, without_float16(hidden_states.dtype))  # the sum may exceed 65504
            if token == "mean" and attention_mask is not None:
                mask = tf.expand_dims(tf.cast(tf.not_equal(attention_mask, 0), wide.dtype), -1)  # [B, T, 1]
                mean = tf.reduce_sum(wide * mask, axis=1) / tf.maximum(tf.reduce_sum(mask, axis=1), 1)
            else:
                mean = tf.reduce_mean(wide, axis=1)
            x = tf.cast(mean, hidden_states.dtype)
        elif token in ("last_non_padding", "last_eos"):
            assert last_index is not None, f"pooling {token!r} needs last_index"
            x = tf.gather(hidden_states, last_index, axis=1, batch_dims=1)
        else:
            x = hidden_states[:, 0 if token == "first" else -1]
        x = self.dropout(x, training=training)
        x = ACTIVATIONS[self.config.activation](self.dense(x) if self.config.dense else x)
        return self.norm(x) if self.config.norm else x


class LMHead(keras.layers.Layer):
    """Language modeling head: map hidden states to vocabulary logits.

    A tied head is passed the word table in each call; it holds no reference to it.
    """

    def __init__(
        self, config: LMHeadConfig, hidden_size: int, embedding_size: int, vocab_size: int, norm: NormConfig, *,
        dtype: keras.DTypePolicy, name: str = "lm_head",
    ):  # fmt: skip
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config, self.sizes = config, (hidden_size, embedding_size, vocab_size)
        if config.transform:
            self.transform = dense(embedding_size, "transform", dtype, config.transform_bias)
            self.norm = make_norm(norm, embedding_size, dtype=dtype, name="norm")
        if not config.tied:
            self.output_layer = dense(vocab_size, "output", dtype, bias=False)

    def build(self, input_shape: Any = None) -> None:
        hidden_size, embedding_size, vocab_size = self.sizes
        if self.config.transform:
            self.transform.build((None, hidden_size))
            self.norm.build()
        if not self.config.tied:
            self.output_layer.build((None, embedding_size))
        if self.config.bias:
            is_trainable = not self.config.fixed_bias
            self.bias = self.add_weight(name="bias", shape=(vocab_size,), initializer="zeros", trainable=is_trainable)

    def call(self, hidden_states: tf.Tensor, word_embeddings: Embed) -> tf.Tensor:
        """Map hidden states [..., D] to logits [..., V]; a tied head multiplies with ``word_embeddings``."""
        x = flatten_tokens(hidden_states)
        x = x * self.sizes[0] ** -0.5 if self.config.scale else x
        if self.config.transform:
            x = self.norm(ACTIVATIONS[self.config.activation](self.transform(x)))
        if not self.config.tied:
            x = self.output_layer(x)
        else:
            x = word_embeddings.attend(x)
        x = x + tf.cast(self.bias, x.dtype) if self.config.bias else x
        return tf.reshape(x, tf.concat([tf.shape(hidden_states)[:-1], [self.sizes[2]]], 0))


class Discriminator(keras.layers.Layer):
    """ELECTRA's head, which scores whether each token was replaced: dense, activation, dense to one logit."""

    def __init__(self, hidden_size: int, activation: str, *, dtype: keras.DTypePolicy, name: str = "discriminator"):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.hidden_size, self.activation = hidden_size, activation
        self.dense = dense(hidden_size, "dense", dtype)
        self.output_layer = dense(1, "output", dtype)

    def build(self, input_shape: Any = None) -> None:
        self.dense.build((None, self.hidden_size))
        self.output_layer.build((None, self.hidden_size))

    def call(self, hidden_states: tf.Tensor) -> tf.Tensor:
        """Map hidden states [B, T, D] to logits [B, T]."""
        return self.output_layer(ACTIVATIONS[self.activation](self.dense(hidden_states)))[..., 0]
