"""Uncertainty-aware self-training: its formulas, the selection of texts, and weights of labels."""

import numpy as np
import pytest

from duonlp.data.labelled.batches import LabelledBatches
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError
from duonlp.fewshot import FewShotData
from duonlp.fewshot.ust import UST, WeightedBatches, confidence_weights, mutual_information, select
from tests.reference.record_pipelines import load_tokenizer


def samples(multi_label=False, passes=6, texts=40, classes=3):
    rng = np.random.default_rng(0)
    if multi_label:
        return rng.random((passes, texts, classes))
    return rng.dirichlet(np.ones(classes), size=(passes, texts))


def entropy(*p):
    return -sum(x * np.log(x) for x in p)


def test_mutual_information_is_the_formula():
    several = samples()
    values = mutual_information(several)
    for text in (0, 7):
        mean = several[:, text].mean(0)
        expected = entropy(*mean) - np.mean([entropy(*p) for p in several[:, text]])
        assert values[text] == pytest.approx(expected, abs=1e-8)
    agreed, split = np.array([[0.9, 0.1]] * 4), np.array([[0.999, 0.001], [0.001, 0.999]] * 2)
    assert mutual_information(np.stack([agreed, split], axis=1)) == pytest.approx([0, np.log(2)], abs=0.01)
    several = samples(multi_label=True)
    expected = [
        entropy(m, 1 - m) - np.mean([entropy(p, 1 - p) for p in several[:, 5, label]])
        for label, m in enumerate(several[:, 5].mean(0))
    ]
    assert mutual_information(several, True)[5] == pytest.approx(np.mean(expected), abs=1e-8)


def test_weights_are_the_logarithm_of_the_inverse_variance():
    several, labels = samples(), np.arange(40, dtype=np.int32) % 3
    variances = [np.var([p[label] for p in several[:, text]]) for text, label in enumerate(labels)]
    weights = confidence_weights(several, labels, 0.1)
    np.testing.assert_allclose(weights, 0.1 * np.log(1 / np.array(variances)), rtol=1e-5)
    assert weights.dtype == np.float32 and (weights > 0).all()
    each = confidence_weights(several, np.eye(3, dtype=np.float32)[labels], 1.0)
    np.testing.assert_allclose(each, -np.log(several.var(0)), rtol=1e-5)


@pytest.mark.parametrize("easy", [True, False])
def test_texts_are_drawn_in_proportion(easy):
    information, labels = np.array([0.0, 0.2, 0.5, 0.8, 1.0]), np.zeros(5, np.int32)
    counts = np.zeros(5)
    for seed in range(3000):
        counts[select(information, labels, 1, easy=easy, per_class=False, seed=seed)] += 1
    chances = 1 - information if easy else information
    np.testing.assert_allclose(counts / 3000, chances / chances.sum(), atol=0.03)


def test_classes_are_drawn_equally_often():
    information, labels = np.linspace(0, 0.5, 40), np.array([0] * 30 + [2] * 10, np.int32)
    drawn = select(information, labels, 24, seed=1)
    assert [*np.bincount(labels[drawn])] == [12, 0, 12]  # of the 10, with replacement
    assert len({*drawn[labels[drawn] == 0]}) == 12
    assert np.array_equal(drawn, select(information, labels, 24, seed=1))
    assert not np.array_equal(drawn, select(information, labels, 24, seed=2))
    several = np.zeros((40, 3), np.float32)
    several[:6, 0] = several[4:20, 1] = 1
    drawn = select(information, several, 15, seed=1)
    groups = [
        np.isin(part, rows).all() for part, rows in zip(drawn.reshape(3, 5), (range(6), range(4, 20), range(20, 40)))
    ]
    assert all(groups)
    assert len(select(information, labels, 100, per_class=False)) == 40


def test_batches_have_the_weights_of_their_rows():
    texts = LabelledTexts(["the loom", "engine", "a program"], np.eye(3, dtype=np.float32), ("a", "b", "c"))
    plain = LabelledBatches(texts, load_tokenizer("wordpiece"), 2, max_length=8)
    weights = np.arange(9, dtype=np.float32).reshape(3, 3) + 1
    batches = WeightedBatches(plain, weights)
    assert len(batches) == 2
    for number in range(2):
        for rows, batch in zip(plain.order(number), batches.epoch(number), strict=True):
            expected = [weights[row] if row >= 0 else np.zeros(3) for row in rows]
            np.testing.assert_array_equal(batch["sample_weight"], expected)
        assert len(list(batches.epoch(number, 1))) == 1


def test_usage_errors():
    texts = LabelledTexts(["the loom"], np.array([0], np.int32), ("a",))
    for message, call in {
        "there are 0 unlabeled texts": lambda: UST().fit(None, FewShotData(texts)),
        "ust trains a model; pass package": lambda: UST().fit(None, FewShotData(texts, None, ["a"])),
        r"passes is 1 .*of at least 2": lambda: UST(passes=1),
        "rounds is 0": lambda: UST(rounds=0),
        "weight_scale is 0; it must be": lambda: UST(weight_scale=0),
        "easy is 'hard'": lambda: UST(easy="hard"),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
