"""Classification metrics: accuracy, F1, and how well out-of-scope queries are recognized.

In-scope accuracy and out-of-scope recall are the two figures of Larson et al. 2019 (https://arxiv.org/abs/1909.02027), who
made CLINC150: the fraction of in-scope queries with the right intent (calling one out of scope is an error), and the
fraction of out-of-scope queries recognized as such.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.errors import InputError
from duonlp.heads import IGNORED
from duonlp.metrics.multi_label import average_precision, threshold_predictions
from duonlp.metrics.report import ClassificationReport, classification_report, macro_f1, micro_f1
from duonlp.metrics.thresholds import choose_thresholds
from duonlp.util.suggestions import nearest

if TYPE_CHECKING:
    from duonlp.data.labelled.batches import LabelledBatches

MAXIMISED = ("mean", "accuracy")
"""What a threshold can maximize: the mean of in-scope accuracy and out-of-scope recall, or the accuracy on all texts."""


class ClassificationScorer:
    """Predicts the labels of validation texts and scores them. ``scorer(model)`` returns floats by name, as ``fit`` expects.

    With one label per text: "loss" (mean cross-entropy in nats), "accuracy" and "macro_f1"; with an out-of-scope label also
    "in_scope_accuracy", "out_of_scope_recall", "out_of_scope_precision" and "out_of_scope_f1" (scores without any text to
    compute them on are left out). Multi-label: "loss" (mean binary cross-entropy), "accuracy" (fraction of texts with all
    labels right), "micro_f1" and "macro_f1" (over all labels; that of a label without any is 0) of the labels with a probability
    above 0.5, and "micro_average_precision" and "macro_average_precision", which need no threshold.

    Args:
        batches: Batches of labeled validation texts.
        predict: tfnlp's or jaxnlp's ``predict``: ``(model, batches) -> logits [n, C]``.
        out_of_scope: Name of the out-of-scope label, or None.

    Attributes:
        labels: int32 [n], or float32 [n, C] (multi-label).
        out_of_scope: Index of the out-of-scope label, or None.
        logits: float32 [n, C], logits of the last call in the order of the texts, or None.

    Raises:
        InputError: No label has this name, or the texts are multi-label and out_of_scope is given.
    """

    def __init__(
        self,
        batches: "LabelledBatches",
        predict: Callable[[Any, Any], np.ndarray],
        *,
        out_of_scope: str | None = None,
    ):
        self.batches, self.predict = batches, predict
        self.labels = np.asarray(batches.labels)
        self.out_of_scope = None if out_of_scope is None else label_id(batches.label_names, out_of_scope)
        if self.out_of_scope is not None and self.labels.ndim == 2:
            raise InputError(
                f"out_of_scope is {out_of_scope!r}, but these texts are multi-label, where an out-of-scope text has no label; "
                "drop out_of_scope"
            )
        self.logits: np.ndarray | None = None

    def __call__(self, model: Any) -> dict[str, float]:
        """Return the scores of a model.

        Raises:
            InputError: The model and the texts have different numbers of labels.
        """
        self._check(model)
        self.logits = np.asarray(self.predict(model, self.batches), np.float32)
        return classification_scores(self.logits, self.labels, self.out_of_scope)

    def dry_run(self, model: Any) -> dict[str, float]:
        """Validate the model's labels before training, and return the names of the scores, each with the value 0.

        Raises:
            InputError: The model and the texts have different numbers of labels.
        """
        self._check(model)
        classes = self.labels.shape[1] if self.labels.ndim == 2 else len(self.batches.label_names)
        scores = classification_scores(
            np.zeros((len(self.labels), classes), np.float32), self.labels, self.out_of_scope
        )
        return dict.fromkeys(scores, 0.0)

    def at_threshold(self, maximise: str | None = None) -> dict[str, float]:
        """Return the scores of the last call's predictions at the threshold that is best for them.

        With an out-of-scope label, these are those of :func:`threshold_scores`. Multi-label: "threshold", the one for all labels,
        and "accuracy", "micro_f1" and "macro_f1" at it (see :func:`duonlp.metrics.choose_thresholds`).

        Args:
            maximise: One of :data:`MAXIMISED`, by default "mean"; multi-label: "micro_f1" (the default) or "macro_f1".

        Raises:
            InputError: The scorer was not called yet, or has neither an out-of-scope label nor multi-label texts.
        """
        if self.logits is not None and self.labels.ndim == 2:
            return self._at(choose_thresholds(*self._labeled(), maximise=maximise))
        if self.logits is None or self.out_of_scope is None:
            raise InputError(
                "a threshold needs predictions, and an out_of_scope label or multi-label texts; pass out_of_scope and call the "
                "scorer first"
            )
        return threshold_scores(softmax(self.logits), self.labels, self.out_of_scope, maximise=maximise or "mean")

    def at_label_thresholds(self) -> dict[str, Any]:
        """Return the scores of the last call's predictions with a threshold for each label that is best for it.

        Returns:
            "thresholds", {label name: threshold}, and "accuracy", "micro_f1" and "macro_f1".

        Raises:
            InputError: The scorer was not called yet, or the texts are not multi-label.
        """
        if self.logits is None or self.labels.ndim != 2:
            raise InputError("thresholds of labels need multi-label texts and predictions; call the scorer first")
        thresholds = np.asarray(choose_thresholds(*self._labeled(), per_label=True))
        named = dict(zip(self.batches.label_names, thresholds.tolist(), strict=True))
        return {"thresholds": named} | {k: v for k, v in self._at(thresholds).items() if k != "threshold"}

    def _labeled(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the probabilities float64 [n, C] and labels bool [n, C] of the labeled texts."""
        rows = (self.labels != IGNORED).all(axis=1)
        return sigmoid(np.asarray(self.logits)[rows]), self.labels[rows] > 0.5

    def _at(self, threshold: float | np.ndarray) -> dict[str, float]:
        probabilities, true = self._labeled()
        shared = {"threshold": float(threshold)} if np.ndim(threshold) == 0 else {}
        return shared | _label_scores(threshold_predictions(probabilities, threshold), true)

    def report(
        self, *, classes: Sequence[int | str] | None = None, zero_division: float | str = 0.0
    ) -> ClassificationReport:
        """Return precision, recall, F1 and support of each label in the last call's predictions.

        Args:
            classes: As in :func:`duonlp.metrics.classification_report`, like ``zero_division``.
            zero_division: Value of a ratio whose denominator is 0.

        Raises:
            InputError: The scorer was not called yet, or an argument is invalid.
        """
        if self.logits is None:
            raise InputError("a report needs predictions; call the scorer with a model first")
        predicted = self.logits.argmax(axis=1) if self.labels.ndim == 1 else self.logits > 0
        names = list(self.batches.label_names)
        return classification_report(
            predicted, self.labels, label_names=names, classes=classes, zero_division=zero_division
        )

    def _check(self, model: Any) -> None:
        config = getattr(model, "config", None)
        count = getattr(config, "num_labels", None)
        expected = len(self.batches.label_names)
        if count is not None and count != expected:
            raise InputError(
                f"the model has {count} labels, but the texts have {expected}; load it with num_labels={expected}"
            )


def label_id(names: Sequence[str], name: str) -> int:
    """Return the index of the out-of-scope label.

    Raises:
        InputError: No label has this name; the message suggests the nearest.
    """
    names = list(names)
    if name not in names:
        raise InputError(f"out_of_scope is {name!r}, which is not one of the {len(names)} labels{nearest(name, names)}")
    return names.index(name)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis, in float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-logits)) in float64."""
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        return np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))


def classification_scores(
    logits: np.ndarray, labels: np.ndarray, out_of_scope_id: int | None = None
) -> dict[str, float]:
    """Return the scores that ClassificationScorer documents.

    Args:
        logits: [n, C].
        labels: int [n], or 0 and 1 of shape [n, C] (multi-label). Rows of -100 are ignored.
        out_of_scope_id: Index of the out-of-scope label, or None.

    Raises:
        InputError: There are no texts, or the shapes of logits and labels do not match.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if len(logits) != len(labels) or logits.ndim != 2:
        raise InputError(
            f"logits have shape {list(logits.shape)} and labels {list(labels.shape)}; they must be [n, C], and [n] or [n, C]"
        )
    labeled = (labels != IGNORED) if labels.ndim == 1 else (labels != IGNORED).all(axis=1)
    logits, labels = logits[labeled], labels[labeled]
    if not len(labels):
        raise InputError("there are no labeled texts to score; give at least one")
    if labels.ndim == 2:
        return _multi_label_scores(logits, labels)
    predicted = logits.argmax(axis=1)
    largest = logits.max(axis=1)
    normalizers = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    loss = normalizers - logits[np.arange(len(labels)), labels]
    classes = logits.shape[1]
    scores = {
        "loss": float(loss.mean()),
        "accuracy": float(np.mean(predicted == labels)),
        "macro_f1": macro_f1(_one_hot(predicted, classes), _one_hot(labels, classes), classes="occurring"),
    }
    return scores | ({} if out_of_scope_id is None else _scope_scores(predicted, labels, out_of_scope_id))


def threshold_scores(
    probabilities: np.ndarray,
    labels: np.ndarray,
    out_of_scope_id: int,
    *,
    threshold: float | None = None,
    maximise: str = "mean",
) -> dict[str, float]:
    """Return the scores when unconfident predictions also count as out of scope.

    This is "oos-threshold" of Larson et al. 2019 (https://arxiv.org/abs/1909.02027): a query is out of scope if the
    probability of its most likely intent is below a threshold, which is chosen to maximize `maximise`. "accuracy" hardly
    weighs out-of-scope queries when in-scope ones outnumber them 30 to 1, as in CLINC150's validation texts, so the default
    is the mean of in-scope accuracy and out-of-scope recall.

    If the model has an out-of-scope class ("oos-train") and finds it most likely, that prediction stands at any threshold.

    Args:
        probabilities: [n, C], for validation texts; for other texts, pass `threshold`.
        labels: int [n].
        out_of_scope_id: Label of out-of-scope texts. If the model has no such class, an index outside the columns, such as C.
        threshold: Threshold to use. None chooses it on these texts (the lowest of the best); the scores are then slightly
            optimistic, unlike those of other texts at this threshold.
        maximise: One of :data:`MAXIMISED`.

    Returns:
        "threshold", "accuracy", and the in-scope and out-of-scope scores of ClassificationScorer.

    Raises:
        InputError: A threshold must be chosen but the texts are all in scope or all out of scope, or an argument is invalid.
    """
    if maximise not in MAXIMISED:
        raise InputError(f"maximise is {maximise!r}; it must be one of {', '.join(MAXIMISED)}")
    probabilities, labels = np.array(probabilities, np.float64), np.asarray(labels)
    outside = labels == out_of_scope_id
    if threshold is None and (outside.all() or not outside.any()):
        raise InputError(
            f"{int(outside.sum())} of {len(labels)} texts are out of scope; choosing a threshold needs both kinds of texts"
        )
    rejected = np.zeros(len(labels), bool)
    if 0 <= out_of_scope_id < probabilities.shape[1]:
        rejected = probabilities.argmax(axis=1) == out_of_scope_id
        probabilities[:, out_of_scope_id] = -1
    intents, confidences = probabilities.argmax(axis=1), probabilities.max(axis=1)
    if threshold is None:
        threshold = _best_threshold(confidences, intents == labels, outside, rejected, maximise)
    predicted = np.where(rejected | (confidences < threshold), out_of_scope_id, intents)
    scores = {"threshold": float(threshold), "accuracy": float(np.mean(predicted == labels))}
    return scores | _scope_scores(predicted, labels, out_of_scope_id)


def _best_threshold(
    confidences: np.ndarray, correct: np.ndarray, outside: np.ndarray, rejected: np.ndarray, maximise: str
) -> float:
    """Return the lowest of the best thresholds; candidates are 0 and the midpoints between neighboring confidences.

    Args:
        confidences: float [n], probability of the most likely intent.
        correct: bool [n], whether that intent is right.
        outside: bool [n], whether the text is out of scope.
        rejected: bool [n], whether the model itself predicts out of scope.
        maximise: One of :data:`MAXIMISED`.
    """
    values = np.unique(confidences)
    candidates = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2])
    order = np.argsort(confidences, kind="stable")
    below = np.searchsorted(confidences[order], candidates)  # queries below each candidate

    def count_below(mask: np.ndarray) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(mask[order])])[below]

    accepted = correct & ~outside & ~rejected
    in_scope_correct = accepted.sum() - count_below(accepted)
    detected = (outside & rejected).sum() + count_below(outside & ~rejected)
    if maximise == "accuracy":
        scores = (in_scope_correct + detected) / len(outside)
    else:
        scores = (in_scope_correct / (~outside).sum() + detected / outside.sum()) / 2
    return float(candidates[np.argmax(scores)])


def _scope_scores(predicted: np.ndarray, labels: np.ndarray, out_of_scope_id: int) -> dict[str, float]:
    outside, rejected = labels == out_of_scope_id, predicted == out_of_scope_id
    scores: dict[str, float] = {}
    if not outside.all():
        scores["in_scope_accuracy"] = float(np.mean((predicted == labels)[~outside]))
    if outside.any():
        detected = int((outside & rejected).sum())
        scores["out_of_scope_recall"] = detected / int(outside.sum())
        scores["out_of_scope_precision"] = detected / max(int(rejected.sum()), 1)
        scores["out_of_scope_f1"] = 2 * detected / (int(outside.sum()) + int(rejected.sum()))
    return scores


def _multi_label_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    true = labels > 0.5
    loss = np.maximum(logits, 0) - logits * labels + np.log1p(np.exp(-np.abs(logits)))
    scores = {"loss": float(loss.mean())} | _label_scores(logits > 0, true)
    if not np.isfinite(logits).all():  # a run that diverged
        return scores | dict.fromkeys(("micro_average_precision", "macro_average_precision"), float("nan"))
    ranking = average_precision(logits, true)
    return scores | {"micro_average_precision": ranking.micro, "macro_average_precision": ranking.macro}


def _label_scores(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Return the scores of predicted sets of labels, bool [n, C]."""
    return {
        "accuracy": float(np.mean((true == predicted).all(axis=1))),
        "micro_f1": micro_f1(predicted, true),
        "macro_f1": macro_f1(predicted, true, classes="all"),
    }


def _one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return labels[:, None] == np.arange(classes)
