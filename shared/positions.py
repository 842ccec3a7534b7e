"""Position ids, made outside the traced graph so that both engines see the same explicit input."""

import numpy as np


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
