"""Test pruning during fit: what becomes zero, exact resuming, distillation, and smaller models."""

import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxnlp
from duonlp.errors import InputError
from duonlp.pruning import Pruning
from duonlp.training import FitConfig
from jaxnlp.pruning import prune, shrink
from jaxnlp.training import export, fit
from tests.pruning import CONFIG, batches, config, zeros

IDS = np.arange(5, 11, dtype=np.int32)[None]


def model():
    return jaxnlp.AutoModelForSequenceClassification.from_config(CONFIG, seed=1)


def run(name, folder=None, **changes):
    return fit(model(), batches(), config(name, **changes), folder, log={"console": False})


def test_a_resumed_run_is_identical(tmp_path):
    whole = run("movement", tmp_path / "whole", save_every=5)

    def stop(step, metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            model(), batches(), config("movement", save_every=5, evaluate_every=7), tmp_path / "half",
            validation=batches(), on_evaluation=stop, log={"console": False},
        )  # fmt: skip
    half = fit(
        model(), batches(), config("movement", save_every=5, evaluate_every=7), tmp_path / "half",
        validation=batches(), log={"console": False},
    )  # fmt: skip
    ours, theirs = (jaxnlp.parameter_tree(result.model) for result in (whole, half))
    for path, value in ours.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(theirs[path]), path)
    export(tmp_path / "whole", tmp_path / "exported")
    exported = jaxnlp.AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported")
    for path, value in jaxnlp.parameter_tree(exported).items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(ours[path]), path)
    share = np.concatenate([mask.ravel() for mask in zeros(ours).values()]).mean()
    assert share == pytest.approx(0.5, abs=1e-3)


def test_units_are_removed_after_distillation(tmp_path):
    result = jaxnlp.distill(model(), model(), batches(), config("units"), log={"console": False})
    smaller = shrink(result.model)
    assert smaller.num_parameters() < result.model.num_parameters()
    expected = np.asarray(result.model(IDS)["logits"])
    np.testing.assert_allclose(np.asarray(smaller(IDS)["logits"]), expected, rtol=1e-4, atol=1e-5)
    smaller.save_pretrained(tmp_path / "smaller")
    loaded = jaxnlp.AutoModelForSequenceClassification.from_pretrained(tmp_path / "smaller")
    assert loaded.config == smaller.config
    np.testing.assert_allclose(np.asarray(loaded(IDS)["logits"]), expected, rtol=1e-4, atol=1e-5)


def test_the_evaluated_and_the_saved_model_are_pruned(tmp_path):
    seen = []

    def evaluate(model):
        seen.append(np.concatenate([mask.ravel() for mask in zeros(jaxnlp.parameter_tree(model)).values()]).mean())
        return {"score": float(len(seen))}

    settings = config("2:4", evaluate_every=3, best_metric="score", greater_is_better=False)
    result = fit(model(), batches(), settings, tmp_path / "run", evaluate=evaluate, log={"console": False})
    assert seen[-1] == 0.5 and seen[0] < 0.5 and result.best == {"value": 3.0, "step": 9}
    best = jaxnlp.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "best")
    for mask in zeros(jaxnlp.parameter_tree(best)).values():
        assert (mask.reshape(-1, 4, mask.shape[1]).sum(axis=1) == 2).all()


def test_pruning_at_once_leaves_the_model_alone():
    original = model()
    pruned = prune(original, Pruning(sparsity=0.5, scope="layer"))
    assert all(mask.mean() == 0.5 for mask in zeros(jaxnlp.parameter_tree(pruned)).values())
    assert not any(mask.any() for mask in zeros(jaxnlp.parameter_tree(original)).values())
    with pytest.raises(InputError, match="quantized"):
        prune(jaxnlp.quantize(original), Pruning(sparsity=0.5))


def test_a_schedule_that_never_ends_is_refused():
    with pytest.raises(InputError, match="the run has 3 steps"):
        fit(model(), batches(), FitConfig(steps=3, pruning=Pruning(sparsity=0.5, end=3), evaluate_every=0))


def test_scanned_layers_and_accumulation_give_the_same():
    plain, other = (run("soft-movement", **changes) for changes in ({}, {"scan": True, "accumulation": 2}))
    assert plain.loss == pytest.approx(other.loss, rel=1e-4)
    masks = [zeros(jaxnlp.parameter_tree(result.model)) for result in (plain, other)]
    assert any(mask.any() for mask in masks[0].values())
    same = [np.mean(mask == masks[1][path]) for path, mask in masks[0].items()]
    assert np.mean(same) > 0.99
