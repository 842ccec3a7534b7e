"""The framework-neutral part of scoring texts with a causal language model."""

import numpy as np
from numpy.typing import ArrayLike

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.generation.prompt import as_mask
from duonlp.inputs import check_inputs
from duonlp.positions import generation_position_ids
from duonlp.util.buckets import bucket
from duonlp.util.frameworks import check_process


def pad_texts(
    cfg: TransformerConfig, ids: ArrayLike, attention_mask: ArrayLike | None = None
) -> tuple[dict[str, np.ndarray], int, int]:
    """Pad texts to bucket sizes on the right.

    Positions are counted from the first real token, as during generation.

    Args:
        cfg: Model configuration.
        ids: int [B, T].
        attention_mask: [B, T], 0 on padding; None for no padding.

    Returns:
        The model inputs, and the original numbers of rows and columns.

    Raises:
        InputError: Shapes do not match, ids are outside the vocabulary, texts are longer than the model's
            positions, or the model is an encoder-decoder.
    """
    check_process()
    if cfg.decoder is not None:
        raise InputError(
            f"a {cfg.model_type} scores a text given a source; call it with input_ids and labels and read its loss or logits"
        )
    texts = np.asarray(ids)
    if texts.ndim != 2 or texts.shape[0] < 1:
        raise InputError(f"ids has shape {texts.shape}; texts are [batch, length], so wrap a single one in a list")
    mask = as_mask("ids", texts, attention_mask)
    check_inputs(cfg, "causal-lm", {"input_ids": texts})
    rows, columns = texts.shape
    pad = ((0, bucket(rows) - rows), (0, bucket(columns, cfg.max_length) - columns))
    texts, mask = np.pad(texts, pad).astype(np.int32), np.pad(mask, pad).astype(np.int32)
    return {"input_ids": texts, "attention_mask": mask, "position_ids": generation_position_ids(mask)}, rows, columns


def sum_logprobs(logprobs: np.ndarray, attention_mask: ArrayLike | None, input_len: int) -> np.ndarray:
    """Return float64 [B]: the sum of log probabilities [B, T - 1] over real tokens from ``input_len`` on.

    Raises:
        InputError: input_len is not between 1 and the length of the texts minus 1.
    """
    scored = _scored_tokens(logprobs, attention_mask, input_len)
    return np.where(scored, logprobs, 0.0).sum(axis=1, dtype=np.float64)


def compute_perplexity(logprobs: np.ndarray, attention_mask: ArrayLike | None, input_len: int) -> np.ndarray:
    """Return float64 [B]: exp of minus the mean log probability of the same tokens as in :func:`sum_logprobs`.

    Raises:
        InputError: A text has no token to score; also as in :func:`sum_logprobs`.
    """
    counts = _scored_tokens(logprobs, attention_mask, input_len).sum(axis=1)
    if not counts.all():
        raise InputError(f"text {int(counts.argmin())} has no token to score after the first {input_len}; remove it")
    return np.exp(-sum_logprobs(logprobs, attention_mask, input_len) / counts)


def _scored_tokens(logprobs: np.ndarray, attention_mask: ArrayLike | None, input_len: int) -> np.ndarray:
    """Return bool [B, T - 1]: the real tokens that follow a real token and are not part of the prompt."""
    rows, columns = logprobs.shape
    if not isinstance(input_len, (int, np.integer)) or not 1 <= input_len <= columns:
        raise InputError(
            f"input_len={input_len!r} must be 1 to {columns}, since the first token has no context and one must be left to score"
        )
    mask = np.ones((rows, columns + 1), bool) if attention_mask is None else np.asarray(attention_mask) != 0
    return mask[:, 1:] & mask[:, :-1] & (np.arange(1, columns + 1) >= input_len)
