"""Objectives over several forward passes in both frameworks: the same losses, parts and updates."""

from functools import partial

import jax
import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("orbax.checkpoint")

import jaxnlp
import tfnlp
from duonlp.architectures import config_from_hf
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.fewshot.uda import ConsistencyBatches
from duonlp.heads import ROW_MASK
from duonlp.training.fit_config import FitConfig
from duonlp.training.log.metrics_file import read_metrics
from duonlp.training.objectives import ConsistencyLoss
from duonlp.training.objectives.consistency import THRESHOLD
from jaxnlp.training import make_mesh
from tests.objectives import BATCHES, BERT, Agreement
from tests.reference.record_pipelines import load_tokenizer

KINDS = ("single_label_classification", "multi_label_classification")


def curves(folder, objective, batches, config, hf=BERT):
    """Return the records of the steps of a run in each framework."""
    options = {"objective": objective, "log": {"console": False}}
    mesh = make_mesh({}, jax.devices()[:1])
    for package, others in ((jaxnlp, {"mesh": mesh}), (tfnlp, {"jit_compile": False})):
        model = package.AutoModelForSequenceClassification.from_config(hf, seed=1)
        package.training.fit(model, batches, config, folder / package.__name__, **options, **others)
        yield [record for record in read_metrics(folder / package.__name__) if record["kind"] == "step"]


def assert_same_curves(ours, theirs, names):
    for name in names:
        values = [[record[name] for record in records] for records in (ours, theirs)]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_curves_and_parts_agree(tmp_path):
    """With decoupled weight decay and rates by layer, also for the objective's own parameter; records of two steps each."""
    config = FitConfig(
        epochs=2, learning_rate=1e-2, weight_decay=0.1, layer_decay=0.5, log_every=2, evaluate_every=0, save_every=0
    )
    ours, theirs = curves(tmp_path, Agreement(), BATCHES, config)
    assert len(ours) == len(theirs) == 3
    assert_same_curves(ours, theirs, ("loss", "classes", "distance"))


def softmax(x):
    shifted = np.exp(x - x.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def kl(p, q):
    return (p * (np.log(p) - np.log(q))).sum(-1)


def uda_loss(settings, logits, labels, original, augmented, threshold, rows, per_row):
    """Return the loss of Xie et al. and its gradients with respect to the logits and to those of the copies, in NumPy.

    With labels [B, C], each label is a choice between two answers.
    """
    if labels.ndim == 2:
        p, q, target, known = (sigmoid(x) for x in (logits, augmented, original / settings.temperature, original))
        true = np.where(labels == 1, p, 1 - p)  # [B, C]
        both = [np.stack([x, 1 - x], -1) for x in (target, q)]
        divergence, confident = kl(*both) / labels.shape[1], np.maximum(known, 1 - known) > settings.confidence
        supervised_gradient, consistency_gradient = p - labels, (q - target) / labels.shape[1]
    else:
        p, q, target, known = (softmax(x) for x in (logits, augmented, original / settings.temperature, original))
        true = p[np.arange(len(p)), labels]  # [B]
        divergence, confident = kl(target, q), known.max(-1) > settings.confidence
        supervised_gradient, consistency_gradient = p - np.eye(p.shape[1])[labels], q - target
    row_mask, text_mask = rows.reshape(-1, *[1] * (labels.ndim - 1)), np.repeat(rows, per_row)
    mask = (true <= threshold.reshape(row_mask.shape)) * row_mask
    divergence = divergence * confident
    per_text = divergence if labels.ndim == 1 else divergence.sum(1)
    supervised = -(np.log(true) * mask).sum() / max(mask.sum(), 1)
    consistency = (per_text * text_mask).sum() / text_mask.sum()
    mask = mask if labels.ndim == 2 else mask[:, None]
    confident = confident if labels.ndim == 2 else confident[:, None]
    gradients = (
        supervised_gradient * mask / max(mask.sum(), 1),
        settings.weight * consistency_gradient * confident * text_mask[:, None] / text_mask.sum(),
    )
    return supervised + settings.weight * consistency, gradients


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_consistency_loss_and_its_gradient_are_those_of_the_paper(multi_label):
    rng, classes = np.random.default_rng(1), 4
    logits, original, augmented = (rng.normal(size=(n, classes)).astype(np.float32) * 2 for n in (5, 15, 15))
    labels = (rng.random((5, 4)) < 0.4).astype(np.float32) if multi_label else rng.integers(0, 4, 5).astype(np.int32)
    rows, threshold = np.array([1, 1, 1, 1, 0], np.int32), np.full(5, 0.6, np.float32)
    batch = {
        "labels": labels,
        ROW_MASK: rows,
        THRESHOLD: threshold,
        "augmented_input_ids": np.zeros((5, 3, 7), np.int32),
    }
    objective = ConsistencyLoss(weight=0.7, temperature=0.5, confidence=0.6, tsa=True)
    config = config_from_hf(BERT | {"num_labels": classes, "problem_type": KINDS[multi_label]})
    expected, gradients = uda_loss(objective, logits, labels, original, augmented, threshold, rows, 3)

    def loss(package, a, b, c):
        outputs = [{"logits": values} for values in (a, b, c)]
        terms = objective.terms(package.ops, package.losses, "sequence-classification", config, outputs, batch, {})
        return sum(factor * total / count for total, count, factor in terms.values())

    value, (to_logits, to_copies) = jax.value_and_grad(partial(loss, jaxnlp), (0, 2))(logits, original, augmented)
    variables = [tf.Variable(logits), tf.Variable(augmented)]
    with tf.GradientTape() as tape:
        other = loss(tfnlp, variables[0], tf.constant(original), variables[1])
    for ours, *slopes in ((value, to_logits, to_copies), (other, *tape.gradient(other, variables))):
        assert float(ours) == pytest.approx(expected, rel=1e-5)
        for slope, gradient in zip(slopes, gradients, strict=True):
            np.testing.assert_allclose(slope, gradient, atol=1e-6)


@pytest.mark.parametrize("multi_label", [False, True])
def test_uda_has_the_same_curves(tmp_path, multi_label):
    tokenizer, count = load_tokenizer("wordpiece"), 3
    texts = ["the loom wrote patterns", "the engine wrote", "flowers and leaves", "a program"]
    labels = np.eye(count, dtype=np.float32)[[0, 1, 2, 0]] if multi_label else np.array([0, 1, 2, 0], np.int32)
    labelled = LabelledTexts(texts, labels, ("a", "b", "c"))
    originals = [f"{first} {second}" for first in texts for second in texts]
    copies = [[" ".join(reversed(text.split()))] for text in originals]
    batches = ConsistencyBatches(labelled, originals, copies, tokenizer, 3, 2, 6, max_length=16, tsa="exp")
    hf = BERT | {"vocab_size": len(tokenizer), "problem_type": KINDS[multi_label], "num_labels": count}
    config = FitConfig(steps=6, learning_rate=1e-2, log_every=1, evaluate_every=0, save_every=0)
    objective = ConsistencyLoss(temperature=0.5, confidence=0.4, tsa=True)
    ours, theirs = curves(tmp_path, objective, batches, config, hf)
    assert len(ours) == 6
    assert_same_curves(ours, theirs, ("loss", "supervised", "consistency"))
