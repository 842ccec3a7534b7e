"""Layer-wise learning rate decay and the settings of fit mean the same in both frameworks."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxnlp.training
import tfnlp.training
from duonlp import architectures
from duonlp.training.fit_config import FitConfig
from duonlp.training.layer_decay import rate_factor
from duonlp.training.log.metrics_file import read_metrics
from jaxnlp.training.optimizers import make_optimizer as optax_optimizer
from tests.pairs import T5, pair_batches

BERT = {
    "model_type": "bert", "vocab_size": 140, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 8, "num_labels": 3, "initializer_range": 0.2,
}  # fmt: skip


@pytest.mark.parametrize(("name", "rate"), [("adamw", 0.1), ("lion", 0.1), ("adafactor", 0.5)])
def test_both_take_the_same_steps(name, rate):
    """With weight decay and gradient clipping; layer-wise rates do not affect the latter."""
    settings = {"weight_decay": 0.1, "clip_norm": 0.5}
    settings |= {} if name == "adafactor" else {"beta1": 0.9, "beta2": 0.99}
    model = tfnlp.AutoModelForSequenceClassification.from_config(BERT, seed=1)
    tree, rng = tfnlp.parameter_tree(model), np.random.default_rng(0)
    theirs = {path: variable.numpy() for path, variable in tree.items()}
    keras_s = tfnlp.training.make_optimizer(name, rate, model, layer_decay=0.5, **settings)
    factors = partial(rate_factor, config=architectures.config_from_hf(BERT), decay=0.5)
    optax_s = optax_optimizer(FitConfig(optimizer=name, layer_decay=0.5, **settings), rate_factors=factors)
    state = optax_s.init(theirs)
    for _ in range(3):
        gradients = {path: rng.normal(size=value.shape).astype(np.float32) for path, value in theirs.items()}
        updates, state = optax_s.update(gradients, state, theirs)
        theirs = optax.apply_updates(theirs, jax.tree.map(lambda u: -rate * u, updates))
        keras_s.apply([gradients[path] for path in tree], list(tree.values()))
    for path, variable in tree.items():
        np.testing.assert_allclose(variable.numpy(), theirs[path], rtol=2e-5, atol=1e-6, err_msg=path)
    if name == "lion":  # its steps have the same size everywhere, except for the decay
        moved = [np.abs(theirs[f"encoder/layer_{i}/attention/query/bias"]).max() for i in (0, 1)]
        assert moved[1] == pytest.approx(2 * moved[0])


def test_fit_logs_the_same_in_both_frameworks(tmp_path):
    """With padding rows in a batch of each epoch (20 pairs), two microbatches per step, and a validation loss per label."""
    config = FitConfig(
        epochs=2, learning_rate=3e-3, label_smoothing=0.1, clip_norm=0.5, accumulation=2, layer_decay=0.5, log_every=1,
    )  # fmt: skip
    options = {"validation": pair_batches(12, seed=1, shuffle=False), "log": {"console": False}}
    records = []
    for package, more in ((jaxnlp, {"mesh": jaxnlp.training.make_mesh({}, jax.devices()[:1])}), (tfnlp, {})):
        model, folder = package.AutoModelForSeq2SeqLM.from_config(T5, seed=1), tmp_path / package.__name__
        package.training.fit(model, pair_batches(20), config, folder, **more, **options)
        records.append(read_metrics(folder))
    ours, theirs = records
    assert [(r["kind"], r["step"], r["examples"]) for r in ours] == [
        (r["kind"], r["step"], r["examples"]) for r in theirs
    ]
    for name in ("loss", "learning_rate"):
        both = [[r[name] for r in log if name in r] for log in records]
        np.testing.assert_allclose(both[0], both[1], rtol=0, atol=1e-4)
