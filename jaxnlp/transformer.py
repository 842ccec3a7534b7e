"""Stacks of transformer layers, attention masks as biases, and the cache of keys and values."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from duonlp.config import TransformerConfig
from jaxnlp.embeddings import RelativeAttention
from jaxnlp.layers import Attention, FeedForward, KeyValues, dropout, make_norm

MASKED = -1e30
"""Bias for masked keys: softmax gives exactly 0, and fully masked rows stay finite."""

Cache: TypeAlias = dict[str, Any]
"""Keys and values of earlier positions: {"step_i": {"key": [B, N, H, S], "value": [B, N, S, H]}}.

The cache of an encoder-decoder has more entries, see generation.decoder.Seq2SeqDecoder.
"""

StackOutput: TypeAlias = tuple[jax.Array, list[jax.Array], list[Any], Cache | None]
"""Last hidden states, all hidden states, attention probabilities of each step, and the updated cache."""


class Layer(nnx.Module):
    """One transformer layer: self-attention, cross-attention in a decoder with an encoder, and feed-forward.

    Each block has a residual connection and a norm, before the block ("pre") or after the sum ("post").
    """

    def __init__(self, config: TransformerConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.pre_norm = config.norm.position == "pre"
        self.dropout_rate = config.hidden_dropout
        size, options = config.hidden_size, {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.attention = Attention(config.attention, size, **options)
        self.attention_norm = make_norm(config.norm, size, **options)
        if config.cross_attention is not None:
            self.cross_attention = Attention(config.cross_attention, size, **options)
            self.cross_attention_norm = make_norm(config.norm, size, **options)
        self.feed_forward = FeedForward(config.feed_forward, size, **options)
        self.feed_forward_norm = make_norm(config.norm, size, **options)

    def __call__(
        self, hidden_states: jax.Array, bias: jax.Array, layer_index: int | jax.Array = 0, cache: KeyValues | None = None,
        cache_index: int | jax.Array | None = None, rngs: nnx.Rngs | None = None,
        source: tuple[KeyValues, jax.Array] | None = None,
    ) -> tuple[jax.Array, jax.Array | tuple[jax.Array, jax.Array], KeyValues | None]:  # fmt: skip
        """Apply the layer.

        Args:
            hidden_states: [B, T, D].
            bias: Bias of the self-attention scores, float32, broadcastable to [B, N, T, S].
            layer_index: Step of the stack, from 0.
            cache: This layer's keys and values of earlier positions, or None.
            cache_index: Slot of the first new position in the cache.
            rngs: Random streams with ``dropout``; None for no dropout.
            source: In a decoder with an encoder: the source's keys and values (see Attention.keys_and_values)
                and the bias of the cross-attention scores.

        Returns:
            Hidden states [B, T, D]; attention probabilities [B, N, T, S], as a pair (self, cross) with a
            source; the updated cache.
        """
        x = self.attention_norm(hidden_states) if self.pre_norm else hidden_states
        x, probabilities, cache = self.attention(x, bias, layer_index, cache, cache_index, rngs)
        x = hidden_states + dropout(x, self.dropout_rate, rngs)
        hidden_states = x if self.pre_norm else self.attention_norm(x)

        if source is not None:
            keys_and_values, source_bias = source
            x = self.cross_attention_norm(hidden_states) if self.pre_norm else hidden_states
            x, cross, _ = self.cross_attention(x, source_bias, layer_index, keys_and_values, None, rngs)
            x = hidden_states + dropout(x, self.dropout_rate, rngs)
            hidden_states = x if self.pre_norm else self.cross_attention_norm(x)
            probabilities = probabilities, cross

        x = self.feed_forward_norm(hidden_states) if self.pre_norm else hidden_states
        x = hidden_states + dropout(self.feed_forward(x, rngs), self.dropout_rate, rngs)
        return x if self.pre_norm else self.feed_forward_norm(x), probabilities, cache


class Stack(nnx.Module):
    """Layers applied in the order of ``config.layer_order``, and a final norm if the configuration has one."""

    def __init__(self, config: TransformerConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        if config.attention.relative_buckets:
            self.relative_attention = RelativeAttention(config.attention, causal=config.causal, **options)
        for i in range(config.num_layer_weights):
            setattr(self, f"layer_{i}", Layer(config, **options))
        if config.norm.final:
            self.final_norm = make_norm(config.norm, config.hidden_size, **options)

    def __call__(
        self, hidden_states: jax.Array, bias: jax.Array, cache: Cache | None = None,
        cache_index: int | jax.Array | None = None, rngs: nnx.Rngs | None = None,
        source: tuple[dict[str, KeyValues], jax.Array] | None = None,
    ) -> StackOutput:  # fmt: skip
        """Apply all layers.

        Args:
            hidden_states: [B, T, D].
            bias: Bias of the self-attention scores, float32, broadcastable to [B, N, T, S].
            cache: Keys and values of earlier positions, or None.
            cache_index: Slot of the first new position in the cache.
            rngs: Random streams with ``dropout``; None for no dropout.
            source: In a decoder with an encoder: the source's :meth:`keys_and_values` and the bias of the
                cross-attention scores.

        Returns:
            Last hidden states [B, T, D]; all hidden states, the input first and the last one normed if so configured; the
            attention probabilities of each step; the updated cache.
        """
        states, attentions, new_cache = [hidden_states], [], {}
        for step, i in enumerate(self.config.layer_order):
            layer, name = getattr(self, f"layer_{i}"), f"step_{step}"
            layer_cache = None if cache is None else cache[name]
            layer_source = None if source is None else (source[0][name], source[1])
            hidden_states, probabilities, new_cache[name] = layer(
                hidden_states, bias, step, layer_cache, cache_index, rngs, layer_source
            )
            states.append(hidden_states)
            attentions.append(probabilities)
        if self.config.norm.final:
            hidden_states = dropout(self.final_norm(hidden_states), self.config.norm.final_dropout, rngs)
            states[-1] = hidden_states if self.config.norm.final_in_hidden_states else states[-1]
        return hidden_states, states, attentions, None if cache is None else new_cache

    def keys_and_values(self, source: jax.Array) -> dict[str, KeyValues]:
        """Return each step's keys and values of a source [B, S, D]: {"step_i": ...}, see Attention.keys_and_values."""
        layers = [getattr(self, f"layer_{i}") for i in self.config.layer_order]
        return {f"step_{step}": layer.cross_attention.keys_and_values(source) for step, layer in enumerate(layers)}

    def relative_bias(self, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array | float:
        """Return the relative position bias: float32, broadcastable to [B, N, T, S]; 0.0 for families without one.

        Args:
            query_positions: int [B or 1, T].
            key_positions: int [B or 1, S].
        """
        if not self.config.attention.relative_buckets:
            return 0.0
        return self.relative_attention(query_positions, key_positions)


def attention_bias(
    attention_mask: jax.Array | None, query_length: int, key_length: int, causal: bool, first_query: int | jax.Array = 0
) -> jax.Array:
    """Return the bias to add to attention scores: 0 for visible keys, MASKED for others.

    Args:
        attention_mask: [B, S], 1 on real tokens; or [B, T, S], 1 where a query may attend to a key; or None.
        query_length: T.
        key_length: S.
        causal: Whether a query attends only to keys at or before its own position.
        first_query: Position of the first query among the keys; above 0 with a cache.

    Returns:
        float32 [B or 1, 1, T or 1, S].
    """
    bias = jnp.zeros((1, 1, 1, 1), jnp.float32)
    if causal:
        rows = first_query + jnp.arange(query_length).reshape(-1, 1)
        columns = jnp.arange(key_length).reshape(1, -1)
        allowed = (columns <= rows).reshape(1, 1, query_length, key_length)
        bias = jnp.where(allowed, 0.0, MASKED).astype(jnp.float32)
    if attention_mask is not None:
        visible = jnp.expand_dims(attention_mask != 0, (1, 2) if attention_mask.ndim == 2 else 1)  # [B, 1, 1 or T, S]
        bias = jnp.minimum(bias, jnp.where(visible, 0.0, MASKED).astype(jnp.float32))
    return bias


def init_cache(config: TransformerConfig, batch_size: int, length: int, dtype: DTypeLike = jnp.float32) -> Cache:
    """Return an empty cache: {"step_i": {"key": [B, N, H, length], "value": [B, N, length, H]}}."""
    rows, width = (batch_size, config.attention.num_heads), config.attention.head_dim
    return {
        f"step_{i}": {
            "key": jnp.zeros((*rows, width, length), dtype),
            "value": jnp.zeros((*rows, length, width), dtype),
        }
        for i in range(config.num_layers)
    }
