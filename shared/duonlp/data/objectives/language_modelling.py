"""The objectives of single-stack models, `CausalLM` and `MaskedLM`, and the registry of all objectives.

The objectives of encoder-decoders are in denoising.py and gap_sentence_generation.py.
"""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.data.objectives.denoising import SpanCorruption, TextInfilling
from duonlp.data.objectives.encoder_decoder import EncoderDecoderObjective, check_ids
from duonlp.data.objectives.gap_sentence_generation import GapSentences
from duonlp.data.objectives.vocabulary import special_tokens, word_borders
from duonlp.data.rows.order import check_seed
from duonlp.errors import InputError
from duonlp.heads import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class CausalLM:
    """Predict each next token (GPT, Radford et al. 2018)."""

    head = "causal-lm"
    name = "causal-lm"

    def __call__(
        self, input_ids: np.ndarray, segment_ids: np.ndarray | None, positions: np.ndarray, seed: int
    ) -> dict[str, np.ndarray]:
        """Return blocks with their labels, which are the blocks shifted left by one.

        Args:
            input_ids: int [B, T].
            segment_ids: int [B, T], number of each token's document in the block, or None.
            positions: int [B], unused: the objective is deterministic.
            seed: Unused.

        Returns:
            `input_ids` and `labels`, int32 [B, T], and `segment_ids` if given. `labels[b, t]` is the token after t; it is
            -100 at the end of the block and, with segments, at the end of each document.
        """
        labels = np.full(input_ids.shape, IGNORED, dtype=np.int32)
        labels[:, :-1] = input_ids[:, 1:]
        if segment_ids is not None:
            labels[:, :-1][segment_ids[:, 1:] != segment_ids[:, :-1]] = IGNORED
        return _batch(input_ids, labels, segment_ids)


class MaskedLM:
    """Predict masked tokens, with a new mask in every epoch (BERT, Devlin et al. 2019; RoBERTa, Liu et al. 2019).

    Each token is selected with `probability`. Of the selected tokens, `mask_share` become the mask token, `random_share`
    become a random token, and the rest stay as they are. With `whole_words`, the tokens of a word are selected together
    (BERT's "whole word masking"); each is then masked, replaced or left alone independently, as in BERT's code. What a
    word is depends on the kind of tokenizer. WordPiece: a token and the tokens behind it that begin with '##'.
    Byte-level: a run of letters, of digits or of other characters with the space before it, as GPT-2 splits text.
    Unigram and others that write spaces as '▁': the text between two spaces.

    Special tokens are never selected and never inserted.
    """

    head = "masked-lm"
    name = "masked-lm"

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        *,
        probability: float = 0.15,
        whole_words: bool = False,
        mask_share: float = 0.8,
        random_share: float = 0.1,
    ):
        """Read the special tokens and, for whole words, the word boundaries from the tokenizer.

        Args:
            tokenizer: A `transformers` fast tokenizer with a mask token.
            probability: Expected fraction of tokens to select, in (0, 1).
            whole_words: Whether to select words rather than single tokens.
            mask_share: Fraction of the selected tokens that become the mask token.
            random_share: Fraction of the selected tokens that become a random token.

        Raises:
            InputError: The tokenizer has no mask token, a fraction is out of range, or whole words are requested and the
                tokenizer's tokens do not mark word boundaries.
        """
        if not 0 < probability < 1:
            raise InputError(f"probability is {probability}; it must be between 0 and 1 (exclusive), such as 0.15")
        if not (mask_share >= 0 and random_share >= 0 and mask_share + random_share <= 1):
            raise InputError(
                f"mask_share is {mask_share} and random_share {random_share}; they must not be negative and must add up to "
                "at most 1, such as 0.8 and 0.1"
            )
        if getattr(tokenizer, "mask_token_id", None) is None:
            raise InputError(
                "masked-lm needs a tokenizer with a mask token, and this one has none; add one "
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
        """Return the class name and options, which a resumed run compares with those of its checkpoint."""
        return (
            f"MaskedLM(probability={self.probability}, whole_words={self.whole_words}, mask_share={self.mask_share}, "
            f"random_share={self.random_share})"
        )

    def __call__(
        self, input_ids: np.ndarray, segment_ids: np.ndarray | None, positions: np.ndarray, seed: int
    ) -> dict[str, np.ndarray]:
        """Return blocks with some tokens hidden, and those tokens as labels.

        The mask of a row depends only on (`seed`, its position), never on its batch.

        Args:
            input_ids: int [B, T].
            segment_ids: int [B, T], number of each token's document in the block, or None.
            positions: int [B], index of each row in the training stream.
            seed: Random seed in [0, 2**64).

        Returns:
            `input_ids` and `labels`, int32 [B, T], and `segment_ids` if given. Labels are the original tokens at the
            selected positions and -100 elsewhere.

        Raises:
            InputError: An id is outside the tokenizer's vocabulary.
        """
        check_seed(seed)
        ids = np.asarray(input_ids, dtype=np.int32)
        check_ids(ids, len(self._is_special))
        length = ids.shape[1]
        # One Philox generator per (seed, position), both in its key (Salmon et al. 2011).
        draws = np.empty((len(ids), 3, length))
        for row, position in enumerate(np.asarray(positions, dtype=np.uint64)):
            key = np.asarray([seed, position], dtype=np.uint64)
            draws[row] = np.random.Generator(np.random.Philox(key=key)).random((3, length))
        choice, fate, replacement = draws[:, 0], draws[:, 1], draws[:, 2]  # [B, T] each, in [0, 1)

        special = self._is_special[ids]
        if self._borders is not None:
            starts = self._borders.starts(ids, special, segment_ids)
            word_start = np.maximum.accumulate(np.where(starts, np.arange(length), 0), axis=1)
            choice = np.take_along_axis(choice, word_start, axis=1)  # one draw per word
        selected = (choice < self.probability) & ~special

        labels = np.where(selected, ids, np.int32(IGNORED))
        random_ids = self._ordinary[(replacement * len(self._ordinary)).astype(np.int64)]
        masked = np.where(fate < self.mask_share, np.int32(self.mask_token_id), random_ids)
        masked = np.where(selected & (fate < self.mask_share + self.random_share), masked, ids)
        return _batch(masked, labels, segment_ids)


Objective = CausalLM | MaskedLM | EncoderDecoderObjective

CLASSES: dict[str, type[Objective]] = {
    cls.name: cls for cls in (CausalLM, MaskedLM, SpanCorruption, TextInfilling, GapSentences)
}

OBJECTIVES = tuple(CLASSES)
"""Names of the objectives."""

PRETRAINED_HEADS = tuple(dict.fromkeys(cls.head for cls in CLASSES.values()))
"""Heads that can be pretrained on blocks."""


def head_of(name: str) -> str:
    """Return the head of the models that an objective trains.

    Raises:
        InputError: The objective is unknown.
    """
    return _class_of(name).head


def objective(
    name: str, tokenizer: "PreTrainedTokenizerFast | None" = None, **options: Any
) -> CausalLM | MaskedLM | EncoderDecoderObjective:
    """Create the objective with this name.

    Args:
        name: "causal-lm" or "masked-lm"; for encoder-decoders, "span-corruption" (T5), "text-infilling" (BART, optionally
            with its sentence permutation) or "gap-sentences" (PEGASUS).
        tokenizer: Tokenizer of the blocks; required except for "causal-lm".
        options: Keyword options of the objective's class; "causal-lm" has none.

    Raises:
        InputError: The objective or an option is unknown, or a required tokenizer is missing.
    """
    cls = _class_of(name)
    parameters = inspect.signature(cls).parameters.values()
    allowed = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise InputError(f"{name} has no option {', '.join(unknown)}; its options are {', '.join(allowed) or 'none'}")
    if issubclass(cls, CausalLM):
        return CausalLM()
    if tokenizer is None:
        raise InputError(f"{name} needs a tokenizer to know the special tokens and the mask token; pass tokenizer=")
    return cls(tokenizer, **options)


def check_model(objective: Any, config: TransformerConfig, head: str, block_length: int) -> None:
    """Raise InputError if a model cannot be trained with an objective.

    Encoder-decoders need an encoder-decoder objective with sources and targets that fit their positions; other models
    need one of the others.

    Args:
        objective: An objective, or any callable in its place, which is assumed to be for single-stack models.
        config: Configuration of the model.
        head: Head of the model.
        block_length: Tokens per block.
    """
    if isinstance(objective, EncoderDecoderObjective) != (config.decoder is not None):
        name, expected = getattr(objective, "name", repr(objective)), getattr(objective, "head", "causal-lm")
        raise InputError(
            f"{name} trains models with the head {expected}; this one's is {head}: use another objective or model"
        )
    if isinstance(objective, EncoderDecoderObjective):
        objective.check_model(config, block_length)


def _class_of(name: str) -> type[Objective]:
    if name not in CLASSES:
        raise InputError(f"objective is {name!r}; it must be one of {', '.join(OBJECTIVES)}")
    return CLASSES[name]


def _batch(input_ids: np.ndarray, labels: np.ndarray, segment_ids: np.ndarray | None) -> dict[str, np.ndarray]:
    batch = {"input_ids": np.asarray(input_ids, dtype=np.int32), "labels": labels}
    if segment_ids is not None:
        batch["segment_ids"] = np.asarray(segment_ids, dtype=np.int32)
    return batch
