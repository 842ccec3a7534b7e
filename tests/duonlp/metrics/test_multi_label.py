"""Scores of several labels per text against scikit-learn, and thresholds against exhaustive search."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duonlp.errors import InputError
from duonlp.metrics import (
    average_precision,
    choose_thresholds,
    multi_label_report,
    multi_label_scores,
    threshold_curves,
    threshold_predictions,
    top_k_curves,
    top_k_predictions,
)
from duonlp.metrics.report import averaged_classes, macro_f1, micro_f1

sklearn_metrics = pytest.importorskip("sklearn.metrics")
pytestmark = pytest.mark.filterwarnings("ignore:.*(No positive|true nor predicted|ill-defined).*")

SCORES = np.array([[0.9, 0.2, 0.6], [0.1, 0.8, 0.4], [0.4, 0.3, 0.1], [0.6, 0.1, 0.3]])
LABELS = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]])


@st.composite
def problems(draw):
    """Draw scores [n, C], with ties, and labels, some of them constant."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    texts, labels = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    true = rng.random((texts, labels)) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    scores = rng.random((texts, labels))
    decimals = draw(st.sampled_from([0, 1, 9]))
    return np.round(scores, decimals).astype(draw(st.sampled_from([np.float32, np.float64]))), true


@settings(deadline=None, max_examples=80)
@given(problems(), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_scores_are_those_of_scikit_learn(problem, threshold):
    scores, true = problem
    predicted = scores.astype(np.float64) >= threshold
    ours = multi_label_scores(scores, true.astype(int), threshold)
    for average in ("micro", "macro"):
        theirs = sklearn_metrics.precision_recall_fscore_support(true, predicted, average=average, zero_division=0)
        if true.shape[1] == 1:  # scikit-learn takes one column for a binary problem, of which it scores both classes
            theirs = sklearn_metrics.precision_recall_fscore_support(
                true[:, 0], predicted[:, 0], average="binary", zero_division=0
            )
        values = tuple(ours[f"{average}_{name}"] for name in ("precision", "recall", "f1"))
        assert values == pytest.approx(theirs[:3], abs=1e-12)
        if true.shape[1] > 1:
            expected = sklearn_metrics.average_precision_score(true.astype(int), scores, average=average)
            assert ours[f"{average}_average_precision"] == pytest.approx(expected, abs=1e-12)
    assert ours["accuracy"] == pytest.approx(np.mean((predicted == true).all(axis=1)))
    assert ours["micro_f1"] == micro_f1(predicted, true) and ours["macro_f1"] == pytest.approx(
        macro_f1(predicted, true, classes="all")
    )
    each = average_precision(scores, true).labels
    theirs = [sklearn_metrics.average_precision_score(t, s) for t, s in zip(true.T, scores.T, strict=True)]
    assert each == pytest.approx(np.array(theirs), abs=1e-12)


def test_the_report_has_every_label():
    names = ["bug", "docs", "never"]
    labels = LABELS * [1, 1, 0]
    report = multi_label_report(SCORES * [1, 1, 0], labels, label_names=names)
    theirs = sklearn_metrics.classification_report(
        labels, SCORES * [1, 1, 0] >= 0.5, target_names=names, output_dict=True, zero_division=0
    )
    for name in names:
        row = report.classes[name]
        expected = theirs[name]
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx(tuple(expected.values()))
    assert report.averages["macro"].f1 == pytest.approx(theirs["macro avg"]["f1-score"])


def test_a_label_without_texts_has_an_average_precision_of_zero_or_nan():
    labels = LABELS * [1, 1, 0]
    assert average_precision(SCORES, labels).labels[2] == 0 and average_precision(SCORES, labels).macro < 0.7
    left_out = average_precision(SCORES, labels, zero_division="nan")
    assert np.isnan(left_out.labels[2]) and left_out.macro == pytest.approx(left_out.labels[:2].mean())
    nothing = average_precision(SCORES, labels * 0, zero_division="nan")
    assert np.isnan(nothing.macro) and np.isnan(nothing.micro)
    with pytest.raises(InputError, match=r"zero_division is 1.0; it must be 0.0 or 'nan'"):
        average_precision(SCORES, LABELS, zero_division=1.0)


def test_macro_averages_name_their_convention():
    true, guessed = np.eye(3, dtype=bool)[[0, 0]], np.eye(3, dtype=bool)[[0, 1]]
    assert averaged_classes(guessed, true, "occurring").tolist() == [0, 1]
    assert macro_f1(guessed, true, classes="occurring") == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1(guessed, true, classes="all") == pytest.approx((2 / 3 + 0 + 0) / 3)
    with pytest.raises(InputError, match="classes is 'some'; it must be one of all, occurring"):
        macro_f1(guessed, true, classes="some")


def best_by_search(scores, true, score):
    """Return the best score over every threshold that matters: each score, and one above all."""
    limits = np.append(np.unique(scores.astype(np.float64)), 9.0)
    return max(score(scores.astype(np.float64) >= limit, true) for limit in limits)


def macro(predicted, true):
    return macro_f1(predicted, true, classes="all")


@settings(deadline=None, max_examples=80)
@given(problems())
def test_thresholds_are_optimal(problem):
    scores, true = problem
    for name, score in (("micro_f1", micro_f1), ("macro_f1", macro)):
        threshold = choose_thresholds(scores, true, maximise=name)
        assert score(threshold_predictions(scores, threshold), true) == pytest.approx(
            best_by_search(scores, true, score), abs=1e-12
        )
    thresholds = choose_thresholds(scores, true, per_label=True)
    predicted = threshold_predictions(scores, thresholds)
    for label in range(true.shape[1]):
        column = np.s_[:, label : label + 1]
        if true[column].any():
            assert micro_f1(predicted[column], true[column]) == best_by_search(scores[column], true[column], micro_f1)
        else:
            assert thresholds[label] == choose_thresholds(scores, true)


def test_ties_of_thresholds_go_to_the_nearest_to_one_half():
    scores, labels = np.array([[0.9], [0.2], [0.05]]), np.array([[1], [0], [0]])
    assert choose_thresholds(scores, labels) == pytest.approx(0.55)
    assert choose_thresholds(scores, labels * 0) == 0.5  # says nothing
    assert choose_thresholds(scores, labels * 0 + 1) == 0.0  # every text has the label
    assert choose_thresholds(-scores, labels * 0 + 1) == -0.9
    scores, labels = np.array([[0.8], [0.7], [0.3], [0.2]]), np.array([[1], [0], [1], [0]])
    assert choose_thresholds(scores, labels) == pytest.approx(0.25)
    low = np.float32(0.1)
    high = np.nextafter(low, np.float32(1))
    neighbours = np.array([[high], [low]])
    limit = choose_thresholds(neighbours, np.array([[1], [0]]))
    assert threshold_predictions(neighbours, limit).ravel().tolist() == [True, False]
    adjacent = np.array([[np.nextafter(0.1, 1)], [0.1]])
    limit = choose_thresholds(adjacent, np.array([[1], [0]]))
    assert threshold_predictions(adjacent, limit).ravel().tolist() == [True, False]


def test_top_k():
    assert top_k_predictions([[0.2, 0.7, 0.7, 0.1]], 1).tolist() == [[False, True, False, False]]
    assert top_k_predictions([[0.2, 0.7, 0.7, 0.1]], 3).tolist() == [[True, True, True, False]]
    assert not top_k_predictions(SCORES, 0).any() and top_k_predictions(SCORES, 3).all()
    best = multi_label_scores(SCORES, LABELS, top_k=1)
    assert best["micro_f1"] == pytest.approx(2 * 3 / (4 + 4))
    with pytest.raises(InputError, match="k is 4; it must be an integer from 0 to 3"):
        top_k_predictions(SCORES, 4)
    with pytest.raises(InputError, match=r"threshold is 0.4 and top_k is 1; give one"):
        multi_label_scores(SCORES, LABELS, 0.4, top_k=1)


def test_curves():
    curves = threshold_curves(SCORES, LABELS, [0.0, 0.5])
    expected = [multi_label_scores(SCORES, LABELS, threshold) for threshold in (0.0, 0.5)]
    assert curves.micro_f1.tolist() == [row["micro_f1"] for row in expected]
    assert curves.macro_f1.tolist() == [row["macro_f1"] for row in expected]
    assert len(threshold_curves(SCORES, LABELS).values) == 101
    assert top_k_curves(SCORES, LABELS).to_dict()["values"] == [1, 2, 3]
    assert top_k_curves(SCORES, LABELS, [1]).micro_f1[0] == multi_label_scores(SCORES, LABELS, top_k=1)["micro_f1"]
    with pytest.raises(InputError, match="in ascending order"):
        threshold_curves(SCORES, LABELS, [0.5, 0.2])
    with pytest.raises(InputError, match="at least one integer"):
        top_k_curves(SCORES, LABELS, [0.5])


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (SCORES[:2], LABELS, r"scores have shape \[2, 3\] and labels \[4, 3\]"),
        (SCORES[0], LABELS[0], r"scores have shape \[3\]; they must be"),
        (SCORES[:0], LABELS[:0], "at least one text"),
        (np.where(SCORES > 0.8, np.nan, SCORES), LABELS, "the score of text 0 for label 0 is nan"),
        (np.where(SCORES == 0.8, np.inf, SCORES), LABELS, "the score of text 1 for label 1 is inf"),
        (SCORES, LABELS * 2, "labels contain 2; they must be 0 and 1"),
        (SCORES, np.full(LABELS.shape, "a"), "labels contain a"),
        (SCORES.astype(str), LABELS, "must be numbers"),
    ],
)  # fmt: skip
def test_invalid_scores(scores, labels, message):
    for function in (multi_label_scores, average_precision, choose_thresholds, threshold_curves, top_k_curves):
        with pytest.raises(InputError, match=message):
            function(scores, labels)


def test_invalid_thresholds():
    for threshold in (float("nan"), [0.5, 0.5], "0.5", True):
        with pytest.raises(InputError, match="must be a finite number, or 3 of them"):
            multi_label_scores(SCORES, LABELS, threshold)
    with pytest.raises(InputError, match="maximise is 'f1'; it must be one of micro_f1, macro_f1"):
        choose_thresholds(SCORES, LABELS, maximise="f1")
    with pytest.raises(InputError, match="left out with per_label=True"):
        choose_thresholds(SCORES, LABELS, per_label=True, maximise="micro_f1")
