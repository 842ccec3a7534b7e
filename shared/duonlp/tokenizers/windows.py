"""Cut contexts into overlapping windows, each beside the whole question: the rows that a reader reads.

Windows are those of Transformers' fast tokenizers with ``truncation="only_second"``, ``stride`` and
``return_overflowing_tokens=True``; but every context is tokenized once, however many windows and questions it has, which is
linear in its length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.errors import InputError
from duonlp.util.tokenization import encodings

if TYPE_CHECKING:
    from duonlp.typing import Tokenizer


@dataclass(slots=True)
class TokenizedText:
    """The tokens of a text, without special tokens.

    Attributes:
        ids: int32 [tokens].
        starts: int32 [tokens], index of each token's first character.
        ends: int32 [tokens], index after each token's last character.
        words: int32 [tokens], index of each token's word; -1 for none.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    words: np.ndarray

    def __getitem__(self, tokens: slice) -> "TokenizedText":
        return TokenizedText(self.ids[tokens], self.starts[tokens], self.ends[tokens], self.words[tokens])


@dataclass(slots=True)
class Window:
    """A row of a question and a part of its context.

    Attributes:
        input_ids: int32 [tokens].
        token_type_ids: int32 [tokens].
        first: Index in the row of the first context token.
        context: The context tokens in the row.
        text: All tokens of the context.
        offset: Index of the first of them in the whole context.
        null: Index of the token that stands for "no answer": the first CLS token of the row, else its first BOS token, else
            0, as in Transformers' scripts for question answering.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    first: int
    context: TokenizedText
    text: TokenizedText
    offset: int
    null: int


def make_windows(
    tokenizer: "Tokenizer",
    questions: Sequence[str],
    contexts: Sequence[str],
    *,
    size: int,
    stride: int,
    max_question_len: int,
    where: Callable[[int], str] = "question {}".format,
) -> list[list[Window]]:
    """Return the windows of each pair of a question and a context.

    Rows are not padded. The question comes first, or second if the tokenizer pads on the left, as in Transformers' pipeline.
    A question is truncated only if it leaves no room for a window to advance over a context that needs several.

    Args:
        tokenizer: A fast tokenizer of Transformers.
        questions: Questions.
        contexts: The context of each.
        size: Maximum number of tokens in a window, question and special tokens included.
        stride: Number of context tokens by which windows overlap.
        max_question_len: Number of tokens to which a question that leaves no room is truncated.
        where: Function from the index of a pair to its name, for messages.

    Raises:
        InputError: A context has no tokens, or a question leaves no room even if truncated.
    """
    unique = list(dict.fromkeys([*questions, *contexts]))
    each, pair = encodings(tokenizer, unique)
    encoded = dict(zip(unique, each, strict=True))
    template = _Template(pair, context_first=tokenizer.padding_side == "left")
    texts: dict[str, TokenizedText] = {}
    markers = [m for m in (tokenizer.cls_token_id, getattr(tokenizer, "bos_token_id", None)) if m is not None]
    from_the_end = getattr(tokenizer, "truncation_side", "right") == "left"
    result = []
    for number, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        if context not in texts:
            texts[context] = _tokenized(encoded[context], where(number))
        text, question_ids = texts[context], _ids(encoded[question].ids, where(number))
        if not len(text.ids):
            shown = repr(context) if len(context) <= 60 else repr(context[:57]) + "..."
            raise InputError(f"{where(number)}, context {shown} has no tokens; add some words")
        room = size - template.special - len(question_ids)
        if room < len(text.ids) and room <= stride:
            question_ids = question_ids[:max_question_len]
            room = size - template.special - len(question_ids)
            if room <= stride:
                raise InputError(
                    f"{where(number)}: a question of {len(question_ids)} tokens and doc_stride {stride} leave no room in a "
                    f"window of {size}",
                    remedy="raise max_seq_len, or lower doc_stride or max_question_len",
                )
        row = template.row(question_ids)
        ranges = window_ranges(len(text.ids), room, stride, from_the_end)
        result.append([row.window(text, start, stop, markers) for start, stop in ranges])
    return result


def window_ranges(length: int, room: int, stride: int, from_the_end: bool = False) -> list[tuple[int, int]]:
    """Return the (start, end) tokens of each window of a context.

    Args:
        length: Number of tokens of the context.
        room: Number of tokens in a window.
        stride: Number of tokens by which windows overlap, less than ``room`` if one window is not enough.
        from_the_end: Whether the first window is the last part of the context (``truncation_side="left"``).
    """
    if length <= room:
        return [(0, length)]
    count = -(-(length - room) // (room - stride)) + 1
    starts = [number * (room - stride) for number in range(count)]
    ranges = [(start, min(start + room, length)) for start in starts]
    return [(length - stop, length - start) for start, stop in ranges] if from_the_end else ranges


def _ids(values: Sequence[int], where: str) -> np.ndarray:
    try:
        return np.array(values, np.int32)
    except OverflowError:
        raise InputError(
            f"{where}: the tokenizer gives ids of 2**31 or more, which no model has; use the model's own tokenizer"
        ) from None


def _tokenized(encoding: Any, where: str) -> TokenizedText:
    ids = _ids(encoding.ids, where)
    offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int32)
    return TokenizedText(ids, np.ascontiguousarray(offsets[:, 0]), np.ascontiguousarray(offsets[:, 1]), words)


class _Row:
    """What surrounds the context in the rows of one question: ids and types before it and after it, and its own type."""

    def __init__(self, before: tuple[np.ndarray, np.ndarray], kind: int, after: tuple[np.ndarray, np.ndarray]) -> None:
        self.before, self.kind, self.after = before, kind, after

    def window(self, text: TokenizedText, start: int, stop: int, markers: Sequence[int]) -> Window:
        """Return the row with the context's tokens ``start`` to ``stop``."""
        context, first = text[start:stop], len(self.before[0])
        ids = np.concatenate((self.before[0], context.ids, self.after[0]))
        types = np.concatenate((self.before[1], np.full(stop - start, self.kind, np.int32), self.after[1]))
        places = (np.flatnonzero(ids == marker) for marker in markers)
        null = next((int(found[0]) for found in places if len(found)), 0)
        return Window(ids, types, first, context, text, start, null)


class _Template:
    """The special tokens and token types that a tokenizer adds to a pair.

    Args:
        pair: tokenizers.Encoding of the pair ("a", "a").
        context_first: Whether the context is the first text of the pair.
    """

    def __init__(self, pair: Any, context_first: bool) -> None:
        parts: list[tuple[int | None, list[int], list[int]]] = []  # sequence, ids, types of each run of tokens
        for sequence, number, kind in zip(pair.sequence_ids, pair.ids, pair.type_ids, strict=True):
            if not parts or parts[-1][0] != sequence:
                parts.append((sequence, [], []))
            parts[-1][1].append(number)
            parts[-1][2].append(kind)
        order = [sequence for sequence, *_ in parts]
        if order.count(0) != 1 or order.count(1) != 1:
            raise InputError("the tokenizer has no token for 'a'; use a tokenizer that was trained on text")
        self.context, self.question = (0, 1) if context_first else (1, 0)
        self.parts = [(s, np.array(ids, np.int32), np.array(kinds, np.int32)) for s, ids, kinds in parts]
        self.place = order.index(self.context)
        self.special = sum(len(ids) for sequence, ids, _ in self.parts if sequence is None)

    def row(self, question: np.ndarray) -> _Row:
        """Return what surrounds the context of a question, int32 [tokens]."""
        filled = [
            (question, np.full(len(question), kinds[0], np.int32)) if sequence == self.question else (ids, kinds)
            for sequence, ids, kinds in self.parts
        ]
        kind = int(self.parts[self.place][2][0])
        return _Row(_joined(filled[: self.place]), kind, _joined(filled[self.place + 1 :]))


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    empty = np.zeros(0, np.int32)
    return np.concatenate([empty, *(ids for ids, _ in parts)]), np.concatenate([empty, *(kinds for _, kinds in parts)])
