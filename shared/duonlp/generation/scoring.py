"""The part of scoring texts that needs no model."""

import numpy as np

from duonlp.errors import InputError
from duonlp.generation.prompt import checked_mask
from duonlp.inputs import check_inputs
from duonlp.positions import generation_position_ids
from duonlp.util.buckets import bucket


def pad_texts(cfg, ids, attention_mask=None) -> tuple[dict[str, np.ndarray], int, int]:
    """Model inputs padded to a bucket on the right, and how many rows and columns are real.

    Positions are counted from the first real token, as they are while text is generated.

    Raises:
        InputError: shapes that do not fit, ids beyond the vocabulary, more tokens than positions, an encoder-decoder.
    """
    if cfg.decoder is not None:
        raise InputError(
            f"a {cfg.model_type} scores a text given a source; call it with input_ids and labels, and read its loss or logits"
        )
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.shape[0] < 1:
        raise InputError(f"ids has shape {ids.shape}; texts are [batch, length], wrap a single one in a list")
    mask = checked_mask("ids", ids, attention_mask)
    check_inputs(cfg, "causal-lm", {"input_ids": ids})
    rows, columns = ids.shape
    pad = ((0, bucket(rows) - rows), (0, bucket(columns, cfg.max_length) - columns))
    ids, mask = np.pad(ids, pad).astype(np.int32), np.pad(mask, pad).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": generation_position_ids(mask)}, rows, columns


def sums_of(logprobs: np.ndarray, attention_mask, input_len: int) -> np.ndarray:
    """float64 [B]: the sum of the log probabilities [B, T - 1] of real tokens from ``input_len`` on.

    Raises:
        InputError: input_len below 1, or not below the length of the texts.
    """
    return np.where(_counted(logprobs, attention_mask, input_len), logprobs, 0.0).sum(axis=1, dtype=np.float64)


def perplexity_of(logprobs: np.ndarray, attention_mask, input_len: int) -> np.ndarray:
    """float64 [B]: exp of minus the mean of the same."""
    counts = _counted(logprobs, attention_mask, input_len).sum(axis=1)
    if not counts.all():
        raise InputError(f"text {int(counts.argmin())} has no token after the first {input_len} to score")
    return np.exp(-sums_of(logprobs, attention_mask, input_len) / counts)


def _counted(logprobs: np.ndarray, attention_mask, input_len: int) -> np.ndarray:
    """bool [B, T - 1]: which tokens are scored: real, with a real one before them, and not of the prompt."""
    rows, columns = logprobs.shape
    if not isinstance(input_len, (int, np.integer)) or not 1 <= input_len <= columns:
        raise InputError(
            f"input_len={input_len!r} must be 1 to {columns}: the first token has nothing before it, and one must be left"
        )
    mask = np.ones((rows, columns + 1), bool) if attention_mask is None else np.asarray(attention_mask) != 0
    return mask[:, 1:] & mask[:, :-1] & (np.arange(1, columns + 1) >= input_len)
