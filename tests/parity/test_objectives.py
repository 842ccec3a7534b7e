"""Objectives over several forward passes in both frameworks: the same losses, parts and updates."""

import jax
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxnlp
import tfnlp
from duonlp.training.fit_config import FitConfig
from duonlp.training.log.metrics_file import read_metrics
from jaxnlp.training import make_mesh
from tests.objectives import BATCHES, BERT, Agreement


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
