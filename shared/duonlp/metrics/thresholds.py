"""Thresholds of several labels per text, chosen on validation texts, and curves of F1 against threshold and top-k."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.metrics.multi_label import check_scores, threshold_predictions, top_k_predictions
from duonlp.metrics.report import macro_f1, micro_f1

F1_AVERAGES = ("micro_f1", "macro_f1")
"""What one threshold for all labels can maximize."""

DEFAULT = 0.5
"""The threshold of probabilities without any reason for another."""

TIE = 1e-12
"""Difference below which two mean F1 scores are equal; they are sums of rounded fractions."""


def choose_thresholds(
    scores: np.ndarray, labels: np.ndarray, per_label: bool = False, *, maximise: str | None = None
) -> float | np.ndarray:
    """Return the threshold, or that of each label, that is best on these texts; use validation texts, not test texts.

    The search is exact: candidates are 0 (or the lowest score, if it is negative), where every label is predicted, and the
    midpoints between neighboring scores. Of equally good ones, the nearest to 0.5 is chosen, and the lower of two equally near.
    A label that no text has says nothing about its threshold and takes the one that maximizes micro F1 over all labels; without
    any positive at all, every threshold is 0.5.

    Args:
        scores: [n, C], such as probabilities.
        labels: 0 and 1 of shape [n, C].
        per_label: Whether to choose one threshold per label, which maximizes the label's F1 and so macro F1, in place of one for
            all labels. With few texts of a label, it fits their noise.
        maximise: One of F1_AVERAGES, by default "micro_f1"; only without `per_label`.

    Returns:
        A float, or float64 [C] with `per_label`. Predict with ``scores >= threshold`` in float64, as
        :func:`duonlp.metrics.threshold_predictions` does.

    Raises:
        InputError: The scores or labels are invalid, or `maximise` is.
    """
    scores, true = check_scores(scores, labels)
    if maximise is not None and (per_label or maximise not in F1_AVERAGES):
        expected = "left out with per_label=True" if per_label else f"one of {', '.join(F1_AVERAGES)}"
        raise InputError(f"maximise is {maximise!r}; it must be {expected}")
    groups = np.tile(np.arange(true.shape[1]), len(true)) if maximise == "macro_f1" else np.zeros(true.size, np.int64)
    if not per_label:
        return _best_threshold(scores.ravel(), true.ravel(), groups)
    shared = DEFAULT if true.any(axis=0).all() else _best_threshold(scores.ravel(), true.ravel(), groups)
    columns = zip(scores.T, true.T, strict=True)
    return np.array([_best_threshold(s, t, groups[: len(s)]) if t.any() else shared for s, t in columns])


def _best_threshold(scores: np.ndarray, true: np.ndarray, groups: np.ndarray) -> float:
    """Return the threshold of the highest mean F1 over groups of scores.

    Lowering the threshold past a score changes the F1 of one group, so that the sum over groups is a cumulative sum.

    Args:
        scores: float64 [n].
        true: bool [n].
        groups: int64 [n], group of each score, from 0 on.
    """
    if not true.any():
        return DEFAULT
    order = np.lexsort((-scores, groups))  # by group, then from the highest score
    scores, true, groups = scores[order], true[order], groups[order]
    firsts = np.flatnonzero(np.diff(groups, prepend=-1))  # [G]
    sizes = np.diff(np.append(firsts, len(groups)))
    hits = np.cumsum(true)
    before = np.repeat(hits[firsts] - true[firsts], sizes)  # hits of earlier groups
    positives = np.repeat(np.add.reduceat(true.astype(np.int64), firsts), sizes)
    predicted = np.arange(len(groups)) - np.repeat(firsts, sizes) + 1
    f1 = 2 * (hits - before) / (predicted + positives)  # of the score's group at a threshold of the score
    gains = np.diff(f1, prepend=0.0)
    gains[firsts] = f1[firsts]  # at a threshold above all scores, every F1 is 0
    order = np.argsort(-scores, kind="stable")
    scores, sums = scores[order], f1 if len(firsts) == 1 else np.cumsum(gains[order])
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # last of each group of equal scores
    values = scores[ends]  # distinct, descending
    following = np.append(values[1:], min(0.0, values[-1]))
    middles = values / 2 + following / 2
    middles[-1] = following[-1]
    # rounding may put the midpoint of two adjacent numbers on the lower one
    candidates = np.where((middles > following) | (np.arange(len(values)) == len(values) - 1), middles, values)
    best = sums[ends] >= sums[ends].max() - TIE * (len(firsts) > 1)
    candidates = candidates[best][::-1]  # ascending
    return float(candidates[np.argmin(np.abs(candidates - DEFAULT))])


@dataclass(frozen=True, eq=False)
class F1Curves:
    """Micro and macro F1 by threshold, or by number of labels per text.

    Attributes:
        by: "threshold" or "top_k".
        values: [k], ascending thresholds, or numbers of labels.
        micro_f1: float64 [k].
        macro_f1: float64 [k].
    """

    by: str
    values: np.ndarray
    micro_f1: np.ndarray
    macro_f1: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        arrays = {"values": self.values, "micro_f1": self.micro_f1, "macro_f1": self.macro_f1}
        return {"by": self.by} | {name: array.tolist() for name, array in arrays.items()}


def threshold_curves(scores: np.ndarray, labels: np.ndarray, thresholds: Sequence[float] | None = None) -> F1Curves:
    """Return micro and macro F1 at each of several thresholds.

    Args:
        scores: [n, C].
        labels: 0 and 1 of shape [n, C].
        thresholds: Ascending thresholds; by default 0, 0.01 ... 1, for probabilities.

    Raises:
        InputError: The scores, labels or thresholds are invalid.
    """
    scores, true = check_scores(scores, labels)
    values = np.linspace(0, 1, 101) if thresholds is None else np.asarray(thresholds, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        raise InputError(f"thresholds are {thresholds!s:.80}; give at least one finite number, in ascending order")
    return _curves("threshold", values, [threshold_predictions(scores, float(value)) for value in values], true)


def top_k_curves(scores: np.ndarray, labels: np.ndarray, ks: Sequence[int] | None = None) -> F1Curves:
    """Return micro and macro F1 if every text gets its k best labels, for each k.

    Args:
        scores: [n, C].
        labels: 0 and 1 of shape [n, C].
        ks: Ascending numbers of labels; by default 1 ... C.

    Raises:
        InputError: The scores or labels are invalid, or a number is.
    """
    scores, true = check_scores(scores, labels)
    values = np.arange(1, scores.shape[1] + 1) if ks is None else np.asarray(ks)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iu" or (np.diff(values) <= 0).any():
        raise InputError(f"ks are {ks!s:.80}; give at least one integer, in ascending order")
    return _curves("top_k", values, [top_k_predictions(scores, int(value)) for value in values], true)


def _curves(by: str, values: np.ndarray, predictions: Sequence[np.ndarray], true: np.ndarray) -> F1Curves:
    micro = np.array([micro_f1(predicted, true) for predicted in predictions])
    macro = np.array([macro_f1(predicted, true, classes="all") for predicted in predictions])
    return F1Curves(by, values, micro, macro)


def f1_curve_plot(
    curves: F1Curves | Sequence[F1Curves] | Mapping[str, F1Curves], file: str | os.PathLike, *, title: str = ""
) -> None:
    """Plot micro and macro F1 against the threshold or the number of labels per text, a panel for each pair of curves.

    Args:
        curves: One or several results of :func:`threshold_curves` and :func:`top_k_curves`, or a mapping of them by heading.
        file: A .png, .svg or .pdf file in an existing folder.
        title: Title above the figure.

    Raises:
        InputError: There are no curves, or the file format is unsupported, or the folder does not exist.
        MissingExtraError: matplotlib is not installed.
    """
    from duonlp.util.pictures import COLOURS, check_picture_file, picture, require_matplotlib

    file = Path(file)
    check_picture_file(file)
    single = [curves] if isinstance(curves, F1Curves) else curves
    panels = list(single.items() if isinstance(single, Mapping) else (("", entry) for entry in single))
    if not panels:
        raise InputError("there are no curves to plot; give at least one")
    require_matplotlib("F1 scores are plotted")
    with picture(file, 4.8 * len(panels), 4.0) as figure:
        for axes, (heading, curve) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels):
            for color, name in zip(COLOURS, F1_AVERAGES):
                values = getattr(curve, name)
                best = int(values.argmax())
                label = f"{name[:5]} F1, best {values[best]:.3f} at {curve.values[best]:g}"
                axes.plot(curve.values, values, color=color, linewidth=1.8, label=label)
                axes.plot([curve.values[best]], [values[best]], "o", color=color, markersize=5)
            axes.set(xlabel=AXES[curve.by], ylabel="F1", title=heading)
            if curve.by == "top_k":
                axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(fontsize=9, frameon=False)
        if title:
            figure.suptitle(title, fontsize=12)


AXES = {"threshold": "threshold", "top_k": "labels per text (top k)"}
"""Labels of the axis of F1Curves."""
