"""The parts of a transformer layer. Shapes: B batch, T query length, S key length, N heads, H head width, D hidden."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from duonlp.config import AttentionConfig, FeedForwardConfig, NormConfig


def gelu(x):
    """0.5 x (1 + erf(x / sqrt 2)), the exact form (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415)."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


GELU_TANH = 2 * math.sqrt(2 / math.pi), 0.044715


@jax.custom_vjp
def gelu_tanh(x):
    """The tanh approximation of gelu, as GPT-2 has it: 0.5 (1 + tanh(u / 2)) is the logistic function of u.

    An exponential is cheaper than a tanh, and loses no digits where x is far below 0. For the gradient, x alone is kept.
    """
    return x * _gelu_gate(x)


def _gelu_gate(x):
    slope, cubic = GELU_TANH
    return 1 / (1 + jnp.exp(x * (x * x * (-slope * cubic) - slope)))


def _gelu_tanh_backward(x, cotangent):
    slope, cubic = GELU_TANH
    dtype = x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.bfloat16))  # float16 has no room for x * x * x
    gate = _gelu_gate(x)
    return ((cotangent * gate * (1 + (1 - gate) * x * (x * x * (3 * slope * cubic) + slope))).astype(dtype),)


gelu_tanh.defvjp(lambda x: (gelu_tanh(x), x), _gelu_tanh_backward)


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
"""Activations by their Transformers names (duonlp.config.ACTIVATIONS)."""


class LayerNorm(nnx.LayerNorm):
    """Layer norm over the last axis; mean and variance in float32, the variance as the mean of squared distances."""

    def __init__(self, size: int, epsilon: float, *, dtype, param_dtype, rngs):
        super().__init__(
            size, epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, use_fast_variance=False, rngs=rngs
        )

    def __call__(self, x):
        """[..., D] -> [..., D]."""
        return layer_norm(x, self.scale[...], self.bias[...], self.epsilon).astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x, scale, bias, epsilon: float):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, in float32.

    Its gradient is the formula of Ba et al. 2016 (https://arxiv.org/abs/1607.06450): two sums a row, where the derivative
    of each step of the definition takes five.
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
    along = jnp.mean(scaled * normed, axis=-1, keepdims=True)
    to_x = (scaled - scaled.mean(axis=-1, keepdims=True) - normed * along) * inverse
    rows = tuple(range(x.ndim - 1))
    to_scale, to_bias = jnp.sum(cotangent * normed, axis=rows), jnp.sum(cotangent, axis=rows)
    return to_x.astype(x.dtype), to_scale.astype(scale.dtype), to_bias.astype(bias.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class RMSNorm(nnx.Module):
    """x over its root mean square, times a scale, in float32 (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    def __init__(self, size: int, epsilon: float, *, dtype, param_dtype, rngs):
        self.epsilon, self.dtype = epsilon, dtype
        self.scale = nnx.Param(jnp.ones((size,), param_dtype))

    def __call__(self, x):
        """[..., D] -> [..., D]."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...].astype(jnp.float32)).astype(self.dtype)


def make_norm(config: NormConfig, size: int, *, dtype, param_dtype, rngs) -> nnx.Module:
    """The norm that a configuration asks for."""
    made = RMSNorm if config.rms else LayerNorm
    return made(size, config.epsilon, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


class Linear(nnx.Linear):
    """x @ kernel + bias, kernel [in, out]; or [out, in] where jaxnlp.inference turned it for speed."""

    transposed = False

    def __call__(self, x):
        """[..., in] -> [..., out]."""
        if not self.transposed:
            # One matrix of tokens: so XLA finds the gradient of the kernel to be a plain product of two matrices.
            y = super().__call__(x.reshape(-1, x.shape[-1])) if x.ndim > 2 else super().__call__(x)
            return y.reshape(*x.shape[:-1], y.shape[-1])
        x = matmul_transposed(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)


def matmul_transposed(x, table):
    """x [..., in] times the transpose of table [out, in]: [..., out]."""
    if x.dtype == jnp.bfloat16 and x.size == x.shape[-1] and jax.default_backend() == "cpu":
        # A single row as two: XLA's product of a bfloat16 matrix and a vector is ten times slower there than of two matrices.
        return matmul_transposed(jnp.concatenate([x.reshape(1, -1)] * 2), table)[0].reshape(*x.shape[:-1], -1)
    return _product_with_transposed(x.reshape(-1, x.shape[-1]), table).reshape(*x.shape[:-1], table.shape[0])


@jax.custom_vjp
def _product_with_transposed(x, table):
    """x [T, in], table [out, in] -> [T, out]."""
    return jax.lax.dot_general(x, table, (((1,), (1,)), ((), ())))


def _product_with_transposed_backward(residuals, cotangent):
    x, table = residuals

    def plain(x, cotangent):
        return jax.lax.dot_general(cotangent, x, (((0,), (0,)), ((), ())))

    def turned(x, cotangent):
        # [in, out], then turned: a CPU would otherwise turn the cotangent, which for a vocabulary is far larger.
        product = jax.lax.dot_general(x, cotangent, (((0,), (0,)), ((), ())))
        return jax.lax.optimization_barrier(product).T

    to_table = jax.lax.platform_dependent(x, cotangent, cpu=turned, default=plain)
    return cotangent @ table, to_table


_product_with_transposed.defvjp(
    lambda x, table: (_product_with_transposed(x, table), (x, table)), _product_with_transposed_backward
)


def dropout(x, rate: float, rngs):
    """Zero a share ``rate`` of x and scale up the rest; nothing where ``rngs`` is None. rngs: nnx.Rngs."""
    if rngs is None or rate == 0:
        return x
    return jnp.where(_keep_mask(rngs.dropout(), rate, x.shape), x * (1 / (1 - rate)), jnp.zeros_like(x))


ROTATIONS = 13, 15, 26, 6, 17, 29, 16, 24


def _keep_mask(key, rate: float, shape) -> jax.Array:
    """bool [shape], False with probability ``rate`` (to within 2**-32), independently of each other.

    Threefry 2x32 of 13 rounds, the fewest that pass BigCrush (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405,
    table 2), of the place in the array: arithmetic that XLA fuses into what the mask is for, on each device for its own
    part. jax.random.bernoulli runs 20 rounds in a loop on a CPU, each over arrays in memory: a fifth of a step's time.
    """
    words = jax.random.key_data(key).reshape(-1)[:2]
    keys = words[0], words[1], words[0] ^ words[1] ^ jnp.uint32(0x1BD11BDA)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    places = [jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape))]
    x, y = keys[0] + sum(p * jnp.uint32(n) for p, n in zip(places[1:], strides[1:], strict=True)), keys[1] + places[0]
    for i in range(13):
        turn = ROTATIONS[i % 8]
        x = x + y
        y = ((y << turn) | (y >> (32 - turn))) ^ x
        if i % 4 == 3:
            group = i // 4 + 1
            x, y = x + keys[group % 3], y + keys[(group + 1) % 3] + jnp.uint32(group)
    return x >= jnp.uint32(round(rate * 2**32))


def scores_of(query, key, bias):
    """query [B, N, T, H], already scaled, on key [B, N, H, S]: float32 [B, N, T, S]."""
    return jnp.matmul(query, key, preferred_element_type=jnp.float32) + bias


@jax.custom_vjp
def attend(query, key, value, bias, keep=None):
    """What each query makes of the values: float32 [B, N, T, H].

    The softmax is divided out after the product with the values: one pass less over [B, N, T, S]. So does its gradient,
    with the row sums taken over H instead of S (Dao et al. 2022, https://arxiv.org/abs/2205.14135, appendix B.4).

    Args:
        query: [B, N, T, H], scaled. key: [B, N, H, S]. value: [B, N, S, H].
        bias: float32, broadcastable to [B, N, T, S].
        keep: the probabilities that dropout leaves, bool [B, N, T, S], or None for all; they are not scaled up.
    """
    return _attend_forward(query, key, value, bias, keep)[0]


def _attend_forward(query, key, value, bias, keep):
    scores = scores_of(query, key, bias)
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
    """Multi-head attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), to oneself or to a source."""

    fused = False  # whether jaxnlp.inference has made one layer of several

    def __init__(
        self, config: AttentionConfig, hidden_size: int, *, dtype, param_dtype, rngs
    ):  # fmt: skip
        self.config = config
        options = {"use_bias": config.bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        inner = config.num_heads * config.head_dim
        self.query = Linear(hidden_size, inner, **options)
        self.key = Linear(hidden_size, inner, **options)
        self.value = Linear(hidden_size, inner, **options)
        self.output = Linear(inner, hidden_size, **options)

    def __call__(self, hidden_states, bias, layer_index=0, cache=None, cache_index=None, rngs=None):
        """Attend from every position of hidden_states to all keys.

        Args:
            hidden_states: [B, T, D].
            bias: float32, added to the scores, broadcastable to [B, N, T, S]; large and negative where not to look.
            layer_index: which step of the stack this is, from 0.
            cache: {"key": [B, N, H, S], "value": [B, N, S, H]} of earlier positions, or None. Keys lie so that a product
                with few queries reads them in order.
            cache_index: where in S this call's keys go. None: nowhere, for the cache holds all there are, those of a source
                (:meth:`keys_and_values`).

        Returns:
            output [B, T, D], probabilities [B, N, T, S], the cache with this call's keys and values.
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
        rate = 0.0 if rngs is None else c.dropout
        keep = _keep_mask(rngs.dropout(), rate, (*query.shape[:-1], key.shape[-1])) if rate else None
        context = attend(query * scale, key, value, bias, keep) * (1 / (1 - rate))  # [B, N, T, H]
        context = context.astype(hidden_states.dtype).transpose(0, 2, 1, 3)  # [B, T, N, H]
        probabilities = jax.nn.softmax(scores_of(query * scale, key, bias)).astype(value.dtype)  # nothing, where unused
        return self.output(context.reshape(*hidden_states.shape[:2], -1)), probabilities, cache

    def keys_and_values(self, source):
        """A source [B, S, D] as it is attended to, once for all queries: {"key": [B, N, H, S], "value": [B, N, S, H]}."""
        key, value = jnp.split(self.key_value(source), 2, -1) if self.fused else (self.key(source), self.value(source))
        return {"key": self._heads(key).mT, "value": self._heads(value)}

    def _project(self, x):
        """[B, T, D] -> queries, keys and values, each [B, T, N * H]."""
        if self.fused:
            return jnp.split(self.query_key_value(x), 3, axis=-1)
        return self.query(x), self.key(x), self.value(x)

    def _heads(self, x):
        """[B, T, N * H] -> [B, N, T, H]."""
        return x.reshape(*x.shape[:2], self.config.num_heads, self.config.head_dim).transpose(0, 2, 1, 3)


class FeedForward(nnx.Module):
    """Dense, activation, dense; gated where the configuration says so (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    def __init__(
        self, config: FeedForwardConfig, hidden_size: int, *, dtype, param_dtype, rngs
    ):  # fmt: skip
        self.config = config
        options = {"use_bias": config.bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        if config.gated:
            self.gate = Linear(hidden_size, config.size, **options)
        self.up = Linear(hidden_size, config.size, **options)
        self.down = Linear(config.size, hidden_size, **options)

    def __call__(self, hidden_states, rngs=None):
        """[B, T, D] -> [B, T, D]."""
        activation, x = ACTIVATIONS[self.config.activation], self.up(hidden_states)
        x = activation(self.gate(hidden_states)) * x if self.config.gated else activation(x)
        return self.down(dropout(x, self.config.dropout, rngs))
