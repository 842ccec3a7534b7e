"""Substitute words by what a masked language model predicts in their place."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from duonlp.augmentation.augmenter import Draws, check_request, check_share
from duonlp.augmentation.masked_words import Row, SubstitutionTask, WholeWords, Windows
from duonlp.augmentation.synonyms import protection_settings
from duonlp.augmentation.words import Protection, with_case_of
from duonlp.data.rows.manifest import tokenizer_hash
from duonlp.errors import InputError
from duonlp.pipelines.identity import weights_hash
from duonlp.pipelines.pipeline import Pipeline
from duonlp.tasks.base import check_int, check_string, describe
from duonlp.tasks.fill_mask import FillMaskTask


@dataclass(frozen=True, eq=False)
class MaskedSubstitution:
    """Substitutes words by a masked language model's predictions in their context.

    max(1, share * l) of the l words that may be changed are chosen at random. A word is masked whole, by one mask token for all
    of its pieces, and replaced by a whole word of the vocabulary, never by itself, in its own case. Spaces, punctuation and all
    else stay as they are. Few words of a text are masked at a time; those that come later see the earlier substitutes.

    Attributes:
        pipe: Pipeline "fill-mask" of either engine.
        share: Share of the words to substitute.
        top_k: Number of candidates for a word, its best ones.
        temperature: Temperature of the draw among them: near 0 the best one, above 1 more even.
        min_probability: Probability in the whole vocabulary below which a word is no candidate. A word without candidates stays.
        masked_at_once: Share of the words that are masked in one forward pass, at least one word; models are trained with 0.15.
        max_length: Tokens of a row; longer texts are read in windows.
        batch_size: Rows of a batch; None for the pipeline's.
        protect: Parts of a text that are never changed, and words that are never inserted.
        name: Name of the model for :func:`cached`; None for a hash of its files.

    Raises:
        InputError: A setting is out of range, the pipeline has another task, or no token of its vocabulary is a word.
    """

    pipe: Pipeline
    share: float = 0.15
    top_k: int = 10
    temperature: float = 1.0
    min_probability: float = 0.0
    masked_at_once: float = 0.15
    max_length: int = 256
    batch_size: int | None = None
    protect: Protection = field(default_factory=Protection)
    name: str | None = None

    def __post_init__(self) -> None:
        pipe = self.pipe
        if not isinstance(pipe, Pipeline) or not isinstance(pipe.task, FillMaskTask):
            raise InputError(
                f'MaskedSubstitution got {pipe!r}; pass a pipeline of an engine, such as jaxnlp.pipeline("fill-mask", folder)'
            )
        check_share("share", self.share)
        check_share("masked_at_once", self.masked_at_once)
        check_int("top_k", self.top_k, minimum=1)
        check_int("max_length", self.max_length, minimum=1)
        check_int("batch_size", self.batch_size, minimum=1, optional=True)
        check_string("name", self.name, optional=True)
        for name, value, high in (("temperature", self.temperature, 100), ("min_probability", self.min_probability, 1)):
            low = 0 if name == "min_probability" else 1e-3
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise InputError(f"{name} is {describe(value)}; expected a number from {low} to {high}")
        _ = self._runner, self._windows  # raise before any text is read

    @property
    def _task(self) -> FillMaskTask:
        task = self.pipe.task
        assert isinstance(task, FillMaskTask)
        return task

    @cached_property
    def _words(self) -> WholeWords:
        return WholeWords(self.pipe.tokenizer, self.protect)

    @cached_property
    def _windows(self) -> Windows:
        limit = self._task.limit()
        return Windows(self.pipe.tokenizer, min(self.max_length, limit or self.max_length), self._words.marker)

    @cached_property
    def _runner(self) -> Pipeline:
        task = SubstitutionTask(self._task, self._words, self.top_k, self.min_probability)
        size = self.batch_size or self.pipe.batch_size
        return Pipeline(task, self.pipe.forward, batch_size=size, max_tokens=self.pipe.max_tokens, progress=False)

    @cached_property
    def _protect(self) -> Protection:
        """Protection of special tokens too, which the tokenizer would read as such."""
        special = [token for token in self.pipe.tokenizer.all_special_tokens if token.strip()]
        words = (*self.protect.words, *special)
        return Protection(words, self.protect.patterns, self.protect.identifiers)

    def augment(self, texts: Sequence[str], per_text: int = 1, seed: int = 0) -> list[list[str]]:
        """Return `per_text` copies of each text; see :class:`Augmenter`."""
        texts = check_request(texts, per_text, seed)
        pieces = {text: self._protect.pieces(text) for text in dict.fromkeys(texts)}
        copies = [
            _Copy(list(pieces[text]), Draws(seed, text, number, "masked"), self.share, self.masked_at_once)
            for text in pieces
            for number in range(per_text)
        ]
        while active := [copy for copy in copies if copy.to_mask]:
            self._substitute(active)
        results = iter(copies)
        by_text = {text: ["".join(next(results).pieces) for _ in range(per_text)] for text in pieces}
        return [list(by_text[text]) for text in texts]

    def settings(self) -> dict[str, Any]:
        """Return everything that a copy depends on beside its text and seed."""
        names = ("share", "top_k", "temperature", "min_probability", "masked_at_once", "max_length")
        return {"augmenter": "masked", **{name: getattr(self, name) for name in names}} | {
            "model": self.name or weights_hash(self.pipe),
            "tokenizer": tokenizer_hash(self.pipe.tokenizer),
            "protect": protection_settings(self.protect),
        }

    def _substitute(self, copies: list["_Copy"]) -> None:
        """Run one round: mask the next words of each copy and replace them."""
        rows = self._windows.rows(["".join(copy.pieces) for copy in copies], [copy.next_spans() for copy in copies])
        for row, candidates in zip(rows, self._runner(rows) if rows else (), strict=True):
            self._replace(copies[row.text], row, candidates)

    def _replace(self, copy: "_Copy", row: Row, candidates: list[tuple[np.ndarray, np.ndarray]]) -> None:
        for mask, (ids, scores) in zip(row.masks, candidates, strict=True):
            if not len(ids):
                continue
            weights = np.exp((scores.astype(np.float64) - scores.max()) / self.temperature)
            totals = np.cumsum(weights)
            chosen = int(np.searchsorted(totals, copy.draws.uniform() * totals[-1], side="right"))
            word = self._words.texts[int(ids[min(chosen, len(ids) - 1)])]
            copy.pieces[mask.piece] = with_case_of(word, mask.word)


class _Copy:
    """A copy in the making.

    Args:
        pieces: The text in pieces, with words at odd indices.
        draws: Random numbers of the copy.
        share: Share of the words to substitute.
        at_once: Share of the words to mask at a time.

    Attributes:
        to_mask: Indices of the words that are still to be masked.
    """

    def __init__(self, pieces: list[str], draws: Draws, share: float, at_once: float):
        self.pieces, self.draws, words = pieces, draws, len(pieces) // 2
        count = max(1, int(share * words))
        self.at_once = max(1, int(at_once * words))
        self.to_mask = [2 * number + 1 for number in draws.order(words)[:count]]

    def next_spans(self) -> dict[int, tuple[int, int]]:
        """Return the (start, end) characters of the words to mask next, by their index, and strike them off the list."""
        ends = np.cumsum([len(piece) for piece in self.pieces]).tolist()
        chosen, self.to_mask = self.to_mask[: self.at_once], self.to_mask[self.at_once :]
        return {piece: (ends[piece - 1], ends[piece]) for piece in sorted(chosen)}
