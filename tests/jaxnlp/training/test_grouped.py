"""Objectives over several forward passes: exact however a batch is split, saved with their own parameters, resumed."""

from dataclasses import replace

import jax
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxnlp
from duonlp.errors import InputError
from duonlp.training.log.metrics_file import read_metrics
from jaxnlp.pretrained import merge, split
from jaxnlp.training import FitConfig, fit, make_mesh
from jaxnlp.training.grouped import GroupedStep, ObjectiveModel
from tests.objectives import BATCHES, BERT, OTHERS, Agreement, batch, expected_parts

CONFIG = FitConfig(epochs=3, learning_rate=1e-2, log_every=1, evaluate_every=0, save_every=0)
QUIET = {"console": False}


def one_device():
    return make_mesh({}, jax.devices()[:1])


def model_of(**changes):
    return jaxnlp.AutoModelForSequenceClassification.from_config(BERT | changes, seed=1)


def fitted(folder=None, config=CONFIG, model=None, batches=BATCHES, mesh=None, **options):
    model = model_of() if model is None else model
    return fit(model, batches, config, folder, objective=Agreement(), mesh=mesh or one_device(), log=QUIET, **options)


def values(model):
    tree = {path: np.asarray(value) for path, value in jaxnlp.parameter_tree(model.model).items()}
    return tree | model.parameters


def assert_same(ours, theirs, **tolerance):
    for path, value in theirs.items():
        if not path.endswith("key/bias"):  # its gradient is rounding noise
            np.testing.assert_allclose(ours[path], value, err_msg=path, **tolerance)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grouped") / "run"
    return folder, fitted(folder, replace(CONFIG, evaluate_every="epoch"), validation=BATCHES[2:], evaluate=scale_of)


def scale_of(model):
    return {"scale": float(model.parameters["scale"][0])}


def logits(model, ids):
    return np.asarray(model(ids)["logits"])


def test_the_loss_its_parts_and_the_gradient_are_the_formulas():
    arrays, model, objective = BATCHES[2], model_of(), Agreement()
    step, scale = GroupedStep(model, objective, CONFIG, one_device()), objective.parameters(model.config, 0)["scale"]
    others = [logits(model, arrays[OTHERS + "input_ids"][:, i]) for i in range(2)]
    expected = expected_parts(logits(model, arrays["input_ids"]), others, scale, arrays)
    params = step.init_state()["params"]
    assert step.evaluate(params, [arrays]) == pytest.approx(expected, rel=1e-5)
    graphdef, own = split(model)

    def explicit(own):
        classes, real = merge(graphdef, own)(arrays["input_ids"])["logits"], arrays["row_mask"]
        losses = -jax.nn.log_softmax(classes * scale)[np.arange(8), arrays["labels"]]
        return ((losses + 0.5 * sum(((classes - other) ** 2).sum(1) for other in others)) * real).sum() / real.sum()

    def ours(own):
        terms = step.plan.terms({**params, **own}, {}, step.put(arrays))
        return sum(factor * total / count for total, count, factor in terms.values())

    for theirs, value in zip(*(jax.tree.leaves(jax.grad(loss)(own)) for loss in (explicit, ours)), strict=True):
        np.testing.assert_allclose(value, theirs, atol=1e-6)


def test_a_model_learns_with_its_own_parameters_and_is_saved(whole):
    folder, result = whole
    assert isinstance(result.model, ObjectiveModel) and (result.steps, result.examples) == (9, 63)
    first, *_, last = result.history
    assert last.keys() == {"step", "loss", "classes", "distance", "scale"} and last["loss"] < first["loss"]
    assert last["loss"] == pytest.approx(last["classes"] + 0.5 * last["distance"], rel=1e-5)
    assert last["scale"] == result.model.parameters["scale"][0] != 1
    records = [record for record in read_metrics(folder) if record["kind"] == "step"]
    assert all(r["loss"] == pytest.approx(r["classes"] + 0.5 * r["distance"], rel=1e-5) for r in records)
    best = jaxnlp.AutoModelForSequenceClassification.from_pretrained(result.best_folder)
    assert result.best["step"] == 9
    saved = {path: np.asarray(value) for path, value in jaxnlp.parameter_tree(best).items()}
    assert_same(saved | dict(np.load(result.best_folder / "scale.npz")), values(result.model), rtol=0, atol=0)


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
        fit(model_of(), BATCHES, config, tmp_path, objective=Agreement(factor=0.25), mesh=one_device(), **options)


@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_parts_of_a_batch_and_devices_change_nothing(whole, parallelism):
    several = fitted(
        config=replace(CONFIG, accumulation=2, parallelism=parallelism),
        mesh=make_mesh({"data": 2}, jax.devices()[:2]),
        batches=[*BATCHES[:2], {name: value[:6] for name, value in BATCHES[2].items()}],
    )
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
    model, pmap = model_of(), replace(CONFIG, parallelism="pmap")
    for message, changes in {
        "the objective needs other_input_ids": {"batches": [without]},
        r"other_input_ids has shape \[8, 6\]; it must have 3 axes": {"batches": [flat]},
        "input_ids contains": {"batches": [batch(0) | {"input_ids": np.full((8, 6), 99)}]},
        "the model has 2 labels": {"model": model_of(num_labels=2)},
        "label_smoothing is 0.1, but an objective": {"config": replace(CONFIG, label_smoothing=0.1)},
    }.items():
        with pytest.raises(InputError, match=message):
            fitted(**changes)
    for message, changes in {
        "counts texts by the model's outputs": {"config": replace(CONFIG, accumulation=2)},
        "devices 2": {"config": pmap, "mesh": make_mesh({"data": 2}, jax.devices()[:2])},
        "omit loss=": {"loss": lambda outputs, batch: ()},
    }.items():
        with pytest.raises(InputError, match=message):
            fit(model, BATCHES, **{"config": CONFIG, "objective": CountsConfident(), **changes})
    with pytest.raises(InputError, match="pass an Objective of"):
        fit(model, BATCHES, CONFIG, objective="agreement")
