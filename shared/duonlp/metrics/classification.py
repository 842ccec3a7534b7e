"""What a classifier is worth on validation texts: accuracy, F1, and how well it tells what is out of scope.

In-scope accuracy and out-of-scope recall are the two figures of Larson et al. 2019 (https://arxiv.org/abs/1909.02027), who made
CLINC150: the share of in-scope queries whose intent is right (calling one out of scope is wrong), and the share of
out-of-scope queries that are called so.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.inputs import IGNORED
from duonlp.util.suggestions import nearest

MAXIMISED = ("mean", "accuracy")
"""What a threshold may be chosen by: the mean of in-scope accuracy and out-of-scope recall, or the share of all that is right."""


class ClassificationScorer:
    """Predicts the labels of validation texts, and scores them. ``scorer(model)`` gives floats by name, for ``fit``'s evaluate.

    For one label a text: "loss" (mean cross-entropy in nats), "accuracy", "macro_f1", and with an out-of-scope label
    "in_scope_accuracy", "out_of_scope_recall", "out_of_scope_precision", "out_of_scope_f1" (a figure without a text to take it
    over is left out). For several labels a text: "loss" (mean binary cross-entropy), "accuracy" (texts with all labels right),
    "micro_f1", "macro_f1".

    ``logits``, float32 [n, C], are those of the last call, in the order of the texts.

    Args:
        batches: LabelledBatches: their ``labels``, int32 [n] or float32 [n, C], and ``label_names``.
        predict: tfnlp's or jaxnlp's ``predict``: ``(model, batches) -> logits [n, C]``.
        out_of_scope: the name of the label that says so; None where there is none.

    Raises:
        InputError: no label of that name, or there are several labels a text.
    """

    def __init__(self, batches, predict: Callable[[Any, Any], np.ndarray], *, out_of_scope: str | None = None):
        self.batches, self.predict = batches, predict
        self.labels = np.asarray(batches.labels)
        self.out_of_scope = None if out_of_scope is None else label_id(batches.label_names, out_of_scope)
        if self.out_of_scope is not None and self.labels.ndim == 2:
            raise InputError(
                f"out_of_scope is {out_of_scope!r} and these texts have several labels each; leave it out: such a text has none"
            )
        self.logits: np.ndarray | None = None

    def __call__(self, model) -> dict[str, float]:
        """The scores of a model as it is.

        Raises:
            InputError: its labels are not as many as the texts'.
        """
        self._check(model)
        self.logits = np.asarray(self.predict(model, self.batches), np.float32)
        return classification_scores(self.logits, self.labels, self.out_of_scope)

    def dry_run(self, model) -> dict[str, float]:
        """The names of the scores, each 0, after a look at the model's labels: what is wrong is wrong before the first step."""
        self._check(model)
        classes = self.labels.shape[1] if self.labels.ndim == 2 else len(self.batches.label_names)
        scores = classification_scores(
            np.zeros((len(self.labels), classes), np.float32), self.labels, self.out_of_scope
        )
        return dict.fromkeys(scores, 0.0)

    def at_threshold(self, maximise: str = "mean") -> dict[str, float]:
        """:func:`threshold_scores` of the last call's predictions.

        Raises:
            InputError: nothing was predicted, or no label is the out-of-scope one.
        """
        if self.logits is None or self.out_of_scope is None:
            raise InputError(
                "a threshold is chosen after a call of this scorer, and for an out_of_scope label; give both"
            )
        return threshold_scores(probabilities_of(self.logits), self.labels, self.out_of_scope, maximise=maximise)

    def _check(self, model) -> None:
        config = getattr(model, "config", None)
        count = getattr(config, "num_labels", None)
        wanted = len(self.batches.label_names)
        if count is not None and count != wanted:
            raise InputError(
                f"the model tells {count} labels apart and the texts have {wanted}; load it with num_labels={wanted}"
            )


def label_id(names: Sequence[str], name: str) -> int:
    """Which label has this name; raises InputError, with the nearest, where none has."""
    names = list(names)
    if name not in names:
        raise InputError(f"out_of_scope is {name!r}, which is none of the {len(names)} labels{nearest(name, names)}")
    return names.index(name)


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    """softmax over the last axis, in float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def classification_scores(
    logits: np.ndarray, labels: np.ndarray, out_of_scope_id: int | None = None
) -> dict[str, float]:
    """The scores of ClassificationScorer.

    Args:
        logits: [n, C].
        labels: int [n], or [n, C] of 0 and 1 for several labels a text. A row of -100 is left out.
        out_of_scope_id: which label is the out-of-scope one.

    Raises:
        InputError: there are no texts, or not as many logits as labels.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if len(logits) != len(labels) or logits.ndim != 2:
        raise InputError(f"logits of shape {list(logits.shape)} do not go with labels of shape {list(labels.shape)}")
    real = (labels != IGNORED) if labels.ndim == 1 else (labels != IGNORED).all(axis=1)
    logits, labels = logits[real], labels[real]
    if not len(labels):
        raise InputError("there are no labelled texts to score; give at least one")
    if labels.ndim == 2:
        return _several_labels(logits, labels)
    predicted = logits.argmax(axis=1)
    largest = logits.max(axis=1)
    normalizers = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    loss = normalizers - logits[np.arange(len(labels)), labels]
    classes = logits.shape[1]
    scores = {
        "loss": float(loss.mean()),
        "accuracy": float(np.mean(predicted == labels)),
        "macro_f1": _macro_f1(_one_hot(predicted, classes), _one_hot(labels, classes)),
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
    """The scores when a query is also called out of scope where the model is not sure enough of any intent.

    "oos-threshold" of Larson et al. 2019 (https://arxiv.org/abs/1909.02027): below a threshold on the probability of the most
    likely intent. The threshold is the one that is best by `maximise`: "accuracy" hardly counts what is out of scope where
    there are 30 in-scope queries to such a one, as in CLINC150's validation texts, so that the default is the mean of the two
    figures, in-scope accuracy and out-of-scope recall.

    A model that has an out-of-scope class ("oos-train") keeps to it where that is the most likely one, at any threshold.

    Args:
        probabilities: [n, C], of validation texts; of other texts when a threshold is given.
        labels: int [n]. Of a model without an out-of-scope class, `out_of_scope_id` is one that is no column, such as C.
        threshold: to report the scores at; None chooses it on these texts, the lowest of the best. Chosen and reported on the
            same texts, the scores are a little too good; those of other texts at this threshold are not.
        maximise: one of :data:`MAXIMISED`.

    Returns:
        "threshold", "accuracy", and the figures for what is in and out of scope of ClassificationScorer.

    Raises:
        InputError: both kinds of texts are needed to choose, and there is only one; or a value that is not allowed.
    """
    if maximise not in MAXIMISED:
        raise InputError(f"maximise is {maximise!r}; it must be one of {', '.join(MAXIMISED)}")
    probabilities, labels = np.array(probabilities, np.float64), np.asarray(labels)
    outside = labels == out_of_scope_id
    if threshold is None and (outside.all() or not outside.any()):
        raise InputError(
            f"of {len(labels)} texts {int(outside.sum())} are out of scope; a threshold is chosen on texts of both kinds"
        )
    refused = np.zeros(len(labels), bool)
    if 0 <= out_of_scope_id < probabilities.shape[1]:
        refused = probabilities.argmax(axis=1) == out_of_scope_id
        probabilities[:, out_of_scope_id] = -1
    intents, confidences = probabilities.argmax(axis=1), probabilities.max(axis=1)
    if threshold is None:
        threshold = _best_threshold(confidences, intents == labels, outside, refused, maximise)
    predicted = np.where(refused | (confidences < threshold), out_of_scope_id, intents)
    scores = {"threshold": float(threshold), "accuracy": float(np.mean(predicted == labels))}
    return scores | _scope_scores(predicted, labels, out_of_scope_id)


def _best_threshold(confidences, right, outside, refused, maximise: str) -> float:
    """The lowest of those that are best: 0, or between two neighbouring confidences, where what is refused changes."""
    values = np.unique(confidences)
    candidates = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2])
    order = np.argsort(confidences, kind="stable")
    below = np.searchsorted(confidences[order], candidates)  # queries below each candidate

    def counted(which):  # of those below each candidate
        return np.concatenate([[0], np.cumsum(which[order])])[below]

    kept = right & ~outside & ~refused
    in_scope_right = kept.sum() - counted(kept)
    caught = (outside & refused).sum() + counted(outside & ~refused)
    if maximise == "accuracy":
        scores = (in_scope_right + caught) / len(outside)
    else:
        scores = (in_scope_right / (~outside).sum() + caught / outside.sum()) / 2
    return float(candidates[np.argmax(scores)])


def _scope_scores(predicted: np.ndarray, labels: np.ndarray, out_of_scope_id: int) -> dict[str, float]:
    outside, refused = labels == out_of_scope_id, predicted == out_of_scope_id
    scores: dict[str, float] = {}
    if not outside.all():
        scores["in_scope_accuracy"] = float(np.mean((predicted == labels)[~outside]))
    if outside.any():
        caught = int((outside & refused).sum())
        scores["out_of_scope_recall"] = caught / int(outside.sum())
        scores["out_of_scope_precision"] = caught / max(int(refused.sum()), 1)
        scores["out_of_scope_f1"] = 2 * caught / (int(outside.sum()) + int(refused.sum()))
    return scores


def _several_labels(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    true, predicted = labels > 0.5, logits > 0
    loss = np.maximum(logits, 0) - logits * labels + np.log1p(np.exp(-np.abs(logits)))
    both, either = int((true & predicted).sum()), int(true.sum() + predicted.sum())
    return {
        "loss": float(loss.mean()),
        "accuracy": float(np.mean((true == predicted).all(axis=1))),
        "micro_f1": 2 * both / either if either else 0.0,
        "macro_f1": _macro_f1(predicted, true),
    }


def _one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return labels[:, None] == np.arange(classes)


def _macro_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    """The mean over the classes that there are, true or predicted, as scikit-learn takes it."""
    both, either = (predicted & true).sum(axis=0), predicted.sum(axis=0) + true.sum(axis=0)
    return float(np.mean(2 * both[either > 0] / either[either > 0])) if either.any() else 0.0
