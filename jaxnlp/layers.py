"""The parts of a transformer layer. Shapes: B batch, T query length, S key length, N heads, H head width, D hidden."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from shared.config import AttentionConfig, EmbeddingConfig, FeedForwardConfig, NormConfig


def gelu(x):
    """0.5 x (1 + erf(x / sqrt 2)), the exact form (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415)."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def gelu_tanh(x):
    """The tanh approximation of gelu, as GPT-2 has it."""
    return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": lambda x: 0.5 * x * (1 + jnp.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
    "gelu_10": lambda x: jnp.clip(gelu(x), -10, 10),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "leaky_relu": jax.nn.leaky_relu,
    "hardswish": jax.nn.hard_swish,
    "laplace": lambda x: 0.5 * (1 + jax.lax.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))),
    "linear": lambda x: x,
}
"""Activations by their Transformers names (shared.config.ACTIVATIONS)."""


class LayerNorm(nnx.LayerNorm):
    """Layer norm over the last axis; mean and variance in float32, the variance as the mean of squared distances."""

    def __init__(self, size: int, epsilon: float, *, dtype, param_dtype, rngs):
        super().__init__(
            size, epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, use_fast_variance=False, rngs=rngs
        )


class Linear(nnx.Linear):
    """x @ kernel + bias, kernel [in, out]; or [out, in] where jaxnlp.inference turned it for speed."""

    transposed = False

    def __call__(self, x):
        """[..., in] -> [..., out]."""
        if not self.transposed:
            return super().__call__(x)
        x = matmul_transposed(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)


def matmul_transposed(x, table):
    """x [..., in] times the transpose of table [out, in]: [..., out]."""
    if x.dtype == jnp.bfloat16 and x.size == x.shape[-1] and jax.default_backend() == "cpu":
        # A single row as two: XLA's product of a bfloat16 matrix and a vector is ten times slower there than of two matrices.
        return matmul_transposed(jnp.concatenate([x.reshape(1, -1)] * 2), table)[0].reshape(*x.shape[:-1], -1)
    return jax.lax.dot_general(x, table, (((x.ndim - 1,), (1,)), ((), ())))


def dropout(x, rate: float, rngs):
    """Zero a share ``rate`` of x and scale up the rest; nothing where ``rngs`` is None. rngs: nnx.Rngs."""
    if rngs is None or rate == 0:
        return x
    keep = jax.random.bernoulli(rngs.dropout(), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


class Embeddings(nnx.Module):
    """ids -> vectors: words + token types + positions, norm, dropout, projection to the hidden size."""

    def __init__(
        self, config: EmbeddingConfig, hidden_size: int, norm: NormConfig, *, dtype, param_dtype, rngs
    ):  # fmt: skip
        self.config = config
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.word_embeddings = nnx.Embed(config.vocab_size, config.size, **options)
        self.position_embeddings = nnx.Embed(config.max_positions, config.size, **options)
        if config.type_vocab_size:
            self.token_type_embeddings = nnx.Embed(config.type_vocab_size, config.size, **options)
        if config.norm:
            self.norm = LayerNorm(config.size, norm.epsilon, **options)
        if config.projection:
            self.projection = Linear(config.size, hidden_size, **options)

    def __call__(self, input_ids, token_type_ids, position_ids, rngs=None):
        """input_ids, token_type_ids (or None), position_ids: int [B, T] -> [B, T, D]."""
        x = self._lookup(self.word_embeddings, input_ids)
        if self.config.type_vocab_size:
            types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + self.token_type_embeddings(types)
        positions = self.position_embeddings
        skip = self.config.positions_skip_padding
        x = x + (self._lookup(positions, position_ids) if skip else positions(position_ids))
        if self.config.token_types_from_words and token_type_ids is not None:
            x = x + self._lookup(self.word_embeddings, token_type_ids)
        if self.config.norm:
            x = self.norm(x)
        x = dropout(x, self.config.dropout, rngs)
        return self.projection(x) if self.config.projection else x

    def _lookup(self, table, ids):
        """A lookup that sends no gradient to the padding row, as torch's padding_idx."""
        vectors = table(ids)
        if self.config.padding_id is None:
            return vectors
        is_padding = jnp.expand_dims(ids == self.config.padding_id, -1)
        return jnp.where(is_padding, jax.lax.stop_gradient(vectors), vectors)


class Attention(nnx.Module):
    """Multi-head attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762)."""

    fused = False  # whether jaxnlp.inference has made one layer of three

    def __init__(
        self, config: AttentionConfig, hidden_size: int, *, dtype, param_dtype, rngs
    ):  # fmt: skip
        self.config = config
        options = {"use_bias": config.bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = Linear(hidden_size, hidden_size, **options)
        self.key = Linear(hidden_size, hidden_size, **options)
        self.value = Linear(hidden_size, hidden_size, **options)
        self.output = Linear(hidden_size, hidden_size, **options)

    def __call__(self, hidden_states, bias, layer_index=0, cache=None, cache_index=None, rngs=None):
        """Attend from every position of hidden_states to all keys.

        Args:
            hidden_states: [B, T, D].
            bias: float32, added to the scores, broadcastable to [B, N, T, S]; large and negative where not to look.
            layer_index: which step of the stack this is, from 0.
            cache: {"key": [B, N, H, S], "value": [B, N, S, H]} of earlier positions, or None. Keys lie so that a product
                with few queries reads them in order.
            cache_index: where in S this call's keys go.

        Returns:
            output [B, T, D], probabilities [B, N, T, S], the cache with this call's keys and values.
        """
        c = self.config
        query, key, value = (self._heads(x) for x in self._project(hidden_states))  # [B, N, T, H]
        key = key.mT  # [B, N, H, T]
        if cache is not None:
            cache = {
                name: jax.lax.dynamic_update_slice_in_dim(cache[name], new.astype(cache[name].dtype), cache_index, axis)
                for name, new, axis in (("key", key, 3), ("value", value, 2))
            }
            key, value = cache["key"], cache["value"]
        scale = c.head_dim**-0.5 if c.scale_by_head_dim else 1.0
        scale = scale / (layer_index + 1) if c.scale_by_layer else scale
        if c.float32_scores:
            query, key = query.astype(jnp.float32), key.astype(jnp.float32)
        scores = jnp.matmul(query * scale, key, preferred_element_type=jnp.float32) + bias  # [B, N, T, S]
        # The softmax is divided out after the product with the values: one pass less over [B, N, T, S].
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1, keepdims=True)  # [B, N, T, 1]
        dropped = dropout(weights, c.dropout, rngs).astype(value.dtype)
        context = jnp.matmul(dropped, value, preferred_element_type=jnp.float32) / total
        context = context.astype(hidden_states.dtype).transpose(0, 2, 1, 3)  # [B, T, N, H]
        probabilities = (weights / total).astype(value.dtype)
        return self.output(context.reshape(hidden_states.shape)), probabilities, cache

    def _project(self, x):
        """[B, T, D] -> queries, keys and values, each [B, T, D]."""
        if self.fused:
            return jnp.split(self.query_key_value(x), 3, axis=-1)
        return self.query(x), self.key(x), self.value(x)

    def _heads(self, x):
        """[B, T, D] -> [B, N, T, H]."""
        return x.reshape(*x.shape[:2], self.config.num_heads, self.config.head_dim).transpose(0, 2, 1, 3)


class FeedForward(nnx.Module):
    """Dense, activation, dense."""

    def __init__(
        self, config: FeedForwardConfig, hidden_size: int, *, dtype, param_dtype, rngs
    ):  # fmt: skip
        self.config = config
        options = {"use_bias": config.bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.up = Linear(hidden_size, config.size, **options)
        self.down = Linear(config.size, hidden_size, **options)

    def __call__(self, hidden_states):
        """[B, T, D] -> [B, T, D]."""
        return self.down(ACTIVATIONS[self.config.activation](self.up(hidden_states)))
