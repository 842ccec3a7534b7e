"""What ROUGE and BLEU share: inputs checked, statistics kept by example and batch after batch, intervals over examples."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from duonlp.errors import InputError, MissingExtraError
from duonlp.metrics.bootstrap import Score, check_settings, interval, resampled_sums

References = Sequence[str | Sequence[str]]
"""One entry for each prediction: a text, or several texts that are all good answers."""

EXTRA = 'pip install "duonlp[summarization]"'


class Metric(ABC):
    """A score whose sufficient statistics are a row of numbers for each example, so that it can be resampled.

    Args:
        options: what the metric was made with.

    kinds: names of the scores it gives, such as ("rouge1", "rouge2").
    highest: the best score there is: 1.0 or 100.0, as the library that computes it has it.
    """

    kinds: tuple[str, ...]
    highest: float

    def __init__(self, **options: Any):
        self.options = options
        self._rows: list[Sequence[float]] = []

    def __len__(self) -> int:
        """Examples so far."""
        return len(self._rows)

    def fresh(self) -> Self:
        """A metric with the same options and no examples."""
        return type(self)(**self.options)

    def add(self, predictions: Iterable[str], references: References) -> None:
        """Adds a batch of examples; all of them, or none where an error is raised.

        Args:
            predictions: what the system wrote, one text an example. An empty text is no error, and scores 0.
            references: for each prediction one text, or a list of several.

        Raises:
            InputError: nothing to add, numbers that differ, something that is no text, or an empty reference.
        """
        texts, wanted = check_texts(predictions, references)
        self._rows += [self.example_statistics(text, several) for text, several in zip(texts, wanted, strict=True)]

    @property
    def statistics(self) -> np.ndarray:
        """float64 [examples, k]: rows whose sum over any set of examples decides the set's score.

        Raises:
            InputError: there is no example yet.
        """
        if not self._rows:
            raise InputError(f"{type(self).__name__} has no example yet; add(predictions, references) comes first")
        return np.asarray(self._rows, np.float64)

    def compute(self, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> dict[str, Score]:
        """Scores of all examples so far, with percentile bootstrap intervals over the examples.

        Args:
            confidence: share of the resamples that the interval holds, in (0, 1).
            resamples: how many; 0 for the scores alone, whose bounds are None then.
            seed: of the draws, from NumPy's default generator: the same numbers again.

        Returns:
            {kind: Score(low, value, high)}. One example alone has no interval, and bounds that are None: every resample
            of it is the same.

        Raises:
            InputError: no example yet, or a setting that cannot be.
        """
        check_settings(confidence, resamples, seed)
        statistics = self.statistics
        values = self.scores(statistics.sum(axis=0, keepdims=True), len(self))
        if resamples == 0 or len(self) == 1:
            return {kind: Score(None, float(values[kind][0]), None) for kind in self.kinds}
        samples = self.scores(resampled_sums(statistics, resamples, seed), len(self))
        bounds = {kind: interval(samples[kind], confidence) for kind in self.kinds}
        return {kind: Score(bounds[kind][0], float(values[kind][0]), bounds[kind][1]) for kind in self.kinds}

    @abstractmethod
    def example_statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """The row of one example, of length k."""

    @abstractmethod
    def scores(self, sums: np.ndarray, examples: int) -> dict[str, np.ndarray]:
        """{kind: float64 [r]}, the scores of r sets of so many examples, from the sums of their rows [r, k]."""

    @property
    @abstractmethod
    def per_example(self) -> dict[str, np.ndarray]:
        """{kind: float64 [examples]}, the score of each example by itself."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """What decides a score, in a line: library, version, options."""


def missing(library: str) -> MissingExtraError:
    """The error for a library that is not installed."""
    return MissingExtraError(f"{library} is not installed; {EXTRA}")


def check_texts(predictions: Iterable[str], references: References) -> tuple[list[str], list[list[str]]]:
    """Predictions and, for each, its references as a list of at least one.

    Raises:
        InputError: nothing, numbers that differ, something that is no text, or an empty reference.
    """
    texts = check_predictions(predictions)
    wanted = check_references(references)
    if len(texts) != len(wanted):
        raise InputError(
            f"there are {len(texts)} predictions and {len(wanted)} references; give one entry of references for each "
            "prediction, and where it has several, a list of them as that entry"
        )
    return texts, wanted


def check_predictions(predictions: Iterable[str]) -> list[str]:
    """The texts of a system in a list; an empty text is allowed.

    Raises:
        InputError: there is none, or something is no text.
    """
    texts = _items("predictions", predictions)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"prediction {number} is {_shown(text)}; it must be a text, empty where a system said nothing"
            )
    return texts


def check_references(references: References) -> list[list[str]]:
    """The references of each example, as a list of lists.

    Raises:
        InputError: there is none, something is no text, or a reference is empty.
    """
    wanted = []
    for number, given in enumerate(_items("references", references)):
        several = [given] if isinstance(given, str) else given
        if not isinstance(several, (list, tuple, np.ndarray)):
            raise InputError(f"reference {number} is {_shown(given)}; it must be a text, or a list of texts")
        if len(several) == 0:
            raise InputError(f"reference {number} is an empty list; give at least one text to compare with")
        for text in several:
            if not isinstance(text, str):
                raise InputError(f"reference {number} holds {_shown(text)}; all references must be texts")
            if not text.strip():
                raise InputError(f"reference {number} is empty; give a text to compare with, or leave the example out")
        wanted.append([str(text) for text in several])
    return wanted


def _items(name: str, values: Any) -> list:
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
        raise InputError(f"{name} are {_shown(values)}; give a list with one entry for each example")
    found = list(values)
    if not found:
        raise InputError(f"there are no {name}; give at least one")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"
