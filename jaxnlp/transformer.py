"""Stacks of transformer layers, attention masks as biases, and the cache of keys and values."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from duonlp.config import FeedForwardConfig, LayerConfig, LayerPattern, RotaryConfig, TransformerConfig
from duonlp.dtypes import without_float16
from duonlp.parameters import layer_blocks, norm_names
from duonlp.positions import rotary_tables
from jaxnlp import ops
from jaxnlp.embeddings import RelativeAttention
from jaxnlp.layers import ACTIVATIONS, Attention, KeyValues, Linear, Rotation, clamp, dropout, make_norm

MASKED = -1e30
"""Bias for masked keys: softmax gives exactly 0, and fully masked rows stay finite."""

Cache: TypeAlias = dict[str, Any]
"""Keys and values of earlier positions: {"step_i": {"key": [B, K, H, S], "value": [B, K, S, H]}}.

The cache of an encoder-decoder has more entries, see generation.decoder.Seq2SeqDecoder.
"""

Biases: TypeAlias = tuple[jax.Array, ...]
"""Biases of attention scores, one for each of ``config.layers.windows``: float32, broadcastable to [B, N, T, S]."""

CacheIndex: TypeAlias = tuple[int | jax.Array, ...]
"""Slot of the first new position in the cache, for each of ``config.layers.windows``."""

StackOutput: TypeAlias = tuple[jax.Array, list[jax.Array], list[Any], Cache | None]
"""Last hidden states, all hidden states, attention probabilities of each step, and the updated cache."""


class FeedForward(nnx.Module):
    """Feed-forward block: dense, activation, dense; with ``config.gated`` the gated linear unit of Shazeer 2020.

    See https://arxiv.org/abs/2002.05202.
    """

    def __init__(
        self, config: FeedForwardConfig, hidden_size: int, *, dtype: DTypeLike, param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.config = config
        options: dict[str, Any] = {
            "use_bias": config.bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs
        }  # fmt: skip
        if config.gated:
            self.gate = Linear(hidden_size, config.size, **options)
        self.up = Linear(hidden_size, config.size, **options)
        if config.float32_output:
            options |= {"dtype": without_float16(dtype), "param_dtype": without_float16(param_dtype)}
        self.down = Linear(config.size, hidden_size, **options)

    def __call__(self, hidden_states: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Apply the block to [B, T, D]."""
        activation, x = ACTIVATIONS[self.config.activation], self.up(hidden_states)
        if self.config.gated:
            gate = activation(self.gate(hidden_states))
            x = gate.astype(self.down.dtype) * x.astype(self.down.dtype)  # in float16, the product may overflow
        else:
            x = activation(x)
        return self.down(dropout(x, self.config.dropout, rngs))


class Layer(nnx.Module):
    """One transformer layer: self-attention, cross-attention in a decoder with an encoder, and feed-forward.

    Each block has a residual connection and norms where LayerConfig places them. Norms before a block, or after its residual
    sum, are ``attention_norm``, ``cross_attention_norm`` and ``feed_forward_norm``; those of its output, ``..._output_norm``.
    """

    def __init__(
        self, config: TransformerConfig, layer: LayerConfig, *, dtype: DTypeLike, param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        norm = layer.norm or config.norm
        self.config, self.post_norm, self.dropout_rate = layer, norm.position == "post", config.hidden_dropout
        size, options = config.hidden_size, {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.attention = Attention(layer.attention, size, **options)
        if layer.cross_attention is not None:
            self.cross_attention = Attention(layer.cross_attention, size, **options)
        self.feed_forward = FeedForward(layer.feed_forward, size, **options)
        for block in layer_blocks(layer):
            for name in norm_names(layer, norm, block):
                setattr(self, name, make_norm(norm, size, **options))

    def __call__(
        self, hidden_states: jax.Array, bias: jax.Array, rotation: Rotation | None = None,
        layer_index: int | jax.Array = 0, cache: KeyValues | None = None, cache_index: int | jax.Array | None = None,
        rngs: nnx.Rngs | None = None, source: tuple[KeyValues, jax.Array] | None = None,
    ) -> tuple[jax.Array, jax.Array | tuple[jax.Array, jax.Array], KeyValues | None]:  # fmt: skip
        """Apply the layer.

        Args:
            hidden_states: [B, T, D].
            bias: Bias of the self-attention scores, float32, broadcastable to [B, N, T, S].
            rotation: Rotation of queries and keys by their positions, if the layer has one.
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
        x = normed = self.block_input(hidden_states, "attention")
        x, probabilities, cache = self.attention(x, bias, rotation, layer_index, cache, cache_index, rngs)
        if self.config.parallel:
            normed = self.block_input(hidden_states, "feed_forward") if self.config.feed_forward_norm else normed
            hidden_states = self._add(hidden_states, x, "attention", rngs)
            return self._add(hidden_states, self.feed_forward(normed, rngs), "feed_forward", rngs), probabilities, cache
        hidden_states = self._add(hidden_states, x, "attention", rngs)

        if source is not None:
            keys_and_values, source_bias = source
            x = self.block_input(hidden_states, "cross_attention")
            x, cross, _ = self.cross_attention(x, source_bias, None, layer_index, keys_and_values, None, rngs)
            hidden_states = self._add(hidden_states, x, "cross_attention", rngs)
            probabilities = probabilities, cross

        x = self.feed_forward(self.block_input(hidden_states, "feed_forward"), rngs)
        return self._add(hidden_states, x, "feed_forward", rngs), probabilities, cache

    def block_input(self, hidden_states: jax.Array, block: str) -> jax.Array:
        """Return what a block ("attention", ...) reads of hidden states [B, T, D]: the states, normed if its norm comes first."""
        norm = None if self.post_norm else getattr(self, f"{block}_norm", None)
        return hidden_states if norm is None else norm(hidden_states)

    def _add(self, hidden_states: jax.Array, x: jax.Array, block: str, rngs: nnx.Rngs | None) -> jax.Array:
        """Add a block's output [B, T, D] to the hidden states, with the norms that follow it and dropout."""
        output_norm, sum_norm = getattr(self, f"{block}_output_norm", None), getattr(self, f"{block}_norm", None)
        bound = clamp if block in self.config.clamped else lambda x: x
        x = bound(x if output_norm is None else output_norm(x))
        x = bound(hidden_states + dropout(x, self.dropout_rate, rngs))
        x = bound(sum_norm(x)) if self.post_norm and sum_norm is not None else x
        return x.astype(hidden_states.dtype)


class Stack(nnx.Module):
    """Layers applied in the order of ``config.layer_order``, and a final norm if the configuration has one."""

    def __init__(self, config: TransformerConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        if config.attention.relative_buckets:
            self.relative_attention = RelativeAttention(config.attention, causal=config.causal, **options)
        for i, layer in enumerate(config.layers.weights):
            setattr(self, f"layer_{i}", Layer(config, layer, **options))
        if config.norm.final:
            self.final_norm = make_norm(config.norm, config.hidden_size, **options)

    def __call__(
        self, hidden_states: jax.Array, bias: Biases, position_ids: jax.Array, cache: Cache | None = None,
        cache_index: CacheIndex | None = None, rngs: nnx.Rngs | None = None,
        source: tuple[dict[str, KeyValues], jax.Array] | None = None,
    ) -> StackOutput:  # fmt: skip
        """Apply all layers.

        Args:
            hidden_states: [B, T, D].
            bias: Biases of the self-attention scores, see attention_biases.
            position_ids: int [B or 1, T], by which rotary attention rotates queries and keys.
            cache: Keys and values of earlier positions, or None.
            cache_index: Slot of the first new position in the cache, see CacheIndex.
            rngs: Random streams with ``dropout``; None for no dropout.
            source: In a decoder with an encoder: the source's :meth:`keys_and_values` and the bias of the
                cross-attention scores.

        Returns:
            Last hidden states [B, T, D]; all hidden states, the input first and the last one normed if so configured; the
            attention probabilities of each step; the updated cache.
        """
        layers, dtype = self.config.layers, hidden_states.dtype
        hidden_states = widen(layers, hidden_states)
        states, attentions, new_cache = [hidden_states], [], {}
        positions = layer_positions(layers, bias, position_ids)
        slots = dict(zip(layers.windows, cache_index or ()))
        for step, i in enumerate(self.config.layer_order):
            layer, name = getattr(self, f"layer_{i}"), f"step_{step}"
            layer_cache = None if cache is None else cache[name]
            layer_source = None if source is None else (source[0][name], source[1])
            slot = slots.get(layers[step].attention.window)
            hidden_states, probabilities, new_cache[name] = layer(
                hidden_states, *positions[step], step, layer_cache, slot, rngs, layer_source
            )
            states.append(hidden_states)
            attentions.append(probabilities)
        if self.config.norm.final:
            hidden_states = dropout(self.final_norm(hidden_states), self.config.norm.final_dropout, rngs)
            states[-1] = hidden_states if self.config.norm.final_in_hidden_states else states[-1]
        return hidden_states.astype(dtype), states, attentions, None if cache is None else new_cache

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


def widen(layers: LayerPattern, hidden_states: jax.Array) -> jax.Array:
    """Return the hidden states that enter the layers, in float32 instead of float16 if the layers' sums are float32."""
    return hidden_states.astype(without_float16(hidden_states.dtype)) if layers.float32_sums else hidden_states


def layer_positions(
    layers: LayerPattern, bias: Biases, position_ids: jax.Array
) -> list[tuple[jax.Array, Rotation | None]]:
    """Return each step's bias of the scores and rotation; layers of one kind share theirs.

    Args:
        layers: The layers.
        bias: As of Stack.
        position_ids: As of Stack.
    """
    biases = dict(zip(layers.windows, bias, strict=True))
    rotations: dict[RotaryConfig | None, Rotation] = {c: rotary_tables(ops, c, position_ids) for c in layers.rotaries}
    return [(biases[c.window], rotations.get(c.rotary)) for c in (layer.attention for layer in layers)]


def attention_biases(
    layers: LayerPattern, attention_mask: jax.Array | None, query_length: int, key_length: int, causal: bool,
    first_query: int | jax.Array = 0,
) -> Biases:  # fmt: skip
    """Return the bias of attention scores for each of ``layers.windows``; for the arguments see attention_bias."""
    lengths = query_length, key_length
    return tuple(attention_bias(attention_mask, *lengths, causal, first_query, window) for window in layers.windows)


def attention_bias(
    attention_mask: jax.Array | None, query_length: int, key_length: int, causal: bool,
    first_query: int | jax.Array = 0, window: int | None = None,
) -> jax.Array:  # fmt: skip
    """Return the bias to add to attention scores: 0 for visible keys, MASKED for others.

    Args:
        attention_mask: [B, S], 1 on real tokens; or [B, T, S], 1 where a query may attend to a key; or None.
        query_length: T.
        key_length: S.
        causal: Whether a query attends only to keys at or before its own position.
        first_query: Position of the first query among the keys; above 0 with a cache.
        window: Attend only to keys less than this far away; None for no limit.

    Returns:
        float32 [B or 1, 1, T or 1, S].
    """
    bias = jnp.zeros((1, 1, 1, 1), jnp.float32)
    if causal or window is not None:
        rows = first_query + jnp.arange(query_length).reshape(-1, 1)
        distance = rows - jnp.arange(key_length).reshape(1, -1)  # [T, S], positive for earlier keys
        distance = distance if causal else jnp.abs(distance)
        allowed = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        bias = jnp.where(jnp.expand_dims(allowed, (0, 1)), 0.0, MASKED).astype(jnp.float32)
    if attention_mask is not None:
        visible = jnp.expand_dims(attention_mask != 0, (1, 2) if attention_mask.ndim == 2 else 1)  # [B, 1, 1 or T, S]
        bias = jnp.minimum(bias, jnp.where(visible, 0.0, MASKED).astype(jnp.float32))
    return bias


def init_cache(config: TransformerConfig, batch_size: int, length: int, dtype: DTypeLike = jnp.float32) -> Cache:
    """Return an empty cache: {"step_i": {"key": [B, K, H, length], "value": [B, K, length, H]}}."""
    cache = {}
    for i, layer in enumerate(config.layers):
        rows, width = (batch_size, layer.attention.kv_heads), layer.attention.head_dim
        cache[f"step_{i}"] = {
            "key": jnp.zeros((*rows, width, length), dtype),
            "value": jnp.zeros((*rows, length, width), dtype),
        }
    return cache
