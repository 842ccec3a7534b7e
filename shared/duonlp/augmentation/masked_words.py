"""Which tokens of a vocabulary are whole words, and the rows of a masked language model in which words are masked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.augmentation.words import Protection, is_word
from duonlp.errors import InputError
from duonlp.inputs import LOGIT_POSITIONS
from duonlp.tasks.base import Example, ParsedInputs
from duonlp.tasks.fill_mask import FillMaskOptions, FillMaskTask
from duonlp.typing import Array, Tokenizer
from duonlp.util.reading import parse_json
from duonlp.util.tokenization import tokenize


class WholeWords:
    """The tokens that are whole words.

    Tokens of byte-level BPE and of SentencePiece mark the space before a word. After a space, such tokens are candidates; after
    anything else, a bracket say, their counterparts without the mark are.

    Args:
        tokenizer: A fast tokenizer of Transformers.
        protect: Its words are no candidates.

    Attributes:
        marker: What marks the space before a word: "Ġ", "▁", or "" for WordPiece and word-level tokens.
        texts: The word of each candidate's id.

    Raises:
        InputError: No token is a whole word.
    """

    def __init__(self, tokenizer: Tokenizer, protect: Protection):
        vocabulary = tokenizer.get_vocab()
        description = parse_json(tokenizer.backend_tokenizer.to_str())
        kinds = _kinds(description)
        self.marker = "Ġ" if "ByteLevel" in kinds else "▁" if {"Metaspace", "Unigram"} & kinds else ""
        continuation = description["model"].get("continuing_subword_prefix") or "##"
        special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        spaced, plain = [], []
        self.texts: dict[int, str] = {}
        for token, index in vocabulary.items():
            marked = token.startswith(self.marker)
            if token in special or (not self.marker and token.startswith(continuation)):
                continue
            if not marked and self.marker + token not in vocabulary:
                continue  # a part of words, as far as one can tell
            body = token.removeprefix(self.marker)
            if self.marker == "Ġ" and not body.isascii():
                body = tokenizer.convert_tokens_to_string([token]).strip()
            is_camel_case = body[1:] != body[1:].lower() and not body.isupper()
            if is_word(body) and not is_camel_case and body.casefold() not in protect.single_words:
                self.texts[index] = body
                (spaced if marked else plain).append(index)
        if not self.texts:
            raise InputError(
                "no token of the vocabulary is a whole word, so no word can be substituted; use another model"
            )
        self.ids = {
            True: np.array(sorted(spaced), np.int64),
            False: np.array(sorted(plain if self.marker else spaced), np.int64),
        }
        self._by_word: dict[str, list[int]] = {}
        for index, body in self.texts.items():
            self._by_word.setdefault(body.casefold(), []).append(index)

    def of(self, word: str) -> list[int]:
        """Return the ids of a word in upper or lower case."""
        return self._by_word.get(word.casefold(), [])


def _kinds(description: Mapping[str, Any]) -> set[str]:
    """Return the types of the model, pre-tokenizers and decoders of a tokenizer.json."""
    parts = [description["model"], description.get("pre_tokenizer"), description.get("decoder")]
    parts = [part for part in parts if part]
    parts += [inner for part in parts for inner in (*part.get("pretokenizers", ()), *part.get("decoders", ()))]
    return {part["type"] for part in parts}


@dataclass(frozen=True)
class Mask:
    """A masked word in a row.

    Attributes:
        piece: Index of the word in the pieces of its text.
        position: Index of the mask token in the row.
        spaced: Whether a space before the word is part of its token.
        word: The word.
    """

    piece: int
    position: int
    spaced: bool
    word: str


@dataclass(frozen=True)
class Row:
    """A window of a text.

    Attributes:
        text: Index of the text.
        ids: int32 [tokens], special tokens included.
        masks: The masked words.
    """

    text: int
    ids: np.ndarray
    masks: list[Mask]


class Windows:
    """Makes the rows in which words of a text are masked, each word by one mask token for all of its pieces.

    A text that is longer than a row is read in windows that overlap by half, and a word is masked in the one in which it is
    nearest to the middle.

    Args:
        tokenizer: A fast tokenizer of Transformers.
        size: Maximum number of tokens of a row.
        marker: See :class:`WholeWords`.

    Raises:
        InputError: `size` leaves no room for text.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, marker: str):
        self.tokenizer, self.marker = tokenizer, marker
        probe = tokenize(tokenizer, "a", return_special_tokens_mask=True, verbose=False)
        is_special = [*probe["special_tokens_mask"]]
        first = is_special.index(0) if 0 in is_special else len(is_special)
        last = len(is_special) - is_special[::-1].index(0) if 0 in is_special else first
        self.before, self.after = probe["input_ids"][:first], probe["input_ids"][last:]
        self.room = size - len(self.before) - len(self.after)
        if self.room < 4:
            raise InputError(f"max_length is {size}, which leaves {self.room} tokens for text; raise it")

    def rows(self, texts: Sequence[str], spans: Sequence[Mapping[int, tuple[int, int]]]) -> list[Row]:
        """Return the rows of all texts.

        Args:
            texts: The texts.
            spans: For each text, by index of a piece, the (start, end) characters of the words to mask. A word that the
                tokenizer does not keep apart from what is around it is left out.
        """
        unique = list(dict.fromkeys(texts))
        encoded = tokenize(
            self.tokenizer, unique, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )  # fmt: skip
        tokens = {
            text: (np.array(ids, np.int64), np.array(offsets, np.int64).reshape(-1, 2))
            for text, ids, offsets in zip(unique, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        }
        rows = []
        for number, (text, of_text) in enumerate(zip(texts, spans, strict=True)):
            ids, offsets = tokens[text]
            places = {piece: place for piece, span in of_text.items() if (place := self._place(text, offsets, span))}
            for start, pieces in self._by_window(len(ids), places).items():
                words = {piece: text[slice(*of_text[piece])] for piece in pieces}
                rows.append(self._row(number, ids, start, {piece: places[piece] for piece in pieces}, words))
        return rows

    def _place(self, text: str, offsets: np.ndarray, span: tuple[int, int]) -> tuple[int, int] | None:
        """Return the (first, last + 1) tokens of a word, or None if they are also those of other characters."""
        start, end = span
        inside = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end))
        if not len(inside):
            return None
        first, last = int(inside[0]), int(inside[-1])
        before = text[offsets[first, 0] : start]
        return (first, last + 1) if before.strip() == "" and offsets[last, 1] == end else None

    def _by_window(self, length: int, places: Mapping[int, tuple[int, int]]) -> dict[int, list[int]]:
        """Return the pieces to mask in each window, by the index of its first token."""
        windows: dict[int, list[int]] = {}
        half = self.room // 2
        for piece, (first, last) in places.items():
            start = (max(0, (first + last) // 2 - half // 2) // half) * half
            start = max(0, min(start, -(-(length - self.room) // half) * half))
            if first >= start and last <= start + self.room:
                windows.setdefault(start, []).append(piece)
        return dict(sorted(windows.items()))

    def _row(
        self, number: int, ids: np.ndarray, start: int, places: Mapping[int, tuple[int, int]], words: Mapping[int, str]
    ) -> Row:
        row, masks, done = list(self.before), [], start
        for piece, (first, last) in sorted(places.items(), key=lambda item: item[1]):
            row += ids[done:first].tolist()
            token = self.tokenizer.convert_ids_to_tokens(int(ids[first]))
            masks.append(Mask(piece, len(row), token.startswith(self.marker), words[piece]))
            row.append(self.tokenizer.mask_token_id)
            done = last
        row += ids[done : start + self.room].tolist()
        return Row(number, np.array(row + list(self.after), np.int32), masks)


FEW = 8
"""Tokens of a row for each position that the logits of a batch are computed at: more than masked words, as a rule."""


class SubstitutionTask(FillMaskTask):
    """Row -> for each of its masks, the ids of the best candidates and their probabilities.

    Args:
        base: A task with the tokenizer and the configuration of the model.
        words: The candidates.
        top_k: Number of candidates of a mask.
        min_probability: Smallest probability of a candidate.
    """

    def __init__(self, base: FillMaskTask, words: WholeWords, top_k: int, min_probability: float):
        super().__init__(base.tokenizer, base.config, base.folder)
        self.words, self.top_k, self.min_probability = words, top_k, min_probability

    def parse_inputs(self, inputs: Any, keywords: dict[str, Any]) -> ParsedInputs:
        return ParsedInputs("list", list(inputs), keywords=keywords)

    def encode(self, items: Sequence[Row], options: FillMaskOptions, first: int = 0) -> list[list[Example]]:
        examples = []
        for row in items:
            inputs = {name: np.zeros(len(row.ids), np.int32) for name in self.input_names}
            inputs |= {"input_ids": row.ids, "attention_mask": np.ones(len(row.ids), np.int32)}
            examples.append([Example(inputs, state=row)])
        return examples

    def batch(self, examples: Sequence[Example], rows: int, length: int) -> dict[str, np.ndarray]:
        """Return the inputs, with the positions of the masks among them: the others need no logits.

        Their number, an eighth, a quarter or a half of the length, or all of it, gives batches few shapes.
        """
        batch, most = super().batch(examples, rows, length), max(len(example.state.masks) for example in examples)
        count = next((-(-length // share) for share in (FEW, 4, 2) if -(-length // share) >= most), length)
        positions = np.zeros((rows, count), np.int32)
        for row, example in enumerate(examples):
            positions[row, : len(example.state.masks)] = [mask.position for mask in example.state.masks]
        return batch | {LOGIT_POSITIONS: positions}

    def run(
        self, forward: Callable[..., Any], batch: dict[str, np.ndarray], group: Any, options: FillMaskOptions
    ) -> Mapping[str, Array]:
        """Return "logits" float32 [B, n, V] at the positions, also of a forward pass that computes those of all tokens."""
        inputs = dict(batch)
        positions, length = inputs.pop(LOGIT_POSITIONS), inputs["input_ids"].shape[1]
        few = positions.shape[1] < length
        logits = forward(inputs | {LOGIT_POSITIONS: positions} if few else inputs)["logits"]
        if not few or logits.shape[1] == length:
            logits = np.take_along_axis(np.asarray(logits), positions[:, :, None], 1)
        return {"logits": logits}

    def reduce(
        self, examples: Sequence[Example], outputs: Mapping[str, np.ndarray], options: FillMaskOptions
    ) -> list[dict[str, Any]]:
        logits, reduced = outputs["logits"], []
        for number, example in enumerate(examples):
            candidates = [
                self._candidates(logits[number, place], mask) for place, mask in enumerate(example.state.masks)
            ]
            scores = np.concatenate([np.zeros(0, np.float32), *(scores for _, scores in candidates)])
            reduced.append({"candidates": candidates, "scores": scores})  # the pipeline checks that scores are finite
        return reduced

    def decode(
        self, item: Row, examples: Sequence[Example], outputs: Sequence[dict[str, Any]], options: FillMaskOptions
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        return outputs[0]["candidates"]

    def _candidates(self, logits: np.ndarray, mask: Mask) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of the best candidates in ascending order and their log probabilities, from logits [V]."""
        highest = logits.max()
        total = highest + np.log(np.exp(logits - highest).sum())
        allowed = self.words.ids[mask.spaced]
        allowed = allowed[allowed < len(logits)]
        scores = logits[allowed] - total  # log probabilities
        excluded = np.isin(allowed, self.words.of(mask.word))
        wanted = min(len(allowed), self.top_k + int(excluded.sum()))
        if not wanted:
            return allowed, scores
        best = np.argpartition(-scores, wanted - 1)[:wanted]
        best = best[~excluded[best]]
        best = best[np.lexsort([allowed[best], -scores[best]])][: self.top_k]
        if self.min_probability:
            best = best[~(scores[best] < np.log(self.min_probability))]  # keeps NaN, which the pipeline reports
        best = np.sort(best)  # a draw must not depend on how close probabilities are rounded
        return allowed[best], scores[best]
