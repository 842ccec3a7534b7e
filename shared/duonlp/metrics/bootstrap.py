"""Bootstrap over examples: confidence intervals of scores, p-values of differences, and Holm's correction.

The percentile interval is that of Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13, and of
rouge-score's BootstrapAggregator. The paired bootstrap for texts is Koehn, "Statistical Significance Tests for Machine
Translation Evaluation" (EMNLP 2004): both systems are scored on the same resamples of the examples.
"""

from typing import Any, NamedTuple

import numpy as np

from duonlp.errors import InputError

ROWS = 64
"""Number of resamples whose weights are held in memory at a time."""

ROUNDING = 1e-9
"""Relative to the best possible score, differences up to this count as rounding errors."""


class Score(NamedTuple):
    """A score and the bounds of its confidence interval.

    Attributes:
        low: Lower bound, or None without an interval.
        value: The score.
        high: Upper bound, or None without an interval.
    """

    low: float | None
    value: float
    high: float | None


def check_settings(confidence: float, resamples: int, seed: int) -> None:
    """Raise InputError if a bootstrap setting is out of range."""
    if not _is_number(confidence) or not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence!r}; it must be between 0 and 1 (exclusive), such as 0.95")
    for name, value in (("resamples", resamples), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise InputError(f"{name} is {value!r}; it must be a non-negative integer")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def resampled_sums(statistics: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return the sums of statistics over bootstrap resamples of the examples, float64 [resamples, k].

    Each resample has as many examples as the data, drawn with replacement. The draws depend only on the number of
    examples and the seed: two systems on the same examples get the same resamples, and the first 100 of 1000 resamples
    equal 100 resamples.

    Args:
        statistics: float [examples, k].
        resamples: Number of resamples.
        seed: Seed of NumPy's default generator.
    """
    examples, width = statistics.shape
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, width))
    for start in range(0, resamples, ROWS):
        rows = min(ROWS, resamples - start)
        # [rows, examples], how often each example was drawn: a matrix product sums faster than a gather
        weights = np.stack(
            [np.bincount(rng.integers(examples, size=examples), minlength=examples) for _ in range(rows)]
        )
        sums[start : start + rows] = weights.astype(np.float64) @ statistics
    return sums


def interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the percentile interval of a score from its resamples, float [resamples]."""
    tail = 50 * (1 - confidence)  # percent
    low, high = np.percentile(samples, [tail, 100 - tail])
    return float(low), float(high)


def p_value(samples: np.ndarray, difference: float, rounding: float = ROUNDING) -> float:
    """Return the two-sided p-value of a difference: how often chance alone gives one as large.

    The resampled differences, shifted to a mean of no difference, represent the null hypothesis (Efron and Tibshirani 1993,
    chapter 16; Berg-Kirkpatrick et al., EMNLP 2012, for texts). p is the fraction of them whose absolute value is at least
    that of the observed difference, which is itself counted, so p is never 0.

    sacrebleu's paired bootstrap centers absolute differences and counts one tail, so its p-values are smaller, down to half.

    Args:
        samples: float [resamples], differences of the two systems' scores on the same resamples.
        difference: Difference on all examples.
        rounding: Tolerance of the comparison.
    """
    as_large = np.abs(samples - difference) >= abs(difference) - rounding
    return float(1 + as_large.sum()) / (1 + samples.size)


def win_rate(samples: np.ndarray, rounding: float = ROUNDING) -> float:
    """Return the fraction of resamples in which the first system scores higher (Koehn 2004); ties count half.

    Args:
        samples: float [resamples], differences of the two systems' scores on the same resamples.
        rounding: Differences up to this are ties.
    """
    return float((samples > rounding).mean() + 0.5 * (np.abs(samples) <= rounding).mean())


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values corrected for multiple testing, which bounds the chance of any false claim by the level.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979): the smallest of m p-values is multiplied by m,
    the next by m - 1, and so on; none may fall below the one before it or exceed 1.

    Args:
        p_values: float [m].

    Returns:
        float64 [m], in the same order.
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.minimum(np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1)), 1.0)
    corrected = np.empty_like(adjusted)
    corrected[order] = adjusted
    return corrected
