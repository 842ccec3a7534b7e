"""Stacks of transformer layers, attention masks as biases, and the cache of keys and values."""

from typing import Any, TypeAlias

import keras
import tensorflow as tf

from duonlp.config import FeedForwardConfig, LayerConfig, LayerPattern, RotaryConfig, TransformerConfig
from duonlp.parameters import layer_blocks, norm_names
from duonlp.positions import rotary_tables
from tfnlp import ops
from tfnlp.embeddings import RelativeAttention
from tfnlp.layers import (
    ACTIVATIONS,
    Attention,
    Dropout,
    KeyValues,
    Rotation,
    clamp,
    dense,
    flatten_tokens,
    make_norm,
)  # fmt: skip

MASKED = -1e30
"""Bias for masked keys: softmax gives exactly 0, and fully masked rows stay finite."""

Cache: TypeAlias = dict[str, Any]
"""Keys and values of earlier positions: {"step_i": {"key": [B, K, H, S], "value": [B, K, S, H]}}.

The cache of an encoder-decoder has more entries, see generation.decoder.Seq2SeqDecoder.
"""

Biases: TypeAlias = tuple[tf.Tensor, ...]
"""Biases of attention scores, one for each of ``config.layers.windows``: float32, broadcastable to [B, N, T, S]."""

CacheIndex: TypeAlias = tuple[int | tf.Tensor, ...]
"""Slot of the first new position in the cache, for each of ``config.layers.windows``."""

StackOutput: TypeAlias = tuple[tf.Tensor, list[tf.Tensor], list[Any], Cache | None]
"""Last hidden states, all hidden states, attention probabilities of each step, and the updated cache."""


class FeedForward(keras.layers.Layer):
    """Feed-forward block: dense, activation, dense; with ``config.gated`` the gated linear unit of Shazeer 2020.

    See https://arxiv.org/abs/2002.05202.
    """

    def __init__(
        self, config: FeedForwardConfig, hidden_size: int, *, dtype: keras.DTypePolicy, name: str = "feed_forward"
    ):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config, self.hidden_size = config, hidden_size
        if config.gated:
            self.gate = dense(config.size, "gate", dtype, config.bias)
        self.up = dense(config.size, "up", dtype, config.bias)
        is_half = "float16" in (dtype.compute_dtype, dtype.variable_dtype)
        down_dtype = keras.DTypePolicy("float32") if config.float32_output and is_half else dtype
        self.down = dense(hidden_size, "down", down_dtype, config.bias)
        self.dropout = Dropout(config.dropout, dtype=dtype, name="dropout")

    def build(self, input_shape: Any = None) -> None:
        for layer in (self.gate, self.up) if self.config.gated else (self.up,):
            layer.build((None, self.hidden_size))
        self.down.build((None, self.config.size))

    def call(self, hidden_states: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Apply the block to [B, T, D]."""
        tokens, activation = flatten_tokens(hidden_states), ACTIVATIONS[self.config.activation]
        x = self.up(tokens)
        if self.config.gated:
            gate, dtype = activation(self.gate(tokens)), self.down.compute_dtype
            x = tf.cast(gate, dtype) * tf.cast(x, dtype)  # in float16, the product may overflow
        else:
            x = activation(x)
        x = self.down(self.dropout(x, training=training))
        return tf.reshape(x, tf.shape(hidden_states))


class Layer(keras.layers.Layer):
    """One transformer layer: self-attention, cross-attention in a decoder with an encoder, and feed-forward.

    Each block has a residual connection and norms where LayerConfig places them. Norms before a block, or after its residual
    sum, are ``attention_norm``, ``cross_attention_norm`` and ``feed_forward_norm``; those of its output, ``..._output_norm``.
    """

    def __init__(
        self, config: TransformerConfig, layer: LayerConfig, *, dtype: keras.DTypePolicy, name: str | None = None
    ):
        super().__init__(dtype=dtype, name=name, autocast=False)
        norm = layer.norm or config.norm
        self.config, self.post_norm = layer, norm.position == "post"
        size = config.hidden_size
        self.attention = Attention(layer.attention, size, dtype=dtype)
        if layer.cross_attention is not None:
            self.cross_attention = Attention(layer.cross_attention, size, dtype=dtype, name="cross_attention")
        self.feed_forward = FeedForward(layer.feed_forward, size, dtype=dtype)
        self.parts = []
        for block in layer_blocks(layer):
            self.parts.append(getattr(self, block))
            for name in norm_names(layer, norm, block):
                setattr(self, name, make_norm(norm, size, dtype=dtype, name=name))
                self.parts.append(getattr(self, name))
        self.dropout = Dropout(config.hidden_dropout, dtype=dtype, name="dropout")

    def build(self, input_shape: Any = None) -> None:
        for layer in self.parts:
            layer.build()

    def call(
        self, hidden_states: tf.Tensor, bias: tf.Tensor, rotation: Rotation | None = None, layer_index: int = 0,
        cache: KeyValues | None = None, cache_index: int | tf.Tensor | None = None, training: bool | None = None,
        source: tuple[KeyValues, tf.Tensor] | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor | tuple[tf.Tensor, tf.Tensor], KeyValues | None]:  # fmt: skip
        """Apply the layer.

        Args:
            hidden_states: [B, T, D].
            bias: Bias of the self-attention scores, float32, broadcastable to [B, N, T, S].
            rotation: Rotation of queries and keys by their positions, if the layer has one.
            layer_index: Step of the stack, from 0.
            cache: This layer's keys and values of earlier positions, or None.
            cache_index: Slot of the first new position in the cache.
            training: Whether to apply dropout.
            source: In a decoder with an encoder: the source's keys and values (see Attention.keys_and_values)
                and the bias of the cross-attention scores.

        Returns:
            Hidden states [B, T, D]; attention probabilities [B, N, T, S], as a pair (self, cross) with a
            source; the updated cache.
        """
        x = normed = self.block_input(hidden_states, "attention")
        x, probabilities, cache = self.attention(
            x, bias, rotation=rotation, layer_index=layer_index, cache=cache, cache_index=cache_index, training=training
        )
        if self.config.parallel:
            normed = self.block_input(hidden_states, "feed_forward") if self.config.feed_forward_norm else normed
            hidden_states = self._add(hidden_states, x, "attention", training)
            x = self.feed_forward(normed, training=training)
            return self._add(hidden_states, x, "feed_forward", training), probabilities, cache
        hidden_states = self._add(hidden_states, x, "attention", training)

        if source is not None:
            keys_and_values, source_bias = source
            x = self.block_input(hidden_states, "cross_attention")
            x, cross, _ = self.cross_attention(
                x, source_bias, layer_index=layer_index, cache=keys_and_values, training=training
            )
            hidden_states = self._add(hidden_states, x, "cross_attention", training)
            probabilities = probabilities, cross

        x = self.feed_forward(self.block_input(hidden_states, "feed_forward"), training=training)
        return self._add(hidden_states, x, "feed_forward", training), probabilities, cache

    def block_input(self, hidden_states: tf.Tensor, block: str) -> tf.Tensor:
        """Return what a block ("attention", ...) reads of hidden states [B, T, D]: the states, normed if its norm comes first."""
        norm = None if self.post_norm else getattr(self, f"{block}_norm", None)
        return hidden_states if norm is None else norm(hidden_states)

    def _add(self, hidden_states: tf.Tensor, x: tf.Tensor, block: str, training: bool | None) -> tf.Tensor:
        """Add a block's output [B, T, D] to the hidden states, with the norms that follow it and dropout."""
        output_norm, sum_norm = getattr(self, f"{block}_output_norm", None), getattr(self, f"{block}_norm", None)
        bound = clamp if block in self.config.clamped else lambda x: x
        x = bound(x if output_norm is None else output_norm(x))
        x = self.dropout(x, training=training)
        x = bound(hidden_states + tf.cast(x, hidden_states.dtype))
        x = bound(sum_norm(x)) if self.post_norm and sum_norm is not None else x
        return tf.cast(x, hidden_states.dtype)


class Stack(keras.layers.Layer):
    """Layers applied in the order of ``config.layer_order``, and a final norm if the configuration has one."""

    def __init__(self, config: TransformerConfig, *, dtype: keras.DTypePolicy, name: str | None = None):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config = config
        if config.attention.relative_buckets:
            self.relative_attention = RelativeAttention(config.attention, causal=config.causal, dtype=dtype)
        for i, layer in enumerate(config.layers.weights):
            setattr(self, f"layer_{i}", Layer(config, layer, dtype=dtype, name=f"layer_{i}"))
        if config.norm.final:
            self.final_norm = make_norm(config.norm, config.hidden_size, dtype=dtype, name="final_norm")
            self.dropout = Dropout(config.norm.final_dropout, dtype=dtype, name="dropout")

    def build(self, input_shape: Any = None) -> None:
        if self.config.attention.relative_buckets:
            self.relative_attention.build()
        for i in range(self.config.num_layer_weights):
            getattr(self, f"layer_{i}").build()
        if self.config.norm.final:
            self.final_norm.build()

    def call(
        self, hidden_states: tf.Tensor, bias: Biases, position_ids: tf.Tensor, cache: Cache | None = None,
        cache_index: CacheIndex | None = None, training: bool | None = None,
        source: tuple[dict[str, KeyValues], tf.Tensor] | None = None,
    ) -> StackOutput:  # fmt: skip
        """Apply all layers.

        Args:
            hidden_states: [B, T, D].
            bias: Biases of the self-attention scores, see attention_biases.
            position_ids: int [B or 1, T], by which rotary attention rotates queries and keys.
            cache: Keys and values of earlier positions, or None.
            cache_index: Slot of the first new position in the cache, see CacheIndex.
            training: Whether to apply dropout.
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
            hidden_states, probabilities, new_cache[name] = layer(
                hidden_states, *positions[step], layer_index=step, cache=None if cache is None else cache[name],
                cache_index=slots.get(layers[step].attention.window), training=training,
                source=None if source is None else (source[0][name], source[1]),
            )  # fmt: skip
            states.append(hidden_states)
            attentions.append(probabilities)
        if self.config.norm.final:
            hidden_states = self.dropout(self.final_norm(hidden_states), training=training)
            states[-1] = hidden_states if self.config.norm.final_in_hidden_states else states[-1]
        return tf.cast(hidden_states, dtype), states, attentions, None if cache is None else new_cache

    def keys_and_values(self, source: tf.Tensor) -> dict[str, KeyValues]:
        """Return each step's keys and values of a source [B, S, D]: {"step_i": ...}, see Attention.keys_and_values."""
        layers = [getattr(self, f"layer_{i}") for i in self.config.layer_order]
        return {f"step_{step}": layer.cross_attention.keys_and_values(source) for step, layer in enumerate(layers)}

    def relative_bias(self, query_positions: tf.Tensor, key_positions: tf.Tensor) -> tf.Tensor | float:
        """Return the relative position bias: float32, broadcastable to [B, N, T, S]; 0.0 for families without one.

        Args:
            query_positions: int [B or 1, T].
            key_positions: int [B or 1, S].
        """
        if not self.config.attention.relative_buckets:
            return 0.0
        return self.relative_attention(query_positions, key_positions)


def widen(layers: LayerPattern, hidden_states: tf.Tensor) -> tf.Tensor:
    """Return the hidden states that enter the layers, in float32 instead of float16 if the layers' sums are float32."""
    is_wide = layers.float32_sums and hidden_states.dtype == tf.float16
    return tf.cast(hidden_states, tf.float32) if is_wide else hidden_states


def layer_positions(
    layers: LayerPattern, bias: Biases, position_ids: tf.Tensor
) -> list[tuple[tf.Tensor, Rotation | None]]:
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
    layers: LayerPattern, attention_mask: tf.Tensor | None, query_length: int | tf.Tensor, key_length: int | tf.Tensor,
    causal: bool, first_query: int | tf.Tensor = 0,
) -> Biases:  # fmt: skip
    """Return the bias of attention scores for each of ``layers.windows``; for the arguments see attention_bias."""
    lengths = query_length, key_length
    return tuple(attention_bias(attention_mask, *lengths, causal, first_query, window) for window in layers.windows)


def attention_bias(
    attention_mask: tf.Tensor | None, query_length: int | tf.Tensor, key_length: int | tf.Tensor, causal: bool,
    first_query: int | tf.Tensor = 0, window: int | None = None,
) -> tf.Tensor:  # fmt: skip
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
    bias = tf.zeros((1, 1, 1, 1), tf.float32)
    if causal or window is not None:
        rows = first_query + tf.reshape(tf.range(query_length), (-1, 1))
        distance = rows - tf.reshape(tf.range(key_length), (1, -1))  # [T, S], positive for earlier keys
        distance = distance if causal else tf.abs(distance)
        allowed = distance >= 0 if window is None else tf.logical_and(distance >= 0, distance < window)
        bias = tf.where(tf.expand_dims(tf.expand_dims(allowed, 0), 0), 0.0, MASKED)
    if attention_mask is not None:
        visible = tf.cast(attention_mask, tf.bool)
        per_query = visible.shape.rank == 3
        visible = tf.expand_dims(visible, 1) if per_query else tf.expand_dims(tf.expand_dims(visible, 1), 1)
        bias = tf.minimum(bias, tf.where(visible, 0.0, MASKED))  # [B, 1, 1 or T, S]
    return bias


def init_cache(config: TransformerConfig, batch_size: int, length: int, dtype: str = "float32") -> Cache:
    """Return an empty cache: {"step_i": {"key": [B, K, H, length], "value": [B, K, length, H]}}."""
    cache = {}
    for i, layer in enumerate(config.layers):
        rows, width = (batch_size, layer.attention.kv_heads), layer.attention.head_dim
        key, value = tf.zeros((*rows, width, length), dtype), tf.zeros((*rows, length, width), dtype)
        cache[f"step_{i}"] = {"key": key, "value": value}
    return cache
