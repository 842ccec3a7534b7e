"""Position ids, made outside the traced graph so that both engines see the same explicit input."""

from functools import lru_cache

import numpy as np

from duonlp.config import EmbeddingConfig


def position_ids(config, input_ids, attention_mask=None, past: int = 0) -> np.ndarray:
    """The position ids Transformers gives a model that is called without any.

    Where ``config.embedding.positions_skip_padding`` holds (RoBERTa), positions count the tokens that are not padding,
    starting at ``position_offset``, and padding sits at ``position_offset - 1``: fairseq's ``make_positions``. As
    there, padding is told by its token id, so `attention_mask` has no say. Everywhere else token i has position
    ``position_offset + past + i``.

    Args:
        config: the model's TransformerConfig.
        input_ids: int [batch, length].
        attention_mask: int [batch, length] or None; accepted so that every caller can pass what it has.
        past: tokens already in the cache.

    Returns:
        int32 [batch, length].
    """
    input_ids = np.asarray(input_ids)
    offset = config.embedding.position_offset
    if config.embedding.positions_skip_padding:
        padding = offset - 1
        mask = (input_ids != padding).astype(np.int32)
        return (np.cumsum(mask, axis=1, dtype=np.int32) + past) * mask + padding
    row = np.arange(offset + past, offset + past + input_ids.shape[1], dtype=np.int32)
    return np.broadcast_to(row, input_ids.shape).copy()


@lru_cache(maxsize=16)
def fixed_table(config: EmbeddingConfig) -> np.ndarray:
    """The position vectors of a model that does not learn them: sines in the first half of the columns, cosines in the second.

    ``sinusoidal`` has the wavelengths of Vaswani et al. 2017, section 3.5 (Marian, PEGASUS); ``tensor2tensor`` those of
    that library, with zeros for padding (fairseq's M2M100).

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
    # in float32, as there: far positions differ in the last digits otherwise
    steps = np.exp(np.arange(width // 2, dtype=np.float32) * np.float32(-np.log(10000) / (width // 2 - 1)))
    angles = np.arange(rows, dtype=np.float32)[:, None] * steps
    table[:, : width // 2], table[:, width // 2 : width // 2 * 2] = np.sin(angles), np.cos(angles)
    if config.padding_id is not None:
        table[config.padding_id] = 0
    return table


@lru_cache(maxsize=16)
def relative_bucket_table(buckets: int, max_distance: int, bidirectional: bool) -> np.ndarray:
    """Which bias each distance between a query and a key gets (Raffel et al. 2020, section 2.1; T5's code).

    Near distances have a bucket each, farther ones share buckets that grow with the logarithm, and all from
    ``max_distance`` on share the last. ``bidirectional``: half of the buckets are for keys after the query; otherwise those
    all count as distance 0.

    Returns:
        int32 [2 * max_distance + 1]: the bucket of ``key - query + max_distance``, which is to be clipped to the table.
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
    # in float32, as there: where the logarithm is a whole number, rounding decides
    far = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        np.log(max_distance / exact)
    )
    far = np.minimum(exact + (far * np.float32(buckets - exact)).astype(np.int64), buckets - 1)
    return (offset + np.where(distance < exact, distance, far)).astype(np.int32)


def generation_position_ids(attention_mask) -> np.ndarray:
    """Position ids of left-padded prompts: the first real token is 0, and so is padding.

    What ``GenerationMixin`` of Transformers 5 derives from the mask; the next token stands one after the last.

    Args:
        attention_mask: int [batch, length], 1 on real tokens.

    Returns:
        int32 [batch, length].
    """
    mask = np.asarray(attention_mask)
    positions = np.cumsum(mask, axis=1, dtype=np.int32) - 1
    return np.where(mask == 0, 0, positions).astype(np.int32)
