"""Scores of several labels per text from probabilities: F1, subset accuracy and average precision, as scikit-learn's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from duonlp.errors import InputError
from duonlp.metrics.report import ClassificationReport, classification_report


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """Average precision, the area under the stepwise curve of precision against recall.

    Attributes:
        labels: float64 [C], that of each label over all texts.
        macro: Mean over labels.
        micro: That of all (text, label) pairs as one ranking.
    """

    labels: np.ndarray
    macro: float
    micro: float


def check_scores(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scores as float64 [n, C] and labels as bool [n, C].

    Args:
        scores: [n, C], one per text and label; float32 scores keep their values, so that comparisons with thresholds are exact.
        labels: 0 and 1, or bool, of the same shape.

    Raises:
        InputError: There are no scores, the shapes differ, or a value is not finite, or a label neither 0 nor 1.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.shape != labels.shape:
        raise InputError(
            f"scores have shape {list(scores.shape)} and labels {list(labels.shape)}; both must be [n, C], one column per label"
        )
    scores = check_matrix(scores)
    if labels.dtype.kind not in "biuf" or not np.isin(labels, (0, 1)).all():
        strange = labels if labels.dtype.kind not in "biuf" else labels[~np.isin(labels, (0, 1))]
        raise InputError(f"labels contain {strange.flat[0]!s:.60}; they must be 0 and 1, or False and True")
    return scores, labels.astype(bool)


def check_matrix(scores: np.ndarray) -> np.ndarray:
    """Return scores as float64 [n, C].

    Raises:
        InputError: There are none, they are no numbers, or one is NaN or infinite.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or not scores.size:
        raise InputError(
            f"scores have shape {list(scores.shape)}; they must be [n, C], with at least one text and label"
        )
    if scores.dtype.kind not in "biuf" and scores.dtype.name != "bfloat16":
        raise InputError(f"scores are {scores.dtype}; they must be numbers")
    scores = scores.astype(np.float64)
    if not np.isfinite(scores).all():
        row, label = np.argwhere(~np.isfinite(scores))[0]
        raise InputError(f"the score of text {row} for label {label} is {scores[row, label]}; scores must be finite")
    return scores


def threshold_predictions(scores: np.ndarray, threshold: float | np.ndarray = 0.5) -> np.ndarray:
    """Return which labels each text gets: those whose score is at least the threshold.

    Args:
        scores: [n, C].
        threshold: One for all labels, or one per label [C].

    Returns:
        bool [n, C].

    Raises:
        InputError: The scores or thresholds are not finite, or of another shape.
    """
    scores, limits = check_matrix(scores), np.asarray(threshold)
    if limits.dtype.kind not in "iuf" or limits.shape not in ((), scores.shape[1:]) or not np.isfinite(limits).all():
        raise InputError(
            f"threshold is {threshold!s:.80}; it must be a finite number, or {scores.shape[1]} of them, one per label"
        )
    return scores >= limits.astype(np.float64)


def top_k_predictions(scores: np.ndarray, k: int) -> np.ndarray:
    """Return which labels each text gets: the k with the highest scores; of equal ones, those that come first.

    Args:
        scores: [n, C].
        k: Number of labels per text, from 0 to C.

    Returns:
        bool [n, C] with k entries in each row.

    Raises:
        InputError: The scores are not finite or of another shape, or `k` is out of range.
    """
    scores = check_matrix(scores)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 0 <= k <= scores.shape[1]:
        raise InputError(f"k is {k!r}; it must be an integer from 0 to {scores.shape[1]}, the number of labels")
    predicted = np.zeros(scores.shape, bool)
    np.put_along_axis(predicted, np.argsort(-scores, axis=1, kind="stable")[:, :k], True, axis=1)
    return predicted


def average_precision(scores: np.ndarray, labels: np.ndarray, *, zero_division: float | str = 0.0) -> AveragePrecision:
    """Return the average precision of each label and its averages, as scikit-learn's ``average_precision_score``.

    It is the sum of (R_i - R_(i-1)) P_i, where P_i and R_i are precision and recall of the texts whose score is at least the i-th
    highest; equal scores are one step. It needs no threshold, so scores may also be logits.

    Args:
        scores: [n, C].
        labels: 0 and 1 of shape [n, C].
        zero_division: Value for a label that no text has: 0.0, as in scikit-learn, or "nan", which leaves it out of the macro
            average. Without any positive the micro average has this value, too.

    Raises:
        InputError: As in :func:`check_scores`, or zero_division is invalid.
    """
    scores, true = check_scores(scores, labels)
    if zero_division not in (0.0, "nan") and zero_division == zero_division:
        raise InputError(f"zero_division is {zero_division!r}; it must be 0.0 or 'nan'")
    empty = float(zero_division)
    values = np.array([_average_precision(s, t, empty) for s, t in zip(scores.T, true.T, strict=True)])
    defined = values[~np.isnan(values)]
    macro = float(defined.mean()) if defined.size else float("nan")
    return AveragePrecision(values, macro, _average_precision(scores.ravel(), true.ravel(), empty))


def _average_precision(scores: np.ndarray, true: np.ndarray, empty: float) -> float:
    if not true.any():
        return empty
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # last text of each group of equal scores
    hits = np.cumsum(true[order])[ends]
    return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * (hits / (ends + 1))))


def multi_label_scores(
    scores: np.ndarray, labels: np.ndarray, threshold: float | np.ndarray = 0.5, *, top_k: int | None = None
) -> dict[str, float]:
    """Return the scores of texts with several labels, or none.

    Args:
        scores: [n, C], such as a classifier's probabilities.
        labels: 0 and 1 of shape [n, C].
        threshold: A label is predicted if its score is at least this: one for all labels, or one per label [C], such as
            :func:`duonlp.metrics.choose_thresholds` returns.
        top_k: Predict the k labels with the highest scores instead.

    Returns:
        "micro_", "macro_" and each with "precision", "recall" and "f1", as scikit-learn's classification_report of indicator
        matrices with zero_division=0 (macro averages are over all labels); "accuracy", the fraction of texts with all labels
        right (subset accuracy); and "micro_average_precision" and "macro_average_precision", which need no threshold.

    Raises:
        InputError: The scores or labels are invalid, or both a threshold and top_k are given.
    """
    report = multi_label_report(scores, labels, threshold, top_k=top_k)
    ranking = average_precision(scores, labels)
    averages = {
        f"{name}_{ratio}": getattr(report.averages[name], ratio)
        for name in ("micro", "macro")
        for ratio in ("f1", "precision", "recall")
    }
    precisions = {"micro_average_precision": ranking.micro, "macro_average_precision": ranking.macro}
    return {"accuracy": report.accuracy} | averages | precisions


def multi_label_report(
    scores: np.ndarray,
    labels: np.ndarray,
    threshold: float | np.ndarray = 0.5,
    *,
    top_k: int | None = None,
    label_names: Sequence[str] | None = None,
    zero_division: float | str = 0.0,
) -> ClassificationReport:
    """Return precision, recall, F1 and support of each label, and their averages.

    Args:
        scores: As in :func:`multi_label_scores`, like `labels`, `threshold` and `top_k`.
        labels: 0 and 1 of shape [n, C].
        threshold: One for all labels, or one per label [C].
        top_k: Predict the k labels with the highest scores instead.
        label_names: Names of the labels.
        zero_division: As in :func:`duonlp.metrics.classification_report`.

    Raises:
        InputError: An argument is invalid, or both a threshold and top_k are given.
    """
    values, true = check_scores(scores, labels)
    if top_k is not None and not (np.ndim(threshold) == 0 and threshold == 0.5):
        raise InputError(f"threshold is {threshold!s:.80} and top_k is {top_k!r}; give one of them")
    predicted = threshold_predictions(values, threshold) if top_k is None else top_k_predictions(values, top_k)
    return classification_report(predicted, true, label_names=label_names, zero_division=zero_division)
