"""Position ids and fixed position tables, computed outside the traced graph so that both engines get the same input."""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from duonlp.config import EmbeddingConfig, RotaryConfig, TransformerConfig
from duonlp.errors import ConfigError


def position_ids(
    config: TransformerConfig, input_ids: ArrayLike, attention_mask: ArrayLike | None = None, past: int = 0
) -> np.ndarray:
    """Return the position ids that Transformers uses when a model is called without any.

    If ``config.embedding.positions_skip_padding`` is set (RoBERTa), positions count the tokens that are not
    padding, starting at ``position_offset``, and padding gets ``position_offset - 1``, as in fairseq's
    ``make_positions``. Padding is recognized by its token id there, so `attention_mask` has no effect.
    Otherwise token i has position ``position_offset + past + i``.

    Args:
        config: Model configuration.
        input_ids: int [batch, length].
        attention_mask: int [batch, length] or None; accepted so that every caller can pass what it has.
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
    return np.broadcast_to(row, ids.shape).copy()


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
    half = (width + 1) // 2
    table = np.zeros((rows, width), np.float32)
    if config.positions == "sinusoidal":
        angles = np.arange(rows)[:, None] / np.power(10000, 2 * (np.arange(width) // 2) / width)
        table[:, :half], table[:, half:] = np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])
        return table
    # float32 like the reference; otherwise distant positions differ in the last digits
    steps = np.exp(np.arange(width // 2, dtype=np.float32) * np.float32(-np.log(10000) / (width // 2 - 1)))
    angles = np.arange(rows, dtype=np.float32)[:, None] * steps
    table[:, : width // 2], table[:, width // 2 : width // 2 * 2] = np.sin(angles), np.cos(angles)
    if config.padding_id is not None:
        table[config.padding_id] = 0
    return table


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


@lru_cache(maxsize=64)
def rotary_frequencies(config: RotaryConfig) -> tuple[np.ndarray, float]:
    """Return the inverse frequencies of a rotary position embedding, and the factor on its cosines and sines.

    Follows Su et al. 2021, https://arxiv.org/abs/2104.09864, section 3.2.2, in float32 like Transformers.

    Returns:
        float32 [size / 2], in radians per position; and the attention factor.

    Raises:
        ConfigError: The kind of scaling is not implemented.
    """
    if config.scaling is not None:
        raise ConfigError(f"rotary scaling {config.scaling.kind!r} is not supported; only None is")
    exponents = np.arange(0, config.size, 2, dtype=np.float32) / np.float32(config.size)
    return np.float32(1) / np.float32(config.base) ** exponents, 1.0


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
