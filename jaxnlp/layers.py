"""Building blocks of a transformer layer.

Shapes: B batch, T query length, S key length, N heads, K key-value heads, H head width, D hidden.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from duonlp.config import AttentionConfig, NormConfig, RotaryConfig
from duonlp.dtypes import FLOAT16_BOUND, without_float16
from jaxnlp.kernels.choice import elementwise_dtype, product_dtype
from jaxnlp.products import matmul, matmul_transposed, transpose

KeyValues: TypeAlias = dict[str, jax.Array]
"""Keys and values of one layer: {"key": [B, K, H, S], "value": [B, K, S, H]}.

Keys are stored transposed, so that the product with a few queries reads them contiguously.
"""

Rotation: TypeAlias = tuple[jax.Array, jax.Array]
"""Cosines and sines of the angles by which queries and keys are rotated: float32 [B or 1, T, rotary size / 2] each."""


def gelu(x: jax.Array) -> jax.Array:
    """Apply exact gelu, 0.5 x (1 + erf(x / sqrt 2)) (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415)."""
    if x.dtype == jnp.float16:  # in which 1 + erf(x) has few digits for negative x
        return 0.5 * x * jax.lax.erfc(x * -math.sqrt(0.5))
    y = x.astype(elementwise_dtype(x.dtype))
    return (0.5 * y * (1 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


GELU_TANH = 2 * math.sqrt(2 / math.pi), 0.044715
"""Coefficients of u(x) = slope * (x + cubic * x^3), for gelu_tanh."""


@jax.custom_vjp
def gelu_tanh(x: jax.Array) -> jax.Array:
    """Apply the tanh approximation of gelu that GPT-2 uses, as x * sigmoid(u): 0.5 (1 + tanh(u / 2)) is sigmoid(u).

    An exponential is cheaper than a tanh and keeps its precision for very negative x. Only x is saved for the
    gradient.
    """
    wide = _widen(x)
    return (wide * _gelu_gate(wide)).astype(x.dtype)


def _widen(x: jax.Array) -> jax.Array:
    """Return float16 values as float32, where x * x * x does not overflow, and what is computed faster so."""
    return x.astype(elementwise_dtype(without_float16(x.dtype)))


def _gelu_gate(x: jax.Array) -> jax.Array:
    slope, cubic = GELU_TANH
    return 1 / (1 + jnp.exp(x * (x * x * (-slope * cubic) - slope)))


def _gelu_tanh_backward(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    slope, cubic = GELU_TANH
    dtype, x = x.dtype, _widen(x)
    gate = _gelu_gate(x)
    return ((cotangent * gate * (1 + (1 - gate) * x * (x * x * (3 * slope * cubic) + slope))).astype(dtype),)


gelu_tanh.defvjp(lambda x: (gelu_tanh(x), x), _gelu_tanh_backward)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
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

    def __init__(
        self, size: int, epsilon: float, *, bias: bool = True, dtype: DTypeLike, param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        super().__init__(
            size,
            epsilon=epsilon,
            use_bias=bias,
            dtype=dtype,
            param_dtype=param_dtype,
            use_fast_variance=False,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize [..., D] over the last axis."""
        assert self.scale is not None
        bias = None if self.bias is None else self.bias[...]
        return layer_norm(x, self.scale[...], bias, self.epsilon).astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, epsilon: float) -> jax.Array:
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
    normed = centered * (inverse * scale.astype(jnp.float32))
    return normed if bias is None else normed + bias.astype(jnp.float32), (x, scale, bias, mean, inverse)


def _layer_norm_backward(epsilon, residuals, cotangent):
    x, scale, bias, mean, inverse = residuals
    normed = (x.astype(jnp.float32) - mean) * inverse
    scaled = cotangent * scale.astype(jnp.float32)
    projection = jnp.mean(scaled * normed, axis=-1, keepdims=True)
    to_x = (scaled - scaled.mean(axis=-1, keepdims=True) - normed * projection) * inverse
    rows = tuple(range(x.ndim - 1))
    to_scale = jnp.sum(cotangent * normed, axis=rows).astype(scale.dtype)
    to_bias = None if bias is None else jnp.sum(cotangent, axis=rows).astype(bias.dtype)
    return to_x.astype(x.dtype), to_scale, to_bias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class RMSNorm(nnx.Module):
    """RMS norm over the last axis, in float32 (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467).

    With ``unit_offset``, it multiplies by 1 + scale (Gemma).
    """

    def __init__(
        self, size: int, epsilon: float, *, unit_offset: bool = False, dtype: DTypeLike, param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.epsilon, self.unit_offset, self.dtype = epsilon, unit_offset, dtype
        self.scale = nnx.Param((jnp.zeros if unit_offset else jnp.ones)((size,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize [..., D] over the last axis."""
        y, scale = x.astype(jnp.float32), self.scale[...].astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y * (1 + scale if self.unit_offset else scale)).astype(self.dtype)


def make_norm(
    config: NormConfig, size: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
) -> LayerNorm | RMSNorm:
    """Create the norm layer of a configuration."""
    options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
    if config.rms:
        return RMSNorm(size, config.epsilon, unit_offset=config.unit_offset, **options)
    return LayerNorm(size, config.epsilon, bias=config.bias, **options)


class Linear(nnx.Linear):
    """Linear layer, x @ kernel + bias with kernel [in, out].

    Attributes:
        transposed: Whether the kernel is stored as [out, in], as jaxnlp.inference does for speed.
    """

    transposed = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., in] to [..., out]."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.transposed:
            y = matmul_transposed(x, kernel)
        else:
            y = matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else add_bias(y, self.bias[...].astype(self.dtype))


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Add a bias [D] to [..., D].

    On a CPU, bfloat16 is added in float32, since the gradient of the bias is a sum over all rows, which has few digits in
    bfloat16 and takes 50 times as long.
    """
    dtype = elementwise_dtype(x.dtype)
    return (x.astype(dtype) + bias.astype(dtype)).astype(x.dtype)


class Embed(nnx.Embed):
    """Table of vectors."""

    # pyrefly: ignore[bad-override]  # nnx's has more arguments
    def attend(self, query: jax.Array) -> jax.Array:
        """Multiply [..., features] with the transposed table, giving [..., num_embeddings]."""
        return matmul_transposed(query, self.embedding[...].astype(query.dtype))


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


def clamp(x: jax.Array) -> jax.Array:
    """Clamp float16 values to FLOAT16_BOUND; return other dtypes unchanged."""
    return jnp.clip(x, -FLOAT16_BOUND, FLOAT16_BOUND) if x.dtype == jnp.float16 else x


def rotate(x: jax.Array, rotation: Rotation, config: RotaryConfig) -> jax.Array:
    """Rotate the first dimensions of heads [B, N, T, H] in pairs (Su et al. 2021, https://arxiv.org/abs/2104.09864).

    Args:
        x: Queries or keys.
        rotation: Cosines and sines of the angles.
        config: Number of rotated dimensions, and whether a pair is two neighbors or half of them apart.
    """
    cos, sin = (jnp.expand_dims(table, 1) for table in rotation)  # [B or 1, 1, T, size / 2]
    half, interleaved = config.size // 2, config.interleaved
    y, rest = x[..., : 2 * half].astype(jnp.float32), x[..., 2 * half :]
    first, second = (y[..., ::2], y[..., 1::2]) if interleaved else (y[..., :half], y[..., half:])
    pair = first * cos - second * sin, second * cos + first * sin
    y = jnp.stack(pair, axis=-1).reshape(y.shape) if interleaved else jnp.concatenate(pair, axis=-1)
    return jnp.concatenate([y.astype(x.dtype), rest], axis=-1) if config.size < x.shape[-1] else y.astype(x.dtype)


def _grouped(x: jax.Array, num_kv_heads: int) -> jax.Array:
    """Reshape [B, N, T, ...] to [B, K, N / K * T, ...]: the queries that share a key-value head become rows of one matrix."""
    return x.reshape(x.shape[0], num_kv_heads, -1, x.shape[-1])


def attention_scores(query: jax.Array, key: jax.Array, bias: jax.Array, softcap: float | None = None) -> jax.Array:
    """Return biased scores float32 [B, N, T, S] of scaled queries [B, N, T, H] and transposed keys [B, K, H, S]."""
    return _capped_scores(query, key, softcap) + bias


def _capped_scores(query: jax.Array, key: jax.Array, softcap: float | None) -> jax.Array:
    scores = jnp.matmul(_grouped(query, key.shape[1]), key, preferred_element_type=jnp.float32)
    scores = scores.reshape(*query.shape[:-1], key.shape[-1])  # [B, N, T, S]
    return scores if softcap is None else softcap * jnp.tanh(scores * (1 / softcap))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, keep: jax.Array | None = None,
    softcap: float | None = None,
) -> jax.Array:  # fmt: skip
    """Return the attention-weighted values, float32 [B, N, T, H].

    Softmax is normalized after the product with the values, which saves a pass over [B, N, T, S]. The gradient
    does the same, taking row sums over H instead of S (Dao et al. 2022, https://arxiv.org/abs/2205.14135,
    appendix B.4).

    Args:
        query: Scaled queries [B, N, T, H].
        key: Transposed keys [B, K, H, S].
        value: Values [B, K, S, H].
        bias: Bias of the scores, float32, broadcastable to [B, N, T, S].
        keep: Probabilities that dropout keeps, bool [B, N, T, S], or None for all. They are not scaled up.
        softcap: Bound of the scores before the bias, see AttentionConfig.
    """
    return _attend_forward(query, key, value, bias, keep, softcap)[0]


def _attend_forward(query, key, value, bias, keep, softcap):
    capped = _capped_scores(query, key, softcap)
    scores = capped + bias
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)  # [B, N, T, 1]
    dropped = _grouped((weights if keep is None else jnp.where(keep, weights, 0)).astype(value.dtype), value.shape[1])
    context = jnp.matmul(dropped, value, preferred_element_type=jnp.float32).reshape(query.shape) / total
    return context, (query, key, value, bias, keep, weights, total, context, None if softcap is None else capped)


def _attend_backward(softcap, residuals, cotangent):
    query, key, value, bias, keep, weights, total, context, capped = residuals
    groups = value.shape[1]
    cotangent = cotangent / total
    row_sums = jnp.sum(cotangent * context, axis=-1, keepdims=True)  # [B, N, T, 1]
    cotangent = _grouped(cotangent.astype(value.dtype), groups)
    dropped = _grouped((weights if keep is None else jnp.where(keep, weights, 0)).astype(value.dtype), groups)
    wide = {"preferred_element_type": product_dtype(query.dtype)}
    to_value = jnp.matmul(transpose(dropped), cotangent, **wide).astype(value.dtype)
    to_weights = jnp.matmul(cotangent, value.mT, preferred_element_type=jnp.float32).reshape(weights.shape)
    to_scores = weights * ((to_weights if keep is None else jnp.where(keep, to_weights, 0)) - row_sums)  # [B, N, T, S]
    to_capped = to_scores if capped is None else to_scores * (1 - jnp.square(capped * (1 / softcap)))
    narrow = _grouped(to_capped.astype(query.dtype), groups)
    to_query = jnp.matmul(narrow, key.mT, **wide).astype(query.dtype).reshape(query.shape)
    to_key = jnp.matmul(transpose(_grouped(query, groups)), narrow, **wide).astype(key.dtype)
    shape = (1,) * (4 - bias.ndim) + bias.shape
    to_bias = to_scores.sum([i for i in range(4) if shape[i] == 1], keepdims=True).reshape(bias.shape)
    return to_query, to_key, to_value, to_bias, None


attend.defvjp(_attend_forward, _attend_backward)


class Attention(nnx.Module):
    """Multi-head self-attention or cross-attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

    Queries may share key-value heads (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245).
    """

    fused = False  # jaxnlp.inference merges the projections of a copy into one of these two:
    query_key_value: "Linear"
    key_value: "Linear"

    def __init__(
        self, config: AttentionConfig, hidden_size: int, *, dtype: DTypeLike, param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.config = c = config
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = Linear(hidden_size, c.size, use_bias=c.has_bias("query"), **options)
        self.key = Linear(hidden_size, c.kv_size, use_bias=c.has_bias("key"), **options)
        self.value = Linear(hidden_size, c.kv_size, use_bias=c.has_bias("value"), **options)
        self.output = Linear(c.size, hidden_size, use_bias=c.has_bias("output"), **options)
        if c.qk_norm is not None:
            sizes = (c.size, c.kv_size) if c.qk_norm_over_heads else (c.head_dim, c.head_dim)
            self.query_norm, self.key_norm = (make_norm(c.qk_norm, size, **options) for size in sizes)

    def __call__(
        self, hidden_states: jax.Array, bias: jax.Array, rotation: Rotation | None = None,
        layer_index: int | jax.Array = 0, cache: KeyValues | None = None, cache_index: int | jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[jax.Array, jax.Array, KeyValues | None]:  # fmt: skip
        """Attend from each position of hidden_states to all keys.

        Args:
            hidden_states: [B, T, D].
            bias: Bias of the scores, float32, broadcastable to [B, N, T, S]; large and negative for masked
                keys.
            rotation: Rotation of queries and keys by their positions; required if the configuration has one.
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
            query = self._heads(self.query(hidden_states), "query")
            key, value = cache["key"], cache["value"]
        else:
            query, key, value = self._project(hidden_states)
            query, key, value = self._heads(query, "query"), self._heads(key, "key"), self._heads(value, "value")
            if c.rotary is not None:
                assert rotation is not None, "rotary attention needs the positions"
                query, key = (rotate(x, rotation, c.rotary) for x in (query, key))
            key = key.mT  # [B, K, H, T]
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
        context = attend(query * scale, key, value, bias, keep, c.softcap) * (1 / (1 - rate))  # [B, N, T, H]
        context = context.astype(hidden_states.dtype).transpose(0, 2, 1, 3)  # [B, T, N, H]
        # Dead code that jit removes unless the caller uses the probabilities.
        probabilities = jax.nn.softmax(attention_scores(query * scale, key, bias, c.softcap)).astype(value.dtype)
        output = self.output(context.reshape(*hidden_states.shape[:2], -1))
        return dropout(output, c.output_dropout, rngs), probabilities, cache

    def keys_and_values(self, source: jax.Array) -> KeyValues:
        """Project a source [B, S, D] to keys and values once, for all queries to come."""
        key, value = jnp.split(self.key_value(source), 2, -1) if self.fused else (self.key(source), self.value(source))
        return {"key": self._heads(key, "key").mT, "value": self._heads(value, "value")}

    def _project(self, x: jax.Array) -> Sequence[jax.Array]:
        """Project [B, T, D] to queries [B, T, N * H], and keys and values [B, T, K * H]."""
        if self.fused:
            return jnp.split(
                self.query_key_value(x), [self.config.size, self.config.size + self.config.kv_size], axis=-1
            )
        return self.query(x), self.key(x), self.value(x)

    def _heads(self, x: jax.Array, part: str) -> jax.Array:
        """Split the "query", "key" or "value" [B, T, N * H] into heads [B, N, T, H], with its norm if it has one."""
        c, norm = self.config, getattr(self, f"{part}_norm", None)
        x = norm(x) if norm is not None and c.qk_norm_over_heads else x
        x = x.reshape(*x.shape[:2], c.num_heads if part == "query" else c.kv_heads, c.head_dim)
        return (x if norm is None or c.qk_norm_over_heads else norm(x)).transpose(0, 2, 1, 3)
