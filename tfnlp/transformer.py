"""Stacks of transformer layers, attention masks as biases, and the cache of keys and values."""

from typing import Any, TypeAlias

import keras
import tensorflow as tf

from duonlp.config import TransformerConfig
from tfnlp.embeddings import RelativeAttention
from tfnlp.layers import Attention, Dropout, FeedForward, KeyValues, make_norm

MASKED = -1e30
"""Bias for masked keys: softmax gives exactly 0, and fully masked rows stay finite."""

Cache: TypeAlias = dict[str, Any]
"""Keys and values of earlier positions: {"step_i": {"key": [B, N, H, S], "value": [B, N, S, H]}}.

The cache of an encoder-decoder has more entries, see generation.decoder.Seq2SeqDecoder.
"""

StackOutput: TypeAlias = tuple[tf.Tensor, list[tf.Tensor], list[Any], Cache | None]
"""Last hidden states, all hidden states, attention probabilities of each step, and the updated cache."""


class Layer(keras.layers.Layer):
    """One transformer layer: self-attention, cross-attention in a decoder with an encoder, and feed-forward.

    Each block has a residual connection and a norm, before the block ("pre") or after the sum ("post").
    """

    def __init__(self, config: TransformerConfig, *, dtype: keras.DTypePolicy, name: str | None = None):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.pre_norm = config.norm.position == "pre"
        size, norm = config.hidden_size, config.norm
        self.attention = Attention(config.attention, size, dtype=dtype)
        self.attention_norm = make_norm(norm, size, dtype=dtype, name="attention_norm")
        self.parts = [self.attention, self.attention_norm]
        if config.cross_attention is not None:
            self.cross_attention = Attention(config.cross_attention, size, dtype=dtype, name="cross_attention")
            self.cross_attention_norm = make_norm(norm, size, dtype=dtype, name="cross_attention_norm")
            self.parts += [self.cross_attention, self.cross_attention_norm]
        self.feed_forward = FeedForward(config.feed_forward, size, dtype=dtype)
        self.feed_forward_norm = make_norm(norm, size, dtype=dtype, name="feed_forward_norm")
        self.parts += [self.feed_forward, self.feed_forward_norm]
        self.dropout = Dropout(config.hidden_dropout, dtype=dtype, name="dropout")

    def build(self, input_shape: Any = None) -> None:
        for layer in self.parts:
            layer.build()

    def call(
        self, hidden_states: tf.Tensor, bias: tf.Tensor, layer_index: int = 0, cache: KeyValues | None = None,
        cache_index: int | tf.Tensor | None = None, training: bool | None = None,
        source: tuple[KeyValues, tf.Tensor] | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor | tuple[tf.Tensor, tf.Tensor], KeyValues | None]:  # fmt: skip
        """Apply the layer.

        Args:
            hidden_states: [B, T, D].
            bias: Bias of the self-attention scores, float32, broadcastable to [B, N, T, S].
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
        x = self.attention_norm(hidden_states) if self.pre_norm else hidden_states
        x, probabilities, cache = self.attention(
            x, bias, layer_index=layer_index, cache=cache, cache_index=cache_index, training=training
        )
        x = hidden_states + self.dropout(x, training=training)
        hidden_states = x if self.pre_norm else self.attention_norm(x)

        if source is not None:
            keys_and_values, source_bias = source
            x = self.cross_attention_norm(hidden_states) if self.pre_norm else hidden_states
            x, cross, _ = self.cross_attention(
                x, source_bias, layer_index=layer_index, cache=keys_and_values, training=training
            )
            x = hidden_states + self.dropout(x, training=training)
            hidden_states = x if self.pre_norm else self.cross_attention_norm(x)
            probabilities = probabilities, cross

        x = self.feed_forward_norm(hidden_states) if self.pre_norm else hidden_states
        x = hidden_states + self.dropout(self.feed_forward(x, training=training), training=training)
        return x if self.pre_norm else self.feed_forward_norm(x), probabilities, cache


class Stack(keras.layers.Layer):
    """Layers applied in the order of ``config.layer_order``, and a final norm if the configuration has one."""

    def __init__(self, config: TransformerConfig, *, dtype: keras.DTypePolicy, name: str | None = None):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config = config
        if config.attention.relative_buckets:
            self.relative_attention = RelativeAttention(config.attention, causal=config.causal, dtype=dtype)
        for i in range(config.num_layer_weights):
            setattr(self, f"layer_{i}", Layer(config, dtype=dtype, name=f"layer_{i}"))
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
        self, hidden_states: tf.Tensor, bias: tf.Tensor, cache: Cache | None = None,
        cache_index: int | tf.Tensor | None = None, training: bool | None = None,
        source: tuple[dict[str, KeyValues], tf.Tensor] | None = None,
    ) -> StackOutput:  # fmt: skip
        """Apply all layers.

        Args:
            hidden_states: [B, T, D].
            bias: Bias of the self-attention scores, float32, broadcastable to [B, N, T, S].
            cache: Keys and values of earlier positions, or None.
            cache_index: Slot of the first new position in the cache.
            training: Whether to apply dropout.
            source: In a decoder with an encoder: the source's :meth:`keys_and_values` and the bias of the
                cross-attention scores.

        Returns:
            Last hidden states [B, T, D]; all hidden states, the input first and the last one normed if so configured; the
            attention probabilities of each step; the updated cache.
        """
        states, attentions, new_cache = [hidden_states], [], {}
        for step, i in enumerate(self.config.layer_order):
            layer, name = getattr(self, f"layer_{i}"), f"step_{step}"
            hidden_states, probabilities, new_cache[name] = layer(
                hidden_states, bias, layer_index=step, cache=None if cache is None else cache[name],
                cache_index=cache_index, training=training, source=None if source is None else (source[0][name], source[1]),
            )  # fmt: skip
            states.append(hidden_states)
            attentions.append(probabilities)
        if self.config.norm.final:
            hidden_states = self.dropout(self.final_norm(hidden_states), training=training)
            states[-1] = hidden_states if self.config.norm.final_in_hidden_states else states[-1]
        return hidden_states, states, attentions, None if cache is None else new_cache

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


def attention_bias(
    attention_mask: tf.Tensor | None, query_length: int | tf.Tensor, key_length: int | tf.Tensor, causal: bool,
    first_query: int | tf.Tensor = 0,
) -> tf.Tensor:  # fmt: skip
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
    bias = tf.zeros((1, 1, 1, 1), tf.float32)
    if causal:
        rows = first_query + tf.reshape(tf.range(query_length), (-1, 1))
        columns = tf.reshape(tf.range(key_length), (1, -1))
        allowed = tf.expand_dims(tf.expand_dims(columns <= rows, 0), 0)
        bias = tf.where(allowed, 0.0, MASKED)
    if attention_mask is not None:
        visible = tf.cast(attention_mask, tf.bool)
        per_query = visible.shape.rank == 3
        visible = tf.expand_dims(visible, 1) if per_query else tf.expand_dims(tf.expand_dims(visible, 1), 1)
        bias = tf.minimum(bias, tf.where(visible, 0.0, MASKED))  # [B, 1, 1 or T, S]
    return bias


def init_cache(config: TransformerConfig, batch_size: int, length: int, dtype: str = "float32") -> Cache:
    """Return an empty cache: {"step_i": {"key": [B, N, H, length], "value": [B, N, length, H]}}."""
    rows, width = (batch_size, config.attention.num_heads), config.attention.head_dim
    return {
        f"step_{i}": {"key": tf.zeros((*rows, width, length), dtype), "value": tf.zeros((*rows, length, width), dtype)}
        for i in range(config.num_layers)
    }
