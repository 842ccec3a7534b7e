"""Reports of classes, entities and numbers: recorded from scikit-learn 1.9 and seqeval 1.2, and from the definitions."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from duonlp.errors import InputError
from duonlp.metrics import (
    ClassificationScorer,
    classification_report,
    classification_scores,
    entity_report,
    regression_scores,
    tags_of_ids,
)

TRUE = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
GUESSED = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
NAMES = ("a", "b", "c", "never")
AVERAGES = {
    (0.0, "micro"): (0.75, 0.6, 2 / 3), (0.0, "macro"): (0.5, 0.375, 5 / 12), (0.0, "weighted"): (0.8, 0.6, 2 / 3),
    (0.0, "samples"): (0.625, 0.5, 0.5), (1.0, "micro"): (0.75, 0.6, 2 / 3), (1.0, "macro"): (0.75, 0.625, 2 / 3),
    (1.0, "weighted"): (0.8, 0.6, 2 / 3), (1.0, "samples"): (0.875, 0.75, 0.75),
}  # fmt: skip
"""(precision, recall, F1) by zero_division and average: precision_recall_fscore_support(TRUE, GUESSED, ...)."""


def numbers(scores):
    return scores.precision, scores.recall, scores.f1


def test_averages_of_several_labels_are_those_of_scikit_learn():
    for (zero, average), expected in AVERAGES.items():
        report = classification_report(GUESSED, TRUE, label_names=NAMES, zero_division=zero)
        assert numbers(report.averages[average]) == pytest.approx(expected), (zero, average)
        assert report.averages[average].support == 5 and report.accuracy == 0.25
    report = classification_report(GUESSED, TRUE, label_names=NAMES)
    assert [scores.support for scores in report.classes.values()] == [2, 2, 1, 0]
    assert numbers(report.classes["never"]) == (0, 0, 0)
    without = classification_report(GUESSED, TRUE, label_names=NAMES, zero_division="nan").averages["macro"]
    assert numbers(without) == pytest.approx((2 / 3, 0.5, 5 / 9))
    chosen = classification_report(GUESSED, TRUE, label_names=NAMES, classes=["b", 0])
    assert list(chosen.classes) == ["b", "a"] and chosen.averages["micro"].support == 4


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(2, 5), st.booleans())
def test_scores_follow_their_definitions(seed, texts, classes, several):
    rng = np.random.default_rng(seed)
    shape = (texts, classes) if several else (texts,)
    labels, guesses = (rng.integers(0, 2 if several else classes, shape) for _ in range(2))
    logits = np.where(guesses > 0, 1.0, -1.0) if several else np.eye(classes)[guesses]
    report, scores = classification_report(guesses, labels), classification_scores(logits, labels)
    f1 = []
    for number, row in zip(map(int, report.classes), report.classes.values(), strict=True):
        true, guessed = (x[:, number] > 0 if several else x == number for x in (labels, guesses))
        both = np.sum(true & guessed)
        assert row.precision == pytest.approx(both / guessed.sum() if guessed.any() else 0)
        assert row.recall == pytest.approx(both / true.sum() if true.any() else 0) and row.support == true.sum()
        f1.append(2 * both / (true.sum() + guessed.sum()) if (true | guessed).any() else 0.0)
    assert len(f1) == (classes if several else len(set(labels) | set(guesses)))
    assert scores["macro_f1"] == pytest.approx(np.mean(f1)) == pytest.approx(report.averages["macro"].f1)
    assert scores["accuracy"] == report.accuracy


def test_one_label_per_text():
    labels, guesses = np.array([0, 1, 1, 2, -100]), np.array([0, 1, 2, 2, 3])
    report = classification_report(guesses, labels, label_names=[*NAMES, "x"])
    assert list(report.classes) == ["a", "b", "c"] and report.examples == 4 and report.accuracy == 0.75
    assert numbers(report.averages["weighted"]) == pytest.approx((0.875, 0.75, 0.75))
    assert report.averages["macro"].f1 == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    everything = classification_report(guesses, labels, label_names=NAMES, classes=range(4))
    assert everything.averages["macro"].f1 == pytest.approx((1 + 2 / 3 + 2 / 3 + 0) / 4)
    text = io.StringIO()
    Console(file=text, width=80).print(report.table())
    assert "macro average" in text.getvalue() and report.to_dict()["classes"]["a"]["support"] == 1


def test_the_scorer_reports_its_last_call():
    batches = type("Batches", (), {"labels": TRUE.astype(np.float32), "label_names": NAMES})
    scorer = ClassificationScorer(batches, lambda model, _: np.where(GUESSED > 0, 2.0, -2.0))
    with pytest.raises(InputError, match="call the scorer with a model first"):
        scorer.report()
    scores = scorer(None)
    assert scorer.report().averages["macro"].f1 == pytest.approx(scores["macro_f1"]) == pytest.approx(5 / 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": TRUE[:2]}, "both must be"), ({"labels": TRUE * 0 - 100}, "no labeled texts"),
        ({"label_names": NAMES[:2]}, "2 different names, but there are 4 classes"),
        ({"classes": ["nevr"]}, "did you mean 'never'"), ({"classes": [4]}, "classes has 4"), ({"classes": [0, 0]}, "each once"),
        ({"zero_division": 0.5}, "zero_division is 0.5"),
        ({"labels": np.array([0.5]), "predicted": np.array([1])}, "labels are float64 from 0.5"),
    ],
)  # fmt: skip
def test_invalid_arguments_of_a_report(change, message):
    arguments = {"predicted": GUESSED, "labels": TRUE, "label_names": NAMES} | change
    with pytest.raises(InputError, match=message):
        classification_report(arguments.pop("predicted"), arguments.pop("labels"), **arguments)


def test_entities_are_those_of_seqeval():
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["I-LOC", "I-LOC", "I-PER", "E-PER", "S-PER"]]
    guessed = [["B-PER", "I-PER", "O", "I-LOC"], ["I-LOC", "B-LOC", "I-PER", "I-PER", "S-PER"]]
    report = entity_report(guessed, true)
    assert report.accuracy == pytest.approx(6 / 9) and list(report.classes) == ["LOC", "PER"]
    assert numbers(report.classes["PER"]) == (1, 1, 1) and numbers(report.classes["LOC"]) == pytest.approx(
        (1 / 3, 1 / 2, 0.4)
    )
    assert numbers(report.averages["micro"]) == pytest.approx((4 / 6, 4 / 5, 8 / 11))
    ids = np.array([[0, 1, 2], [1, 2, 2]])
    assert tags_of_ids(ids, np.where([[1, 1, 0], [0, 1, 1]], ids, -100), ("O", "B-X", "I-X")) == [
        ["O", "B-X"],
        ["I-X", "I-X"],
    ]
    for wrong in ([["O"]], [["O", "O"], ["O"]], []):
        with pytest.raises(InputError, match="a tag for each token"):
            entity_report(wrong, [["O"], ["O"]] if wrong else [])


def test_regression():
    scores = regression_scores([[1.0], [2.0], [2.0], [5.0]], np.array([1.0, 3.0, 2.0, 4.0]))
    assert scores == pytest.approx({
        "mean_squared_error": 0.5, "root_mean_squared_error": 0.5**0.5, "mean_absolute_error": 0.5, "r2": 0.6,
        "pearson": 0.894427190999916, "spearman": 0.9486832980505139,
    })  # fmt: skip
    assert np.isnan(regression_scores([1, 1], [1, 2])["pearson"]) and regression_scores([1, 1], [1, 1])["r2"] == 1
    with pytest.raises(InputError, match="equally many finite numbers"):
        regression_scores([1.0], [float("nan")])
