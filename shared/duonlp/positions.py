"""Position ids and fixed position tables, computed outside the traced graph so that both engines get the same input."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from duonlp import numpy_ops
from duonlp.config import EmbeddingConfig, RotaryConfig, RotaryScaling, TransformerConfig
from duonlp.typing import Array, Ops


def position_ids(
    config: TransformerConfig, input_ids: ArrayLike, attention_mask: ArrayLike | None = None, past: int = 0
) -> np.ndarray:
    """Return the position ids that Transformers uses when a model is called without any.

    If ``config.embedding.positions_skip_padding`` is set (RoBERTa), positions count the tokens that are not
    padding, starting at ``position_offset``, and padding gets ``position_offset - 1``, as in fairseq's
    ``make_positions``. Padding is recognized by its token id there, so `attention_mask` has no effect.
    Otherwise token i has position ``position_offset + past + i``; with rotary positions, columns that pad the whole batch
    repeat the last position, so that they do not count as text where the scaling depends on its length.

    Args:
        config: Model configuration.
        input_ids: int [batch, length].
        attention_mask: int [batch, length], 0 on padding, or None.
        past: Number of tokens already in the cache.

    Returns:
        int32 [batch, length].
    """
    ids = np.asarray(input_ids)
    offset = config.embedding.position_offset
    if config.embedding.positions_skip_padding:
        padding = offset - 1
        mask = (ids != padding).astype(np.int32)
        return (np.cumsum(mask, axis=1, dtype=np.int32) + past) * mask + padding
    row = np.arange(offset + past, offset + past + ids.shape[1], dtype=np.int32)
    if config.embedding.positions == "rotary" and attention_mask is not None and np.ndim(attention_mask) == 2:
        row = np.minimum(row, np.max(row * np.any(np.asarray(attention_mask) != 0, axis=0)))
    return np.broadcast_to(row, ids.shape).copy()


def sinusoidal_table(rows: int, width: int) -> np.ndarray:
    """Return float32 [rows, width]: sines in even columns, cosines in odd ones (Vaswani et al. 2017, section 3.5)."""
    angles = np.arange(rows)[:, None] / np.power(10000, 2 * (np.arange(width) // 2) / width)
    table = np.empty((rows, width), np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])
    return table


def split_sinusoidal_table(rows: int, width: int) -> np.ndarray:
    """Return float32 [rows, width]: the columns of :func:`sinusoidal_table`, all sines before all cosines."""
    table = sinusoidal_table(rows, width)
    return np.concatenate([table[:, 0::2], table[:, 1::2]], axis=1)


@lru_cache(maxsize=16)
def fixed_table(config: EmbeddingConfig) -> np.ndarray:
    """Return the position table of a model that does not learn one: sines in the first half of the columns,
    then cosines.

    ``sinusoidal`` uses the wavelengths of Vaswani et al. 2017, section 3.5 (Marian, PEGASUS);
    ``tensor2tensor`` uses that library's, with zeros for padding (fairseq's M2M100).

    Returns:
        float32 [max_positions, size].
    """
    rows, width = config.max_positions, config.size
    table = np.zeros((rows, width), np.float32)
    if config.positions == "sinusoidal":
        return split_sinusoidal_table(rows, width)
    # float32 like the reference; otherwise distant positions differ in the last digits
    steps = np.exp(np.arange(width // 2, dtype=np.float32) * np.float32(-np.log(10000) / (width // 2 - 1)))
    angles = np.arange(rows, dtype=np.float32)[:, None] * steps
    table[:, : width // 2], table[:, width // 2 : width // 2 * 2] = np.sin(angles), np.cos(angles)
    if config.padding_id is not None:
        table[config.padding_id] = 0
    return table


def interpolate_positions(table: np.ndarray, rows: int, columns: int, special: int) -> np.ndarray:
    """Return the position table of images of another size, by bicubic interpolation as in Transformers' ViT.

    Args:
        table: float [tokens, size]: special tokens, which stay, then a square grid of patches.
        rows: Rows of patches of the new size.
        columns: Columns of patches of the new size.
        special: Number of special tokens.

    Returns:
        float32 [tokens, size] for the new grid.
    """
    side = math.isqrt(len(table) - special)
    grid = table[special:].astype(np.float64).reshape(side, side, -1)
    grid = np.einsum("yi,xj,ijd->yxd", _cubic_weights(side, rows), _cubic_weights(side, columns), grid, optimize=True)
    return np.concatenate([table[:special], grid.reshape(rows * columns, -1)]).astype(np.float32)


def _cubic_weights(size: int, new_size: int) -> np.ndarray:
    """Return the matrix [new_size, size] of cubic convolution (Keys 1981) with a = -0.75 and repeated edges, as torch's."""
    centers = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    first = np.floor(centers).astype(int)
    weights, a = np.zeros((new_size, size)), -0.75
    for offset in range(-1, 3):
        x = np.abs(centers - (first + offset))
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        np.add.at(weights, (np.arange(new_size), np.clip(first + offset, 0, size - 1)), np.where(x <= 1, near, far))
    return weights


@lru_cache(maxsize=16)
def relative_bucket_table(buckets: int, max_distance: int, bidirectional: bool) -> np.ndarray:
    """Return the relative position bucket of each query-key distance (Raffel et al. 2020, section 2.1; T5's
    code).

    Short distances get a bucket each, longer ones share logarithmically growing buckets, and all distances from
    ``max_distance`` on share the last bucket.

    Args:
        buckets: Number of buckets.
        max_distance: Distance from which on all share the last bucket.
        bidirectional: Reserve half of the buckets for keys after the query; otherwise those count as
            distance 0.

    Returns:
        int32 [2 * max_distance + 1], indexed by ``key - query + max_distance``, which the caller clips to
        the table.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance > 0) * buckets
        distance = np.abs(distance)
    else:
        distance = -np.minimum(distance, 0)
    exact = buckets // 2
    # float32 like the reference: where the logarithm is an integer, rounding decides the bucket
    scale = np.float32(np.log(max_distance / exact))
    far = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / scale
    far = np.minimum(exact + (far * np.float32(buckets - exact)).astype(np.int64), buckets - 1)
    return (offset + np.where(distance < exact, distance, far)).astype(np.int32)


def generation_position_ids(attention_mask: ArrayLike) -> np.ndarray:
    """Return position ids of left-padded prompts: 0 for the first real token and for padding.

    Matches what ``GenerationMixin`` of Transformers 5 derives from the mask; the next token's position is
    the last one plus 1.

    Args:
        attention_mask: int [batch, length], 1 on real tokens.

    Returns:
        int32 [batch, length].
    """
    mask = np.asarray(attention_mask)
    positions = np.cumsum(mask, axis=1, dtype=np.int32) - 1
    return np.where(mask == 0, 0, positions).astype(np.int32)


@lru_cache(maxsize=64)
def rotary_frequencies(config: RotaryConfig, length: int | None = None) -> tuple[np.ndarray, float]:
    """Return the inverse frequencies of a rotary position embedding, and the factor on its cosines and sines.

    Follows Su et al. 2021 (https://arxiv.org/abs/2104.09864), section 3.2.2, and for the kinds of scaling Transformers'
    ``modeling_rope_utils``, in float32 like the reference.

    Args:
        config: Number of rotated dimensions, base and scaling.
        length: Length of the longest text of the call, on which "dynamic" and "longrope" depend; None for texts as
            short as those of pretraining.

    Returns:
        float32 [size / 2], in radians per position; and the attention factor.
    """
    scaling, powers = config.scaling, _rotary_powers(config)
    if scaling is None:
        return 1 / powers, 1.0
    factor = np.float32(scaling.factor)
    if scaling.kind == "linear":
        return 1 / powers / factor, 1.0
    if scaling.kind == "dynamic":
        return _dynamic_frequencies(numpy_ops, config, np.int32(length or 0)), 1.0
    original = scaling.original_max_positions or config.max_positions
    assert original is not None, f"{scaling.kind} needs the number of positions of pretraining"
    if scaling.kind == "yarn":
        return _yarn_frequencies(config, powers, original), _yarn_attention_factor(scaling)
    if scaling.kind == "llama3":
        return _llama3_frequencies(scaling, 1 / powers, original), 1.0
    factors = scaling.long_factor if length is not None and length > original else scaling.short_factor
    attention_factor = scaling.attention_factor
    if attention_factor is None:
        growth = math.log(scaling.factor) / math.log(original) if scaling.factor > 1 else 0.0
        attention_factor = math.sqrt(1 + growth)
    return 1 / (np.asarray(factors, np.float32) * powers), attention_factor


def rotary_tables(ops: Ops, config: RotaryConfig, position_ids: Array) -> tuple[Array, Array]:
    """Return cosines and sines of the angles by which queries and keys are rotated, times the attention factor.

    Two kinds of scaling depend on the longest text of the call, like Transformers' ``dynamic_rope_update``: "dynamic" lowers
    the frequencies of all its tokens, and "longrope" uses its second set of frequencies. Keys in a cache stay as they are.

    Args:
        ops: ``duonlp.numpy_ops``, ``tfnlp.ops`` or ``jaxnlp.ops``.
        config: Kind of the embedding.
        position_ids: int [B or 1, T].

    Returns:
        float32 [B or 1, T, size / 2] each.
    """
    frequencies, factor = rotary_frequencies(config)
    if config.scaling is not None and config.scaling.kind in ("dynamic", "longrope"):
        length = ops.max(ops.reshape(position_ids, (-1,)), 0) + 1
        if config.scaling.kind == "dynamic":
            frequencies = _dynamic_frequencies(ops, config, length)
        else:
            original = config.scaling.original_max_positions or config.max_positions
            assert original is not None
            frequencies = ops.where(length > original, rotary_frequencies(config, original + 1)[0], frequencies)
    angles = ops.cast(ops.expand_dims(position_ids, -1), "float32") * frequencies
    return ops.cos(angles) * factor, ops.sin(angles) * factor


def _rotary_powers(config: RotaryConfig) -> np.ndarray:
    """Return the powers of the base whose inverses are the unscaled frequencies, float32 [size / 2]."""
    # Powers in float64 round to the float32 values of the reference, whose own are accurate to half a digit.
    return np.power(np.float64(config.base), _exponents(config).astype(np.float64)).astype(np.float32)


def _exponents(config: RotaryConfig) -> np.ndarray:
    return np.arange(0, config.size, 2, dtype=np.float32) / np.float32(config.size)


def _dynamic_frequencies(ops: Ops, config: RotaryConfig, length: Array) -> Array:
    """Return frequencies float32 [size / 2] whose base grows with the length int [], as proposed by u/bloc97 and u/emozilla."""
    assert config.scaling is not None and config.max_positions is not None
    factor, size = config.scaling.factor, config.size
    length = ops.cast(ops.maximum(length, config.max_positions), "float32")
    growth = factor * length / config.max_positions - (factor - 1)
    return 1 / (config.base * growth ** (size / (size - 2))) ** _exponents(config)


def _yarn_frequencies(config: RotaryConfig, powers: np.ndarray, original: int) -> np.ndarray:
    """Return the frequencies of YaRN (Peng et al. 2023, https://arxiv.org/abs/2309.00071, section 3.2)."""
    scaling, size = config.scaling, config.size
    assert scaling is not None

    def dimension(rotations: float) -> float:
        """Return the dimension that rotates this often over the length of pretraining."""
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.base))

    low, high = dimension(scaling.beta_fast or 32), dimension(scaling.beta_slow or 1)
    low, high = (math.floor(low), math.ceil(high)) if scaling.truncate else (low, high)
    low, high = max(low, 0), min(high, size - 1)
    high = high + 0.001 if low == high else high  # the ramp has no slope of infinity
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - low) / np.float32(high - low), 0, 1)
    unscaled = 1 - ramp
    return 1 / (np.float32(scaling.factor) * powers) * (1 - unscaled) + 1 / powers * unscaled


def _yarn_attention_factor(scaling: RotaryScaling) -> float:
    """Return YaRN's factor on cosines and sines, whose square is the inverse temperature of attention (section 3.3)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def log_scale(multiplier: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * multiplier * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return log_scale(scaling.mscale) / log_scale(scaling.mscale_all_dim)
    return log_scale(1.0)


def _llama3_frequencies(scaling: RotaryScaling, frequencies: np.ndarray, original: int) -> np.ndarray:
    """Return the frequencies of Llama 3.1: low ones divided by the factor, high ones unchanged, and a ramp in between."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert low is not None and high is not None
    factor, wavelengths = np.float32(scaling.factor), np.float32(2 * math.pi) / frequencies
    smooth = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * frequencies / factor + smooth * frequencies
    scaled = np.where(wavelengths > original / low, frequencies / factor, frequencies)
    is_between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return np.where(is_between, between, scaled).astype(np.float32)
