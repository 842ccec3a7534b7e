"""Layers stacked into an encoder or a decoder, the masks they look through, and the cache of keys and values."""

import keras
import tensorflow as tf

from duonlp.config import TransformerConfig
from tfnlp.embeddings import RelativeAttention
from tfnlp.layers import Attention, Dropout, FeedForward, make_norm

MASKED = -1e30
"""Added to the score of a key not to look at: its probability is 0 exactly, and a row without keys stays finite."""


class Layer(keras.layers.Layer):
    """Attention, attention to a source where there is one, and feed-forward, each with a residual and a norm before ("pre")
    or after ("post") it."""

    def __init__(self, config: TransformerConfig, *, dtype, name=None):
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

    def build(self, input_shape=None):
        for layer in self.parts:
            layer.build()

    def call(self, hidden_states, bias, layer_index=0, cache=None, cache_index=None, training=None, source=None):
        """hidden_states [B, T, D] -> the same shape, attention probabilities, this layer's cache.

        Args:
            source: of an encoder-decoder, (keys and values, as the cache has them; bias): see Attention.keys_and_values.

        Returns:
            hidden states; probabilities [B, N, T, S], a pair of them where there is a source; the cache.
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
    """The layers, in the order the configuration applies them, and a last norm where it has one."""

    def __init__(self, config: TransformerConfig, *, dtype, name=None):
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.config = config
        if config.attention.relative_buckets:
            self.relative_attention = RelativeAttention(config.attention, causal=config.causal, dtype=dtype)
        for i in range(config.num_layer_weights):
            setattr(self, f"layer_{i}", Layer(config, dtype=dtype, name=f"layer_{i}"))
        if config.norm.final:
            self.final_norm = make_norm(config.norm, config.hidden_size, dtype=dtype, name="final_norm")
            self.dropout = Dropout(config.norm.final_dropout, dtype=dtype, name="dropout")

    def build(self, input_shape=None):
        if self.config.attention.relative_buckets:
            self.relative_attention.build()
        for i in range(self.config.num_layer_weights):
            getattr(self, f"layer_{i}").build()
        if self.config.norm.final:
            self.final_norm.build()

    def call(self, hidden_states, bias, cache=None, cache_index=None, training=None, source=None):
        """[B, T, D] -> last hidden state, every hidden state, every layer's probabilities, the cache.

        Hidden states are the input, then each layer's output; the last of them has the final norm applied.

        Args:
            source: of an encoder-decoder, (``keys_and_values`` of each step, bias).
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
            hidden_states = states[-1] = self.dropout(self.final_norm(hidden_states), training=training)
        return hidden_states, states, attentions, None if cache is None else new_cache

    def keys_and_values(self, source):
        """What a decoder's steps attend to of a source [B, S, D]: {"step_i": ...}, see Attention.keys_and_values."""
        layers = [getattr(self, f"layer_{i}") for i in self.config.layer_order]
        return {f"step_{step}": layer.cross_attention.keys_and_values(source) for step, layer in enumerate(layers)}

    def relative_bias(self, query_positions, key_positions):
        """What distances add to the scores: float32, broadcastable to [B, N, T, S]; 0 where the family has no such thing.

        query_positions, key_positions: int [B or 1, T], [B or 1, S].
        """
        if not self.config.attention.relative_buckets:
            return 0.0
        return self.relative_attention(query_positions, key_positions)


def attention_bias(attention_mask, query_length, key_length, causal: bool, first_query=0):
    """What attention adds to its scores: 0 where to look, MASKED where not; float32 [B or 1, 1, T or 1, S].

    Args:
        attention_mask: [B, S], 1 on real tokens; or [B, T, S], 1 where a query may look; or None.
        first_query: the position of the first query among the keys; above 0 when there is a cache.
    """
    bias = tf.zeros((1, 1, 1, 1), tf.float32)
    if causal:
        rows = first_query + tf.reshape(tf.range(query_length), (-1, 1))
        columns = tf.reshape(tf.range(key_length), (1, -1))
        allowed = tf.expand_dims(tf.expand_dims(columns <= rows, 0), 0)
        bias = tf.where(allowed, 0.0, MASKED)
    if attention_mask is not None:
        real = tf.cast(attention_mask, tf.bool)
        real = tf.expand_dims(real, 1) if real.shape.rank == 3 else tf.expand_dims(tf.expand_dims(real, 1), 1)
        bias = tf.minimum(bias, tf.where(real, 0.0, MASKED))
    return bias


def init_cache(config: TransformerConfig, batch_size: int, length: int, dtype="float32"):
    """Room for ``length`` positions: {"step_i": {"key": [B, N, H, length], "value": [B, N, length, H]}}."""
    rows, width = (batch_size, config.attention.num_heads), config.attention.head_dim
    return {
        f"step_{i}": {"key": tf.zeros((*rows, width, length), dtype), "value": tf.zeros((*rows, length, width), dtype)}
        for i in range(config.num_layers)
    }
