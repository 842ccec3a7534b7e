"""Token embeddings and relative positions. Shapes: B batch, T query length, S key length, N heads, D hidden."""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from duonlp.config import POSITION_TABLES, AttentionConfig, EmbeddingConfig, NormConfig, PatchConfig
from duonlp.positions import fixed_table, relative_bucket_table
from tfnlp.layers import Dropout, Embed, dense, make_norm


class Patches(keras.layers.Layer):
    """Image patches as tokens: special tokens, then each patch flattened and projected.

    The convolution of Dosovitskiy et al. 2020 (https://arxiv.org/abs/2010.11929) is written as a reshape and a product, which
    every exporter can follow.
    """

    def __init__(self, config: PatchConfig, size: int, *, dtype: keras.DTypePolicy, name: str = "patches"):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config, self.size = config, size
        self.projection = dense(size, "projection", dtype)

    def build(self, input_shape: Any = None) -> None:
        self.projection.build((None, self.config.size))
        for name in self.config.special_tokens:
            setattr(self, name, self.add_weight(name=name, shape=(1, self.size), initializer="zeros"))

    def call(self, pixels: tf.Tensor) -> tf.Tensor:
        """Map pixels [B, C, height, width] to tokens [B, T, size]."""
        (rows, columns), (height, width) = self.config.grid, self.config.patch_size
        x = tf.reshape(tf.cast(pixels, self.compute_dtype), [-1, self.config.channels, rows, height, columns, width])
        x = tf.reshape(tf.transpose(x, [0, 2, 4, 1, 3, 5]), [-1, self.config.size])  # [B * patches, values]
        x = tf.reshape(self.projection(x), [-1, rows * columns, self.size])
        tokens = [tf.cast(getattr(self, name), x.dtype) for name in self.config.special_tokens]  # [1, size] each
        tokens = [tf.broadcast_to(tf.expand_dims(token, 0), [tf.shape(x)[0], 1, self.size]) for token in tokens]
        return tf.concat([*tokens, x], axis=1)


class Embeddings(keras.layers.Layer):
    """Word or patch, token type and position embeddings, then norm, dropout and a projection to the hidden size.

    Args:
        config: Kinds and sizes of the tables.
        hidden_size: Width D of the output.
        norm: Kind and epsilon of the norm.
        has_word_embeddings: Whether the layer owns a word table. A decoder that shares its encoder's table has
            none, and is passed the shared one in each call.
        dtype: Keras dtype policy.
        name: Name of the layer.
    """

    def __init__(
        self, config: EmbeddingConfig, hidden_size: int, norm: NormConfig, *, has_word_embeddings: bool = True,
        dtype: keras.DTypePolicy, name: str = "embeddings",
    ):  # fmt: skip
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config, self.hidden_size = config, hidden_size
        options: dict[str, Any] = {"embeddings_initializer": "zeros", "dtype": dtype}
        self.has_word_embeddings = has_word_embeddings and config.patches is None
        if config.patches is not None:
            self.patches = Patches(config.patches, config.size, dtype=dtype)
        elif has_word_embeddings:
            self.word_embeddings = Embed(
                config.vocab_size, config.size, name="word_embeddings", **options
            )
        if config.positions == "learned":
            self.position_embeddings = keras.layers.Embedding(
                config.max_positions, config.size, name="position_embeddings", **options
            )
        if config.type_vocab_size:
            self.token_type_embeddings = keras.layers.Embedding(
                config.type_vocab_size, config.size, name="token_type_embeddings", **options
            )
        if config.norm:
            self.norm = make_norm(norm, config.size, dtype=dtype, name="norm")
        self.dropout = Dropout(config.dropout, dtype=dtype, name="dropout")
        if config.projection:
            self.projection = dense(hidden_size, "projection", dtype)

    def build(self, input_shape: Any = None) -> None:
        if self.config.patches is not None:
            self.patches.build()
        if self.has_word_embeddings:
            self.word_embeddings.build()
        if self.config.positions == "learned":
            self.position_embeddings.build()
        if self.config.stored_positions:
            shape = self.config.max_positions, self.config.size
            self.position_table = self.add_weight(
                name="position_table", shape=shape, initializer="zeros", trainable=False
            )
        if self.config.type_vocab_size:
            self.token_type_embeddings.build()
        if self.config.norm:
            self.norm.build()
        if self.config.projection:
            self.projection.build((None, self.config.size))

    def call(
        self, input_ids: tf.Tensor, token_type_ids: tf.Tensor | None, position_ids: tf.Tensor,
        training: bool | None = None, word_embeddings: Embed | None = None,
    ) -> tf.Tensor:  # fmt: skip
        """Embed a batch of tokens or images.

        Args:
            input_ids: int [B, T]; or pixels [B, C, height, width].
            token_type_ids: int [B, T], or None.
            position_ids: int [B or 1, T].
            training: Whether to apply dropout.
            word_embeddings: Shared word table to use instead of the layer's own.

        Returns:
            Embeddings [B, T, D].
        """
        if self.config.patches is not None:
            words, x = None, self.patches(input_ids)
        else:
            words = self.word_embeddings if word_embeddings is None else word_embeddings
            x = self._lookup(words, input_ids)
        x = x * math.sqrt(self.config.size) if self.config.scale else x
        if self.config.type_vocab_size:
            types = tf.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + self.token_type_embeddings(types)
        x = x + self._positions(position_ids, x.dtype)
        if words is not None and self.config.token_types_from_words and token_type_ids is not None:
            x = x + self._lookup(words, token_type_ids)
        if self.config.norm:
            x = self.norm(x)
        x = self.dropout(x, training=training)
        return self.projection(x) if self.config.projection else x

    def _positions(self, position_ids: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        if self.config.positions not in POSITION_TABLES:
            return tf.zeros((), dtype)
        if self.config.positions != "learned":
            stored = self.config.stored_positions
            table = tf.cast(self.position_table, dtype) if stored else tf.constant(fixed_table(self.config), dtype)
            return tf.gather(table, position_ids)
        positions = self.position_embeddings
        return self._lookup(positions, position_ids) if self.config.positions_skip_padding else positions(position_ids)

    def _lookup(self, table: Callable[[tf.Tensor], tf.Tensor], ids: tf.Tensor) -> tf.Tensor:
        """Look up ids, sending no gradient to the padding row, like torch's padding_idx."""
        vectors = table(ids)
        if self.config.padding_id is None:
            return vectors
        is_padding = tf.expand_dims(tf.equal(ids, self.config.padding_id), -1)
        return tf.where(is_padding, tf.stop_gradient(vectors), vectors)


class RelativeAttention(keras.layers.Embedding):
    """Biases of attention scores: one per head and bucket of query-key distances, shared by all layers of a stack.

    Follows Raffel et al. 2020, section 2.1 (https://arxiv.org/abs/1910.10683).
    """

    def __init__(
        self, config: AttentionConfig, *, causal: bool, dtype: keras.DTypePolicy, name: str = "relative_attention"
    ):
        super().__init__(
            config.relative_buckets, config.num_heads, embeddings_initializer="zeros", dtype=dtype, name=name
        )
        self.config, self.causal = config, causal

    def call(self, query_positions: tf.Tensor, key_positions: tf.Tensor) -> tf.Tensor:
        """Map positions int [..., T] and int [..., S] to biases float32 [..., N, T, S]."""
        c = self.config
        buckets = relative_bucket_table(c.relative_buckets, c.relative_max_distance, not self.causal)
        distance = tf.expand_dims(key_positions, -2) - tf.expand_dims(query_positions, -1)  # [..., T, S]
        distance = (
            tf.clip_by_value(distance, -c.relative_max_distance, c.relative_max_distance) + c.relative_max_distance
        )
        bias = tf.gather(tf.cast(self.embeddings, tf.float32), tf.gather(tf.constant(buckets), distance))
        axes = list(range(bias.shape.rank))
        return tf.transpose(bias, [*axes[:-3], axes[-1], axes[-3], axes[-2]])


def default_position_ids(
    config: EmbeddingConfig, input_ids: tf.Tensor, past: int | tf.Tensor = 0, attention_mask: tf.Tensor | None = None
) -> tf.Tensor:
    """Return position ids for a call without any, as duonlp.positions.position_ids does in NumPy.

    Args:
        config: Says where positions start and whether they skip padding.
        input_ids: int [B, T]; or pixels.
        past: Number of tokens already in the cache.
        attention_mask: [B, T], 0 on padding; None without padding. Another rank has no effect.

    Returns:
        int [B, T]; or [1, T] where all rows are alike.
    """
    if config.patches is not None:
        return tf.expand_dims(tf.range(config.patches.num_tokens), 0)
    if config.positions_skip_padding:
        is_real = tf.cast(tf.not_equal(input_ids, config.position_offset - 1), tf.int32)
        return (tf.cumsum(is_real, axis=1) + past) * is_real + config.position_offset - 1
    row = config.position_offset + past + tf.range(tf.shape(input_ids)[1])
    if config.positions == "rotary" and attention_mask is not None and attention_mask.shape.rank == 2:
        is_real = tf.reduce_any(tf.not_equal(attention_mask, 0), axis=0)
        row = tf.minimum(row, tf.reduce_max(row * tf.cast(is_real, tf.int32)))
    return tf.expand_dims(row, 0)
