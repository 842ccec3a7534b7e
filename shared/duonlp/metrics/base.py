"""Base class of ROUGE and BLEU: validates inputs, accumulates statistics per example and computes bootstrap intervals."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from duonlp.errors import InputError, MissingExtraError
from duonlp.metrics.bootstrap import Score, check_settings, interval, resampled_sums

References = Sequence[str | Sequence[str]]
"""One entry per prediction: a text, or several alternative texts."""

EXTRA = 'pip install "duonlp[summarization]"'


class Metric(ABC):
    """A score whose sufficient statistics are one row of numbers per example, so that examples can be resampled.

    Args:
        options: Options of the metric.

    Attributes:
        kinds: Names of its scores, such as ("rouge1", "rouge2").
        highest: Best possible score: 1.0 or 100.0, following the library that computes it.
        options: Options that the metric was created with.
    """

    kinds: tuple[str, ...]
    highest: float

    def __init__(self, **options: Any):
        self.options = options
        self._rows: list[Sequence[float]] = []

    def __len__(self) -> int:
        """Return the number of examples added so far."""
        return len(self._rows)

    def fresh(self) -> Self:
        """Return a metric with the same options and no examples."""
        return type(self)(**self.options)

    def add(self, predictions: Iterable[str], references: References) -> None:
        """Add a batch of examples; nothing is added if an error is raised.

        Args:
            predictions: One text per example, as written by the system. An empty text is valid and scores 0.
            references: One text, or a list of several, per prediction.

        Raises:
            InputError: There are no examples, the lengths differ, an entry is not a text, or a reference is empty.
        """
        texts, reference_lists = check_texts(predictions, references)
        pairs = zip(texts, reference_lists, strict=True)
        self._rows += [self.example_statistics(text, alternatives) for text, alternatives in pairs]

    @property
    def statistics(self) -> np.ndarray:
        """Statistics of the examples, float64 [examples, k]; their sum over a set of examples determines its score.

        Raises:
            InputError: No example was added.
        """
        if not self._rows:
            raise InputError(f"{type(self).__name__} has no examples; call add(predictions, references) first")
        return np.asarray(self._rows, np.float64)

    def compute(self, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> dict[str, Score]:
        """Return the scores of all examples with percentile bootstrap intervals over the examples.

        Args:
            confidence: Confidence level of the intervals, in (0, 1).
            resamples: Number of bootstrap resamples; 0 computes no intervals, and their bounds are None.
            seed: Seed of NumPy's default generator, which draws the resamples.

        Returns:
            {kind: Score(low, value, high)}. With a single example the bounds are None, because its resamples are all equal.

        Raises:
            InputError: No example was added, or a setting is out of range.
        """
        check_settings(confidence, resamples, seed)
        statistics = self.statistics
        values = self.scores(statistics.sum(axis=0, keepdims=True), len(self))
        if resamples == 0 or len(self) == 1:
            return {kind: Score(None, float(values[kind][0]), None) for kind in self.kinds}
        samples = self.scores(resampled_sums(statistics, resamples, seed), len(self))
        bounds = {kind: interval(samples[kind], confidence) for kind in self.kinds}
        return {kind: Score(bounds[kind][0], float(values[kind][0]), bounds[kind][1]) for kind in self.kinds}

    @property
    def parts(self) -> dict[str, Any]:
        """Further numbers that the scores of all examples come from, by name; {} if there are none."""
        return {}

    @abstractmethod
    def example_statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """Return the statistics of one example, of length k."""

    @abstractmethod
    def scores(self, sums: np.ndarray, examples: int) -> dict[str, np.ndarray]:
        """Return {kind: float64 [r]}, the scores of r sets of examples.

        Args:
            sums: float64 [r, k], sum of the statistics over each set.
            examples: Number of examples in each set.
        """

    @property
    @abstractmethod
    def per_example(self) -> dict[str, np.ndarray]:
        """{kind: float64 [examples]}, the score of each example on its own."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """Library, version and options that determine the scores, in one line."""


def missing_library_error(library: str) -> MissingExtraError:
    """Return the error for a library that is not installed."""
    return MissingExtraError(f"{library} is not installed; {EXTRA}")


def check_texts(predictions: Iterable[str], references: References) -> tuple[list[str], list[list[str]]]:
    """Return the predictions and, for each, a non-empty list of references.

    Raises:
        InputError: There are no examples, the lengths differ, an entry is not a text, or a reference is empty.
    """
    texts = check_predictions(predictions)
    reference_lists = check_references(references)
    if len(texts) != len(reference_lists):
        raise InputError(
            f"there are {len(texts)} predictions but {len(reference_lists)} references; give one entry of references per "
            "prediction, which may be a list of alternatives"
        )
    return texts, reference_lists


def check_predictions(predictions: Iterable[str]) -> list[str]:
    """Return the texts of a system as a list; empty texts are valid.

    Raises:
        InputError: There are none, or one is not a text.
    """
    texts = _as_list("predictions", predictions)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"prediction {number} is {_short_repr(text)}; it must be a text, empty if the system wrote nothing"
            )
    return texts


def check_references(references: References) -> list[list[str]]:
    """Return the references of each example as a list of lists.

    Raises:
        InputError: There are none, one is not a text, or one is empty.
    """
    reference_lists = []
    for number, entry in enumerate(_as_list("references", references)):
        alternatives = [entry] if isinstance(entry, str) else entry
        if not isinstance(alternatives, (list, tuple, np.ndarray)):
            raise InputError(f"reference {number} is {_short_repr(entry)}; it must be a text, or a list of texts")
        if len(alternatives) == 0:
            raise InputError(f"reference {number} is an empty list; give at least one text to compare with")
        for text in alternatives:
            if not isinstance(text, str):
                raise InputError(f"reference {number} contains {_short_repr(text)}; all references must be texts")
            if not text.strip():
                raise InputError(f"reference {number} is empty; give a text to compare with, or drop the example")
        reference_lists.append([str(text) for text in alternatives])
    return reference_lists


def _as_list(name: str, values: Any) -> list:
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
        raise InputError(f"{name} are {_short_repr(values)}; give a list with one entry per example")
    items = list(values)
    if not items:
        raise InputError(f"there are no {name}; give at least one")
    return items


def _short_repr(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"
