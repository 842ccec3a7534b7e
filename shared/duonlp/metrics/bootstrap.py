"""The bootstrap over examples: intervals of a score, p-values of a difference, and Holm's correction for several.

The percentile interval is that of Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13, and of
rouge-score's BootstrapAggregator. The paired bootstrap for texts is Koehn, "Statistical Significance Tests for Machine
Translation Evaluation" (EMNLP 2004): both systems are scored on the same resamples of the examples.
"""

from typing import Any, NamedTuple

import numpy as np

from duonlp.errors import InputError

ROWS = 64
"""Resamples whose weights are in memory at once."""

ROUNDING = 1e-9
"""Differences below this share of the largest score are rounding, not a difference."""


class Score(NamedTuple):
    """A score between the bounds of its interval; they are None where there is no interval."""

    low: float | None
    value: float
    high: float | None


def check_settings(confidence: float, resamples: int, seed: int) -> None:
    """Raises InputError for settings that cannot be."""
    if not _is_number(confidence) or not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence!r}; it must be between 0 and 1, such as 0.95")
    for name, value in (("resamples", resamples), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise InputError(f"{name} is {value!r}; it must be a whole number from 0 on")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def resampled_sums(statistics: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums of rows over resamples of the examples, each as large as they are and drawn with replacement.

    What is drawn depends on the number of examples and the seed alone: two systems over the same examples are resampled
    alike, and the first 100 of 1000 resamples are those of 100.

    Args:
        statistics: float [examples, k].

    Returns:
        float64 [resamples, k].
    """
    examples, width = statistics.shape
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, width))
    for start in range(0, resamples, ROWS):
        rows = min(ROWS, resamples - start)
        # how often each example is drawn, [rows, examples]: a matrix product sums faster than a gather
        weights = np.stack(
            [np.bincount(rng.integers(examples, size=examples), minlength=examples) for _ in range(rows)]
        )
        sums[start : start + rows] = weights.astype(np.float64) @ statistics
    return sums


def interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """The percentile interval of a score from its resamples, float [resamples]."""
    beyond = 50 * (1 - confidence)
    low, high = np.percentile(samples, [beyond, 100 - beyond])
    return float(low), float(high)


def p_value(samples: np.ndarray, difference: float, rounding: float = ROUNDING) -> float:
    """How often chance alone gives a difference as large as the observed one, either way.

    The resampled differences, moved so that their centre is no difference, stand for what chance gives (Efron and
    Tibshirani 1993, chapter 16; Berg-Kirkpatrick et al., EMNLP 2012, for texts): p is the share of them that is at least
    as large as the observed one in absolute value, the observed one counted among them, so it is never 0.

    It has two sides. sacrebleu's paired bootstrap centres absolute differences and counts one tail, so that its p-values
    are smaller, down to half.

    Args:
        samples: differences of two systems' scores on the same resamples, float [resamples].
        difference: that of all examples.
        rounding: what may be missing to "as large".
    """
    as_large = np.abs(samples - difference) >= abs(difference) - rounding
    return float(1 + as_large.sum()) / (1 + samples.size)


def wins(samples: np.ndarray, rounding: float = ROUNDING) -> float:
    """The share of resamples in which the first system is above the second, Koehn's figure; a draw counts half."""
    return float((samples > rounding).mean() + 0.5 * (np.abs(samples) <= rounding).mean())


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values corrected for being several: the chance of one wrong claim among all stays at the level.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979): the smallest of m is multiplied by m, the next
    by m - 1, and so on, none below the one before it or above 1.

    Args:
        p_values: float [m].

    Returns:
        float64 [m], in the same order.
    """
    given = np.asarray(p_values, np.float64)
    order = np.argsort(given, kind="stable")
    raised = np.minimum(np.maximum.accumulate(given[order] * np.arange(given.size, 0, -1)), 1.0)
    corrected = np.empty_like(raised)
    corrected[order] = raised
    return corrected
