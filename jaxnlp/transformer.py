"""Layers stacked into an encoder or a decoder, the masks they look through, and the cache of keys and values."""

import jax.numpy as jnp
from flax import nnx

from duonlp.config import TransformerConfig
from jaxnlp.embeddings import RelativeAttention
from jaxnlp.layers import Attention, FeedForward, dropout, make_norm

MASKED = -1e30
"""Added to the score of a key not to look at: its probability is 0 exactly, and a row without keys stays finite."""


class Layer(nnx.Module):
    """Attention, attention to a source where there is one, and feed-forward, each with a residual and a norm before ("pre")
    or after ("post") it."""

    def __init__(self, config: TransformerConfig, *, dtype, param_dtype, rngs):
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

    def __call__(self, hidden_states, bias, layer_index=0, cache=None, cache_index=None, rngs=None, source=None):
        """hidden_states [B, T, D] -> the same shape, attention probabilities, this layer's cache.

        Args:
            source: of an encoder-decoder, (keys and values, as the cache has them; bias): see Attention.keys_and_values.

        Returns:
            hidden states; probabilities [B, N, T, S], a pair of them where there is a source; the cache.
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
    """The layers, in the order the configuration applies them, and a last norm where it has one."""

    def __init__(self, config: TransformerConfig, *, dtype, param_dtype, rngs):
        self.config = config
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        if config.attention.relative_buckets:
            self.relative_attention = RelativeAttention(config.attention, causal=config.causal, **options)
        for i in range(config.num_layer_weights):
            setattr(self, f"layer_{i}", Layer(config, **options))
        if config.norm.final:
            self.final_norm = make_norm(config.norm, config.hidden_size, **options)

    def __call__(self, hidden_states, bias, cache=None, cache_index=None, rngs=None, source=None):
        """[B, T, D] -> last hidden state, every hidden state, every layer's probabilities, the cache.

        Hidden states are the input, then each layer's output; the last of them has the final norm applied.

        Args:
            source: of an encoder-decoder, (``keys_and_values`` of each step, bias).
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
            states[-1] = hidden_states
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


def attention_bias(attention_mask, query_length: int, key_length: int, causal: bool, first_query=0):
    """What attention adds to its scores: 0 where to look, MASKED where not; float32 [B or 1, 1, T or 1, S].

    Args:
        attention_mask: [B, S], 1 on real tokens; or [B, T, S], 1 where a query may look; or None.
        first_query: the position of the first query among the keys; above 0 when there is a cache.
    """
    bias = jnp.zeros((1, 1, 1, 1), jnp.float32)
    if causal:
        rows = first_query + jnp.arange(query_length).reshape(-1, 1)
        columns = jnp.arange(key_length).reshape(1, -1)
        allowed = (columns <= rows).reshape(1, 1, query_length, key_length)
        bias = jnp.where(allowed, 0.0, MASKED).astype(jnp.float32)
    if attention_mask is not None:
        real = jnp.expand_dims(attention_mask != 0, (1, 2) if attention_mask.ndim == 2 else 1)  # [B, 1, 1 or T, S]
        bias = jnp.minimum(bias, jnp.where(real, 0.0, MASKED).astype(jnp.float32))
    return bias


def init_cache(config: TransformerConfig, batch_size: int, length: int, dtype=jnp.float32):
    """Room for ``length`` positions: {"step_i": {"key": [B, N, H, length], "value": [B, N, length, H]}}."""
    rows, width = (batch_size, config.attention.num_heads), config.attention.head_dim
    return {
        f"step_{i}": {
            "key": jnp.zeros((*rows, width, length), dtype),
            "value": jnp.zeros((*rows, length, width), dtype),
        }
        for i in range(config.num_layers)
    }
