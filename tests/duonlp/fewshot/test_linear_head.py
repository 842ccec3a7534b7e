"""The linear head is scikit-learn's logistic regression, also where a label is missing or everywhere."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from duonlp.fewshot.linear_head import LinearHead

VECTORS = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("balanced", [False, True])
def test_single_label_scores_are_those_of_scikit_learn(classes, balanced):
    labels = np.random.default_rng(1).integers(0, classes, 40).astype(np.int32)
    weights = "balanced" if balanced else None
    expected = (
        LogisticRegression(C=3.0, class_weight=weights, max_iter=1000).fit(VECTORS, labels).predict_proba(VECTORS)
    )
    # One further class without texts comes first.
    scores = LinearHead.fit(VECTORS, labels + 1, classes + 1, 3.0, balanced).scores(VECTORS)
    np.testing.assert_allclose(scores[:, 1:], expected, atol=1e-5)
    assert not scores[:, 0].any() and scores.dtype == np.float32


def test_multi_label_scores_are_those_of_scikit_learn():
    labels = (np.random.default_rng(1).random((40, 4)) < 0.4).astype(np.float32)
    labels[:, 1], labels[:, 3] = 0, 1
    scores = LinearHead.fit(VECTORS, labels, 4).scores(VECTORS)
    with pytest.warns(UserWarning, match="Label"):
        expected = OneVsRestClassifier(LogisticRegression(max_iter=1000)).fit(VECTORS, labels).predict_proba(VECTORS)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert not scores[:, 1].any() and scores[:, 3].all()


def test_one_label_only():
    scores = LinearHead.fit(VECTORS, np.full(40, 2, np.int32), 4).scores(VECTORS)
    np.testing.assert_array_equal(scores, np.eye(4, dtype=np.float32)[[2] * 40])
