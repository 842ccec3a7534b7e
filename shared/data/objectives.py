"""What a model is trained to say about a block of text: its next tokens, or the tokens that were hidden from it."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.data.order import check_seed
from shared.errors import InputError

IGNORED = -100
"""The label of a position that the loss leaves out."""

# What the last or first character of a byte-level token is, as GPT-2's splitting into words tells them apart.
SPACE, LETTER, DIGIT, OTHER, LINE = range(5)


@dataclass(frozen=True)
class CausalLM:
    """Predict each next token (GPT, Radford et al. 2018)."""

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
        vocabulary = tokenizer.get_vocab()
        special = set(tokenizer.all_special_ids)
        special |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._ordinary = np.asarray(sorted(set(vocabulary.values()) - special), dtype=np.int32)
        if not self._ordinary.size:
            raise InputError("the tokenizer has special tokens alone; there is nothing to mask")
        size = max(max(vocabulary.values()), max(special)) + 1
        self._is_special = np.ones(size, dtype=bool)
        self._is_special[self._ordinary] = False
        self._borders = _word_borders(tokenizer, size) if whole_words else None

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


OBJECTIVES = ("causal-lm", "masked-lm")


def objective(name: str, tokenizer=None, **options: Any) -> CausalLM | MaskedLM:
    """Returns the objective of that name.

    Args:
        name: "causal-lm" or "masked-lm".
        tokenizer: the blocks' tokenizer; masked-lm needs it.
        options: those of `MaskedLM`; causal-lm has none.

    Raises:
        InputError: another name, an option that the objective does not have, or no tokenizer where one is needed.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective is {name!r}; it must be one of {', '.join(OBJECTIVES)}")
    known = ("probability", "whole_words", "mask_share", "random_share") if name == "masked-lm" else ()
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    if name == "causal-lm":
        return CausalLM()
    if tokenizer is None:
        raise InputError("masked-lm needs the tokenizer: which tokens are special, and which one masks")
    return MaskedLM(tokenizer, **options)


def _batch(input_ids: np.ndarray, labels: np.ndarray, segment_ids: np.ndarray | None) -> dict[str, np.ndarray]:
    batch = {"input_ids": np.asarray(input_ids, dtype=np.int32), "labels": labels}
    if segment_ids is not None:
        batch["segment_ids"] = np.asarray(segment_ids, dtype=np.int32)
    return batch


@dataclass(frozen=True)
class _Borders:
    """Where words begin, from two neighbouring tokens: `begins[id]` always, else where `last` and `first` differ."""

    begins: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def starts(self, ids: np.ndarray, special: np.ndarray, segment_ids: np.ndarray | None) -> np.ndarray:
        """Returns bool [B, T]: a word begins at each true position."""
        starts = self.begins[ids] | special
        before = self.last[ids[:, :-1]]
        starts[:, 1:] |= special[:, :-1] | ((before != SPACE) & (before != self.first[ids[:, 1:]]))
        if segment_ids is not None:
            starts[:, 1:] |= segment_ids[:, 1:] != segment_ids[:, :-1]
        starts[:, 0] = True
        return starts


def _word_borders(tokenizer, size: int) -> _Borders:
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    begins = np.zeros(size, dtype=bool)
    first, last = np.zeros((2, size), dtype=np.int8)
    if description["model"]["type"] == "WordPiece":
        continued = description["model"]["continuing_subword_prefix"]
        for index, token in tokens.items():
            begins[index] = not token.startswith(continued)
    elif _has_part(description, "ByteLevel"):
        kinds = _byte_level_kinds()
        for index, token in tokens.items():
            body = token[1:] if token[:1] == "Ġ" and len(token) > 1 else token
            first[index], last[index] = (kinds.get(character, LETTER) for character in (body[:1], body[-1:]))
            begins[index] = kinds.get(token[:1]) in (SPACE, LINE)
    elif description["model"]["type"] == "Unigram" or _has_part(description, "Metaspace") or "▁" in tokens.values():
        for index, token in tokens.items():
            begins[index] = token.startswith("▁")
    else:
        raise InputError(
            f"whole_words needs WordPiece, byte-level or Unigram tokens, which say where words begin; this tokenizer is "
            f"{description['model']['type']} without any of their marks: mask tokens instead (whole_words=False)"
        )
    return _Borders(begins, first, last)


def _has_part(description: dict, kind: str) -> bool:
    parts = [part for name in ("pre_tokenizer", "decoder") if (part := description.get(name))]
    parts += [each for part in parts for each in part.get("pretokenizers", []) + part.get("decoders", [])]
    return any(part["type"] == kind for part in parts)


def _byte_level_kinds() -> dict[str, int]:
    """The kind of each of the 256 characters that stand for bytes in byte-level tokens (GPT-2's table)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    kinds, moved = {}, 0
    for byte in range(256):
        character = chr(byte) if byte in plain else chr(256 + moved)
        moved += byte not in plain
        text = chr(byte)
        if text == " ":
            kinds[character] = SPACE
        elif text.isspace() and byte < 128:
            kinds[character] = LINE
        elif text.isdigit() and byte < 128:
            kinds[character] = DIGIT
        else:
            # A byte of 128 and more is part of a character in another script: most often a letter.
            kinds[character] = LETTER if byte >= 128 or text.isalpha() else OTHER
    return kinds
