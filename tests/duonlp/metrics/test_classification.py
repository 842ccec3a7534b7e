"""Classification scores by hand, and the out-of-scope threshold against an exhaustive search."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duonlp.errors import InputError
from duonlp.metrics.classification import (
    ClassificationScorer,
    classification_scores,
    softmax,
    threshold_scores,
)

LABELS = np.array([0, 1, 1, 2, 2, 2], np.int32)
LOGITS = np.log(
    np.array(
        [
            [0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25], [0.35, 0.4, 0.25],
        ]
    )
)  # fmt: skip
"""Predicted: 0, 1, 0, 2, 0, 1."""


def test_scores_by_hand():
    scores = classification_scores(LOGITS, LABELS, 2)
    assert scores["accuracy"] == pytest.approx(3 / 6)
    assert scores["loss"] == pytest.approx(-np.log([0.7, 0.7, 0.3, 0.7, 0.25, 0.25]).mean())
    assert scores["macro_f1"] == pytest.approx((2 / 4 + 2 / 4 + 2 / 4) / 3)
    assert scores["in_scope_accuracy"] == pytest.approx(2 / 3)
    assert scores["out_of_scope_recall"] == pytest.approx(1 / 3)
    assert scores["out_of_scope_precision"] == 1.0
    assert scores["out_of_scope_f1"] == pytest.approx(2 / 4)
    assert set(classification_scores(LOGITS, LABELS)) == {"loss", "accuracy", "macro_f1"}


def test_macro_f1_averages_over_occurring_classes():
    logits = np.eye(4)[[0, 0, 1]]  # neither true nor predicted: 2 and 3
    assert classification_scores(logits, np.array([0, 1, 1]))["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_scores_without_any_text_are_left_out():
    scores = classification_scores(LOGITS[:3], LABELS[:3], 2)
    assert "in_scope_accuracy" in scores and "out_of_scope_recall" not in scores


def test_rows_without_a_label_are_ignored():
    padded = np.concatenate([LABELS, [-100]])
    scores = classification_scores(np.concatenate([LOGITS, [[9, 0, 0]]]), padded, 2)
    assert scores == pytest.approx(classification_scores(LOGITS, LABELS, 2))
    with pytest.raises(InputError, match="no labeled texts"):
        classification_scores(LOGITS[:1], np.array([-100]))


def test_multi_label_scores():
    labels = np.array([[1, 0, 1], [0, 0, 0]], np.float32)
    logits = np.array([[2.0, -1.0, -3.0], [-1.0, -2.0, -1.0]])
    scores = classification_scores(logits, labels)
    assert scores["accuracy"] == 0.5
    assert scores["micro_f1"] == pytest.approx(2 / 3) and scores["macro_f1"] == pytest.approx((1 + 0 + 0) / 3)
    p = 1 / (1 + np.exp(-logits))
    assert scores["loss"] == pytest.approx(-np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p)))


def test_the_scorer_chooses_thresholds_of_several_labels():
    labels = np.array([[1, 0], [0, 0], [1, 0], [-100, -100]], np.float32)
    logits = np.array([[0.5, -3.0], [0.2, -2.0], [0.9, -1.0], [9.0, 9.0]])
    scorer = ClassificationScorer(SimpleNamespace(labels=labels, label_names=("a", "never")), lambda *_: logits)
    with pytest.raises(InputError, match="thresholds of labels need multi-label texts and predictions"):
        scorer.at_label_thresholds()
    scores = scorer(None)
    assert scores["macro_average_precision"] == 0.5 and scores["micro_average_precision"] == 1.0
    assert set(scorer.dry_run(None)) == set(scores)
    best = scorer.at_threshold()
    assert 1 / (1 + np.exp(-0.2)) < best["threshold"] < 1 / (1 + np.exp(-0.5))
    assert best == {"threshold": best["threshold"], "accuracy": 1.0, "micro_f1": 1.0, "macro_f1": 0.5}
    own = scorer.at_label_thresholds()  # the label without texts takes the shared threshold
    assert own == {
        "thresholds": dict.fromkeys(("a", "never"), best["threshold"]),
        "accuracy": 1.0,
        "micro_f1": 1.0,
        "macro_f1": 0.5,
    }
    assert scorer.at_threshold("macro_f1")["macro_f1"] == 0.5
    with pytest.raises(InputError, match="maximise is 'mean'; it must be one of micro_f1, macro_f1"):
        scorer.at_threshold("mean")
    logits[0, 0] = np.nan  # a run that diverged
    assert np.isnan(scorer(None)["macro_average_precision"])
    with pytest.raises(InputError, match="is nan; scores must be finite"):
        scorer.at_threshold()


def by_search(probabilities, labels, outside_id, maximise):
    """Return the best score over a grid of thresholds."""
    outside, best = labels == outside_id, -1.0
    own = probabilities.argmax(1) == outside_id
    inside = np.delete(probabilities, outside_id, axis=1) if outside_id < probabilities.shape[1] else probabilities
    ids = np.array([i for i in range(probabilities.shape[1]) if i != outside_id])
    for threshold in np.linspace(0, 1, 201):
        rejected = own | (inside.max(1) < threshold)
        predicted = np.where(rejected, outside_id, ids[inside.argmax(1)])
        correct = predicted == labels
        score = correct.mean() if maximise == "accuracy" else (correct[~outside].mean() + correct[outside].mean()) / 2
        best = max(best, score)
    return best


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["mean", "accuracy"]), st.booleans())
def test_the_threshold_is_optimal(seed, maximise, has_class):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 20)
    labels[:2] = [3, 0]  # one out of scope, one in scope
    logits = np.round(
        rng.normal(size=(20, 4 if has_class else 3)) + 1.5 * np.eye(4)[labels][:, : 4 if has_class else 3], 1
    )
    probabilities = softmax(logits)
    scores = threshold_scores(probabilities, labels, 3, maximise=maximise)
    mean = (scores["in_scope_accuracy"] + scores["out_of_scope_recall"]) / 2
    best = mean if maximise == "mean" else scores["accuracy"]
    assert best >= by_search(probabilities, labels, 3, maximise) - 1e-12
    if has_class:  # never worse than taking the most likely class
        plain = classification_scores(logits, labels, 3)
        assert mean >= (plain["in_scope_accuracy"] + plain["out_of_scope_recall"]) / 2 - 1e-12 or maximise == "accuracy"
    again = threshold_scores(probabilities, labels, 3, threshold=scores["threshold"])
    assert again == scores


def test_the_threshold_rejects_unconfident_predictions():
    scores = threshold_scores(softmax(LOGITS), LABELS, 2)
    assert 0.4 < scores["threshold"] < 0.6  # the two missed ones have 0.4, the wrong one 0.6
    assert scores["out_of_scope_recall"] == 1.0 and scores["in_scope_accuracy"] == pytest.approx(2 / 3)
    fixed = threshold_scores(softmax(LOGITS)[:3], LABELS[:3], 2, threshold=0.0)
    assert fixed["in_scope_accuracy"] == pytest.approx(2 / 3) and "out_of_scope_recall" not in fixed


def test_threshold_errors():
    with pytest.raises(InputError, match="0 of 3 texts are out of scope"):
        threshold_scores(softmax(LOGITS)[:3], LABELS[:3], 2)
    with pytest.raises(InputError, match="maximise is 'f1'; it must be one of mean, accuracy"):
        threshold_scores(softmax(LOGITS), LABELS, 2, maximise="f1")


BATCHES = SimpleNamespace(labels=LABELS, label_names=("a", "b", "oos"))


def test_scorer_scores_and_keeps_the_logits():
    scorer = ClassificationScorer(BATCHES, lambda model, batches: LOGITS, out_of_scope="oos")
    with pytest.raises(InputError, match="pass out_of_scope and call the scorer first"):
        scorer.at_threshold()
    names = scorer.dry_run(None)
    scores = scorer(None)
    assert set(names) == set(scores) and scores == pytest.approx(classification_scores(LOGITS, LABELS, 2), rel=1e-6)
    assert scorer.logits.dtype == np.float32
    assert scorer.at_threshold()["out_of_scope_recall"] == 1.0


def test_scorer_errors_come_first():
    with pytest.raises(InputError, match=r"'ooss', which is not one of the 3 labels; did you mean 'oos'\?"):
        ClassificationScorer(BATCHES, None, out_of_scope="ooss")
    several = SimpleNamespace(labels=np.zeros((2, 3), np.float32), label_names=("a", "b", "oos"))
    with pytest.raises(InputError, match="these texts are multi-label"):
        ClassificationScorer(several, None, out_of_scope="oos")
    model = SimpleNamespace(config=SimpleNamespace(num_labels=5))
    with pytest.raises(InputError, match="the model has 5 labels, but the texts have 3"):
        ClassificationScorer(BATCHES, None).dry_run(model)
