"""The losses of PET and ADAPET against their formulas, written out for one row after another."""

import types

import numpy as np
import pytest

from duonlp import numpy_ops
from duonlp.training.objectives.prompt import DecoupledLoss, PromptAndTextLoss, PromptLoss, label_scores

WORDS = (((1,), (2, 3)), ((4,),), ((5, 2),))
"""Three labels; the first has two words, and two words have two tokens, the second of which they share at no mask."""
V, B, K, M = 9, 4, 2, 3


def numpy_losses():
    """Return the losses of an engine, in NumPy."""

    def cross_entropy_sum(logits, labels):
        logprobs = numpy_ops.log_softmax(logits)
        used = labels >= 0
        chosen = np.take_along_axis(logprobs, np.maximum(labels, 0)[..., None], -1)[..., 0]
        return -(chosen * used).sum(), used.sum()

    def binary_cross_entropy_sum(logits, labels, mask):
        losses = np.logaddexp(0, logits) - labels * logits
        mask = np.broadcast_to(mask, losses.shape)
        return (losses * mask).sum(), mask.sum()

    return types.SimpleNamespace(cross_entropy_sum=cross_entropy_sum, binary_cross_entropy_sum=binary_cross_entropy_sum)


def example(multi_label: bool):
    rng = np.random.default_rng(0)
    logits = [{"logits": rng.normal(size=(B, n, V)).astype(np.float32)} for n in (K, M)]
    labels = np.array([0, 1, 2, -100], np.int32)
    if multi_label:
        labels = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1], [-100] * 3], np.float32)
    text_labels = rng.integers(0, V, (B, M)).astype(np.int32)
    text_labels[1, 1:] = -100
    batch = {
        "labels": labels, "row_mask": np.array([1, 1, 1, 0], np.int32), "text_labels": text_labels,
        "text_target": np.array([1, 0, 1, 1], np.float32),
    }  # fmt: skip
    return logits, batch


def loss(objective, logits, batch) -> float:
    terms = objective.terms(numpy_ops, numpy_losses(), "masked-lm", None, logits, batch, {})
    return {name: total / count * factor for name, (total, count, factor) in terms.items()}


def softmax(x):
    return np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)


def token_logits(row, multi_label):
    """Return a function (mask, token) -> log probability, or log odds against the tokens of no label, of one row [K, V]."""
    own = [{word[k] for words in WORDS for word in words if len(word) > k} for k in range(K)]
    rest = [np.exp([row[k, v] for v in range(V) if v not in own[k]]).sum() for k in range(K)]
    return lambda k, v: row[k, v] - np.log(rest[k]) if multi_label else np.log(softmax(row[k])[v])


def expected_scores(row, combine, multi_label):
    score = token_logits(row, multi_label)
    reduce = {"mean": np.mean, "sum": np.sum}[combine]
    return np.array([np.mean([reduce([score(k, v) for k, v in enumerate(word)]) for word in words]) for words in WORDS])


@pytest.mark.parametrize("combine", ["mean", "sum"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_pet_is_the_cross_entropy_over_the_words(combine, multi_label):
    logits, batch = example(multi_label)
    scores = np.stack([expected_scores(row, combine, multi_label) for row in logits[0]["logits"]])
    ours = label_scores(numpy_ops, logits[0]["logits"], WORDS, combine, multi_label)
    np.testing.assert_allclose(ours, scores, rtol=1e-5)
    prior = (0.5, -1.0, 2.0) if multi_label else ()
    if multi_label:
        p = 1 / (1 + np.exp(-(scores - prior)[:3]))
        y = batch["labels"][:3]
        expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    else:
        expected = -np.mean([np.log(softmax(scores[i])[batch["labels"][i]]) for i in range(3)])
    objective = PromptLoss(WORDS, multi_label, combine, prior)
    assert loss(objective, logits, batch) == {"labels": pytest.approx(expected, rel=1e-5)}
    masked = [
        np.log(softmax(logits[1]["logits"][i, j])[batch["text_labels"][i, j]])
        for i in range(3) for j in range(M) if batch["text_labels"][i, j] >= 0
    ]  # fmt: skip
    both = loss(PromptAndTextLoss(WORDS, multi_label, combine, prior, alpha=0.1), logits, batch)
    assert both == {
        "labels": pytest.approx(0.9 * expected, rel=1e-5),
        "text": pytest.approx(-0.1 * np.mean(masked), rel=1e-5),
    }


@pytest.mark.parametrize("multi_label", [False, True])
def test_adapet_is_the_binary_cross_entropy_of_tokens(multi_label):
    logits, batch = example(multi_label)
    decoupled, conditioned = [], []
    for i in range(3):
        row = logits[0]["logits"][i]
        score = token_logits(row, multi_label)
        positive = {c for c in range(3) if (batch["labels"][i, c] if multi_label else batch["labels"][i] == c)}
        tokens = {(k, v) for c in positive for word in WORDS[c] for k, v in enumerate(word)}
        for words in WORDS:
            for word in words:
                for k, v in enumerate(word):
                    p = 1 / (1 + np.exp(-score(k, v))) if multi_label else np.exp(score(k, v))
                    decoupled.append(-np.log(p if (k, v) in tokens else 1 - p))
        for j in range(M):
            if (token := batch["text_labels"][i, j]) >= 0:
                p = softmax(logits[1]["logits"][i, j])[token]
                conditioned.append(-np.log(p if batch["text_target"][i] else 1 - p))
    expected = {"labels": np.mean(decoupled), "text": np.mean(conditioned)}
    assert loss(DecoupledLoss(WORDS, multi_label), logits, batch) == pytest.approx(expected, rel=1e-5)


def test_a_token_of_all_labels_is_left_out_and_a_shared_one_is_no_negative():
    """ "new model", "new task" and "new": the first token says nothing; without the third, neither does it of two labels."""
    logits, batch = example(False)
    objective = DecoupledLoss((((1, 2),), ((1, 3),), ((1,),)))
    terms = objective.terms(numpy_ops, numpy_losses(), "masked-lm", None, logits, batch, {})
    assert terms["labels"][1] == 3 * 2
    objective = DecoupledLoss((((1, 2),), ((1, 3),), ((4,),)))
    one = {**batch, "row_mask": np.array([1, 0, 0, 0], np.int32)}
    p = softmax(logits[0]["logits"][0])
    expected = -np.log([p[0, 1], p[0, 1], p[1, 2], 1 - p[1, 3], 1 - p[0, 4]]).mean()
    assert loss(objective, logits, one)["labels"] == pytest.approx(expected, rel=1e-5)
