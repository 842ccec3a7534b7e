"""Distillation in both frameworks from the same weights and batches gives the same parts of the loss at every step."""

import jax
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxnlp
import tfnlp
from duonlp.distillation.settings import Attentions, Distillation, HiddenStates, Relations
from duonlp.training.log.metrics_file import read_metrics
from jaxnlp.training import FitConfig, make_mesh
from tests.cases import cases

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
HEADS = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "masked-lm": "AutoModelForMaskedLM",
}


def batches_of(head):
    """Return twelve rows in batches of four, with padding, weights and, for masked-lm, a few labeled tokens."""
    rng = np.random.default_rng(0)
    ids, lengths = rng.integers(5, 55, (12, 6)).astype(np.int32), rng.integers(3, 7, (12, 1))
    mask = (np.arange(6) < lengths).astype(np.int32)
    if head == "masked-lm":
        labels = np.where((np.arange(6) % 3 == 1) & (mask == 1), ids, -100)
    else:
        labels = ids[:, 0] % 3
    rows = {
        "input_ids": ids * mask, "attention_mask": mask, "labels": labels.astype(np.int32),
        "sample_weight": rng.uniform(0.5, 2, 12).astype(np.float32),
    }  # fmt: skip
    return [{name: values[start : start + 4] for name, values in rows.items()} for start in (0, 4, 8)]


@pytest.mark.parametrize(
    ("head", "distillation"),
    [
        (
            "sequence-classification",
            Distillation(
                alpha=0.4, temperature=4.0, losses=(HiddenStates(0.3), Attentions(0.2, "mse"), Relations(0.5, heads=2))
            ),
        ),
        ("masked-lm", Distillation.distilbert()),
    ],
)
def test_the_curves_agree(tmp_path, head, distillation):
    hf = next(case for case in cases() if case.name == f"bert-{head}").hf | NO_DROPOUT
    hf |= {"num_labels": 3} if head == "sequence-classification" else {}
    small = {"num_hidden_layers": 1} | ({"hidden_size": 16} if head == "sequence-classification" else {})
    config = FitConfig(epochs=2, learning_rate=1e-2, log_every=1, layer_decay=0.8)
    curves = {}
    for package in (jaxnlp, tfnlp):
        auto, folder = getattr(package, HEADS[head]), tmp_path / package.__name__
        options = {"mesh": make_mesh({}, jax.devices()[:1])} if package is jaxnlp else {"jit_compile": False}
        result = package.distill(
            auto.from_config(hf | small, seed=2), auto.from_config(hf, seed=1), batches_of(head), config, distillation, folder,
            validation=batches_of(head), log={"console": False}, **options,
        )  # fmt: skip
        steps = [record for record in read_metrics(folder) if record["kind"] == "step"]
        names = "loss", "student_loss", "distillation_loss", *distillation.loss_names
        curves[package] = [[record[name] for name in names] for record in (*steps, result.history[-1])]
    ours, theirs = np.array(curves[jaxnlp]), np.array(curves[tfnlp])
    assert ours.shape == theirs.shape == (7, 3 + len(distillation.losses)) and ours[5, 0] < ours[0, 0]
    np.testing.assert_allclose(theirs[:6], ours[:6], rtol=2e-4, atol=1e-5)
    # In validation, Keras weights each batch's mean by its labels, even for losses that count other items.
    np.testing.assert_allclose(theirs[6], ours[6], rtol=2e-2)
    np.testing.assert_allclose(theirs[6, 1], ours[6, 1], rtol=1e-4)
