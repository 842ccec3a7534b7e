"""Describe questions: what they begin with, how long they and their contexts and answers are, how many can be answered."""

import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.data.pairs.lengths import PERCENTILES, Lengths
from duonlp.data.questions.questions import Questions
from duonlp.errors import InputError
from duonlp.util.pictures import COLOURS, check_picture_file, picture, require_matplotlib
from duonlp.util.suggestions import choice
from duonlp.util.tokenization import tokenize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase

UNITS = ("words", "characters")
PARTS = ("questions", "contexts", "answers")
TYPES_SHOWN = 10
TEXTS_PER_CHUNK = 1024
BINS = 40

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")


@dataclass(frozen=True)
class Exploration:
    """What questions are like. `rich.print` shows it as a table.

    Attributes:
        name: Name of the data.
        questions: Number of questions.
        answerable: Number of questions with an answer.
        titles: Number of different titles: documents or, in SubjQA, products. The empty title does not count.
        contexts: Number of different contexts.
        answers: Number of answers; equal ones of several annotators count each.
        types: Number of questions by their first word, such as "How", the most frequent first.
        answerable_types: Number of these that have an answer, by the same words.
        unit: Unit of the lengths: "words", "characters" or, of a tokenizer, "tokens".
        lengths: Lengths of the questions, the different contexts and the answers ("questions", "contexts", "answers").
        dropped: Number of rows that were dropped while reading, by reason.
    """

    name: str
    questions: int
    answerable: int
    titles: int
    contexts: int
    answers: int
    types: Mapping[str, int]
    answerable_types: Mapping[str, int]
    unit: str
    lengths: Mapping[str, Lengths]
    dropped: Mapping[str, int]

    @property
    def unanswerable(self) -> int:
        """Number of questions without an answer."""
        return self.questions - self.answerable

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        numbers = ("questions", "answerable", "unanswerable", "titles", "contexts", "answers")
        counts = {name: getattr(self, name) for name in ("name", *numbers)}
        lengths = {}
        for part, values in self.lengths.items():
            statistics = values.to_dict() if self._has(part) else {"count": 0}
            lengths[part] = {key: value for key, value in statistics.items() if key != "limits"}
        return {
            **counts, "types": dict(self.types), "answerable_types": dict(self.answerable_types), "unit": self.unit,
            "lengths": lengths, "dropped": dict(self.dropped),
        }  # fmt: skip

    def table(self) -> "Table":
        """Return a rich table of counts, lengths and the most frequent types."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("")
        for part in PARTS:
            table.add_column(part, justify="right", no_wrap=True)
        table.add_row("number", *(f"{count:,}" for count in (self.questions, self.contexts, self.answers)))
        table.add_row(
            f"{self.unit}, mean", *(f"{self.lengths[part].mean:,.1f}" if self._has(part) else "" for part in PARTS)
        )
        for share in PERCENTILES:
            cells = (f"{self.lengths[part].percentile(share):,}" if self._has(part) else "" for part in PARTS)
            table.add_row(f"{self.unit}, p{share}", *cells)
        table.add_row(
            f"{self.unit}, max", *(f"{self.lengths[part].longest:,}" if self._has(part) else "" for part in PARTS)
        )
        table.add_section()
        others = [("answerable", self.answerable), ("unanswerable", self.unanswerable)]
        shown = list(self.types.items())[:TYPES_SHOWN]
        rest = self.questions - sum(count for _, count in shown)
        for name, count in (*others, *shown, *([("other first words", rest)] if rest else [])):
            table.add_row(Text(name), f"{count:,}", f"{count / self.questions:.1%}", "")
        table.add_row("titles", f"{self.titles:,}", "", "")
        for reason, count in self.dropped.items():
            table.add_row(Text(f"dropped: {reason}"), f"{count:,}", "", "")
        return table

    def _has(self, part: str) -> bool:
        return len(self.lengths[part]) > 0

    def __rich__(self) -> "Table":
        return self.table()

    def plot(self, path: str | os.PathLike, title: str = "") -> None:
        """Plot the question types, with the answerable part of each, and histograms of the lengths.

        Args:
            path: A .png, .svg or .pdf file in an existing folder.
            title: Title above the figure.

        Raises:
            InputError: The file format is unsupported, or the folder does not exist.
            MissingExtraError: matplotlib is not installed.
        """
        path = Path(path)
        check_picture_file(path)
        require_matplotlib("questions are plotted")
        with picture(path, 12, 8, dpi=120) as figure:
            axes = figure.subplots(2, 2).ravel()
            self._draw_types(axes[0])
            for axis, part in zip(axes[1:], PARTS, strict=True):
                self._draw_lengths(axis, part)
            if title:
                figure.suptitle(title)

    def _draw_types(self, axes: "Axes") -> None:
        names = list(self.types)[:TYPES_SHOWN][::-1]
        bars = axes.barh(names, [self.types[name] for name in names], color=COLOURS[5], label="unanswerable")
        axes.barh(names, [self.answerable_types[name] for name in names], color=COLOURS[0], label="answerable")
        axes.bar_label(bars, padding=2)
        axes.legend(frameon=False)
        axes.set_title(
            f"first words of {self.questions:,} questions, {self.answerable / self.questions:.0%} answerable"
        )
        axes.set_xlabel("questions")
        axes.spines[["top", "right"]].set_visible(False)

    def _draw_lengths(self, axes: "Axes", part: str) -> None:
        lengths = self.lengths[part]
        if not self._has(part):
            axes.set_title(f"no {part}")
            axes.set_axis_off()
            return
        width = -(-(lengths.longest + 1) // BINS)  # bins are whole units wide
        axes.hist(lengths.values, np.arange(0, lengths.longest + 1 + width, width).tolist(), color=COLOURS[0])
        for share, style in ((50, "-"), (95, "--")):
            length = lengths.percentile(share)
            axes.axvline(length, color=COLOURS[1], linestyle=style, linewidth=1.2, label=f"p{share}: {length:,}")
        axes.set_title(f"{len(lengths):,} {part}, {lengths.mean:,.1f} {self.unit} on average")
        axes.set_xlabel(self.unit)
        axes.set_ylabel(part)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)


def explore(
    questions: Questions, *, unit: str = "words", tokenizer: "PreTrainedTokenizerBase | None" = None
) -> Exploration:
    """Count questions, contexts and answers, the first words of questions, and measure the lengths of all three.

    Args:
        questions: Such as `read_questions` returns.
        unit: Unit of the lengths: "words" (separated by spaces) or "characters".
        tokenizer: A `transformers` tokenizer, to measure lengths in tokens instead, special tokens excluded.

    Raises:
        InputError: There are no questions, or the unit is unknown.
    """
    choice("unit", unit, UNITS)
    if not len(questions):
        raise InputError(f"{questions.name} has no questions to explore; give at least one")
    first_words = (_WORD.search(row["question"]) for row in questions)
    words = [match[0].lower().capitalize() if match else "(none)" for match in first_words]
    answered = [bool(row["answers"]["text"]) for row in questions]
    types, answerable = Counter(words), Counter(itertools.compress(words, answered))
    contexts = list(dict.fromkeys(row["context"] for row in questions))
    answers = [text for row in questions for text in row["answers"]["text"]]
    texts = {"questions": [row["question"] for row in questions], "contexts": contexts, "answers": answers}
    return Exploration(
        name=questions.name,
        questions=len(questions),
        answerable=sum(answered),
        titles=len({row.get("title") for row in questions} - {"", None}),
        contexts=len(contexts),
        answers=len(answers),
        types={word: types[word] for word in sorted(types, key=lambda word: (-types[word], word))},
        answerable_types={word: answerable[word] for word in types},
        unit="tokens" if tokenizer is not None else unit,
        lengths={part: Lengths(np.sort(_lengths(texts[part], unit, tokenizer))) for part in PARTS},
        dropped=dict(questions.dropped),
    )


def _lengths(texts: Sequence[str], unit: str, tokenizer: "PreTrainedTokenizerBase | None") -> np.ndarray:
    """Return the lengths of texts, int64 [n]."""
    if tokenizer is None:
        return np.array([len(text.split()) if unit == "words" else len(text) for text in texts], np.int64)
    lengths: list[int] = []
    for start in range(0, len(texts), TEXTS_PER_CHUNK):
        chunk = list(texts[start : start + TEXTS_PER_CHUNK])
        encoded = tokenize(tokenizer, chunk, add_special_tokens=False, return_attention_mask=False, verbose=False)
        lengths += map(len, encoded["input_ids"])
    return np.array(lengths, np.int64)
