"""Test pruning during fit: what becomes zero, exact resuming, distillation, and smaller models."""

import numpy as np
import pytest

import tfnlp
from duonlp.errors import InputError
from duonlp.pruning import Pruning
from duonlp.training import FitConfig
from tests.pruning import CONFIG, batches, config, zeros
from tfnlp.pruning import prune, shrink
from tfnlp.training import fit

IDS = np.arange(5, 11, dtype=np.int32)[None]


def model():
    return tfnlp.AutoModelForSequenceClassification.from_config(CONFIG, seed=1)


def run(name, folder=None, **changes):
    return fit(model(), batches(), config(name, **changes), folder, log={"console": False}, jit_compile=False)


def test_a_resumed_run_is_identical(tmp_path):
    whole = run("movement", tmp_path / "whole", save_every=5)

    def stop(step, metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            model(), batches(), config("movement", save_every=5, evaluate_every=7), tmp_path / "half",
            validation=batches(), on_evaluation=stop, log={"console": False}, jit_compile=False,
        )  # fmt: skip
    half = fit(
        model(), batches(), config("movement", save_every=5, evaluate_every=7), tmp_path / "half",
        validation=batches(), log={"console": False}, jit_compile=False,
    )  # fmt: skip
    ours, theirs = (tfnlp.parameter_tree(result.model) for result in (whole, half))
    for path, value in ours.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(theirs[path]), path)
    share = np.concatenate([mask.ravel() for mask in zeros(ours).values()]).mean()
    assert share == pytest.approx(0.5, abs=1e-3)


def test_units_are_removed_after_distillation(tmp_path):
    result = tfnlp.distill(model(), model(), batches(), config("units"), log={"console": False}, jit_compile=False)
    smaller = shrink(result.model)
    assert smaller.num_parameters() < result.model.num_parameters()
    expected = np.asarray(result.model(IDS)["logits"])
    np.testing.assert_allclose(np.asarray(smaller(IDS)["logits"]), expected, rtol=1e-4, atol=1e-5)
    smaller.save_pretrained(tmp_path / "smaller")
    loaded = tfnlp.AutoModelForSequenceClassification.from_pretrained(tmp_path / "smaller")
    assert loaded.config == smaller.config
    np.testing.assert_allclose(np.asarray(loaded(IDS)["logits"]), expected, rtol=1e-4, atol=1e-5)


def test_the_evaluated_and_the_saved_model_are_pruned(tmp_path):
    seen = []

    def evaluate(model):
        seen.append(np.concatenate([mask.ravel() for mask in zeros(tfnlp.parameter_tree(model)).values()]).mean())
        return {"score": float(len(seen))}

    settings = config("2:4", evaluate_every=3, best_metric="score", greater_is_better=False)
    result = fit(
        model(), batches(), settings, tmp_path / "run", evaluate=evaluate, log={"console": False}, jit_compile=False
    )
    assert seen[-1] == 0.5 and seen[0] < 0.5 and result.best == {"value": 3.0, "step": 9}
    best = tfnlp.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "best")
    for mask in zeros(tfnlp.parameter_tree(best)).values():
        assert (mask.reshape(-1, 4, mask.shape[1]).sum(axis=1) == 2).all()


def test_pruning_at_once_leaves_the_model_alone():
    original = model()
    pruned = prune(original, Pruning(sparsity=0.5, scope="layer"))
    assert all(mask.mean() == 0.5 for mask in zeros(tfnlp.parameter_tree(pruned)).values())
    assert not any(mask.any() for mask in zeros(tfnlp.parameter_tree(original)).values())
    with pytest.raises(InputError, match="quantized"):
        prune(tfnlp.quantize(original), Pruning(sparsity=0.5))


def test_a_schedule_that_never_ends_is_refused():
    with pytest.raises(InputError, match="the run has 3 steps"):
        fit(model(), batches(), FitConfig(steps=3, pruning=Pruning(sparsity=0.5, end=3), evaluate_every=0))


def test_keras_compile_and_fit_prune():
    classifier = model()
    classifier.compile("adam", pruning=Pruning(sparsity=0.5, method="movement", end=4, every=1), run_eagerly=True)
    rows = {name: np.concatenate([batch[name] for batch in batches()]) for name in ("input_ids", "labels")}
    count = len(classifier.weights)
    history = classifier.fit(rows, batch_size=8, epochs=2, verbose=0, validation_data=(rows,)).history
    share = np.concatenate([mask.ravel() for mask in zeros(tfnlp.parameter_tree(classifier)).values()]).mean()
    assert share == pytest.approx(0.5, abs=1e-3) and len(classifier.weights) == count
    assert history["val_loss"][-1] == pytest.approx(classifier.evaluate(rows, verbose=0), rel=1e-5)
