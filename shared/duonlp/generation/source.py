"""Preparation of encoder-decoder sources and decoder prompts for a compiled decoding loop."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.generation.config import GenerationConfig
from duonlp.generation.prompt import as_mask
from duonlp.inputs import check_inputs
from duonlp.numpy_ops import log_softmax
from duonlp.util.buckets import bucket


@dataclass(frozen=True)
class Source:
    """Encoder inputs padded to bucket sizes, columns on the right."""

    input_ids: np.ndarray  # int32 [rows, S]; rows is a multiple of the prompts' with several documents per text
    attention_mask: np.ndarray  # int32 [rows, S], 0 on padding

    @property
    def known_ids(self) -> np.ndarray:
        """int32 [rows, S]: the ids that logits processors see, -1 on padding."""
        return np.where(self.attention_mask != 0, self.input_ids, -1).astype(np.int32)

    def texts(self) -> list[np.ndarray]:
        """Return the ids of every source without padding."""
        return [ids[ids >= 0] for ids in self.known_ids]

    def row(self, i: int) -> "Source":
        """Return one source alone."""
        return Source(self.input_ids[i : i + 1], self.attention_mask[i : i + 1])


def prepare_source(
    cfg: TransformerConfig,
    config: GenerationConfig,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    documents: int = 1,
) -> Source:
    """Validate sources and pad them to bucket sizes.

    Args:
        cfg: Model configuration.
        config: Options of the call.
        input_ids: int [B, S], right-padded if sources differ in length.
        attention_mask: [B, S]; None derives it from the pad_token_id, unless that is an eos id.
        documents: Number of consecutive sources that belong to one text. The rows of the result are those of all texts with
            their first document, then with their second one, and so on.

    Raises:
        InputError: There is no source, a source is all padding or longer than the model's positions, or ids
            are outside the vocabulary.
    """
    ids = np.asarray(input_ids)
    if ids.ndim == 1 and ids.size:
        raise InputError(
            f"input_ids has shape {ids.shape}; sources are [batch, length], so wrap a single one in a list"
        )
    if ids.size == 0:
        raise InputError(f"input_ids has shape {ids.shape}, so the source is empty; pass at least one token")
    pad = config.pad_token_id
    if attention_mask is None and pad is not None and pad not in config.eos_ids:
        attention_mask = ids != pad
    mask = as_mask("input_ids", ids, attention_mask)
    check_inputs(cfg, "seq2seq-lm", {"input_ids": ids})
    if (mask.sum(axis=1) < 1).any():
        raise InputError(f"source {int(mask.sum(axis=1).argmin())} is all padding; pass at least one token")
    texts, length = len(ids) // documents, ids.shape[1]
    rows, columns = bucket(texts), bucket(length, cfg.max_length)
    fill = ((0, 0), (0, rows - texts), (0, columns - length))

    def by_document(x: np.ndarray) -> np.ndarray:
        x = x.reshape(texts, documents, length).swapaxes(0, 1)  # [documents, texts, length]
        return np.pad(x, fill).reshape(documents * rows, columns).astype(np.int32)

    ids, mask = by_document(np.where(mask, ids, pad or 0)), by_document(mask)
    mask[:, 0] |= mask.sum(axis=1) == 0  # filler rows hold one token: attention over no key at all is undefined
    return Source(ids, mask)


def document_logprobs(doc_scores: ArrayLike, sources: int) -> np.ndarray:
    """Return the log probability of each document, float32 [documents, rows], with texts padded to a bucket.

    Args:
        doc_scores: float [B, documents], the scores of the documents of each text.
        sources: Number of sources, B * documents.

    Raises:
        InputError: The shape is another one, or a score is not finite.
    """
    scores = np.asarray(doc_scores)
    if scores.ndim != 2 or not scores.shape[1] or scores.size != sources:
        raise InputError(
            f"doc_scores has shape {scores.shape}, but there are {sources} sources; pass [texts, documents], whose product is "
            "the number of sources"
        )
    if scores.dtype.kind not in "iuf" or not np.isfinite(scores).all():
        raise InputError(
            f"doc_scores has values that are not finite numbers, of dtype {scores.dtype}; pass real scores"
        )
    texts, documents = scores.shape
    scores = np.pad(scores.astype(np.float32), ((0, bucket(texts) - texts), (0, 0)))
    return log_softmax(scores).T.astype(np.float32).reshape(documents, -1)


def decoder_prompt(
    cfg: TransformerConfig,
    config: GenerationConfig,
    rows: int,
    input_ids: ArrayLike | None = None,
    attention_mask: ArrayLike | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the decoder prompts: the start token, followed by ``input_ids`` unless they already begin with it.

    Args:
        cfg: Configuration of an encoder-decoder.
        config: Options of the call.
        rows: Number of sources.
        input_ids: int [B, T] or None.
        attention_mask: [B, T], 0 on left padding; None for no padding.

    Returns:
        ids [B, T or T + 1] and their mask.

    Raises:
        InputError: No start token is defined, or the numbers of prompts and sources differ.
    """
    start = config.decoder_start_token_id
    if start is None and cfg.decoder is not None:
        start = cfg.decoder.start_token_id
    start = config.bos_token_id if start is None else start
    if input_ids is None:
        if start is None:
            raise InputError(
                "no start token is defined; pass decoder_start_token_id (mBART: the id of the target language), or "
                "decoder_input_ids"
            )
        ids = np.full((rows, 1), start, np.int32)
        return ids, np.ones_like(ids)
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or len(ids) != rows:
        raise InputError(
            f"decoder_input_ids has shape {ids.shape}, but there are {rows} sources; pass [{rows}, length]"
        )
    mask = as_mask("decoder_input_ids", ids, attention_mask)
    # As in GenerationMixin of Transformers 5.
    if start is not None and ids.size and mask[:, 0].all() and (ids[:, 0] != start).all():
        ids = np.pad(ids, ((0, 0), (1, 0)), constant_values=start)
        mask = np.pad(mask, ((0, 0), (1, 0)), constant_values=1)
    return ids, mask
