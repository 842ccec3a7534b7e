"""Pruning during fit in both engines from the same weights and batches: the same losses and the same masks."""

import jax
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxnlp
import jaxnlp.training
import tfnlp
from duonlp.training.log.metrics_file import read_metrics
from jaxnlp.training import make_mesh
from tests.pruning import CONFIG, SETTINGS, batches, config, zeros
from tfnlp.training import fit


@pytest.mark.parametrize(
    "name", [n if n in ("movement", "units") else pytest.param(n, marks=pytest.mark.slow) for n in SETTINGS]
)
def test_masks_and_losses_agree(name, tmp_path):
    trees = []
    for engine in (tfnlp, jaxnlp):
        model = engine.AutoModelForSequenceClassification.from_config(CONFIG, seed=1)
        options = {"mesh": make_mesh({}, jax.devices()[:1])} if engine is jaxnlp else {"jit_compile": False}
        run = fit if engine is tfnlp else jaxnlp.training.fit
        result = run(model, batches(), config(name), tmp_path / engine.__name__, log={"console": False}, **options)
        trees.append({path: np.asarray(value) for path, value in engine.parameter_tree(result.model).items()})
    losses = [[record["loss"] for record in read_metrics(tmp_path / e.__name__)] for e in (tfnlp, jaxnlp)]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-4)
    ours, theirs = map(zeros, trees)
    assert any(mask.any() for mask in ours.values())
    agree = [np.mean(mask == theirs[path]) for path, mask in ours.items()]
    assert np.mean(agree) > 0.99
