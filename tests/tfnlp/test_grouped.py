"""Objectives over several forward passes: exact however a batch is split, saved with their own parameters, resumed."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

import tfnlp
from duonlp.errors import InputError
from duonlp.training.log.metrics_file import read_metrics
from tests.objectives import BATCHES, BERT, OTHERS, Agreement, batch, expected_parts
from tfnlp.training import FitConfig, fit
from tfnlp.training.grouped import ObjectiveModel

pytestmark = [
    pytest.mark.usefixtures("eagerly"),
    pytest.mark.filterwarnings(
        "ignore:Even though the .* option is set, this option does not apply to tf.data:UserWarning"
    ),
]
CONFIG = FitConfig(epochs=3, learning_rate=1e-2, log_every=1, evaluate_every=0, save_every=0)
QUIET = {"console": False}


def model_of(**changes):
    return tfnlp.AutoModelForSequenceClassification.from_config(BERT | changes, seed=1)


def fitted(folder=None, config=CONFIG, model=None, batches=BATCHES, **options):
    model = model_of() if model is None else model
    return fit(model, batches, config, folder, objective=Agreement(), log=QUIET, **options)


def values(model):
    return {path: variable.numpy() for path, variable in tfnlp.parameter_tree(model).items()}


def assert_same(ours, theirs, **tolerance):
    for path, value in theirs.items():
        if not path.endswith("key/bias"):  # its gradient is rounding noise
            np.testing.assert_allclose(ours[path], value, err_msg=path, **tolerance)


def run_steps(strategy):
    """Return the parameters and losses after steps under a strategy, whose last batch has a part that fills it up."""
    with strategy.scope():
        model = model_of()
    batches = [*BATCHES[:2], {name: value[:5] for name, value in BATCHES[2].items()}]
    result = fitted(None, replace(CONFIG, evaluate_every="epoch"), model, batches, validation=BATCHES[2:])
    return values(result.model) | {name: np.float32(value) for name, value in result.history[-1].items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, eagerly):
    folder = tmp_path_factory.mktemp("grouped") / "run"
    return folder, fitted(folder, replace(CONFIG, evaluate_every="epoch"), validation=BATCHES[2:], evaluate=scale_of)


def scale_of(model):
    return {"scale": float(model.parameters["scale"][0])}


def logits(model, ids):
    return np.asarray(model(ids)["logits"])


def test_the_loss_its_parts_and_the_gradient_are_the_formulas():
    arrays, model, objective = BATCHES[2], model_of(), Agreement()
    others = [logits(model, arrays[OTHERS + "input_ids"][:, i]) for i in range(2)]
    scale, trainer = objective.parameters(model.config, 0)["scale"], ObjectiveModel(model, objective)
    trainer.compile("sgd")
    expected = expected_parts(logits(model, arrays["input_ids"]), others, scale, arrays)
    assert trainer.test_on_batch(arrays, return_dict=True) == pytest.approx(expected, rel=1e-5)
    real = arrays["row_mask"].astype(np.float32)
    with tf.GradientTape() as tape:
        classes = model(arrays["input_ids"])["logits"]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(arrays["labels"], classes * scale)
        losses += 0.5 * sum(tf.reduce_sum((classes - other) ** 2, 1) for other in others)
        loss = tf.reduce_sum(losses * real) / real.sum()
    tree = tfnlp.parameter_tree(model)
    gradients = tape.gradient(loss, [variable.value for variable in tree.values()])
    before = {path: variable.numpy() for path, variable in tree.items()}
    trainer.compile(tf.keras.optimizers.SGD(1.0))
    trainer.train_on_batch(arrays)
    for (path, variable), gradient in zip(tree.items(), gradients):
        expected = 0 if gradient is None else tf.convert_to_tensor(gradient).numpy()
        np.testing.assert_allclose(before[path] - variable.numpy(), expected, atol=1e-6, err_msg=path)


def test_a_model_learns_with_its_own_parameters_and_is_saved(whole):
    folder, result = whole
    assert isinstance(result.model, ObjectiveModel) and (result.steps, result.examples) == (9, 63)
    first, *_, last = result.history
    assert last.keys() == {"step", "loss", "classes", "distance", "scale"} and last["loss"] < first["loss"]
    assert last["loss"] == pytest.approx(last["classes"] + 0.5 * last["distance"], rel=1e-5)
    assert last["scale"] == float(result.model.parameters["scale"][0]) != 1
    records = [record for record in read_metrics(folder) if record["kind"] == "step"]
    assert all(r["loss"] == pytest.approx(r["classes"] + 0.5 * r["distance"], rel=1e-5) for r in records)
    best = tfnlp.AutoModelForSequenceClassification.from_pretrained(result.best_folder)
    assert result.best["step"] == 9
    saved = values(best) | {"objective/scale": np.load(result.best_folder / "scale.npz")["scale"]}
    assert_same(saved, values(result.model), rtol=0, atol=0)


def test_a_run_resumes_bit_identically(tmp_path, whole):
    class Stopped(Exception):
        pass

    def stop(step, metrics):
        if step == 6:
            raise Stopped

    config = replace(CONFIG, evaluate_every="epoch", save_every="epoch")
    options = {"validation": BATCHES[2:], "evaluate": scale_of}
    with pytest.raises(Stopped):
        fitted(tmp_path, config, on_evaluation=stop, **options)
    resumed = fitted(tmp_path, config, **options)
    assert resumed.steps == 9 and resumed.examples == 63
    assert_same(values(resumed.model), values(whole[1].model), rtol=0, atol=0)
    with pytest.raises(InputError, match="different objective"):
        fit(model_of(), BATCHES, config, tmp_path, objective=Agreement(factor=0.25), **options)


def test_parts_of_a_batch_change_nothing(whole):
    batches = [*BATCHES[:2], {name: value[:5] for name, value in BATCHES[2].items()}]
    several = fitted(config=replace(CONFIG, accumulation=2), batches=batches)
    assert_same(values(several.model), values(whole[1].model), rtol=1e-4, atol=1e-5)


def test_dropout_is_that_of_each_group(tmp_path):
    """The first group has none, the second one has, in training alone."""
    parts = []
    for dropout in (0.0, 0.5):
        config, folder = replace(CONFIG, epochs=1, evaluate_every=0), tmp_path / str(dropout)
        fitted(folder, config, model_of(hidden_dropout_prob=dropout), BATCHES[:1])
        parts += [record for record in read_metrics(folder) if record["kind"] == "step"]
    assert parts[1]["classes"] == pytest.approx(parts[0]["classes"], rel=1e-6)
    assert abs(parts[1]["distance"] - parts[0]["distance"]) > 0.01


class CountsConfident(Agreement):
    """An objective whose counts depend on the outputs."""

    @property
    def counts_depend_on_outputs(self):
        return True


def test_usage_errors():
    without = {name: value for name, value in BATCHES[0].items() if not name.startswith(OTHERS)}
    flat = BATCHES[0] | {OTHERS + "input_ids": BATCHES[0]["input_ids"]}
    for message, changes in {
        "the objective needs other_input_ids": {"batches": [without]},
        r"other_input_ids has shape \[8, 6\]; it must have 3 axes": {"batches": [flat]},
        "input_ids contains": {"batches": [batch(0) | {"input_ids": np.full((8, 6), 99)}]},
        "the model has 2 labels": {"model": model_of(num_labels=2)},
        "label_smoothing is 0.1, but an objective": {"config": replace(CONFIG, label_smoothing=0.1)},
    }.items():
        with pytest.raises(InputError, match=message):
            fitted(**changes)
    model = model_of()
    for message, changes in {
        "counts texts by the model's outputs": {"config": replace(CONFIG, accumulation=2)},
        "omit loss=": {"loss": tf.keras.losses.MeanSquaredError()},
        "pass an Objective of duonlp.training.objectives": {"objective": "agreement"},
    }.items():
        with pytest.raises(InputError, match=message):
            fit(model, BATCHES, **{"config": CONFIG, "objective": CountsConfident(), **changes})
    with pytest.raises(InputError, match="cannot be saved as a whole"):
        ObjectiveModel(model, Agreement()).get_config()
