"""Pretraining with fit: the whole batch's gradient however it is split, and bit-identical resumes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnlp
from duonlp.data.blocks.batches import Batches, held_out_batches
from duonlp.data.objectives.language_modelling import CausalLM
from duonlp.errors import CheckpointError, InputError, NonFiniteLossError
from duonlp.training.log.metrics_file import read_metrics
from duonlp.training.schedules import learning_rate_at
from duonlp.util.files import locked_folder
from tfnlp.training import (
    AdamW,
    BackupAndRestore,
    Pretrainer,
    PretrainingLog,
    SaveBest,
    Schedule,
    StopAtNonFiniteLoss,
    block_dataset,
    make_optimizer,
    model_inputs,
)
from tfnlp.training.backups import Backups

ROOT = Path(__file__).parents[2]
LENGTH, VOCABULARY = 16, 32
GPT2 = {
    "model_type": "gpt2", "vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 16, "n_layer": 1, "n_head": 2,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.2,
}  # fmt: skip
DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
BERT = {
    "model_type": "bert", "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "hidden_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2,
}  # fmt: skip


class Counting:
    """Blocks in which each token is the previous one plus 1."""

    rows = ((np.arange(64)[:, None] + np.arange(LENGTH)) % VOCABULARY).astype(np.int32)

    def __len__(self):
        return len(self.rows)

    def read(self, indices):
        return {"input_ids": self.rows[indices]}


class Uneven:
    """Random rows with few to nearly all tokens labeled."""

    def __init__(self, rows, host_index=0, host_count=1):
        self.rows, self.host_index, self.host_count = rows, host_index, host_count

    def __getitem__(self, step):
        rng = np.random.default_rng(step)
        ids = rng.integers(0, VOCABULARY, (self.rows, LENGTH)).astype(np.int32)
        is_labeled = rng.random((self.rows, LENGTH)) < np.linspace(0.05, 0.9, self.rows)[:, None]
        host_rows = slice(
            self.rows * self.host_index // self.host_count, self.rows * (self.host_index + 1) // self.host_count
        )
        return {
            "input_ids": ids[host_rows],
            "labels": np.where(is_labeled, ids[::-1], -100).astype(np.int32)[host_rows],
        }


def counting(batch_size=8):
    return Batches(Counting(), CausalLM(), batch_size)


class Losses(keras.callbacks.Callback):
    """Records the loss of every step; exits at once, as if killed, before the end of step `die_at`."""

    def __init__(self, die_at=None):
        super().__init__()
        self.steps, self.die_at = {}, die_at

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.step.numpy())
        self.steps[step] = logs["step_loss"]
        if step == self.die_at:
            print(json.dumps(self.steps), flush=True)
            os._exit(9)


def pretrainer(config=GPT2, accumulation=1, optimizer=None, head="CausalLM", **options):
    auto = getattr(tfnlp, f"AutoModelFor{head}")
    trainer = Pretrainer(auto.from_config(config, seed=1, **options), accumulation=accumulation)
    with trainer.distribute_strategy.scope():
        optimizer = optimizer() if optimizer else make_optimizer("adamw", 1e-2, trainer.model, epsilon=1e-6)
    trainer.compile(optimizer, jit_compile=False)
    return trainer


def weights(trainer):
    return {path: v.numpy() for path, v in tfnlp.parameter_tree(trainer.model).items()}


def assert_close(a, b, atol):
    assert set(a) == set(b)
    for path in a:
        if path.endswith("key/bias"):
            continue  # a softmax does not depend on it, so its gradient is rounding noise, which Adam amplifies
        np.testing.assert_allclose(a[path], b[path], rtol=0, atol=atol, err_msg=path)


@pytest.mark.representative
def test_it_learns_and_evaluate_weighs_all_tokens_equally():
    trainer = pretrainer()
    held_out = block_dataset(held_out_batches(Counting(), CausalLM(), 24))  # the last batch has padding rows
    history = trainer.fit(
        block_dataset(counting()), epochs=2, steps_per_epoch=40, validation_data=held_out, verbose=0
    ).history
    assert history["loss"][0] > 1 and history["loss"][1] < 0.5
    loss, perplexity = trainer.evaluate(held_out, verbose=0)
    rows = Counting.rows
    expected = float(trainer.model(rows, labels=rows)["loss"])
    assert loss == pytest.approx(expected, rel=1e-5) and history["val_loss"][-1] == pytest.approx(loss)
    assert perplexity == pytest.approx(np.exp(expected), rel=1e-5)
    ids = trainer.model.generate(np.array([[3, 4, 5]]), max_new_tokens=4, eos_token_id=31, pad_token_id=0)
    np.testing.assert_array_equal(ids, [[3, 4, 5, 6, 7, 8, 9]])


def clipped_sgd():
    return keras.optimizers.SGD(0.5, momentum=0.9, global_clipnorm=0.5)


@pytest.mark.parametrize("optimizer", [clipped_sgd, None], ids=["sgd", "adamw"])
def test_accumulation_matches_the_whole_batch_if_counts_differ(optimizer):
    results = []
    for accumulation in (1, 4):
        trainer = pretrainer(BERT, accumulation, optimizer, "MaskedLM")
        trainer.fit(block_dataset(Uneven(16)), steps_per_epoch=3, verbose=0)
        results.append(weights(trainer))
    assert_close(*results, atol=1e-6)


def test_the_step_follows_the_gradient_of_the_mean_loss():
    trainer = pretrainer(BERT, 2, lambda: keras.optimizers.SGD(0.5), "MaskedLM")
    batch, tree = Uneven(4)[0], tfnlp.parameter_tree(trainer.model)
    with tf.GradientTape() as tape:
        loss = trainer.model(**batch)["loss"]
    gradients = tape.gradient(loss, [v.value for v in tree.values()], unconnected_gradients="zero")
    expected = {
        path: v.numpy() - 0.5 * tf.convert_to_tensor(g).numpy() for (path, v), g in zip(tree.items(), gradients)
    }
    history = trainer.fit(block_dataset(Uneven(4)), steps_per_epoch=1, verbose=0).history
    assert history["step_loss"][0] == pytest.approx(float(loss), rel=1e-6)
    assert_close(weights(trainer), expected, atol=1e-6)


def run_steps(strategy=None, host_index=0, host_count=1, jit_compile=False):
    """Return losses and weights after clipped steps over uneven rows and an evaluation."""
    import contextlib

    with strategy.scope() if strategy else contextlib.nullcontext():
        trainer = pretrainer(BERT, 2, clipped_sgd, "MaskedLM")
    trainer.compile(trainer.optimizer, jit_compile=jit_compile)
    batches, losses = Uneven(16, host_index, host_count), Losses()
    trainer.fit(block_dataset(batches, strategy=strategy), epochs=2, steps_per_epoch=2, callbacks=[losses], verbose=0)
    evaluation = trainer.evaluate(block_dataset(batches, steps=2, strategy=strategy), verbose=0)
    return [*losses.steps.values(), *evaluation], weights(trainer)


def in_another_process(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.path.insert(0, '.')\n" + code],
        cwd=ROOT, env=os.environ | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


TWO_DEVICES = """
import sys, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
from tests.tfnlp.test_pretraining import run_steps
losses, weights = run_steps(strategy, jit_compile=True)
np.savez(sys.argv[1] if len(sys.argv) > 1 else FILE, losses=losses, **weights)
"""


def test_two_devices_match_one(tmp_path):
    file = tmp_path / "two.npz"
    process = in_another_process(f"FILE = {str(file)!r}" + TWO_DEVICES)
    losses, expected = run_steps()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    results = dict(np.load(file))
    np.testing.assert_allclose(results.pop("losses"), losses, rtol=1e-5)
    assert_close(results, expected, atol=1e-5)


TWO_WORKERS = """
import sys, numpy as np, tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
from tests.tfnlp.test_pretraining import run_steps
losses, weights = run_steps(strategy, INDEX, 2)
np.savez(FILE, losses=losses, **weights)
"""


@pytest.mark.slow
def test_two_workers_match_one(tmp_path):
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0)), b.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{s.getsockname()[1]}" for s in (a, b)]
    processes = []
    for index in (0, 1):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        head = f"FILE, INDEX = {str(tmp_path / f'{index}.npz')!r}, {index}"
        processes.append(in_another_process(head + TWO_WORKERS, TF_CONFIG=json.dumps(config)))
    losses, expected = run_steps()
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    for index in (0, 1):
        results = dict(np.load(tmp_path / f"{index}.npz"))
        np.testing.assert_allclose(results.pop("losses"), losses, rtol=1e-5)
        assert_close(results, expected, atol=1e-5)


RESUMED = {"epochs": 3, "steps_per_epoch": 4, "verbose": 0}


def backed_up(folder, die_at=None, **options):
    """Run with dropout, accumulation, a schedule and a backup every 3 steps; return the losses of the steps it did first."""
    trainer = Pretrainer(tfnlp.AutoModelForCausalLM.from_config(GPT2 | DROPOUT, seed=1), accumulation=2, seed=3)
    trainer.compile(make_optimizer("adamw", Schedule(12, 1e-2), trainer.model), jit_compile=False)
    losses = Losses(die_at)
    callbacks = [BackupAndRestore(folder, save_freq=3, **options), losses] if folder else [losses]
    history = trainer.fit(block_dataset(counting()), callbacks=callbacks, **RESUMED).history
    return losses.steps, history, trainer


@pytest.fixture(scope="module")
def uninterrupted():
    return backed_up(None)


SLOW = [pytest.param(2, 0, marks=pytest.mark.slow), pytest.param(9, 9, marks=pytest.mark.slow)]


@pytest.mark.parametrize("die_at, last_backup", [(7, 6), *SLOW])
def test_a_killed_run_resumes_bit_identically(tmp_path, uninterrupted, die_at, last_backup):
    code = f"from tests.tfnlp.test_pretraining import backed_up; backed_up({str(tmp_path)!r}, {die_at})"
    process = in_another_process(code)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 9, errors
    before = {int(step): loss for step, loss in json.loads(output.splitlines()[-1]).items()}
    after, history, trainer = backed_up(tmp_path)
    steps, full_history, full = uninterrupted
    assert list(after) == list(range(last_backup + 1, 13))
    assert before | after == steps
    epochs = len(history["loss"])
    assert history["loss"] == full_history["loss"][-epochs:]  # means over whole epochs, the first part of them restored
    for path, values in weights(full).items():
        np.testing.assert_array_equal(weights(trainer)[path], values, err_msg=path)
    again, _, _ = backed_up(tmp_path)
    assert not again  # the run is complete


class Interrupted(Exception):
    """Stops a run in this process."""


class AfterStep(keras.callbacks.Callback):
    """Calls a function after a step."""

    def __init__(self, step, do):
        super().__init__()
        self.step, self.do = step, do

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.step.numpy()) == self.step:
            self.do()


def interrupt():
    raise Interrupted


def sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run over a finite dataset, stopped at step 6, the second of epoch 2, and the losses of the uninterrupted run."""
    folder, trainer, losses = tmp_path_factory.mktemp("interrupted"), pretrainer(optimizer=sgd), Losses()
    start = [variable.numpy() for variable in [*trainer.weights, *trainer.optimizer.variables]]
    trainer.fit(block_dataset(counting(), steps=4), epochs=2, callbacks=[losses], verbose=0)
    for variable, value in zip([*trainer.weights, *trainer.optimizer.variables], start):
        variable.assign(value)
    callbacks = [BackupAndRestore(folder, save_freq=1), AfterStep(6, interrupt)]
    with pytest.raises(Interrupted):
        trainer.fit(block_dataset(counting(), steps=4), epochs=2, callbacks=callbacks, verbose=0)
    return folder, losses.steps, trainer


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def copy_files(folder, into):
    for file in folder.iterdir():
        (into / file.name).write_bytes(file.read_bytes())


@pytest.mark.representative
def test_a_finite_dataset_resumes_too(tmp_path, interrupted):
    folder, steps, trainer = interrupted
    copy_files(folder, tmp_path)
    assert files(tmp_path) == ["step-000000005.safetensors", "step-000000006.safetensors"]
    (tmp_path / "step-000000007.partial").write_bytes(b"half a backup")
    losses = Losses()
    callbacks = [BackupAndRestore(tmp_path, save_freq=1), losses]
    trainer.fit(block_dataset(counting(), steps=4), epochs=2, callbacks=callbacks, verbose=0)
    assert losses.steps == {7: steps[7], 8: steps[8]}
    assert files(tmp_path) == ["step-000000007.safetensors", "step-000000008.safetensors"]


def test_a_damaged_backup_is_skipped_with_a_warning(tmp_path, interrupted):
    folder, steps, trainer = interrupted
    copy_files(folder, tmp_path)
    newest = tmp_path / "step-000000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    losses, data = Losses(), block_dataset(counting(), steps=4)
    with pytest.warns(UserWarning, match="step-000000006.safetensors cannot be read"):
        trainer.fit(data, epochs=2, callbacks=[BackupAndRestore(tmp_path), losses], verbose=0)
    assert losses.steps == {step: steps[step] for step in (6, 7, 8)}
    assert "step-000000006.damaged" in files(tmp_path)
    for file in tmp_path.glob("step-*.safetensors"):
        file.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="delete them to start over"):
        trainer.fit(data, epochs=2, callbacks=[BackupAndRestore(tmp_path)], verbose=0)


def test_the_log_resumes_with_the_backup(tmp_path, interrupted):
    folder, steps, trainer = interrupted
    copy_files(folder, tmp_path)
    log = PretrainingLog(tmp_path / "log", log_every=2, console=False)
    data = block_dataset(counting(), steps=4)
    trainer.fit(data, epochs=2, callbacks=[log, BackupAndRestore(tmp_path)], validation_data=data, verbose=0)
    step, evaluation = read_metrics(tmp_path / "log")
    assert (step["step"], step["tokens"], evaluation["step"]) == (8, 8 * 8 * LENGTH, 8)
    assert step["loss"] == steps[8] and step["perplexity"] == pytest.approx(np.exp(steps[8]))
    assert step["learning_rate"] == pytest.approx(0.1) and evaluation["loss"] < step["loss"] + 1


def test_killed_around_backups_the_log_has_every_step_once(tmp_path, monkeypatch):
    """Whatever the order of the callbacks: before the first backup, and right after the second."""
    trainer, write, steps = pretrainer(optimizer=sgd), Backups.write, []

    def run(*others):
        backups, log = (
            BackupAndRestore(tmp_path / "backups", save_freq=2),
            PretrainingLog(tmp_path, log_every=1, console=False),
        )
        callbacks = [*others, backups, log, SaveBest(tmp_path / "best", "loss")]
        trainer.fit(block_dataset(counting(), steps=3), epochs=2, callbacks=callbacks, verbose=0)

    def write_and_die(self, step, *arguments):
        write(self, step, *arguments)
        steps.append(step)
        if step == 4:
            raise Interrupted

    with locked_folder(tmp_path, "metrics"), pytest.raises(InputError, match="is being written by another process or"):
        run()
    with pytest.raises(Interrupted):
        run(AfterStep(2, interrupt))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        trainer.step.assign(0)
        patch.setattr(Backups, "write", write_and_die)
        run()
    run()
    assert steps == [2, 4]
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    with locked_folder(tmp_path / "backups", "backups"), pytest.raises(InputError, match="is being written by another"):
        run()
    trainer.step.assign(0)
    (tmp_path / "backups").rename(tmp_path / "elsewhere")  # so its 6 steps are not those of a run killed before step 2
    with pytest.raises(InputError, match="has the records of an earlier run"):
        run()


def test_xla_compiles_the_step_by_default():
    trainer = pretrainer(optimizer=sgd)
    for options, expected in (({}, True), ({"jit_compile": False}, False), ({"run_eagerly": True}, False)):
        trainer.compile(trainer.optimizer, **options)
        assert trainer.jit_compile is expected


def test_a_backup_of_another_run_is_refused(interrupted):
    folder, _, trainer = interrupted
    before = files(folder)
    callbacks = [BackupAndRestore(folder)]
    with pytest.raises(InputError, match="batch_size=8, but now it is 16"):
        trainer.fit(block_dataset(counting(16), steps=4), callbacks=callbacks, verbose=0)
    with pytest.raises(InputError, match="steps_per_epoch=4, but now it is 5"):
        trainer.fit(block_dataset(counting(), steps=5), callbacks=callbacks, verbose=0)
    with pytest.raises(InputError, match="optimizer=SGD, but now it is AdamW"):
        pretrainer().fit(block_dataset(counting(), steps=4), callbacks=callbacks, verbose=0)
    wider = pretrainer(GPT2 | {"n_embd": 32}, optimizer=sgd)
    with pytest.raises(InputError, match="another model or optimizer"):
        wider.fit(block_dataset(counting(), steps=4), callbacks=callbacks, verbose=0)
    assert files(folder) == before


def test_a_non_finite_loss_ends_the_run_and_is_not_backed_up(tmp_path):
    trainer = pretrainer(optimizer=sgd)
    kernel = tfnlp.parameter_tree(trainer.model)["embeddings/word_embeddings/embedding"]
    spoil = AfterStep(3, lambda: kernel.assign(kernel * np.nan))
    callbacks = [BackupAndRestore(tmp_path, save_freq=1), spoil, StopAtNonFiniteLoss()]
    with pytest.raises(NonFiniteLossError, match="nan at step 4; it was finite at step 3"):
        trainer.fit(block_dataset(counting()), steps_per_epoch=10, callbacks=callbacks, verbose=0)
    assert files(tmp_path) == ["step-000000002.safetensors", "step-000000003.safetensors"]
    losses = Losses()
    trainer.fit(
        block_dataset(counting()), steps_per_epoch=10, callbacks=[BackupAndRestore(tmp_path), losses], verbose=0
    )
    assert list(losses.steps) == list(range(4, 11)) and np.isfinite(list(losses.steps.values())).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_trains(dtype):
    trainer = pretrainer(accumulation=2, dtype=dtype)
    losses, before = Losses(), weights(trainer)
    assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer) == (dtype == "float16")
    if dtype == "float16":
        trainer.optimizer.dynamic_scale.assign(2.0**40)  # overflows: the step is skipped and the scale halved
        trainer.fit(block_dataset(counting()), steps_per_epoch=1, verbose=0)
        assert (
            float(trainer.optimizer.dynamic_scale.numpy()) == 2.0**39 and int(trainer.optimizer.iterations.numpy()) == 0
        )
        assert_close(weights(trainer), before, atol=0)
        trainer.optimizer.dynamic_scale.assign(2.0**10)
    trainer.fit(block_dataset(counting()), steps_per_epoch=40, callbacks=[losses], verbose=0)
    assert all(values.dtype == np.float32 for values in weights(trainer).values())
    history = list(losses.steps.values())
    assert history[-1] < history[0] / 3


def test_documents_in_a_row_do_not_attend_to_each_other():
    model = tfnlp.AutoModelForCausalLM.from_config(GPT2, seed=1)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, 10)).astype(np.int32)
    segments = np.array([[0] * 4 + [1] * 6, [0] * 10], np.int32)
    batch = {"input_ids": tf.constant(ids), "segment_ids": tf.constant(segments)}
    inputs = model_inputs(model.config, batch)
    np.testing.assert_array_equal(inputs["position_ids"][0], [0, 1, 2, 3, 0, 1, 2, 3, 4, 5])
    together = model(inputs)["logits"].numpy()
    apart = [model(ids[:1, :4])["logits"], model(ids[:1, 4:])["logits"]]
    np.testing.assert_allclose(together[:1], np.concatenate(apart, 1), atol=1e-5)
    np.testing.assert_allclose(together[1:], model(ids[1:])["logits"], atol=1e-5)
    assert set(model_inputs(model.config, {"input_ids": ids})) == {"input_ids"}


def test_the_schedule_matches_learning_rate_at():
    options = {"peak": 0.3, "schedule": "cosine", "warmup_share": 0.2, "final_share": 0.1}
    schedule = Schedule(10, **options)
    expected = [learning_rate_at((step + 0.5) / 10, **options) for step in range(10)]
    np.testing.assert_array_equal([schedule(step) for step in range(12)], np.float32([*expected, *[expected[-1]] * 2]))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    np.testing.assert_array_equal(again.rates, schedule.rates)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion"])
def test_biases_and_norms_do_not_decay(name):
    model = tfnlp.AutoModelForMaskedLM.from_config(BERT, seed=1)
    tree = tfnlp.parameter_tree(model)
    for variable in tree.values():
        variable.assign(np.ones(variable.shape))
    optimizer = make_optimizer(name, 0.5, model, weight_decay=0.1)
    optimizer.apply([tf.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    for path, variable in tree.items():
        expected = 1.0 if path.endswith(("bias", "scale")) else 0.95
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-6, err_msg=path)


def test_adamw_matches_the_paper():
    variable, optimizer = keras.Variable([1.0, -2.0]), AdamW(0.1, 0.01, beta_1=0.9, beta_2=0.95, epsilon=0.5)
    x, mean, square = np.array([1.0, -2.0]), 0.0, 0.0
    for step, gradient in enumerate([[0.5, 1.0], [-0.25, 2.0], [1.0, 0.0]], 1):
        optimizer.apply([tf.constant(gradient)], [variable])
        gradient = np.array(gradient)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.95 * square + 0.05 * gradient**2
        x = x - 0.1 * (0.01 * x + mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.95**step)) + 0.5))
    np.testing.assert_allclose(variable.numpy(), x, rtol=1e-6)


class Broken(Uneven):
    """Blocks of which one is unreadable."""

    def __getitem__(self, step):
        if step == 2:
            raise InputError("blocks-00001.array_record is damaged")
        return super().__getitem__(step)


def test_usage_errors(tmp_path):
    classifier = tfnlp.AutoModelForSequenceClassification.from_config(BERT)
    with pytest.raises(InputError, match="a sequence-classification model cannot be pretrained"):
        Pretrainer(classifier)
    trainer = pretrainer(accumulation=3, optimizer=sgd)
    for call, message in {
        lambda: Pretrainer(trainer.model, accumulation=0): "accumulation is 0",
        lambda: trainer.fit(block_dataset(counting())): "the dataset is endless",
        lambda: trainer.evaluate(block_dataset(counting())): "the dataset is endless",
        lambda: trainer.fit(block_dataset(counting(), steps=4), steps_per_epoch=2): "ends after 4 batches",
        lambda: trainer.fit(block_dataset(counting(), steps=1)): "8 rows per step do not divide .* multiple of 3",
        lambda: trainer.fit(np.zeros((8, 16))): "fit got ndarray",
        lambda: block_dataset([{"input_ids": np.zeros((2, 3))}]): "must have input_ids and labels",
        lambda: block_dataset([]): "there are 0 batches",
        lambda: block_dataset(Uneven(8, 0, 2)): "one of 2 hosts",
        lambda: block_dataset(counting(), start=-1): "start is -1",
        lambda: make_optimizer("adam", 1e-3, trainer.model): "choose one of adamw, adafactor, lion",
        lambda: make_optimizer("adamw", 1e-3, trainer.model, clip_norm=0): "clip_norm is 0",
        lambda: Schedule(0, 1e-3): "steps is 0",
        lambda: Schedule(10, 1e-3, schedule="square"): "square",
        lambda: BackupAndRestore(tmp_path, save_freq=0): "save_freq is 0",
        lambda: BackupAndRestore(tmp_path).set_model(keras.Sequential()): "needs a Pretrainer",
        lambda: trainer.fit(block_dataset(Broken(9)), steps_per_epoch=4, verbose=0): "array_record is damaged",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=message):
            call()
