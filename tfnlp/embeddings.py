"""Token ids to vectors, and distances to biases. Shapes: B batch, T query length, S key length, N heads, D hidden."""

import math

import keras
import tensorflow as tf

from duonlp.config import AttentionConfig, EmbeddingConfig, NormConfig
from duonlp.positions import fixed_table, relative_bucket_table
from tfnlp.layers import Dropout, dense, make_norm


class Embeddings(keras.layers.Layer):
    """ids -> vectors: words + token types + positions, norm, dropout, projection to the hidden size.

    words: whether it has a table of words of its own. A decoder may share its encoder's, which it is then called with.
    """

    def __init__(
        self, config: EmbeddingConfig, hidden_size: int, norm: NormConfig, *, words=True, dtype, name="embeddings"
    ):  # fmt: skip
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config, self.hidden_size = config, hidden_size
        options = {"embeddings_initializer": "zeros", "dtype": dtype}
        self.words = words
        if words:
            # Reversible: a tied language model head multiplies with the same table.
            self.word_embeddings = keras.layers.ReversibleEmbedding(
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

    def build(self, input_shape=None):
        if self.words:
            self.word_embeddings.build()
        if self.config.positions == "learned":
            self.position_embeddings.build()
        if self.config.type_vocab_size:
            self.token_type_embeddings.build()
        if self.config.norm:
            self.norm.build()
        if self.config.projection:
            self.projection.build((None, self.config.size))

    def call(self, input_ids, token_type_ids, position_ids, training=None, words=None):
        """input_ids, token_type_ids (or None), position_ids: int [B, T] -> [B, T, D]. words: the shared table, if it is."""
        words = self.word_embeddings if words is None else words
        x = self._lookup(words, input_ids)
        x = x * math.sqrt(self.config.size) if self.config.scale else x
        if self.config.type_vocab_size:
            types = tf.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + self.token_type_embeddings(types)
        x = x + self._positions(position_ids, x.dtype)
        if self.config.token_types_from_words and token_type_ids is not None:
            x = x + self._lookup(words, token_type_ids)
        if self.config.norm:
            x = self.norm(x)
        x = self.dropout(x, training=training)
        return self.projection(x) if self.config.projection else x

    def _positions(self, position_ids, dtype):
        if self.config.positions == "none":
            return tf.zeros((), dtype)
        if self.config.positions != "learned":
            return tf.gather(tf.constant(fixed_table(self.config), dtype), position_ids)
        positions = self.position_embeddings
        return self._lookup(positions, position_ids) if self.config.positions_skip_padding else positions(position_ids)

    def _lookup(self, table, ids):
        """A lookup that sends no gradient to the padding row, as torch's padding_idx."""
        vectors = table(ids)
        if self.config.padding_id is None:
            return vectors
        is_padding = tf.expand_dims(tf.equal(ids, self.config.padding_id), -1)
        return tf.where(is_padding, tf.stop_gradient(vectors), vectors)


class RelativeAttention(keras.layers.Embedding):
    """Biases of the scores by the distance of query and key, in buckets (Raffel et al. 2020, section 2.1,
    https://arxiv.org/abs/1910.10683). One table serves all layers of a stack."""

    def __init__(self, config: AttentionConfig, *, causal: bool, dtype, name="relative_attention"):
        super().__init__(
            config.relative_buckets, config.num_heads, embeddings_initializer="zeros", dtype=dtype, name=name
        )
        self.config, self.causal = config, causal

    def call(self, query_positions, key_positions):
        """int [..., T], int [..., S] -> float32 [..., N, T, S]."""
        c = self.config
        buckets = relative_bucket_table(c.relative_buckets, c.relative_max_distance, not self.causal)
        distance = tf.expand_dims(key_positions, -2) - tf.expand_dims(query_positions, -1)  # [..., T, S]
        distance = (
            tf.clip_by_value(distance, -c.relative_max_distance, c.relative_max_distance) + c.relative_max_distance
        )
        bias = tf.gather(tf.cast(self.embeddings, tf.float32), tf.gather(tf.constant(buckets), distance))
        axes = list(range(bias.shape.rank))
        return tf.transpose(bias, [*axes[:-3], axes[-1], axes[-3], axes[-2]])
