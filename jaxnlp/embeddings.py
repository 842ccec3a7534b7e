"""Token ids to vectors, and distances to biases. Shapes: B batch, T query length, S key length, N heads, D hidden."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from duonlp.config import AttentionConfig, EmbeddingConfig, NormConfig
from duonlp.positions import fixed_table, relative_bucket_table
from jaxnlp.layers import Linear, dropout, make_norm


class Embeddings(nnx.Module):
    """ids -> vectors: words + token types + positions, norm, dropout, projection to the hidden size.

    words: whether it has a table of words of its own. A decoder may share its encoder's, which it is then called with.
    """

    def __init__(
        self, config: EmbeddingConfig, hidden_size: int, norm: NormConfig, *, words=True, dtype, param_dtype, rngs
    ):  # fmt: skip
        self.config = config
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        if words:
            self.word_embeddings = nnx.Embed(config.vocab_size, config.size, **options)
        if config.positions == "learned":
            self.position_embeddings = nnx.Embed(config.max_positions, config.size, **options)
        if config.type_vocab_size:
            self.token_type_embeddings = nnx.Embed(config.type_vocab_size, config.size, **options)
        if config.norm:
            self.norm = make_norm(norm, config.size, **options)
        if config.projection:
            self.projection = Linear(config.size, hidden_size, **options)

    def __call__(self, input_ids, token_type_ids, position_ids, rngs=None, words=None):
        """input_ids, token_type_ids (or None), position_ids: int [B, T] -> [B, T, D]. words: the shared table, if it is."""
        words = self.word_embeddings if words is None else words
        x = self._lookup(words, input_ids)
        x = x * math.sqrt(self.config.size) if self.config.scale else x
        if self.config.type_vocab_size:
            types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + self.token_type_embeddings(types)
        x = x + self._positions(position_ids, x.dtype)
        if self.config.token_types_from_words and token_type_ids is not None:
            x = x + self._lookup(words, token_type_ids)
        if self.config.norm:
            x = self.norm(x)
        x = dropout(x, self.config.dropout, rngs)
        return self.projection(x) if self.config.projection else x

    def _positions(self, position_ids, dtype):
        if self.config.positions == "none":
            return jnp.zeros((), dtype)
        if self.config.positions != "learned":
            return jnp.take(jnp.asarray(fixed_table(self.config), dtype), position_ids, axis=0)
        positions = self.position_embeddings
        return self._lookup(positions, position_ids) if self.config.positions_skip_padding else positions(position_ids)

    def _lookup(self, table, ids):
        """A lookup that sends no gradient to the padding row, as torch's padding_idx."""
        vectors = table(ids)
        if self.config.padding_id is None:
            return vectors
        is_padding = jnp.expand_dims(ids == self.config.padding_id, -1)
        return jnp.where(is_padding, jax.lax.stop_gradient(vectors), vectors)


class RelativeAttention(nnx.Embed):
    """Biases of the scores by the distance of query and key, in buckets (Raffel et al. 2020, section 2.1,
    https://arxiv.org/abs/1910.10683). One table serves all layers of a stack."""

    def __init__(self, config: AttentionConfig, *, causal: bool, dtype, param_dtype, rngs):
        super().__init__(config.relative_buckets, config.num_heads, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.config, self.causal = config, causal

    def __call__(self, query_positions, key_positions):
        """int [..., T], int [..., S] -> float32 [..., N, T, S]."""
        c = self.config
        buckets = relative_bucket_table(c.relative_buckets, c.relative_max_distance, not self.causal)
        distance = jnp.expand_dims(key_positions, -2) - jnp.expand_dims(query_positions, -1)  # [..., T, S]
        distance = jnp.clip(distance, -c.relative_max_distance, c.relative_max_distance) + c.relative_max_distance
        bias = jnp.take(self.embedding[...].astype(jnp.float32), jnp.take(jnp.asarray(buckets), distance), axis=0)
        return jnp.moveaxis(bias, -1, -3)
