"""Token embeddings and relative positions. Shapes: B batch, T query length, S key length, N heads, D hidden."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from duonlp.config import POSITION_TABLES, AttentionConfig, EmbeddingConfig, NormConfig, PatchConfig
from duonlp.positions import fixed_table, relative_bucket_table
from jaxnlp.layers import Embed, Linear, dropout, make_norm


class Patches(nnx.Module):
    """Image patches as tokens: special tokens, then each patch flattened and projected.

    The convolution of Dosovitskiy et al. 2020 (https://arxiv.org/abs/2010.11929) is written as a reshape and a product, which
    every exporter can follow.
    """

    def __init__(self, config: PatchConfig, size: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.projection = Linear(config.size, size, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        for name in config.special_tokens:
            setattr(self, name, nnx.Param(jnp.zeros((1, size), param_dtype)))

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Map pixels [B, C, height, width] to tokens [B, T, size]."""
        (rows, columns), (height, width) = self.config.grid, self.config.patch_size
        x = pixels.astype(self.dtype).reshape(-1, self.config.channels, rows, height, columns, width)
        x = x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, self.config.size)  # [B, patches, values]
        x = self.projection(x)
        tokens = [getattr(self, name)[...].astype(x.dtype) for name in self.config.special_tokens]  # [1, size] each
        return jnp.concatenate([*(jnp.broadcast_to(t, (len(x), *t.shape)) for t in tokens), x], axis=1)


class Embeddings(nnx.Module):
    """Word or patch, token type and position embeddings, then norm, dropout and a projection to the hidden size.

    Args:
        config: Kinds and sizes of the tables.
        hidden_size: Width D of the output.
        norm: Kind and epsilon of the norm.
        has_word_embeddings: Whether the module owns a word table. A decoder that shares its encoder's table has
            none, and is passed the shared one in each call.
        dtype: Compute dtype.
        param_dtype: Storage dtype of the parameters.
        rngs: Random streams that initialize the parameters.
    """

    def __init__(
        self, config: EmbeddingConfig, hidden_size: int, norm: NormConfig, *, has_word_embeddings: bool = True,
        dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.config = config
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        if config.patches is not None:
            self.patches = Patches(config.patches, config.size, **options)
        elif has_word_embeddings:
            self.word_embeddings = Embed(config.vocab_size, config.size, **options)
        if config.positions == "learned":
            self.position_embeddings = Embed(config.max_positions, config.size, **options)
        if config.stored_positions:
            self.position_table = nnx.Param(jnp.zeros((config.max_positions, config.size), param_dtype))
        if config.type_vocab_size:
            self.token_type_embeddings = Embed(config.type_vocab_size, config.size, **options)
        if config.norm:
            self.norm = make_norm(norm, config.size, **options)
        if config.projection:
            self.projection = Linear(config.size, hidden_size, **options)

    def __call__(
        self, input_ids: jax.Array, token_type_ids: jax.Array | None, position_ids: jax.Array,
        rngs: nnx.Rngs | None = None, word_embeddings: Embed | None = None,
    ) -> jax.Array:  # fmt: skip
        """Embed a batch of tokens or images.

        Args:
            input_ids: int [B, T]; or pixels [B, C, height, width].
            token_type_ids: int [B, T], or None.
            position_ids: int [B or 1, T].
            rngs: Random streams with ``dropout``; None for no dropout.
            word_embeddings: Shared word table to use instead of the module's own.

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
            types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + self.token_type_embeddings(types)
        x = x + self._positions(position_ids, x.dtype)
        if words is not None and self.config.token_types_from_words and token_type_ids is not None:
            x = x + self._lookup(words, token_type_ids)
        if self.config.norm:
            x = self.norm(x)
        x = dropout(x, self.config.dropout, rngs)
        return self.projection(x) if self.config.projection else x

    def _positions(self, position_ids: jax.Array, dtype: DTypeLike) -> jax.Array:
        if self.config.positions not in POSITION_TABLES:
            return jnp.zeros((), dtype)
        if self.config.positions != "learned":
            stored = self.config.stored_positions
            table = jax.lax.stop_gradient(self.position_table[...]) if stored else fixed_table(self.config)
            return jnp.take(jnp.asarray(table, dtype), position_ids, axis=0)
        positions = self.position_embeddings
        return self._lookup(positions, position_ids) if self.config.positions_skip_padding else positions(position_ids)

    def _lookup(self, table: Callable[[jax.Array], jax.Array], ids: jax.Array) -> jax.Array:
        """Look up ids, sending no gradient to the padding row, like torch's padding_idx."""
        vectors = table(ids)
        if self.config.padding_id is None:
            return vectors
        is_padding = jnp.expand_dims(ids == self.config.padding_id, -1)
        return jnp.where(is_padding, jax.lax.stop_gradient(vectors), vectors)


class RelativeAttention(nnx.Embed):
    """Biases of attention scores: one per head and bucket of query-key distances, shared by all layers of a stack.

    Follows Raffel et al. 2020, section 2.1 (https://arxiv.org/abs/1910.10683).
    """

    def __init__(
        self, config: AttentionConfig, *, causal: bool, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        super().__init__(config.relative_buckets, config.num_heads, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.config, self.causal = config, causal

    def __call__(self, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
        """Map positions int [..., T] and int [..., S] to biases float32 [..., N, T, S]."""
        c = self.config
        buckets = relative_bucket_table(c.relative_buckets, c.relative_max_distance, not self.causal)
        distance = jnp.expand_dims(key_positions, -2) - jnp.expand_dims(query_positions, -1)  # [..., T, S]
        distance = jnp.clip(distance, -c.relative_max_distance, c.relative_max_distance) + c.relative_max_distance
        bias = jnp.take(self.embedding[...].astype(jnp.float32), jnp.take(jnp.asarray(buckets), distance), axis=0)
        return jnp.moveaxis(bias, -1, -3)


def default_position_ids(
    config: EmbeddingConfig, input_ids: jax.Array, past: int | jax.Array = 0, attention_mask: jax.Array | None = None
) -> jax.Array:
    """Return position ids int [B or 1, T] for a call without any, as duonlp.positions.position_ids does in NumPy.

    Args:
        config: Says where positions start and whether they skip padding.
        input_ids: int [B, T]; or pixels.
        past: Number of tokens already in the cache.
        attention_mask: [B, T], 0 on padding; None without padding. Another rank has no effect.
    """
    if config.patches is not None:
        return jnp.arange(config.patches.num_tokens)[None]
    if config.positions_skip_padding:
        is_real = (input_ids != config.position_offset - 1).astype(jnp.int32)
        return (jnp.cumsum(is_real, axis=1) + past) * is_real + config.position_offset - 1
    row = config.position_offset + past + jnp.arange(input_ids.shape[1])
    if config.positions == "rotary" and attention_mask is not None and attention_mask.ndim == 2:
        row = jnp.minimum(row, jnp.max(row * jnp.any(attention_mask != 0, axis=0)))
    return jnp.broadcast_to(row, input_ids.shape)
