"""Fine-tuning in both frameworks from the same weights and batches: the same losses, optimizers and loss curves."""

from functools import partial

import jax
import keras
import numpy as np
import optax
import pytest
import tensorflow as tf

pytest.importorskip("orbax.checkpoint")

import jaxnlp.losses
import tfnlp.losses
from duonlp.training.log.metrics_file import read_metrics
from jaxnlp.training import FitConfig, fit, make_mesh
from jaxnlp.training.optimizers import make_optimizer as optax_optimizer
from tests.pairs import T5, pair_batches
from tfnlp.losses import SmoothedCrossEntropy
from tfnlp.training import Adafactor, Schedule, batch_dataset, make_optimizer

STEPS = 10
OPTIONS = {"schedule": "cosine", "warmup_share": 0.2, "final_share": 0.1}


def in_jax(batches, folder, **settings):
    config = FitConfig(steps=STEPS, log_every=1, **OPTIONS, **settings)
    mesh = make_mesh({}, jax.devices()[:1])
    model = jaxnlp.AutoModelForSeq2SeqLM.from_config(T5, seed=1)
    fit(model, batches, config, folder, mesh=mesh, log={"console": False})
    return [record["loss"] for record in read_metrics(folder)]


def in_keras(dataset, *, optimizer, learning_rate, label_smoothing=0.0, accumulation=1, clip_norm=1.0):
    """Return the losses of Keras' fit, with one batch per epoch, since it logs means over epochs."""
    model = tfnlp.AutoModelForSeq2SeqLM.from_config(T5, seed=1)
    rate = Schedule(STEPS, learning_rate, **OPTIONS)
    keras_optimizer = make_optimizer(
        optimizer, rate, model, weight_decay=0.01, beta2=0.999, clip_norm=clip_norm, accumulation=accumulation
    )
    loss = SmoothedCrossEntropy(label_smoothing) if label_smoothing else None
    model.compile(keras_optimizer, loss=loss, jit_compile=False)
    history = model.fit(dataset, epochs=STEPS * accumulation, steps_per_epoch=1, shuffle=False, verbose=0).history
    return np.reshape(history["loss"], (STEPS, accumulation)).mean(axis=1)


@pytest.mark.parametrize(("optimizer", "learning_rate", "smoothing"), [("adamw", 3e-3, 0.1), ("adafactor", 0.03, 0.0)])
def test_the_curves_agree(tmp_path, optimizer, learning_rate, smoothing):
    """With 20 pairs, so that the third batch of each epoch has padding rows."""
    settings = {"optimizer": optimizer, "learning_rate": learning_rate, "label_smoothing": smoothing, "clip_norm": 0.5}
    ours = in_jax(pair_batches(20), tmp_path / "run", **settings)
    theirs = in_keras(batch_dataset(pair_batches(20), epochs=4), **settings)
    assert ours[-1] < 0.9 * ours[0] and len(ours) == STEPS
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("optimizer", "learning_rate"), [("adamw", 3e-3), ("adafactor", 0.03)])
def test_the_curves_agree_when_gradients_are_accumulated(tmp_path, optimizer, learning_rate):
    """Two microbatches are two batches for Keras, which weighs them equally, so each has the same number of labels here."""
    settings = {"optimizer": optimizer, "learning_rate": learning_rate, "label_smoothing": 0.1, "accumulation": 2}
    whole = [batch for epoch in range(4) for batch in pair_batches().epoch(epoch)][:STEPS]
    halves = [{name: rows[i::2] for name, rows in batch.items()} for batch in whole for i in range(2)]
    ours = in_jax(whole, tmp_path / "run", **settings)
    np.testing.assert_allclose(in_keras(batch_dataset(halves), **settings), ours, rtol=0, atol=1e-4)


def test_adafactor_matches_optax():
    """With factored and full moments, over the two largest axes, and weight decay; Keras' own differs in all of these."""
    rng, shapes = (
        np.random.default_rng(0),
        {"kernel": (140, 130), "cube/kernel": (131, 3, 150), "small/kernel": (8, 200)},
    )
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in (shapes | {"bias": (9,)}).items()}
    transform = optax_optimizer(FitConfig(optimizer="adafactor", weight_decay=0.1, learning_rate=0.5))
    state, ours = transform.init(params), dict(params)
    variables = {name: keras.Variable(value) for name, value in params.items()}
    optimizer = Adafactor(0.5, weight_decay=0.1, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_list=[variables["bias"]])
    for _ in range(3):
        gradients = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in params.items()}
        updates, state = transform.update(gradients, state, ours)
        ours = optax.apply_updates(ours, jax.tree.map(lambda u: -0.5 * u, updates))
        optimizer.apply([gradients[name] for name in variables], list(variables.values()))
    for name, variable in variables.items():
        np.testing.assert_allclose(variable.numpy(), ours[name], rtol=2e-5, atol=1e-6, err_msg=name)
    size = sum(np.prod(variable.shape) for variable in optimizer.variables)
    assert size < 140 + 130 + 3 * (131 + 150) + 8 * 200 + 9 + 10  # a row and a column of each factored parameter
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_matches_torch(smoothing):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 4, 7)).astype(np.float32) * 3, rng.integers(0, 7, (3, 4)).astype(np.int32)
    labels[0, 1:] = labels[2, 3] = -100
    theirs = torch.tensor(logits, requires_grad=True)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, ignore_index=-100)
    expected = criterion(theirs.reshape(-1, 7), torch.tensor(labels.reshape(-1), dtype=torch.long))
    expected.backward()
    loss, gradient = jax.value_and_grad(jaxnlp.losses.cross_entropy)(logits, labels, label_smoothing=smoothing)
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        other = tfnlp.losses.cross_entropy(variable, labels, label_smoothing=smoothing)
    for value, slope in ((loss, gradient), (other, tape.gradient(other, variable))):
        assert float(value) == pytest.approx(float(expected), rel=1e-6)
        np.testing.assert_allclose(slope, theirs.grad.numpy(), rtol=0, atol=1e-7)


def test_smoothing_saves_only_the_logits_for_the_gradient():
    """No other residual has their size, so neither probabilities nor explicit targets are stored."""
    logits, labels = jax.ShapeDtypeStruct((4, 64, 999), "bfloat16"), jax.ShapeDtypeStruct((4, 64), "int32")
    smoothed = partial(jaxnlp.losses.cross_entropy, label_smoothing=0.1)
    _, residuals = jax.eval_shape(lambda x, y: jax.vjp(lambda x: smoothed(x, y), x), logits, labels)
    large = [leaf for leaf in jax.tree.leaves(residuals) if leaf.size >= 4 * 64 * 999]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == [(logits.shape, logits.dtype)]
