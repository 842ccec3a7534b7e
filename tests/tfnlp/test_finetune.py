"""Fine-tuning with compile and fit, and with tfnlp's fit: the same steps, and resumes after any interruption."""

import json
import os
import signal
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnlp
from duonlp.errors import InputError, NonFiniteLossError
from duonlp.training.log.learning_curve import read_learning_curve
from duonlp.training.log.metrics_file import read_metrics
from duonlp.training.run_file import read_run
from duonlp.util.files import locked_folder
from tfnlp.training import (
    FitConfig,
    SaveBest,
    Schedule,
    StopAtNonFiniteLoss,
    backups,
    batch_dataset,
    fit,
    make_optimizer,
)

pytestmark = [
    pytest.mark.usefixtures("eagerly"),
    pytest.mark.filterwarnings(
        "ignore:Even though the .* option is set, this option does not apply to tf.data:UserWarning"
    ),
]
BERT = {
    "model_type": "bert", "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 8, "num_labels": 3, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2,
}  # fmt: skip
CONFIG = FitConfig(epochs=2, learning_rate=3e-3, layer_decay=0.5, log_every=1, clip_norm=0.5)
QUIET = {"console": False}


def model_of(**changes):
    return tfnlp.AutoModelForSequenceClassification.from_config(BERT | changes, seed=1)


def batch(seed: int, rows: int = 8, padding: int = 0):
    """Return a batch whose labels are the third of the vocabulary that the first id is in; the last rows are padding."""
    ids = np.random.default_rng(seed).integers(1, 30, (rows, 5))
    labels = ids[:, 0] // 10
    labels[rows - padding :] = -100
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels}


BATCHES = [batch(0), batch(1), batch(2, padding=3)]
VALIDATION = [batch(3), batch(4, padding=5)]


def weights(model):
    return {path: variable.numpy() for path, variable in tfnlp.parameter_tree(model).items()}


def assert_same(ours, theirs, **tolerance):
    for path, values in theirs.items():
        if path.endswith("key/bias"):  # its gradient is rounding noise
            continue
        np.testing.assert_allclose(ours[path], values, err_msg=path, **tolerance)


def fitted(folder=None, config=CONFIG, model=None, batches=BATCHES, **options):
    return fit(model_of() if model is None else model, batches, config, folder, log=QUIET, **options)


def accuracy(model):
    """Return the accuracy on the validation batches."""
    hits = [
        np.asarray(model(b["input_ids"])["logits"]).argmax(-1)[b["labels"] >= 0] == b["labels"][b["labels"] >= 0]
        for b in VALIDATION
    ]
    return {"accuracy": float(np.concatenate(hits).mean())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, eagerly):
    """An uninterrupted run: its folder, result and parameters."""
    folder, evaluations = tmp_path_factory.mktemp("whole") / "run", []
    result = fitted(
        folder, validation=VALIDATION, evaluate=accuracy, on_evaluation=lambda *arguments: evaluations.append(arguments)
    )
    assert [{"step": step, **results} for step, results in evaluations] == result.history
    return folder, result, weights(result.model)


def test_results_and_files_of_a_run(whole):
    folder, result, values = whole
    records = read_metrics(folder)
    assert [r["step"] for r in records if r["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert (result.steps, result.examples, result.stopped_early, result.preempted) == (6, 42, False, False)
    assert [h["step"] for h in result.history] == [3, 6] and result.history[-1].keys() == {"step", "loss", "accuracy"}
    labels, logits = np.concatenate([b["labels"] for b in VALIDATION]), [
        result.model(b["input_ids"], b["attention_mask"])["logits"].numpy() for b in VALIDATION
    ]  # fmt: skip
    row_losses = tf.nn.sparse_softmax_cross_entropy_with_logits(np.maximum(labels, 0), np.concatenate(logits)).numpy()
    assert result.history[-1]["loss"] == pytest.approx(row_losses[labels >= 0].mean(), rel=1e-5)
    best = tfnlp.AutoModelForSequenceClassification.from_pretrained(result.best_folder)
    assert result.best["step"] in (3, 6)
    if result.best["step"] == 6:
        assert_same(weights(best), values)
    assert FitConfig.of(read_run(folder)["config"]) == CONFIG


def test_the_learning_curve_has_the_training_loss_of_each_epoch(whole):
    folder, result, _ = whole
    curve, counts = result.learning_curve, [int(np.sum(batch["labels"] >= 0)) for batch in BATCHES]
    steps = [record["loss"] for record in read_metrics(folder) if record["kind"] == "step"]
    expected = [np.average(steps[i : i + 3], weights=counts) for i in (0, 3)]
    assert len(set(counts)) > 1 and [record["train_loss"] for record in curve] == pytest.approx(expected, rel=1e-5)
    assert [{"step": r["step"], "loss": r["loss"], "accuracy": r["accuracy"]} for r in curve] == result.history
    assert [(record["epoch"], record["examples"]) for record in curve] == [(1, 21), (2, 42)]
    assert read_learning_curve(folder) == curve


def test_results_of_an_evaluation_never_replace_each_other(tmp_path):
    evaluations = []
    scores = {"loss": 99.0, "step": 7, "accuracy": np.float32(0.5)}
    config = replace(CONFIG, epochs=1, save_every=0)

    def run(folder, best="loss", **changes):
        return fitted(
            folder, replace(config, best_metric=best), validation=VALIDATION, evaluate=lambda model: scores | changes,
            on_evaluation=lambda *evaluation: evaluations.append(evaluation), jit_compile=False,
        )  # fmt: skip

    result = run(tmp_path / "run")
    (record,) = result.history
    assert record["loss"] < 9 and record["loss"] == result.best["value"] and record["step"] == 3
    assert (record["evaluate_loss"], record["evaluate_step"], record["accuracy"]) == (99, 7, 0.5)
    assert result.learning_curve[0]["evaluate_loss"] == 99 and evaluations[0][1]["loss"] == record["loss"]
    assert run(None, "evaluate_loss").best["value"] == 99 and run(None, "step").best["value"] == 7
    with pytest.raises(InputError, match="rename one of them"):
        run(tmp_path / "bad", evaluate_loss=1.0)
    again = run(tmp_path / "bad")  # its training is kept
    assert again.steps == 3
    assert_same(weights(again.model), weights(result.model), rtol=0, atol=0)


@pytest.mark.representative
def test_fit_matches_compile_and_model_fit(whole, compiled):
    """Compiled with XLA, against the eager run of fit."""
    values = whole[2]
    model = model_of()
    rate = Schedule(6, CONFIG.learning_rate, schedule="linear", warmup_share=0.05, final_share=0.0)
    options = {"weight_decay": 0.01, "beta2": 0.999, "clip_norm": 0.5, "layer_decay": 0.5}
    model.compile(make_optimizer("adamw", rate, model, **options), jit_compile=True)
    data = batch_dataset(BATCHES, epochs=2)
    model.fit(data, epochs=2, steps_per_epoch=3, shuffle=False, verbose=0)
    assert_same(weights(model), values, rtol=0, atol=1e-6)


def stopped_at_backup(number, monkeypatch):
    """Interrupt a run as if it were killed while writing a backup, before the rename."""
    os_replace, count = os.replace, iter(range(1, 100))

    def stop(source, target):
        if str(target).endswith(".safetensors") and next(count) == number:
            raise KeyboardInterrupt
        os_replace(source, target)

    monkeypatch.setattr(backups.os, "replace", stop)


@pytest.mark.representative
def test_a_run_killed_during_a_save_resumes(tmp_path, whole, monkeypatch):
    folder, _, values = whole
    run = tmp_path / "run"
    config = FitConfig(**CONFIG.to_dict() | {"save_every": 2, "evaluate_every": 0})
    with monkeypatch.context() as patch:
        stopped_at_backup(3, patch)
        with pytest.raises(KeyboardInterrupt):
            fitted(run, config)
    files = sorted(file.name for file in (run / "checkpoints").iterdir())
    assert [name for name in files if name.endswith(".safetensors")] == ["step-000000004.safetensors"]
    model = model_of()  # a new model, as in another process
    again = fitted(run, config, model)  # from the middle of the second epoch
    assert_same(weights(again.model), values)
    losses = [[r["loss"] for r in read_metrics(path) if r["kind"] == "step"] for path in (folder, run)]
    assert losses[0] == losses[1] and (again.steps, again.examples) == (6, 42)
    assert fitted(run, config, model).steps == 6  # the run is complete
    with pytest.raises(InputError, match=r"layer_decay=0.5 \(now 0.9\)"):
        fitted(run, FitConfig(**config.to_dict() | {"layer_decay": 0.9}))
    with pytest.raises(InputError, match=r"different data \(batches: stored 3, now 2\)"):
        fitted(run, config, batches=BATCHES[:2])


def test_a_folder_in_use_is_refused(tmp_path):
    with locked_folder(tmp_path, "training"), pytest.raises(InputError, match="is being written by another process or"):
        fitted(tmp_path, FitConfig(steps=1))
    assert not list(tmp_path.iterdir())
    with locked_folder(tmp_path, "run"):  # of duonlp.runs, which calls fit
        assert fitted(tmp_path, FitConfig(steps=1)).steps == 1


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    write, count = backups.write_tensors, iter(range(1, 100))

    def full(path, tensors):
        if next(count) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(path, tensors)

    monkeypatch.setattr(backups, "write_tensors", full)
    with pytest.raises(tfnlp.training.backups.CheckpointError, match="No space left on device"):
        fitted(tmp_path, FitConfig(steps=2, save_every=1))
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["step-000000001.safetensors"]


def test_microbatches_match_the_batch():
    """With uneven labels, for which the mean of the microbatches' means would differ."""
    config = BERT | {"num_labels": 4}
    rng, batches = np.random.default_rng(0), []
    for _ in range(3):
        ids = rng.integers(1, 30, (4, 6)).astype(np.int32)
        labels = np.where(rng.random((4, 6)) < np.array([[0.9], [0.2], [0.6], [0.0]]), ids % 4, -100).astype(np.int32)
        labels[0, 0] = 1
        batches.append({"input_ids": ids, "labels": labels, "sample_weight": np.array([1, 2, 0.5, 1], np.float32)})
    results = []
    for pieces in (1, 4):
        model = tfnlp.AutoModelForTokenClassification.from_config(config, seed=1)
        settings = FitConfig(epochs=1, accumulation=pieces, learning_rate=3e-3, clip_norm=0.5)
        results.append((fitted(None, settings, model, batches, validation=batches), weights(model)))
    (one, expected), (four, values) = results
    assert four.loss == pytest.approx(one.loss, rel=1e-5)
    assert four.best["value"] == pytest.approx(one.best["value"], rel=1e-5)
    assert_same(values, expected, rtol=0, atol=1e-5)


def spoil(model, step):
    """Return an evaluation that makes the loss after a step NaN."""
    calls = iter(range(1, 100))

    def evaluate(trained):
        if next(calls) == step:
            variable = tfnlp.parameter_tree(trained)["classifier/bias"]
            variable.assign(variable * np.nan)
        return {"score": 1.0}

    return evaluate


def test_a_non_finite_loss_ends_the_run_and_keeps_what_was_saved(tmp_path):
    model = model_of()
    config = FitConfig(steps=6, evaluate_every=1, save_every=2, best_metric="score", keep_last=2)
    batches = [{**b, "labels": np.maximum(b["labels"], 0)} for b in BATCHES]
    with pytest.raises(NonFiniteLossError, match="step 4 has a loss of nan"):
        fitted(tmp_path, config, model, batches, evaluate=spoil(model, 3))
    loaded = tfnlp.AutoModelForSequenceClassification.from_pretrained(tmp_path / "best")
    assert all(np.isfinite(values).all() for values in weights(loaded).values())
    tensors, state = backups.Backups(tmp_path / "checkpoints", 2).newest()
    assert state["at"]["step"] == 2
    for name, tensor in tensors.items():
        assert tensor.read().dtype.kind != "f" or np.isfinite(tensor.read()).all(), name


def test_sigterm_saves_and_stops_and_patience_ends_a_run(tmp_path):
    batches = [{**b, "labels": np.maximum(b["labels"], 0)} for b in BATCHES]

    def evaluate(model):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"score": 1.0}

    config = FitConfig(steps=6, evaluate_every=2, save_every=0, best_metric="score", patience=1)
    first = fitted(tmp_path, config, batches=batches, evaluate=evaluate)
    assert (first.steps, first.preempted) == (3, True)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    again = fitted(tmp_path, config, batches=batches, evaluate=lambda model: {"score": 1.0})
    assert (again.steps, again.stopped_early, again.best) == (4, True, {"value": 1.0, "step": 2})


def test_plain_keras_with_its_callbacks(tmp_path, compiled):
    """Accuracy, early stopping, the best checkpoint, backups and TensorBoard, as users combine them."""
    model = model_of()
    x = {name: np.concatenate([b[name] for b in BATCHES[:2]]) for name in ("input_ids", "attention_mask")}
    y = np.concatenate([b["labels"] for b in BATCHES[:2]])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        make_optimizer("adamw", 3e-2, model, layer_decay=0.8), loss=loss, metrics=["accuracy"], jit_compile=False
    )
    log = tmp_path / "log"
    history = model.fit(
        x, y, epochs=8, batch_size=8, shuffle=False, verbose=0, validation_data=(x, y),
        callbacks=[
            keras.callbacks.EarlyStopping("val_accuracy", mode="max", patience=3),
            keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", "val_accuracy", mode="max", save_best_only=True),
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
            keras.callbacks.TensorBoard(log),
            SaveBest(tmp_path / "best", "val_accuracy"),
            StopAtNonFiniteLoss(),
        ],
    ).history  # fmt: skip
    assert max(history["val_accuracy"]) > 0.9 and list(log.rglob("events*"))
    saved = keras.saving.load_model(tmp_path / "best.keras")
    assert saved.optimizer.rate_factors == model.optimizer.rate_factors and saved.optimizer.undecayed
    hugging_face = tfnlp.AutoModelForSequenceClassification.from_pretrained(tmp_path / "best")
    assert_same(weights(hugging_face), weights(saved))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_by_keras_policy(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = model_of()
    finally:
        keras.config.set_dtype_policy(before)
    assert (model.compute_dtype, model.variable_dtype) == (policy.removeprefix("mixed_"), "float32")
    model.compile(make_optimizer("adamw", 3e-2, model))
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    one = BATCHES[0]
    losses = model.fit(one, epochs=8, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert all(values.dtype == np.float32 for values in weights(model).values())


def test_padding_rows_of_multi_label_batches_do_not_count_in_keras_losses():
    model, one = model_of(problem_type="multi_label_classification"), BATCHES[0]
    model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True), metrics=["binary_accuracy"])
    labels = np.eye(3, dtype=np.float32)[one["labels"]]
    real = model.evaluate({"input_ids": one["input_ids"][:5]}, labels[:5], verbose=0, return_dict=True)
    labels[5:] = -100
    padded = model.evaluate({"input_ids": one["input_ids"]}, labels, verbose=0, return_dict=True)
    assert padded["binary_accuracy"] == pytest.approx(real["binary_accuracy"])
    assert padded["loss"] == pytest.approx(real["loss"], rel=1e-5)


def test_weights_inside_the_batch_apply():
    model, one = model_of(), BATCHES[0]
    row_weights = np.arange(8, dtype=np.float32)
    model.compile("sgd")
    x = {name: one[name] for name in ("input_ids", "attention_mask")}
    outside = model.evaluate(x, one["labels"], sample_weight=row_weights, batch_size=8, verbose=0)
    assert model.evaluate(one, sample_weight=row_weights, batch_size=8, verbose=0) == pytest.approx(
        outside
    )  # without y, Keras would drop them
    assert model.evaluate({**one, "sample_weight": row_weights}, batch_size=8, verbose=0) == pytest.approx(outside)
    inside = batch_dataset([{**one, "sample_weight": row_weights.astype(np.float64)}])
    assert model.evaluate(inside, verbose=0) == pytest.approx(outside)


def run_steps(strategy):
    """Return losses and parameters of ``fit`` and of compile and model.fit, with labels spread unevenly over replicas."""
    with strategy.scope():
        models = [model_of(), model_of()]
        models[1].compile(make_optimizer("adamw", 3e-3, models[1], clip_norm=0.1), jit_compile=False)
    result = fitted(model=models[0], validation=VALIDATION, jit_compile=False)
    losses = models[1].fit(batch_dataset(BATCHES[:2], 2), epochs=2, steps_per_epoch=2, shuffle=False, verbose=0).history
    values = {f"{i}{path}": v for i, model in enumerate(models) for path, v in weights(model).items()}
    evaluations = [metrics["loss"] for metrics in result.history]
    return {"losses": np.array([result.loss, *evaluations, *losses["loss"]])} | values


def test_usage_errors(tmp_path):
    model = model_of()
    model.compile(make_optimizer("adamw", 1e-3, model))
    bad = {**BATCHES[0], "labels": np.full(8, 3)}
    unlabeled = {name: value for name, value in BATCHES[0].items() if name != "labels"}
    ignored = {**BATCHES[0], "labels": np.full(8, -100)}
    for call, message in {
        lambda: model.fit(bad, verbose=0): "labels contains 3, but this model's class ids are 0 to 2",
        lambda: model.fit(unlabeled, bad["labels"], verbose=0): "labels contains 3",
        lambda: model.fit(batch_dataset([BATCHES[0], bad]), shuffle=False, verbose=0): "labels contains 3",
        lambda: model.fit(
            BATCHES[0], validation_data=batch_dataset([bad]), batch_size=8, verbose=0
        ): "labels contains 3",
        lambda: model.fit(batch_dataset([unlabeled]), verbose=0): "no labels to learn from",
        lambda: fitted(batches=[BATCHES[0], bad]): "labels contains 3",
        lambda: fitted(batches=[unlabeled]): "no labels to learn from",
        lambda: fitted(batches=[ignored]): "no label of the first 16 batches counts in the loss",
        lambda: model.fit(unlabeled, ignored["labels"], verbose=0): "no label of the first batch counts",
        lambda: model.fit(batch_dataset([ignored]), verbose=0): "no label of the first batch counts",
        lambda: fitted(batches=[ignored, BATCHES[0]], validation=[ignored]): "no label to evaluate on",
        lambda: fitted(batches=[]): "there are no batches",
        lambda: fitted(config=FitConfig(patience=1)): "nothing is evaluated",
        lambda: fitted(config=FitConfig(best_metric="f1"), evaluate=None, validation=VALIDATION): "nothing computes it",
        lambda: fitted(model=tfnlp.AutoModel.from_config(BERT)): "a base model has no labels to learn from",
        lambda: fitted(
            model=model_of(problem_type="regression"), config=FitConfig(label_smoothing=0.1)
        ): "is not over classes",
        lambda: make_optimizer("adamw", 1e-3, model, layer_decay=0): "layer_decay is 0",
        lambda: batch_dataset(BATCHES, first_batch=-1): "first_batch -1",
    }.items():
        with pytest.raises(InputError, match=message):
            call()
    half = tfnlp.AutoModelForSequenceClassification.from_config(BERT, dtype="bfloat16", param_dtype="bfloat16")
    with pytest.raises(InputError, match="the parameters are bfloat16"):
        fitted(model=half)
    assert json.loads(json.dumps(model.optimizer.get_config()["undecayed"]))


def test_a_dataset_starts_at_any_batch():
    class Counted:
        read: list = []

        def __len__(self):
            return 3

        def epoch(self, number, first=0):
            for i in range(first, 3):
                self.read.append((number, i))
                yield {"input_ids": np.full((2, 2), 10 * number + i)}

    rows = [int(b["input_ids"][0, 0]) for b in batch_dataset(Counted(), 2, first_epoch=1, first_batch=2)]
    assert rows == [12, 20, 21, 22] and min(Counted.read) == (1, 2)  # skipped batches are not read
