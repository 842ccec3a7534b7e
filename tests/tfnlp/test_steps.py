"""One gradient however a batch is split, and bit-identical resumes: plain fit, fit, Pretrainer and Distiller."""

import itertools
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnlp
from duonlp.distillation.settings import Attentions, Distillation, HiddenStates
from duonlp.errors import InputError
from duonlp.heads import ROW_MASK
from duonlp.training.log.metrics_file import read_metrics
from tests.tfnlp.test_pretraining import BERT, VOCABULARY, Losses, Uneven, in_another_process
from tfnlp.distillation.distiller import distill
from tfnlp.losses import cross_entropy_sum
from tfnlp.training import (
    BackupAndRestore,
    FitConfig,
    Pretrainer,
    PretrainingLog,
    SaveBest,
    StopAtSigterm,
    batch_dataset,
    block_dataset,
    fit,
    make_optimizer,
)

ROOT = Path(__file__).parents[2]
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
LENGTH = 6
ROWS = (8, 5)
"""Rows of the batches; the second one divides neither among two replicas nor into two microbatches."""


def texts(rows, seed):
    rng = np.random.default_rng(seed)
    mask = (np.arange(LENGTH) < rng.integers(3, LENGTH + 1, (rows, 1))).astype(np.int32)
    ids = rng.integers(1, VOCABULARY, mask.shape).astype(np.int32) * mask
    return {"input_ids": ids, "attention_mask": mask}, rng


def classes(rows, seed):
    batch, _ = texts(rows, seed)
    return batch | {"labels": np.where(np.arange(rows) % 4 == 3, -100, batch["input_ids"][:, 0] % 3).astype(np.int32)}


def tokens(rows, seed):
    batch, rng = texts(rows, seed)
    labeled = rng.random((rows, LENGTH)) < np.linspace(0.9, 0.1, rows)[:, None]
    return batch | {"labels": np.where(labeled, batch["input_ids"] % 3, -100).astype(np.int32)}


def spans(rows, seed):
    batch, _ = texts(rows, seed)
    positions = (np.arange(rows) * 3 % 8).astype(np.int32)  # some of them beyond the sequence, which are ignored
    return batch | {"start_positions": positions % 7, "end_positions": positions}


def numbers(rows, seed):
    batch, rng = texts(rows, seed)
    return batch | {"labels": rng.normal(size=rows).astype(np.float32)}


def several(rows, seed):
    batch, rng = texts(rows, seed)
    return batch | {"labels": rng.integers(0, 2, (rows, 3)).astype(np.float32)}


SEQUENCES = tfnlp.AutoModelForSequenceClassification
HEADS = {
    "classes": (SEQUENCES, {"num_labels": 3}, classes),
    "tokens": (tfnlp.AutoModelForTokenClassification, {"num_labels": 3}, tokens),
    "spans": (tfnlp.AutoModelForQuestionAnswering, {"num_labels": 2}, spans),
    "numbers": (SEQUENCES, {"num_labels": 1}, numbers),
    "several": (SEQUENCES, {"num_labels": 3, "problem_type": "multi_label_classification"}, several),
}
KERAS_LOSSES = ("classes", "numbers")


def model_of(name, **changes):
    auto, config, _ = HEADS[name]
    return auto.from_config(BERT | config | changes, seed=1)


def batches_of(name):
    return [HEADS[name][2](rows, seed) | {"sample_weight": np.linspace(0.5, 2, rows)} for seed, rows in enumerate(ROWS)]


def keras_loss(name):
    if name == "numbers":
        return keras.losses.MeanSquaredError()
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def weights(model):
    return {path: v.numpy() for path, v in tfnlp.parameter_tree(model).items() if not path.endswith("key/bias")}


def run_heads(strategy, accumulation=1, names=tuple(HEADS), jit_compile=False):
    """Return losses and parameters after clipped steps on an uneven last batch, for each head and some Keras losses."""
    results = {}
    for name in names:
        for loss in (None, keras_loss(name)) if name in KERAS_LOSSES else (None,):
            with strategy.scope():
                model = model_of(name)
                optimizer = keras.optimizers.SGD(0.5, global_clipnorm=0.5)
                metrics = ["accuracy"] if name == "classes" else None
                model.compile(optimizer, loss, metrics=metrics, accumulation=accumulation, jit_compile=jit_compile)
            key = f"{name} {'own' if loss is None else 'keras'}"
            rows = [
                {n: v.astype(np.float32 if v.dtype == float else v.dtype) for n, v in b.items()}
                for b in batches_of(name)
            ]
            x = {n: np.concatenate([b[n] for b in rows]) for n in rows[0]}
            logs = [model.fit(batch_dataset(batches_of(name)), shuffle=False, verbose=0).history]
            logs += [model.evaluate(batch_dataset(batches_of(name)), verbose=0, return_dict=True)]
            logs += [model.evaluate(x, batch_size=8, verbose=0, return_dict=True)]  # split by Keras, 8 rows and 5
            logs += [model.evaluate(rows[1], batch_size=5, verbose=0, return_dict=True)]
            logs += [
                model.evaluate(x, batch_size=4, verbose=0, return_dict=True)
            ]  # the last row leaves a replica without
            results |= {f"{key} {i} {n}": v for i, values in enumerate(logs) for n, v in values.items()}
            results |= {f"{key} {path}": value for path, value in weights(model).items()}
    return results


def scalar_loss(labels, logits):
    """Return a mean of a user's own, without a reduction of Keras'."""
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits))


class BatchLogs(keras.callbacks.Callback):
    """Keeps the logs of every batch."""

    def __init__(self):
        super().__init__()
        self.logs = []

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append(dict(logs))

    on_test_batch_end = on_train_batch_end


def uneven_model(strategy, activity=False, loss=None, **options):
    with strategy.scope():
        model = model_of("classes")
        if activity:  # a loss that only a call of the layer adds
            model.classifier.activity_regularizer = keras.regularizers.L2(0.3)
        model.compile(keras.optimizers.SGD(0.5, global_clipnorm=0.5), loss, jit_compile=False, **options)
    return model


def run_uneven(strategy):
    """Return logs and parameters where replicas get fewer rows or none, also in the first batch."""
    x = texts(7, 0)[0]
    y, results = x["input_ids"][:, 0] % 3, {}

    def head(rows):
        return {name: value[:rows] for name, value in x.items()}, y[:rows]

    def add(name, model, *logs):
        values = {f"{i} {n}": v for i, log in enumerate(logs) for n, v in log.items()} | weights(model)
        results.update({f"{name} {n}": v for n, v in values.items()})

    sums = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    for name, rows, options in (
        ("one row", 1, {"loss": scalar_loss, "metrics": ["accuracy"]}),
        ("microbatches", 7, {"activity": True, "accumulation": 2}),
        ("few steps", 5, {"steps_per_execution": 5, "metrics": ["accuracy"]}),
    ):  # fmt: skip
        model, record = uneven_model(strategy, **options), BatchLogs()
        history = model.fit(*head(rows), batch_size=4, shuffle=False, verbose=0, callbacks=[record])
        add(name, model, history.history, *record.logs)
    model, rows = uneven_model(strategy, loss=scalar_loss, activity=True), [classes(rows, 0) for rows in (1, 3)]
    add("dataset", model, model.fit(batch_dataset(rows), shuffle=False, verbose=0).history)
    model = uneven_model(strategy, loss=sums, metrics=["accuracy"])
    logs = [model.train_on_batch(*head(rows), return_dict=True) for rows in (1, 3)]
    logs += [model.train_on_batch(*head(3), sample_weight=np.arange(3.0), return_dict=True)]
    add("on batch", model, *logs, model.test_on_batch(*head(3), return_dict=True))
    return results


def assert_close(ours, theirs):
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=1e-5, atol=1e-5, err_msg=key)


TWO_DEVICES = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
from tests.tfnlp.test_steps import fit_on, run_heads, run_uneven
np.savez(FILE + "-xla.npz", **run_heads(strategy, 2, ("spans",), jit_compile=True))
tf.config.run_functions_eagerly(True)
np.savez(FILE + "-1.npz", **run_heads(strategy, 1, ("classes", "spans")))
np.savez(FILE + "-2.npz", **run_heads(strategy, 2))
np.savez(FILE + "-fit.npz", **fit_on(strategy))
np.savez(FILE + "-uneven.npz", **run_uneven(strategy))
"""


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    """Results on two devices: file names by kind."""
    folder = tmp_path_factory.mktemp("two")
    process = in_another_process(f"FILE = {str(folder / 'run')!r}" + TWO_DEVICES)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return {name: dict(np.load(folder / f"run-{name}.npz")) for name in ("1", "2", "xla", "fit", "uneven")}


@pytest.fixture(scope="module")
def on_one(eagerly):
    return run_heads(tf.distribute.get_strategy())


def test_microbatches_match_the_batch(on_one):
    assert_close(run_heads(tf.distribute.get_strategy(), accumulation=2), on_one)


def test_replicas_match_the_batch(on_two, on_one):
    assert set(on_two["2"]) == set(on_one)
    for name in ("1", "2", "xla"):
        assert_close(on_two[name], {key: on_one[key] for key in on_two[name]})


def test_replicas_with_fewer_rows_or_none_match_the_batch(on_two, eagerly):
    assert_close(on_two["uneven"], run_uneven(tf.distribute.get_strategy()))


def test_padding_rows_never_count(eagerly):
    """Neither for the head's own loss nor for a Keras loss, nor for the mean over the batches of an evaluation."""
    for name in HEADS:
        model, (batch, last) = model_of(name), batches_of(name)
        batch[ROW_MASK], last[ROW_MASK] = np.ones(8), np.ones(5)
        rows = np.minimum(np.arange(8), 4)
        padded = {key: value[rows] for key, value in last.items()} | {ROW_MASK: (np.arange(8) < 5).astype(np.int32)}
        for loss in (None, keras_loss(name)) if name in KERAS_LOSSES else (None,):
            model.compile("sgd", loss)
            expected = model.evaluate(batch_dataset([batch, last]), verbose=0)
            assert model.evaluate(batch_dataset([batch, padded]), verbose=0) == pytest.approx(expected, rel=1e-6), name


def test_a_pretrainer_takes_any_loss():
    """A function of outputs and batch, for a head that is not one of pretraining; and a Keras loss."""

    def terms(outputs, batch):
        total, count = cross_entropy_sum(outputs["logits"], tf.where(batch["labels"] >= 0, batch["labels"] % 3, -100))
        return {"words": (total, count), "halved": (0.5 * total, count)}

    losses = []
    for accumulation in (1, 2):
        model = tfnlp.AutoModelForTokenClassification.from_config(BERT | {"num_labels": 3}, seed=1)
        trainer = Pretrainer(model, accumulation=accumulation, loss=terms)
        trainer.compile(make_optimizer("adamw", 1e-2, model), jit_compile=False)
        record = Losses()
        trainer.fit(block_dataset(Uneven(4)), steps_per_epoch=3, callbacks=[record], verbose=0)
        losses.append(list(record.steps.values()))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    batch = Uneven(4)[0]
    labels = np.where(batch["labels"] >= 0, batch["labels"] % 3, -100)
    fresh = tfnlp.AutoModelForTokenClassification.from_config(BERT | {"num_labels": 3}, seed=1)
    assert losses[0][0] == pytest.approx(1.5 * float(fresh(batch["input_ids"], labels=labels)["loss"]), rel=1e-5)

    trainer = Pretrainer(tfnlp.AutoModelForMaskedLM.from_config(BERT, seed=1))
    data, results = block_dataset(Uneven(4), steps=2), []
    for loss in (None, keras.losses.SparseCategoricalCrossentropy(from_logits=True)):
        trainer.compile("sgd", loss=loss, run_eagerly=True)
        results.append(trainer.evaluate(data, verbose=0))
    np.testing.assert_allclose(*results, rtol=1e-5)


class Dies(keras.callbacks.Callback):
    """Records the loss of every step; exits at once, as if killed, at the end of the step `die_at`."""

    def __init__(self, die_at):
        super().__init__()
        self.steps, self.die_at = {}, die_at

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.step.numpy())
        self.steps[step] = float(logs.get("step_loss", logs["loss"]))
        if step == self.die_at:
            print(json.dumps(self.steps), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


def trainer_of(kind):
    if kind == "pretrainer":
        return Pretrainer(tfnlp.AutoModelForMaskedLM.from_config(BERT | DROPOUT, seed=1), accumulation=2)
    model = model_of("classes", **DROPOUT)
    return model if kind == "plain" else tfnlp.Distiller(model, model_of("classes", hidden_size=32))


def backed_up(kind, folder, die_at=None):
    """Run 12 steps of three epochs with dropout and metrics, backed up after every second one."""
    tf.config.run_functions_eagerly(True)
    keras.utils.set_random_seed(0)  # names and dropout
    trainer, record = trainer_of(kind), Dies(die_at)
    metrics = {} if kind == "pretrainer" else {"metrics": ["accuracy"]}
    trainer.compile(make_optimizer("adamw", 1e-2, trainer.trained_model()), jit_compile=False, **metrics)
    if kind == "pretrainer":
        data, options = block_dataset(Uneven(4)), {"epochs": 3, "steps_per_epoch": 4}
    else:
        data = batch_dataset([classes(8 if i % 2 else 5, i) for i in range(4)], 3)
        options = {"epochs": 3, "steps_per_epoch": 4, "shuffle": False}
    callbacks = [BackupAndRestore(folder, save_freq=2), record] if folder else [record]
    history = trainer.fit(data, callbacks=callbacks, verbose=0, **options).history
    return record.steps, history, weights(trainer.trained_model())


def killed_and_resumed(kind, folder, kills):
    """Kill a run after each of some steps; return the losses of its steps, its history and its parameters."""
    steps = {}
    for die_at in kills:
        process = in_another_process(
            f"from tests.tfnlp.test_steps import *; backed_up({kind!r}, {str(folder)!r}, {die_at})"
        )
        output, errors = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, errors
        steps |= {int(step): loss for step, loss in json.loads(output.splitlines()[-1]).items()}
    more, history, values = backed_up(kind, folder)
    return steps | more, history, values


KINDS = "plain", "pretrainer", "distiller"
MANY = [pytest.param(kind, (*range(2, 12), *[11] * 10), marks=pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind, kills", [*((kind, (3, 7)) for kind in KINDS), *MANY])
def test_killed_runs_resume_bit_identically(tmp_path, eagerly, kind, kills):
    """The last kill is in the middle of an epoch, whose metrics are restored too."""
    expected_steps, expected_history, expected = backed_up(kind, None)
    steps, history, values = killed_and_resumed(kind, tmp_path, kills)
    assert steps == expected_steps
    assert {name: value[-1] for name, value in history.items()} == {n: v[-1] for n, v in expected_history.items()}
    for path, value in expected.items():
        np.testing.assert_array_equal(values[path], value, err_msg=path)


def test_sigterm_saves_the_position_and_the_log_and_the_best_model_resume(tmp_path, eagerly):
    class Signal(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.step.numpy()) == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    def run(*callbacks):
        model = model_of("classes")
        model.compile(make_optimizer("adamw", 1e-2, model))
        data, best = batch_dataset([classes(8, i) for i in range(4)], 2), SaveBest(tmp_path / "best", "loss")
        log = PretrainingLog(tmp_path / "log", log_every=1, console=False)
        callbacks = [*callbacks, StopAtSigterm(), BackupAndRestore(tmp_path / "backup"), best, log]
        model.fit(data, epochs=2, steps_per_epoch=4, shuffle=False, verbose=0, callbacks=callbacks)
        return int(model.step.numpy()), best.best

    previous = signal.getsignal(signal.SIGTERM)
    assert run(Signal())[0] == 5 and signal.getsignal(signal.SIGTERM) == previous
    step, best = run()
    assert (step, best.step) == (8, 8)
    records = [json.loads(line) for line in (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()]
    steps = [(record["step"], record["examples"]) for record in records if record["kind"] == "step"]
    assert steps == [(i, 6 * i) for i in range(1, 9)]  # 2 of 8 rows have no label


def test_several_steps_per_execution_and_positional_callbacks(eagerly):
    model, record = model_of("classes"), Dies(None)
    model.compile(make_optimizer("adamw", 1e-2, model), None, None, ["accuracy"], steps_per_execution=2)
    batches = [classes(8, i) for i in range(3)]
    history = model.fit(batch_dataset(batches), None, None, 2, 0, [record], shuffle=False).history
    assert len(history["loss"]) == len(history["accuracy"]) == 2 and int(model.step.numpy()) == 6


def test_a_record_of_several_steps_weighs_labels_not_batches(tmp_path, eagerly):
    model, batches = model_of("classes"), [classes(rows, rows) for rows in (8, 1, 5)]
    model.compile("sgd")
    expected = model.evaluate(batch_dataset(batches), verbose=0)
    config = FitConfig(epochs=1, learning_rate=1e-9, log_every=3)
    fit(model, batches, config, tmp_path, jit_compile=False, log={"console": False})
    (record,) = read_metrics(tmp_path)
    assert record["step"] == 3 and record["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_backup_of_an_older_version_is_refused(tmp_path, eagerly):
    from tfnlp.training import backups

    backups.Backups(tmp_path, 1).write(3, {"format": 1}, {})
    model = model_of("classes")
    model.compile("sgd")
    with pytest.raises(InputError, match=r"another version of tfnlp \(format 1"):
        model.fit(batch_dataset([classes(8, 0)]), shuffle=False, verbose=0, callbacks=[BackupAndRestore(tmp_path)])


def fit_on(strategy, folder=None, stop_at=None):
    """Return losses and parameters of tfnlp's fit with accumulation and validation."""
    with strategy.scope():
        model = model_of("classes")
    batches = [classes(rows, seed) for seed, rows in enumerate((8, 5, 8, 3))]
    config = FitConfig(epochs=2, learning_rate=1e-2, accumulation=2, save_every=1, evaluate_every=4, log_every=1)

    def stop(step, metrics):
        if stop_at:
            os.kill(os.getpid(), signal.SIGKILL)

    result = fit(model, batches, config, folder, validation=batches[:2], on_evaluation=stop, jit_compile=False,
                 log={"console": False})  # fmt: skip
    losses = np.array([result.loss, result.history[-1]["loss"], result.best["value"]])
    return {"losses": losses} | weights(model)


def distill_on(strategy, folder=None):
    """Return losses and parameters of ``distill`` with several terms, on uneven batches; the teacher is under no strategy."""
    teacher = model_of("tokens", hidden_size=8, intermediate_size=8)
    with strategy.scope():
        student = model_of("tokens")
    batches = [tokens(rows, seed) for seed, rows in enumerate((1, 8, 5))]
    config = FitConfig(epochs=1, learning_rate=0.1, optimizer="adafactor", log_every=1)
    settings = Distillation(0.5, losses=(HiddenStates(0.5), Attentions(0.5, layers=((-1, -1),))))
    result = distill(student, teacher, batches, config, settings, folder, validation=batches, jit_compile=False,
                     log={"console": False})  # fmt: skip
    return {"loss": result.loss} | result.history[-1] | weights(student)


TWO_WORKERS = """
import numpy as np, tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
from tests.tfnlp.test_steps import distill_on, fit_on, run_uneven
np.savez(FILE, **fit_on(strategy, FOLDER, STOP_AT))
np.savez(FILE.replace(".npz", "-distill.npz"), **distill_on(strategy, FOLDER + "-distill"))
np.savez(FILE.replace(".npz", "-uneven.npz"), **run_uneven(strategy))
"""


def run_workers(folder, stop_at):
    """Run fit, distill and compile and fit in two processes; return their exit codes and errors."""
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0)), b.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{s.getsockname()[1]}" for s in (a, b)]
    processes: list[subprocess.Popen] = []
    for index in (0, 1):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        head = f"FILE, FOLDER, STOP_AT = {str(folder / f'{index}.npz')!r}, {str(folder / 'run')!r}, {stop_at}"
        processes.append(in_another_process(head + TWO_WORKERS, TF_CONFIG=json.dumps(config)))
    errors = [process.communicate(timeout=600)[1] for process in processes]
    return [process.returncode for process in processes], errors


@pytest.mark.slow
def test_two_workers_match_two_replicas_and_resume(tmp_path, on_two):
    codes, errors = run_workers(tmp_path, 4)  # killed after the evaluation at step 4, before its backup
    assert codes == [-signal.SIGKILL] * 2, errors
    assert sorted(file.name for file in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-000000003.safetensors"]
    codes, errors = run_workers(tmp_path, None)
    assert codes == [0, 0], errors
    one = tf.distribute.get_strategy()
    expected = {"": on_two["fit"], "-distill": distill_on(one), "-uneven": run_uneven(one)}
    for index, (kind, values) in itertools.product((0, 1), expected.items()):
        assert_close(dict(np.load(tmp_path / f"{index}{kind}.npz")), values)
    assert (tmp_path / "run-distill" / "best" / "model.safetensors").exists()
    assert (tmp_path / "run" / "best" / "model.safetensors").exists()


def test_settings_that_only_jaxnlp_has_are_refused():
    with pytest.raises(InputError, match="scan is True, which only jaxnlp can honor"):
        fit(model_of("classes"), [classes(8, 0)], FitConfig(epochs=1, scan=True))
