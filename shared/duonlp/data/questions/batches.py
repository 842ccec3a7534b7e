"""Batch questions for training a reader: contexts cut into windows once, padded to a few lengths, shuffled."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.data.labelled.batches import check_widths, useful_widths
from duonlp.data.rows.length_batches import TOKENIZER_BATCH, LengthBatches, cache_key, load_or_build_rows
from duonlp.data.rows.manifest import tokenizer_hash
from duonlp.data.rows.order import random_choices
from duonlp.data.rows.token_rows import TokenRows, TokenRowsBuilder
from duonlp.errors import InputError
from duonlp.heads import NO_POSITION
from duonlp.tokenizers.windows import Window, make_windows
from duonlp.util.reading import is_unicode
from duonlp.util.tokenization import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CACHE_VERSION = 1


@dataclass(frozen=True)
class MissingAnswer:
    """An answer that does not occur in its context.

    Attributes:
        id: Id of the question.
        text: The answer.
        answer_start: Its stated position.
    """

    id: str
    text: str
    answer_start: int


class QuestionBatches(LengthBatches):
    """Batches of windows with the positions of answers, epoch by epoch, with random access by seed, epoch and batch number.

    A row is a window of a context beside its question (:func:`duonlp.tokenizers.windows.make_windows`, which the
    question-answering task shares). Its "start_positions" and "end_positions", int32 [B], are the first and the last token that
    cover an answer, whether or not the answer begins and ends with a token. If no answer is wholly in the window, or there is
    none, both are the position of the CLS token; without one, of the BOS token, and without that, 0, as in Transformers' scripts.

    A window with several different answers has one of them in each epoch, chosen by seed, epoch and window: every engine and a
    resumed run choose alike. Without `shuffle`, it is always the first. Answers that several annotators gave count once.

    Each epoch contains every window once, in its own order. Windows of similar length are batched together and padded to one of
    a few lengths, on the tokenizer's padding side. The last batch is filled up with rows of NO_POSITION, which do not count.

    Attributes:
        questions: The given questions.
        not_found: Answers that do not occur in their context (see `__init__`).
        owners: int64 [windows], index of each window's question; `order` maps the rows of batches to windows.
        null_positions: int64 [windows], position of "no answer" in each window, not padded.
        ids: Ids of the questions.
    """

    row_noun = "windows"

    def __init__(
        self,
        questions: Sequence[Mapping[str, Any]],
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int,
        *,
        max_seq_len: int = 384,
        doc_stride: int = 128,
        max_question_len: int = 64,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        widths: Sequence[int] | None = None,
        cache: str | Path | None = None,
        host_index: int = 0,
        host_count: int = 1,
    ):
        """Cut all contexts into windows and find the answers.

        An answer that is not at its `answer_start` is looked for nearest to it. One that is nowhere in the context is listed in
        `not_found` and left out; a question left without any answer is left out too, since its windows would teach that
        there is no answer.

        Args:
            questions: `Questions`, or dicts with "question", "context" and "answers" as those have, and possibly "id". A row
                without "answers" is a question without an answer.
            tokenizer: A `transformers` fast tokenizer.
            batch_size: Global batch size in windows, over all hosts.
            max_seq_len: Maximum number of tokens of a window, question and special tokens included.
            doc_stride: Number of context tokens by which adjacent windows overlap.
            max_question_len: Number of tokens to which a question is truncated if it leaves no room for the context.
            seed: Seed of the order and of the choice between answers, in [0, 2**64).
            shuffle: Whether each epoch has an order of its own. If False, every epoch has the order of the questions.
            drop_last: Whether to drop the incomplete last batch instead of filling it up.
            widths: Lengths to pad to, such as (max_seq_len,) for a single shape. Defaults to a few useful ones.
            cache: Folder to cache the windows in; later runs memory-map them instead of tokenizing. The key is a hash of the
                texts, the tokenizer and the lengths.
            host_index: Index of this host, which gets its share of each batch's rows. All hosts see the same shapes.
            host_count: Number of hosts.

        Raises:
            InputError: There are no questions, one is malformed or leaves no room for its context, the tokenizer has no padding
                token, or a number is out of range.
        """
        super().__init__(batch_size, seed, shuffle, drop_last, host_index, host_count)
        if tokenizer.pad_token_id is None:
            raise InputError(
                "the tokenizer has no padding token; set pad_token, for example tokenizer.pad_token = tokenizer.eos_token"
            )
        _check_lengths(max_seq_len, doc_stride, max_question_len)
        self.questions, self.tokenizer = questions, tokenizer
        self.lengths = {"size": int(max_seq_len), "stride": int(doc_stride), "max_question_len": int(max_question_len)}
        self.not_found: list[MissingAnswer] = []
        self._epoch = 0
        self._has_types = "token_type_ids" in getattr(tokenizer, "model_input_names", ())
        rows = [_checked(row, number, self.not_found) for number, row in enumerate(questions)]
        self.ids = [row.id for row in rows]
        usable = [(number, row) for number, row in enumerate(rows) if row.spans or not row.had_answers]
        if not usable:
            raise InputError(
                f"there are no questions to batch ({len(self.not_found)} answers do not occur in their contexts)"
            )
        self._load(usable, None if cache is None else Path(os.path.expanduser(cache)))
        longest = int(self.rows.lengths.max())
        self.widths = useful_widths(self.rows.lengths, max_seq_len) if widths is None else check_widths(widths, longest)
        self.check_count()

    def _load(self, usable: "list[tuple[int, _Question]]", cache: Path | None) -> None:
        """Set the rows of tokens, token types and answer positions, and what is known of each row, from the cache or anew."""

        def build() -> tuple[TokenRows, ...]:
            return self._tokenize(usable)

        if cache is None:
            loaded = build()
        else:
            names = ("ids", "types", "spans", "about")
            loaded = load_or_build_rows(cache / self._cache_key(usable), names, None, build, "windows")
        self.rows, self._types, self._spans, about = loaded
        about = about.values.reshape(-1, 2)
        self.owners, self.null_positions = about[:, 0].astype(np.int64), about[:, 1].astype(np.int64)

    def _tokenize(self, usable: "list[tuple[int, _Question]]") -> tuple[TokenRows, ...]:
        ids, types, spans, about = (TokenRowsBuilder() for _ in range(4))
        for begin in range(0, len(usable), TOKENIZER_BATCH):
            chunk = usable[begin : begin + TOKENIZER_BATCH]
            rows = make_windows(
                self.tokenizer,
                [row.question for _, row in chunk],
                [row.context for _, row in chunk],
                where=lambda i, chunk=chunk: f"question {chunk[i][1].id!r}",
                **self.lengths,
            )
            for (number, row), windows in zip(chunk, rows, strict=True):
                for window in windows:
                    ids.add(window.input_ids.tolist())
                    types.add(window.token_type_ids.tolist() if self._has_types else ())
                    spans.add([position for span in row.spans for position in answer_positions(window, *span) or ()])
                    about.add((number, window.null))
        return tuple(builder.build() for builder in (ids, types, spans, about))

    def _cache_key(self, usable: "list[tuple[int, _Question]]") -> str:
        tokenizer = self.tokenizer
        probe = tokenize(tokenizer, "a", "a", verbose=False)["input_ids"]  # its special tokens
        settings = [
            CACHE_VERSION, tokenizer_hash(tokenizer), probe, tokenizer.truncation_side, tokenizer.padding_side,
            tokenizer.cls_token_id, tokenizer.bos_token_id, self.lengths, self._has_types,
        ]  # fmt: skip
        return cache_key(settings, ([number, row.question, row.context, row.spans] for number, row in usable))

    @property
    def unreachable(self) -> list[str]:
        """Ids of the questions whose answers are too long to be wholly in any window; they train as unanswerable."""
        reachable = set(self.owners[self._spans.lengths > 0].tolist())
        owners = dict.fromkeys(self.owners.tolist())
        answered = (number for number in owners if _texts(self.questions[number])[0])
        return [self.ids[number] for number in answered if number not in reachable]

    @property
    def _count(self) -> int:
        return len(self.rows)

    def _sort_by_length(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(self.rows.lengths[rows], kind="stable")]

    def epoch(self, number: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Return an iterator over the batches of an epoch.

        Args:
            number: Epoch, from 0 on; it also chooses between several answers.
            first: Index of the first batch to yield, for resuming within the epoch.

        Returns:
            Dicts of int32 arrays: input_ids, attention_mask and, if the model reads them, token_type_ids,
            [batch_size / host_count, width], and start_positions and end_positions, [batch_size / host_count].

        Raises:
            InputError: If the epoch is negative or `first` is out of range.
        """
        view = copy.copy(self)  # so that iterators over several epochs do not disturb each other
        view._epoch = number
        return super(QuestionBatches, view).epoch(number, first)

    def _collate(self, rows: np.ndarray, batch: np.ndarray) -> dict[str, np.ndarray]:
        filling = rows < 0
        rows = np.where(filling, rows[0], rows)
        longest = self.rows.lengths[batch].max()
        width = next(width for width in self.widths if width >= longest)
        lengths, columns = self.rows.lengths[rows], np.arange(width)
        arrays = {
            "input_ids": self.rows.padded(rows, width, self.tokenizer.pad_token_id),
            "attention_mask": (columns < lengths[:, None]).astype(np.int32),
        }
        if self._has_types:
            arrays["token_type_ids"] = self._types.padded(rows, width, self.tokenizer.pad_token_type_id)
        positions = self._positions(rows)  # [rows, 2]
        if self.tokenizer.padding_side == "left":  # rotate each row until it ends at the right edge
            rotated = (columns - (width - lengths)[:, None]) % width
            arrays = {name: np.take_along_axis(values, rotated, axis=1) for name, values in arrays.items()}
            positions += (width - lengths)[:, None]
        positions[filling] = NO_POSITION
        arrays["start_positions"], arrays["end_positions"] = positions.astype(np.int32).T.copy()
        return arrays

    def _positions(self, rows: np.ndarray) -> np.ndarray:
        """Return the first and the last token of this epoch's answer of each window, int64 [rows, 2], not padded."""
        counts, begins = self._spans.lengths[rows] // 2, self._spans.offsets[rows]
        choices = random_choices(rows, np.maximum(counts, 1), self.seed, self._epoch) if self.shuffle else 0
        places = np.minimum(begins + 2 * choices, max(len(self._spans.values) - 2, 0))
        positions = np.repeat(self.null_positions[rows][:, None], 2, axis=1)
        answered = counts > 0
        positions[answered] = self._spans.values[places[answered][:, None] + np.arange(2)]
        return positions


def answer_positions(window: Window, start: int, end: int) -> tuple[int, int] | None:
    """Return the first and the last token of a window's row that cover an answer; None if it is not wholly in the window.

    Args:
        window: The window.
        start: Index of the answer's first character in the context.
        end: Index after its last character.
    """
    text, whole = window.context, window.text
    first = int(np.searchsorted(whole.ends, np.int32(start), "right"))  # the first token that ends after `start`
    last = int(np.searchsorted(whole.starts, np.int32(end), "left")) - 1  # the last token that starts before `end`
    if not window.offset <= first <= last < window.offset + len(text.ids):
        return None
    shift = window.first - window.offset
    return first + shift, last + shift


@dataclass(frozen=True)
class _Question:
    """A checked row.

    Attributes:
        id: Its id.
        question: The question.
        context: The context.
        spans: (start, end) characters of the different answers, in their order.
        had_answers: Whether the row has answers, found or not.
    """

    id: str
    question: str
    context: str
    spans: list[tuple[int, int]]
    had_answers: bool


def _checked(row: Any, number: int, not_found: list[MissingAnswer]) -> _Question:
    """Return a checked row, appending answers that do not occur in its context to ``not_found``."""
    if not isinstance(row, Mapping) or not {"question", "context"} <= set(row):
        raise InputError(
            f'question {number} is {_short(row)}; expected a dict with "question", "context" and "answers"'
        )
    name = str(row.get("id", number))
    for key in ("question", "context"):
        value = row[key]
        if not isinstance(value, str) or not value.strip() or not is_unicode(value):
            raise InputError(f"question {name!r}: its {key} is {_short(value)}; expected a text of valid Unicode")
    texts, starts = _texts(row)
    if len(texts) != len(starts):
        raise InputError(
            f"question {name!r} has {len(texts)} answer texts and {len(starts)} positions; give one for each"
        )
    spans: dict[tuple[int, int], None] = {}
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or isinstance(start, bool) or not isinstance(start, (int, np.integer)):
            raise InputError(
                f"question {name!r} has the answer {_short(text)} at {start!r}; expected a text and an integer"
            )
        found = _find(row["context"], text, int(start))
        if found is None:
            not_found.append(MissingAnswer(name, text, int(start)))
        else:
            spans[found, found + len(text)] = None
    return _Question(name, row["question"], row["context"], list(spans), bool(len(texts)))


def _texts(row: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[int]]:
    """Return the texts and the positions of a row's answers."""
    answers = row.get("answers") or {}
    if not isinstance(answers, Mapping) or (answers and not {"text", "answer_start"} <= set(answers)):
        raise InputError(
            f'question {row.get("id", row["question"])!r} has the answers {_short(answers)}; expected {{"text": [...], '
            '"answer_start": [...]}'
        )
    texts, starts = answers.get("text", ()), answers.get("answer_start", ())
    if isinstance(texts, str):  # one answer, not in a list
        return [texts], [starts]
    return list(texts), list(starts)


def _find(context: str, text: str, start: int) -> int | None:
    """Return the position of a text in the context that is nearest to ``start``, or None."""
    if not text.strip():
        return None
    start = min(max(start, 0), len(context))
    if context.startswith(text, start):
        return start
    before, after = context.rfind(text, 0, start + len(text)), context.find(text, start)
    places = [place for place in (before, after) if place >= 0]
    return min(places, key=lambda place: abs(place - start), default=None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_lengths(max_seq_len: int, doc_stride: int, max_question_len: int) -> None:
    values = {"max_seq_len": (max_seq_len, 1), "doc_stride": (doc_stride, 0), "max_question_len": (max_question_len, 1)}
    for name, (value, least) in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise InputError(f"{name} is {value!r}; it must be an integer of at least {least}")
    if doc_stride >= max_seq_len:
        raise InputError(f"doc_stride is {doc_stride}, but max_seq_len is {max_seq_len}; lower doc_stride")
