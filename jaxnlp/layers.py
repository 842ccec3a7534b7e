"""Building blocks of a transformer layer.

Shapes: B batch, T query length, S key length, N heads, H head width, D hidden.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from duonlp.config import AttentionConfig, FeedForwardConfig, NormConfig

KeyValues: TypeAlias = dict[str, jax.Array]
"""Keys and values of one layer: {"key": [B, N, H, S], "value": [B, N, S, H]}.

Keys are stored transposed, so that the product with a few queries reads them contiguously.
"""


def gelu(x: jax.Array) -> jax.Array:
    """Apply exact gelu, 0.5 x (1 + erf(x / sqrt 2)) (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415)."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


GELU_TANH = 2 * math.sqrt(2 / math.pi), 0.044715
"""Coefficients of u(x) = slope * (x + cubic * x^3), for gelu_tanh."""


@jax.custom_vjp
def gelu_tanh(x: jax.Array) -> jax.Array:
    """Apply the tanh approximation of gelu that GPT-2 uses, as x * sigmoid(u): 0.5 (1 + tanh(u / 2)) is sigmoid(u).

    An exponential is cheaper than a tanh and keeps its precision for very negative x. Only x is saved for the
    gradient.
    """
    return x * _gelu_gate(x)


def _gelu_gate(x: jax.Array) -> jax.Array:
    slope, cubic = GELU_TANH
    return 1 / (1 + jnp.exp(x * (x * x * (-slope * cubic) - slope)))


def _gelu_tanh_backward(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    slope, cubic = GELU_TANH
    dtype = x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.bfloat16))  # x * x * x overflows in float16
    gate = _gelu_gate(x)
    return ((cotangent * gate * (1 + (1 - gate) * x * (x * x * (3 * slope * cubic) + slope))).astype(dtype),)


gelu_tanh.defvjp(lambda x: (gelu_tanh(x), x), _gelu_tanh_backward)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
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
"""Activations by their Transformers names, see duonlp.config.ACTIVATIONS."""


class LayerNorm(nnx.LayerNorm):
    """Layer norm over the last axis, with statistics in float32 and the variance from centered values."""

    def __init__(self, size: int, epsilon: float, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(
            size, epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, use_fast_variance=False, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize [..., D] over the last axis."""
        assert self.scale is not None and self.bias is not None
        return layer_norm(x, self.scale[...], self.bias[...], self.epsilon).astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Return (x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, in float32.

    The gradient is the closed form of Ba et al. 2016 (https://arxiv.org/abs/1607.06450): two sums per row
    instead of the five of step-by-step differentiation.
    """
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
    y = x.astype(jnp.float32)
    mean = y.mean(axis=-1, keepdims=True)
    centered = y - mean
    inverse = jax.lax.rsqrt(jnp.mean(centered * centered, axis=-1, keepdims=True) + epsilon)
    return centered * (inverse * scale.astype(jnp.float32)) + bias.astype(jnp.float32), (x, scale, bias, mean, inverse)


def _layer_norm_backward(epsilon, residuals, cotangent):
    x, scale, bias, mean, inverse = residuals
    normed = (x.astype(jnp.float32) - mean) * inverse
    scaled = cotangent * scale.astype(jnp.float32)
    projection = jnp.mean(scaled * normed, axis=-1, keepdims=True)
    to_x = (scaled - scaled.mean(axis=-1, keepdims=True) - normed * projection) * inverse
    rows = tuple(range(x.ndim - 1))
    to_scale, to_bias = jnp.sum(cotangent * normed, axis=rows), jnp.sum(cotangent, axis=rows)
    return to_x.astype(x.dtype), to_scale.astype(scale.dtype), to_bias.astype(bias.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class RMSNorm(nnx.Module):
    """RMS norm over the last axis, in float32 (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    def __init__(self, size: int, epsilon: float, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.epsilon, self.dtype = epsilon, dtype
        self.scale = nnx.Param(jnp.ones((size,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize [..., D] over the last axis."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...].astype(jnp.float32)).astype(self.dtype)


def make_norm(
    config: NormConfig, size: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
) -> LayerNorm | RMSNorm:
    """Create the norm layer of a configuration."""
    norm_class = RMSNorm if config.rms else LayerNorm
    return norm_class(size, config.epsilon, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


class Linear(nnx.Linear):
    """Linear layer, x @ kernel + bias with kernel [in, out].

    Attributes:
        transposed: Whether the kernel is stored as [out, in], as jaxnlp.inference does for speed.
    """

    transposed = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., in] to [..., out]."""
        if not self.transposed:
            x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
            x = _matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)
            return x if self.bias is None else x + self.bias[...].astype(self.dtype)
        x = matmul_transposed(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)


@jax.custom_vjp
def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply tokens x [T, in] with a kernel [in, out], giving [T, out]."""
    return x @ kernel


def _matmul_backward(residuals, cotangent):
    x, kernel = residuals
    return cotangent @ kernel.T, _sum_outer_products(x, cotangent)


def _sum_outer_products(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the sum over tokens of the outer products of x [T, in] and y [T, out], [in, out]: a kernel's gradient."""

    def direct(x, y):
        return jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())))

    def via_transpose(x, y):
        # On a CPU, a product over the first axis of both takes up to twice as long as transposing the narrower first, which
        # the barriers keep XLA from undoing. (Into the transpose of a wide x it would fuse a slow, strided activation.)
        barrier = jax.lax.optimization_barrier
        return barrier(x.T) @ y if x.shape[1] <= y.shape[1] else barrier(barrier(y.T) @ x).T

    return jax.lax.platform_dependent(x, y, cpu=via_transpose, default=direct)


_matmul.defvjp(lambda x, kernel: (_matmul(x, kernel), (x, kernel)), _matmul_backward)


def matmul_transposed(x: jax.Array, table: jax.Array) -> jax.Array:
    """Multiply x [..., in] with the transpose of table [out, in], giving [..., out]."""
    if x.dtype == jnp.bfloat16 and x.size == x.shape[-1] and jax.default_backend() == "cpu":
        # Double a single row: on CPUs, XLA's bfloat16 matrix-vector product is ten times slower than
        # matrix-matrix.
        return matmul_transposed(jnp.concatenate([x.reshape(1, -1)] * 2), table)[0].reshape(*x.shape[:-1], -1)
    return _product_with_transposed(x.reshape(-1, x.shape[-1]), table).reshape(*x.shape[:-1], table.shape[0])


@jax.custom_vjp
def _product_with_transposed(x: jax.Array, table: jax.Array) -> jax.Array:
    """Multiply x [T, in] with the transpose of table [out, in], giving [T, out]."""
    return jax.lax.dot_general(x, table, (((1,), (1,)), ((), ())))


def _product_with_transposed_backward(residuals, cotangent):
    x, table = residuals

    def direct(x, cotangent):
        return jax.lax.dot_general(cotangent, x, (((0,), (0,)), ((), ())))

    def via_transpose(x, cotangent):
        # Transpose the [in, out] product: the cotangent is far larger for a vocabulary.
        return jax.lax.optimization_barrier(_sum_outer_products(x, cotangent)).T

    to_table = jax.lax.platform_dependent(x, cotangent, cpu=via_transpose, default=direct)
    return cotangent @ table, to_table


_product_with_transposed.defvjp(
    lambda x, table: (_product_with_transposed(x, table), (x, table)), _product_with_transposed_backward
)


def dropout(x: jax.Array, rate: float, rngs: nnx.Rngs | None) -> jax.Array:
    """Zero a fraction ``rate`` of x and scale up the rest; return x unchanged if ``rngs`` is None."""
    if rngs is None or rate == 0:
        return x
    return jnp.where(_keep_mask(rngs.dropout(), rate, x.shape), x * (1 / (1 - rate)), jnp.zeros_like(x))


ROTATIONS = 13, 15, 26, 6, 17, 29, 16, 24
"""Rotation constants of Threefry 2x32."""


def _keep_mask(key: jax.Array, rate: float, shape: Sequence[int]) -> jax.Array:
    """Return a bool mask of the given shape whose entries are independently False with probability ``rate``.

    The probability is exact to 2**-32. Each entry is Threefry 2x32 of its index, with 13 rounds, the fewest
    that pass BigCrush (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405, table 2). It is plain
    arithmetic, which XLA fuses into the consumer of the mask and each device computes for its own shard.
    jax.random.bernoulli runs 20 rounds in a loop on a CPU, each over arrays in memory: a fifth of the time of a
    training step.
    """
    words = jax.random.key_data(key).reshape(-1)[:2]
    keys = words[0], words[1], words[0] ^ words[1] ^ jnp.uint32(0x1BD11BDA)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    indices = [jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape))]
    offsets = (index * jnp.uint32(stride) for index, stride in zip(indices[1:], strides[1:], strict=True))
    x, y = keys[0] + sum(offsets), keys[1] + indices[0]
    for i in range(13):
        rotation = ROTATIONS[i % 8]
        x = x + y
        y = ((y << rotation) | (y >> (32 - rotation))) ^ x
        if i % 4 == 3:
            group = i // 4 + 1
            x, y = x + keys[group % 3], y + keys[(group + 1) % 3] + jnp.uint32(group)
    return x >= jnp.uint32(round(rate * 2**32))


def attention_scores(query: jax.Array, key: jax.Array, bias: jax.Array) -> jax.Array:
    """Return biased scores float32 [B, N, T, S] of scaled queries [B, N, T, H] and transposed keys [B, N, H, S]."""
    return jnp.matmul(query, key, preferred_element_type=jnp.float32) + bias


@jax.custom_vjp
def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, keep: jax.Array | None = None
) -> jax.Array:
    """Return the attention-weighted values, float32 [B, N, T, H].

    Softmax is normalized after the product with the values, which saves a pass over [B, N, T, S]. The gradient
    does the same, taking row sums over H instead of S (Dao et al. 2022, https://arxiv.org/abs/2205.14135,
    appendix B.4).

    Args:
        query: Scaled queries [B, N, T, H].
        key: Transposed keys [B, N, H, S].
        value: Values [B, N, S, H].
        bias: Bias of the scores, float32, broadcastable to [B, N, T, S].
        keep: Probabilities that dropout keeps, bool [B, N, T, S], or None for all. They are not scaled up.
    """
    return _attend_forward(query, key, value, bias, keep)[0]


def _attend_forward(query, key, value, bias, keep):
    scores = attention_scores(query, key, bias)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)  # [B, N, T, 1]
    dropped = weights if keep is None else jnp.where(keep, weights, 0)
    context = jnp.matmul(dropped.astype(value.dtype), value, preferred_element_type=jnp.float32) / total
    return context, (query, key, value, bias, keep, weights, total, context)


def _attend_backward(residuals, cotangent):
    query, key, value, bias, keep, weights, total, context = residuals
    cotangent = cotangent / total
    row_sums = jnp.sum(cotangent * context, axis=-1, keepdims=True)  # [B, N, T, 1]
    cotangent = cotangent.astype(value.dtype)
    dropped = (weights if keep is None else jnp.where(keep, weights, 0)).astype(value.dtype)
    to_value = jnp.matmul(dropped.mT, cotangent)
    to_weights = jnp.matmul(cotangent, value.mT, preferred_element_type=jnp.float32)
    to_scores = weights * ((to_weights if keep is None else jnp.where(keep, to_weights, 0)) - row_sums)  # [B, N, T, S]
    narrow = to_scores.astype(query.dtype)
    to_query, to_key = jnp.matmul(narrow, key.mT), jnp.matmul(query.mT, narrow)
    shape = (1,) * (4 - bias.ndim) + bias.shape
    to_bias = to_scores.sum([i for i in range(4) if shape[i] == 1], keepdims=True).reshape(bias.shape)
    return to_query, to_key, to_value, to_bias, None


attend.defvjp(_attend_forward, _attend_backward)


class Attention(nnx.Module):
    """Multi-head self-attention or cross-attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762)."""

    fused = False  # jaxnlp.inference merges the projections of a copy into one of these two:
    query_key_value: "Linear"
    key_value: "Linear"

    def __init__(
        self, config: AttentionConfig, hidden_size: int, *, dtype: DTypeLike, param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.config = config
        options = {"use_bias": config.bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        inner = config.num_heads * config.head_dim
        self.query = Linear(hidden_size, inner, **options)
        self.key = Linear(hidden_size, inner, **options)
        self.value = Linear(hidden_size, inner, **options)
        self.output = Linear(inner, hidden_size, **options)

    def __call__(
        self, hidden_states: jax.Array, bias: jax.Array, layer_index: int | jax.Array = 0, cache: KeyValues | None = None,
        cache_index: int | jax.Array | None = None, rngs: nnx.Rngs | None = None,
    ) -> tuple[jax.Array, jax.Array, KeyValues | None]:  # fmt: skip
        """Attend from each position of hidden_states to all keys.

        Args:
            hidden_states: [B, T, D].
            bias: Bias of the scores, float32, broadcastable to [B, N, T, S]; large and negative for masked
                keys.
            layer_index: Step of the stack, from 0.
            cache: Keys and values of earlier positions, or None.
            cache_index: Slot on the S axis for this call's keys and values. None with a cache means
                cross-attention: the cache already holds all keys and values, those of the source (see
                :meth:`keys_and_values`).
            rngs: Random streams with ``dropout``; None for no dropout.

        Returns:
            Output [B, T, D], probabilities [B, N, T, S], and the cache updated with this call's keys and
            values.
        """
        c = self.config
        if cache is not None and cache_index is None:
            query = self._heads(self.query(hidden_states))
            key, value = cache["key"], cache["value"]
        else:
            query, key, value = (self._heads(x) for x in self._project(hidden_states))  # [B, N, T, H]
            key = key.mT  # [B, N, H, T]
        if cache is not None and cache_index is not None:
            cache = {
                name: jax.lax.dynamic_update_slice_in_dim(cache[name], new.astype(cache[name].dtype), cache_index, axis)
                for name, new, axis in (("key", key, 3), ("value", value, 2))
            }
            key, value = cache["key"], cache["value"]
        scale = c.head_dim**-0.5 if c.scale_by_head_dim else 1.0
        scale = scale / (layer_index + 1) if c.scale_by_layer else scale
        if c.float32_scores:
            query, key = query.astype(jnp.float32), key.astype(jnp.float32)
        rate, keep = 0.0, None
        if rngs is not None and c.dropout:
            rate = c.dropout
            keep = _keep_mask(rngs.dropout(), rate, (*query.shape[:-1], key.shape[-1]))
        context = attend(query * scale, key, value, bias, keep) * (1 / (1 - rate))  # [B, N, T, H]
        context = context.astype(hidden_states.dtype).transpose(0, 2, 1, 3)  # [B, T, N, H]
        # Dead code that jit removes unless the caller uses the probabilities.
        probabilities = jax.nn.softmax(attention_scores(query * scale, key, bias)).astype(value.dtype)
        return self.output(context.reshape(*hidden_states.shape[:2], -1)), probabilities, cache

    def keys_and_values(self, source: jax.Array) -> KeyValues:
        """Project a source [B, S, D] to keys and values once, for all queries to come."""
        key, value = jnp.split(self.key_value(source), 2, -1) if self.fused else (self.key(source), self.value(source))
        return {"key": self._heads(key).mT, "value": self._heads(value)}

    def _project(self, x: jax.Array) -> Sequence[jax.Array]:
        """Project [B, T, D] to queries, keys and values, [B, T, N * H] each."""
        if self.fused:
            return jnp.split(self.query_key_value(x), 3, axis=-1)
        return self.query(x), self.key(x), self.value(x)

    def _heads(self, x: jax.Array) -> jax.Array:
        """Split [B, T, N * H] into heads [B, N, T, H]."""
        return x.reshape(*x.shape[:2], self.config.num_heads, self.config.head_dim).transpose(0, 2, 1, 3)


class FeedForward(nnx.Module):
    """Feed-forward block: dense, activation, dense; with ``config.gated`` the gated linear unit of Shazeer 2020.

    See https://arxiv.org/abs/2002.05202.
    """

    def __init__(
        self, config: FeedForwardConfig, hidden_size: int, *, dtype: DTypeLike, param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.config = config
        options = {"use_bias": config.bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        if config.gated:
            self.gate = Linear(hidden_size, config.size, **options)
        self.up = Linear(hidden_size, config.size, **options)
        self.down = Linear(config.size, hidden_size, **options)

    def __call__(self, hidden_states: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Apply the block to [B, T, D]."""
        activation, x = ACTIVATIONS[self.config.activation], self.up(hidden_states)
        x = activation(self.gate(hidden_states)) * x if self.config.gated else activation(x)
        return self.down(dropout(x, self.config.dropout, rngs))
