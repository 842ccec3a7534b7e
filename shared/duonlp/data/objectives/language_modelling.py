"""What a model is trained to say about a block of text: its next tokens, or those that were hidden from it.

`CausalLM` and `MaskedLM` are here; the objectives of encoder-decoders are in denoising.py and gap_sentences.py.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.data.objectives.denoising import SpanCorruption, TextInfilling
from duonlp.data.objectives.encoder_decoder import IGNORED, EncoderDecoderObjective
from duonlp.data.objectives.gap_sentence_generation import GapSentences
from duonlp.data.objectives.vocabulary import special_tokens, word_borders
from duonlp.data.rows.order import check_seed
from duonlp.errors import InputError


@dataclass(frozen=True)
class CausalLM:
    """Predict each next token (GPT, Radford et al. 2018)."""

    head = "causal-lm"
    name = "causal-lm"

    def __call__(
        self, input_ids: np.ndarray, segment_ids: np.ndarray | None, positions: np.ndarray, seed: int
    ) -> dict[str, np.ndarray]:
        """Returns the blocks with their labels, which are the blocks moved one to the left.

        Args:
            input_ids: int [B, T].
            segment_ids: int [B, T], a number a document in the block, or None.
            positions: int [B], ignored: nothing here is random.
            seed: ignored too.

        Returns:
            `input_ids` and `labels`, int32 [B, T], and `segment_ids` when given. `labels[b, t]` is the token that
            follows t, -100 at the block's end, and where segments are given, at each document's end.
        """
        labels = np.full(input_ids.shape, IGNORED, dtype=np.int32)
        labels[:, :-1] = input_ids[:, 1:]
        if segment_ids is not None:
            labels[:, :-1][segment_ids[:, 1:] != segment_ids[:, :-1]] = IGNORED
        return _batch(input_ids, labels, segment_ids)


class MaskedLM:
    """Predict tokens that were hidden, others each time a block is seen (BERT, Devlin et al. 2019; RoBERTa, Liu et al. 2019).

    Each token is chosen with `probability`; of the chosen, `mask_share` become the mask token, `random_share` another
    token of the vocabulary, and the rest stay. With `whole_words`, all tokens of a word are chosen or none (BERT's
    "whole word masking"); each is then masked, replaced or kept by itself, as in BERT's own code. A word is what the
    tokenizer's kind splits text into before it makes tokens: for WordPiece, a token and those after it that begin
    with '##'; for byte-level tokens, a run of letters, of digits or of other signs with the space before it, as GPT-2
    splits; for Unigram and others that write spaces as '▁', what stands between two spaces.

    Special tokens are never chosen and never put in another's place.
    """

    head = "masked-lm"
    name = "masked-lm"

    def __init__(
        self,
        tokenizer,
        *,
        probability: float = 0.15,
        whole_words: bool = False,
        mask_share: float = 0.8,
        random_share: float = 0.1,
    ):
        """Reads the special tokens, and for whole words the words' borders, from the tokenizer.

        Args:
            tokenizer: a `transformers` fast tokenizer with a mask token.
            probability: the expected share of tokens to choose, in (0, 1).
            whole_words: choose words, not single tokens.
            mask_share: of the chosen, the share that become the mask token.
            random_share: of the chosen, the share that become a random token.

        Raises:
            InputError: there is no mask token, a share is out of range, or the tokenizer's kind does not tell where
                words begin.
        """
        if not 0 < probability < 1:
            raise InputError(f"probability is {probability}; it must be a share between 0 and 1, such as 0.15")
        if not (mask_share >= 0 and random_share >= 0 and mask_share + random_share <= 1):
            raise InputError(
                f"mask_share is {mask_share} and random_share {random_share}; give shares from 0 to 1 that are together "
                "at most 1, such as 0.8 and 0.1"
            )
        if getattr(tokenizer, "mask_token_id", None) is None:
            raise InputError(
                "masked-lm needs a tokenizer with a mask token; this one has none: add one "
                "(tokenizer.add_special_tokens({'mask_token': '[MASK]'})) or train with causal-lm"
            )
        self.probability = float(probability)
        self.whole_words = bool(whole_words)
        self.mask_share = float(mask_share)
        self.random_share = float(random_share)
        self.mask_token_id = int(tokenizer.mask_token_id)
        self._is_special = special_tokens(tokenizer)
        self._ordinary = np.flatnonzero(~self._is_special).astype(np.int32)
        self._borders = word_borders(tokenizer) if whole_words else None

    def __repr__(self) -> str:
        """Its options: what a run is compared with when it is resumed."""
        return (
            f"MaskedLM(probability={self.probability}, whole_words={self.whole_words}, mask_share={self.mask_share}, "
            f"random_share={self.random_share})"
        )

    def __call__(
        self, input_ids: np.ndarray, segment_ids: np.ndarray | None, positions: np.ndarray, seed: int
    ) -> dict[str, np.ndarray]:
        """Returns the blocks with some tokens hidden, and those tokens as labels.

        What is hidden in a row follows from (`seed`, its position) alone: not from the rows beside it, nor the batch.

        Args:
            input_ids: int [B, T].
            segment_ids: int [B, T], a number a document in the block, or None.
            positions: int [B], where each row stands in the training stream.
            seed: from 0 to 2**64 - 1.

        Returns:
            `input_ids` and `labels`, int32 [B, T], and `segment_ids` when given. A label is the token that was there,
            -100 where none was chosen.

        Raises:
            InputError: an id is not in the tokenizer's vocabulary.
        """
        check_seed(seed)
        ids = np.asarray(input_ids, dtype=np.int32)
        if ids.size and not (ids.min() >= 0 and ids.max() < len(self._is_special)):
            raise InputError(
                f"input ids go from {ids.min()} to {ids.max()}; the objective's tokenizer has ids below "
                f"{len(self._is_special)}: give the tokenizer that the blocks were made with"
            )
        length = ids.shape[1]
        # A Philox generator for each (seed, position): its key holds both (Salmon et al. 2011).
        draws = np.empty((len(ids), 3, length))
        for row, position in enumerate(np.asarray(positions, dtype=np.uint64)):
            key = np.asarray([seed, position], dtype=np.uint64)
            draws[row] = np.random.Generator(np.random.Philox(key=key)).random((3, length))
        choice, fate, replacement = draws[:, 0], draws[:, 1], draws[:, 2]  # [B, T] each, in [0, 1)

        special = self._is_special[ids]
        if self._borders is not None:
            starts = self._borders.starts(ids, special, segment_ids)
            word_start = np.maximum.accumulate(np.where(starts, np.arange(length), 0), axis=1)
            choice = np.take_along_axis(choice, word_start, axis=1)  # one draw a word
        chosen = (choice < self.probability) & ~special

        labels = np.where(chosen, ids, np.int32(IGNORED))
        random_ids = self._ordinary[(replacement * len(self._ordinary)).astype(np.int64)]
        hidden = np.where(fate < self.mask_share, np.int32(self.mask_token_id), random_ids)
        hidden = np.where(chosen & (fate < self.mask_share + self.random_share), hidden, ids)
        return _batch(hidden, labels, segment_ids)


KINDS = {kind.name: kind for kind in (CausalLM, MaskedLM, SpanCorruption, TextInfilling, GapSentences)}

OBJECTIVES = tuple(KINDS)
"""The names of the objectives."""

PRETRAINED_HEADS = tuple(dict.fromkeys(kind.head for kind in KINDS.values()))
"""Heads that can be pretrained on blocks."""


def head_of(name: str) -> str:
    """Returns the head of the models that an objective trains; raises InputError for a name that is none."""
    return _kind(name).head


def objective(name: str, tokenizer=None, **options: Any) -> CausalLM | MaskedLM | EncoderDecoderObjective:
    """Returns the objective of that name.

    Args:
        name: "causal-lm" or "masked-lm"; for encoder-decoders "span-corruption" (T5), "text-infilling" (BART, with its sentence
            permutation) or "gap-sentences" (PEGASUS).
        tokenizer: the blocks' tokenizer; all but causal-lm need it.
        options: those of the class; causal-lm has none.

    Raises:
        InputError: another name, an option that the objective does not have, or no tokenizer where one is needed.
    """
    kind = _kind(name)
    parameters = inspect.signature(kind).parameters.values()
    known = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    if kind is CausalLM:
        return CausalLM()
    if tokenizer is None:
        raise InputError(f"{name} needs the tokenizer: which tokens are special, and which one masks")
    return kind(tokenizer, **options)


def check_model(what, config: TransformerConfig, head: str, block_length: int) -> None:
    """Raises InputError where a model cannot learn an objective: an encoder-decoder's another model, and the other way round.

    Args:
        what: an objective, or any callable in its place, which then is taken to be one for models of one stack.
        config: the model's.
        head: the model's.
        block_length: tokens of a block, whose source and target must fit the model's positions.
    """
    if isinstance(what, EncoderDecoderObjective) != (config.decoder is not None):
        name, wanted = getattr(what, "name", repr(what)), getattr(what, "head", "causal-lm")
        raise InputError(
            f"{name} trains models with the head {wanted}; this one's is {head}: take another objective or model"
        )
    if config.decoder is not None:
        what.check_model(config, block_length)


def _kind(name: str) -> type:
    if name not in KINDS:
        raise InputError(f"objective is {name!r}; it must be one of {', '.join(OBJECTIVES)}")
    return KINDS[name]


def _batch(input_ids: np.ndarray, labels: np.ndarray, segment_ids: np.ndarray | None) -> dict[str, np.ndarray]:
    batch = {"input_ids": np.asarray(input_ids, dtype=np.int32), "labels": labels}
    if segment_ids is not None:
        batch["segment_ids"] = np.asarray(segment_ids, dtype=np.int32)
    return batch
