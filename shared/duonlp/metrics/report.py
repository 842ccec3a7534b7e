"""Precision, recall and F1 of each class and their averages, with the conventions of scikit-learn.

A ratio whose denominator is 0 (the precision of a class that is never predicted, the recall of one that never occurs, the F1
of one that does neither) is `zero_division`. NaN leaves it out of the averages.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from duonlp.errors import InputError
from duonlp.heads import IGNORED
from duonlp.util.suggestions import nearest

if TYPE_CHECKING:
    from rich.table import Table

ZERO_DIVISION = (0.0, 1.0, "nan")
"""Values of `zero_division`; "nan" stands for NaN."""

CLASSES = ("all", "occurring")
"""Classes that an average over classes counts; see :func:`averaged_classes`."""


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class, or an average over classes.

    Attributes:
        precision: Fraction of its predictions that are right.
        recall: Fraction of its true labels that are predicted.
        f1: Harmonic mean of precision and recall.
        support: Number of true labels.
    """

    precision: float
    recall: float
    f1: float
    support: int

    @classmethod
    def of(cls, ratios: Iterable[Any], support: int) -> Self:
        """Return the scores of (precision, recall, F1)."""
        precision, recall, f1 = map(float, ratios)
        return cls(precision, recall, f1, support)


@dataclass(frozen=True)
class ClassificationReport:
    """Scores of each class and their averages.

    Attributes:
        classes: Scores by class name, in the order of the classes.
        averages: Scores by kind of average: "micro" (of the summed counts), "macro" (mean over classes), "weighted" (mean over
            classes, weighted by support) and, of several labels per text, "samples" (mean over texts).
        accuracy: Fraction of texts (of tokens, for entities) with the right label, or with all labels right.
        examples: Number of texts or tokens.
    """

    classes: dict[str, ClassScores]
    averages: dict[str, ClassScores]
    accuracy: float
    examples: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return asdict(self)

    def table(self) -> "Table":
        """Return a rich table with a row for each class and each average."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("class", overflow="fold")
        for name in ("precision", "recall", "F1", "support"):
            table.add_column(name, justify="right", no_wrap=True)
        rows = {
            **{("", name): s for name, s in self.classes.items()},
            **{("avg", n): s for n, s in self.averages.items()},
        }
        for (kind, name), scores in rows.items():
            numbers = (f"{value:.4f}" for value in (scores.precision, scores.recall, scores.f1))
            label = Text(f"{name} average" if kind else name, style="bold" if kind else "")
            table.add_row(label, *numbers, str(scores.support))
        table.add_row(Text("accuracy", style="bold"), "", "", f"{self.accuracy:.4f}", str(self.examples))
        return table


def classification_report(
    predicted: np.ndarray,
    labels: np.ndarray,
    *,
    label_names: Sequence[str] | None = None,
    classes: Sequence[int | str] | None = None,
    zero_division: float | str = 0.0,
) -> ClassificationReport:
    """Return the scores of each class, as scikit-learn's ``classification_report`` and ``precision_recall_fscore_support``.

    Args:
        predicted: Predicted classes: int [n], or 0 and 1 of shape [n, C] (multi-label), such as ``logits > 0``.
        labels: True classes of the same shape. Rows of -100 are ignored.
        label_names: Names of all classes, in the order of their ids; by default the ids themselves.
        classes: Ids or names of the classes to score, in this order. By default all columns of multi-label texts, and the
            classes that occur, true or predicted, of texts with one label.
        zero_division: Value of a ratio whose denominator is 0: 0.0, 1.0 or "nan".

    Raises:
        InputError: There is no labeled text, the shapes differ, or a class or zero_division is invalid.
    """
    predicted, labels = _labeled(np.asarray(predicted), np.asarray(labels))
    multi_label = labels.ndim == 2
    if multi_label:
        count = labels.shape[1]
    else:
        count = max(int(max(labels.max(), predicted.max())) + 1, len(label_names or ()))
    names = [str(number) for number in range(count)] if label_names is None else list(map(str, label_names))
    if len(names) != count or len(set(names)) != count:
        raise InputError(
            f"label_names has {len(set(names))} different names, but there are {count} classes; name each once"
        )
    if multi_label:
        true, guessed = labels > 0.5, predicted > 0.5  # [n, C]
    else:
        true, guessed = (values[:, None] == np.arange(count) for values in (labels, predicted))
    ids = averaged_classes(true, guessed, "all" if multi_label else "occurring")
    if classes is not None:
        ids = np.array([_class_id(entry, names) for entry in classes], np.int64)
    if not len(ids) or len(set(ids.tolist())) != len(ids):
        raise InputError(f"classes is {classes!r}; give at least one class, each once")
    accuracy = float(np.mean((true == guessed).all(axis=1)))
    true, guessed = true[:, ids], guessed[:, ids]
    report = report_of_counts(
        [names[number] for number in ids], (true & guessed).sum(axis=0), guessed.sum(axis=0), true.sum(axis=0),
        accuracy, len(labels), zero_division,
    )  # fmt: skip
    if multi_label:
        rows = _ratios((true & guessed).sum(axis=1), guessed.sum(axis=1), true.sum(axis=1), zero_division)
        report.averages["samples"] = ClassScores.of(map(_mean, rows), int(true.sum()))
    return report


def report_of_counts(
    names: Sequence[str], both: np.ndarray, predicted: np.ndarray, true: np.ndarray, accuracy: float, examples: int,
    zero_division: float | str = 0.0,
) -> ClassificationReport:  # fmt: skip
    """Return a report with the micro, macro and weighted averages of counts.

    Args:
        names: Names of the classes.
        both: int [C], right predictions of each class.
        predicted: int [C], predictions of each class.
        true: int [C], true labels of each class.
        accuracy: As in ClassificationReport.
        examples: As in ClassificationReport.
        zero_division: As in :func:`classification_report`.

    Raises:
        InputError: zero_division is invalid.
    """
    ratios, total = _ratios(both, predicted, true, zero_division), int(true.sum())
    pooled = _ratios(both.sum(keepdims=True), predicted.sum(keepdims=True), true.sum(keepdims=True), zero_division)
    averages = {
        "micro": ClassScores.of((values[0] for values in pooled), total),
        "macro": ClassScores.of(map(_mean, ratios), total),
        "weighted": ClassScores.of((_mean(values, true) for values in ratios), total),
    }
    classes = {
        name: ClassScores.of(row, int(support)) for name, row, support in zip(names, zip(*ratios), true, strict=True)
    }
    return ClassificationReport(classes, averages, accuracy, examples)


def averaged_classes(predicted: np.ndarray, true: np.ndarray, classes: str) -> np.ndarray:
    """Return the ids of the classes that an average over classes counts.

    Args:
        predicted: bool [n, C].
        true: bool [n, C].
        classes: "all", scikit-learn's convention for several labels per text (indicator matrices), where a class without any
            true or predicted label counts as 0; or "occurring", its convention for one label per text: the classes that are true
            or predicted.

    Raises:
        InputError: `classes` is neither.
    """
    if classes not in CLASSES:
        raise InputError(f"classes is {classes!r}; it must be one of {', '.join(CLASSES)}")
    if classes == "all":
        return np.arange(true.shape[1])
    return np.flatnonzero(true.any(axis=0) | predicted.any(axis=0))


def macro_f1(predicted: np.ndarray, true: np.ndarray, *, classes: str) -> float:
    """Return the mean F1 over classes, with zero_division=0.

    Args:
        predicted: bool [n, C].
        true: bool [n, C].
        classes: "all" or "occurring", as for :func:`averaged_classes`.

    Raises:
        InputError: `classes` is neither.
    """
    ids = averaged_classes(predicted, true, classes)
    both, guessed, positives = (array[:, ids].sum(axis=0) for array in (predicted & true, predicted, true))
    return _mean(_ratios(both, guessed, positives, 0.0)[2])


def micro_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the F1 of the summed counts of all classes, 0 without any label.

    Args:
        predicted: bool [n, C].
        true: bool [n, C].
    """
    return float(_ratios((predicted & true).sum(), predicted.sum(), true.sum(), 0.0)[2])


def _labeled(predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows with a label."""
    if predicted.shape != labels.shape or labels.ndim not in (1, 2):
        raise InputError(
            f"predictions have shape {list(predicted.shape)} and labels {list(labels.shape)}; both must be [n] or both [n, C]"
        )
    rows = labels != IGNORED if labels.ndim == 1 else (labels != IGNORED).all(axis=1)
    predicted, labels = predicted[rows], labels[rows]
    if not labels.size:
        raise InputError("there are no labeled texts to score; give at least one")
    if labels.ndim == 1:
        for name, values in (("predictions", predicted), ("labels", labels)):
            if values.dtype.kind not in "iub" or values.min() < 0:
                raise InputError(
                    f"{name} are {values.dtype} from {values.min()} to {values.max()}; they must be class ids, integers from 0 on"
                )
    return predicted, labels


def _class_id(entry: int | str, names: Sequence[str]) -> int:
    if isinstance(entry, str) and entry in names:
        return names.index(entry)
    if isinstance(entry, (int, np.integer)) and not isinstance(entry, bool) and 0 <= entry < len(names):
        return int(entry)
    near = nearest(entry, names) if isinstance(entry, str) else ""
    raise InputError(f"classes has {entry!r}, which is not one of the {len(names)} classes{near}")


def _ratios(
    both: np.ndarray, predicted: np.ndarray, true: np.ndarray, zero_division: float | str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall and F1 of counts, float64 of their shape."""
    value = float(zero_division) if zero_division in ZERO_DIVISION or zero_division != zero_division else None
    if value is None:
        raise InputError(f"zero_division is {zero_division!r}; it must be 0.0, 1.0 or 'nan'")

    def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        return np.where(denominator > 0, numerator / np.maximum(denominator, 1), value)

    return divide(both, predicted), divide(both, true), divide(2 * both, predicted + true)


def _mean(values: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the mean of all values but NaN; weights of 0 alone count as equal, as in scikit-learn."""
    real = ~np.isnan(values)
    if not real.any():
        return float("nan")
    if weights is None or not weights[real].any():
        return float(values[real].mean())
    return float(np.average(values[real], weights=weights[real]))


def entity_report(
    predicted: Sequence[Sequence[str]], labels: Sequence[Sequence[str]], *, zero_division: float | str = 0.0
) -> ClassificationReport:
    """Return the scores of whole entities by type, as seqeval and CoNLL 2003's conlleval compute them.

    An entity counts only if its type, beginning and end are right. Tags are those of the IOB1, IOB2, IOE and IOBES schemes,
    mixed as they come: an entity begins at B- and S-, after E- and S-, and wherever the type changes.

    Args:
        predicted: Predicted tags of each text: "B-PER", "I-PER", "O", ...
        labels: True tags of each text, equally many; see :func:`tags_of_ids`.
        zero_division: As in :func:`classification_report`.

    Returns:
        The report; its accuracy is that of the tags, and a class is a type of entity.

    Raises:
        InputError: The numbers of texts or tags differ, or there are none.
    """
    lengths = [[len(row) for row in rows] for rows in (predicted, labels)]
    if lengths[0] != lengths[1] or not sum(lengths[0]):
        raise InputError(
            f"there are {len(predicted)} predicted and {len(labels)} true texts, or texts of different lengths; give a tag for "
            "each token in both"
        )
    ours, theirs = (
        {(number, *entity) for number, row in enumerate(rows) for entity in entities(row)}
        for rows in (predicted, labels)
    )
    types = sorted({kind for _, kind, _, _ in ours | theirs})

    def count(spans: set[tuple[int, str, int, int]]) -> np.ndarray:
        kinds = [kind for _, kind, _, _ in spans]
        return np.array([kinds.count(kind) for kind in types], np.int64)

    hits = [a == b for mine, true in zip(predicted, labels, strict=True) for a, b in zip(mine, true, strict=True)]
    return report_of_counts(
        types, count(ours & theirs), count(ours), count(theirs), float(np.mean(hits)), len(hits), zero_division
    )


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the entities of a text's tags as (type, first token, last token), by conlleval's rules."""
    spans, start = [], 0
    before, kind_before = "O", ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        inside, was_inside = prefix != "O", before != "O"
        breaks = prefix in ("B", "S") or before in ("E", "S") or not was_inside or kind != kind_before
        if was_inside and (breaks or not inside):
            spans.append((kind_before, start, position - 1))
        if inside and breaks:
            start = position
        before, kind_before = prefix, kind
    return spans


def tags_of_ids(ids: np.ndarray, labels: np.ndarray, label_names: Sequence[str]) -> list[list[str]]:
    """Return the tags of each text's labeled tokens, for :func:`entity_report`.

    Args:
        ids: int [n, T], tag ids: the predictions, or the labels themselves.
        labels: int [n, T], true tag ids; tokens of -100 are left out.
        label_names: Names of the tags, in the order of their ids.

    Raises:
        InputError: The shapes differ, or an id is outside label_names.
    """
    ids, labels = np.asarray(ids), np.asarray(labels)
    real = labels != IGNORED
    if ids.shape != labels.shape or labels.ndim != 2:
        raise InputError(f"ids have shape {list(ids.shape)} and labels {list(labels.shape)}; both must be [n, T]")
    if real.any() and not 0 <= ids[real].min() <= ids[real].max() < len(label_names):
        raise InputError(
            f"ids are from {ids[real].min()} to {ids[real].max()}, but label_names has {len(label_names)} names"
        )
    return [[label_names[number] for number in row[mask]] for row, mask in zip(ids, real, strict=True)]


def regression_scores(predictions: np.ndarray, labels: np.ndarray) -> Mapping[str, float]:
    """Return the scores of predicted numbers, as scikit-learn and SciPy compute them.

    Args:
        predictions: float [n] or [n, 1].
        labels: float [n] or [n, 1].

    Returns:
        "mean_squared_error", "root_mean_squared_error", "mean_absolute_error", "r2" (1 - squared error / variance), and the
        correlations "pearson" and "spearman", which are NaN if one side is constant.

    Raises:
        InputError: There is no number, the counts differ, or a number is not finite.
    """
    values, true = (np.asarray(array, np.float64).ravel() for array in (predictions, labels))
    if values.shape != true.shape or not true.size or not (np.isfinite(values).all() and np.isfinite(true).all()):
        raise InputError(
            f"there are {values.size} predictions and {true.size} labels; give equally many finite numbers"
        )
    errors, spread = values - true, np.sum((true - true.mean()) ** 2)
    squared = float(np.mean(errors**2))
    r2 = 1 - np.sum(errors**2) / spread if spread else float(not errors.any())
    return {
        "mean_squared_error": squared,
        "root_mean_squared_error": squared**0.5,
        "mean_absolute_error": float(np.mean(np.abs(errors))),
        "r2": float(r2),
        "pearson": _correlation(values, true),
        "spearman": _correlation(_ranks(values), _ranks(true)),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return float(np.sum(a * b) / scale) if scale else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, float64 [n]; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[group]
