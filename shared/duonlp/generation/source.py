"""Sources of encoder-decoders, and what their decoders begin with, made ready for a compiled loop."""

from dataclasses import dataclass

import numpy as np

from duonlp.errors import InputError
from duonlp.generation.config import GenerationConfig
from duonlp.generation.prompt import checked_mask
from duonlp.inputs import check_inputs
from duonlp.util.buckets import bucket


@dataclass(frozen=True)
class Source:
    """What is read before anything is written. Rows and columns are padded to buckets, columns on the right.

    input_ids, attention_mask: int32 [rows, S].
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray

    @property
    def known_ids(self) -> np.ndarray:
        """int32 [rows, S]: what logits processors see, -1 on padding."""
        return np.where(self.attention_mask != 0, self.input_ids, -1).astype(np.int32)

    def texts(self) -> list[np.ndarray]:
        """The ids of every source, without padding."""
        return [ids[ids >= 0] for ids in self.known_ids]

    def row(self, i: int) -> "Source":
        """One source alone."""
        return Source(self.input_ids[i : i + 1], self.attention_mask[i : i + 1])


def prepare_source(cfg, config: GenerationConfig, input_ids, attention_mask=None) -> Source:
    """Check sources and pad them.

    Args:
        cfg: the model's TransformerConfig.
        input_ids: int [B, S], padded on the right where sources differ in length.
        attention_mask: [B, S]; None tells padding by its id, if that is no eos.

    Raises:
        InputError: no source, a source of padding alone, one longer than the positions, ids beyond the vocabulary.
    """
    ids = np.asarray(input_ids)
    if ids.ndim == 1 and ids.size:
        raise InputError(f"input_ids has shape {ids.shape}; sources are [batch, length], wrap a single one in a list")
    if ids.size == 0:
        raise InputError(f"input_ids has shape {ids.shape}: there is nothing to read; give at least one token")
    pad = config.pad_token_id
    if attention_mask is None and pad is not None and pad not in config.eos_ids:
        attention_mask = ids != pad
    mask = checked_mask("input_ids", ids, attention_mask)
    check_inputs(cfg, "seq2seq-lm", {"input_ids": ids})
    if (mask.sum(axis=1) < 1).any():
        raise InputError(f"source {int(mask.sum(axis=1).argmin())} is padding alone; give at least one token")
    rows, columns = bucket(len(ids)), bucket(ids.shape[1], cfg.max_length)
    # Rows and columns that only fill a bucket: the rows read one token, for a mask that hides all means nothing.
    fill = ((0, rows - len(ids)), (0, columns - ids.shape[1]))
    ids, mask = (np.pad(x, fill).astype(np.int32) for x in (np.where(mask, ids, pad or 0), mask))
    mask[:, 0] |= mask.sum(axis=1) == 0
    return Source(ids, mask)


def decoder_prompt(cfg, config: GenerationConfig, rows: int, input_ids=None, attention_mask=None):
    """What each text begins with: the start token, and ``input_ids`` after it where they do not begin with it themselves.

    Args:
        rows: of sources.
        input_ids: int [B, T] or None.
        attention_mask: [B, T], 0 on padding on the left; None for none.

    Returns:
        ids [B, T or T + 1], mask.

    Raises:
        InputError: no start token is known, or there are other numbers of prompts and sources.
    """
    start = config.decoder_start_token_id
    start = cfg.decoder.start_token_id if start is None else start
    start = config.bos_token_id if start is None else start
    if start is None and input_ids is None:
        raise InputError(
            "nothing says what a text begins with; pass decoder_start_token_id (mBART: the target language's id), or "
            "decoder_input_ids"
        )
    if input_ids is None:
        ids = np.full((rows, 1), start, np.int32)
        return ids, np.ones_like(ids)
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or len(ids) != rows:
        raise InputError(f"decoder_input_ids has shape {ids.shape} and there are {rows} sources; give [{rows}, length]")
    mask = checked_mask("decoder_input_ids", ids, attention_mask)
    # As GenerationMixin of Transformers 5 does.
    if start is not None and ids.size and mask[:, 0].all() and (ids[:, 0] != start).all():
        ids, mask = (
            np.pad(ids, ((0, 0), (1, 0)), constant_values=start),
            np.pad(mask, ((0, 0), (1, 0)), constant_values=1),
        )
    return ids, mask
