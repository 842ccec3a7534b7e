"""Pretraining with fit: the large batch's gradient however it is cut up, and runs that go on after any interruption."""

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
from shared.data.batches import Batches, held_out_batches
from shared.data.objectives import CausalLM
from shared.errors import CheckpointError, InputError
from shared.training.schedules import learning_rate_at
from tfnlp.training import (
    AdamW,
    BackupAndRestore,
    NonFiniteLossError,
    Pretrainer,
    Schedule,
    StopAtNonFiniteLoss,
    block_dataset,
    make_optimizer,
    model_inputs,
)

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
    """Blocks in which each token is the one before it plus one."""

    rows = ((np.arange(64)[:, None] + np.arange(LENGTH)) % VOCABULARY).astype(np.int32)

    def __len__(self):
        return len(self.rows)

    def read(self, indices):
        return {"input_ids": self.rows[indices]}


class Uneven:
    """Random rows of which some have one label, and some have nearly all."""

    def __init__(self, rows, host_index=0, host_count=1):
        self.rows, self.host_index, self.host_count = rows, host_index, host_count

    def __getitem__(self, step):
        rng = np.random.default_rng(step)
        ids = rng.integers(0, VOCABULARY, (self.rows, LENGTH)).astype(np.int32)
        labelled = rng.random((self.rows, LENGTH)) < np.linspace(0.05, 0.9, self.rows)[:, None]
        mine = slice(
            self.rows * self.host_index // self.host_count, self.rows * (self.host_index + 1) // self.host_count
        )
        return {"input_ids": ids[mine], "labels": np.where(labelled, ids[::-1], -100).astype(np.int32)[mine]}


def counting(batch_size=8):
    return Batches(Counting(), CausalLM(), batch_size)


class Losses(keras.callbacks.Callback):
    """The loss of every step; dies at once, as from kill -9, before the end of step `die_at`."""

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
    kind = getattr(tfnlp, f"AutoModelFor{head}")
    made = Pretrainer(kind.from_config(config, seed=1, **options), accumulation=accumulation)
    with made.distribute_strategy.scope():
        optimizer = optimizer() if optimizer else make_optimizer("adamw", 1e-2, made.model, epsilon=1e-6)
    made.compile(optimizer, jit_compile=False)
    return made


def weights(made):
    return {path: v.numpy() for path, v in tfnlp.parameter_tree(made.model).items()}


def assert_close(a, b, atol):
    assert set(a) == set(b)
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=0, atol=atol, err_msg=path)


def test_it_learns_and_evaluate_weighs_every_token_alike():
    made = pretrainer()
    held_out = block_dataset(held_out_batches(Counting(), CausalLM(), 24))  # the last batch is filled up
    history = made.fit(
        block_dataset(counting()), epochs=2, steps_per_epoch=40, validation_data=held_out, verbose=0
    ).history
    assert history["loss"][0] > 1 and history["loss"][1] < 0.5
    loss, perplexity = made.evaluate(held_out, verbose=0)
    rows = Counting.rows
    expected = float(made.model(rows, labels=rows)["loss"])
    assert loss == pytest.approx(expected, rel=1e-5) and history["val_loss"][-1] == pytest.approx(loss)
    assert perplexity == pytest.approx(np.exp(expected), rel=1e-5)
    ids = made.model.generate(np.array([[3, 4, 5]]), max_new_tokens=4, eos_token_id=31, pad_token_id=0)
    np.testing.assert_array_equal(ids, [[3, 4, 5, 6, 7, 8, 9]])


def clipped_sgd():
    return keras.optimizers.SGD(0.5, momentum=0.9, global_clipnorm=0.5)


@pytest.mark.parametrize("optimizer", [clipped_sgd, None], ids=["sgd", "adamw"])
def test_accumulation_is_the_large_batch_where_counts_differ(optimizer):
    results = []
    for accumulation in (1, 4):
        made = pretrainer(BERT, accumulation, optimizer, "MaskedLM")
        made.fit(block_dataset(Uneven(16)), steps_per_epoch=3, verbose=0)
        results.append(weights(made))
    assert_close(*results, atol=1e-6)


def test_the_step_is_that_of_the_mean_loss():
    made = pretrainer(BERT, 2, lambda: keras.optimizers.SGD(0.5), "MaskedLM")
    batch, tree = Uneven(4)[0], tfnlp.parameter_tree(made.model)
    with tf.GradientTape() as tape:
        loss = made.model(**batch)["loss"]
    gradients = tape.gradient(loss, [v.value for v in tree.values()], unconnected_gradients="zero")
    expected = {
        path: v.numpy() - 0.5 * tf.convert_to_tensor(g).numpy() for (path, v), g in zip(tree.items(), gradients)
    }
    history = made.fit(block_dataset(Uneven(4)), steps_per_epoch=1, verbose=0).history
    assert history["step_loss"][0] == pytest.approx(float(loss), rel=1e-6)
    assert_close(weights(made), expected, atol=1e-6)


def run_steps(strategy=None, host_index=0, host_count=1, jit_compile=False):
    """Three clipped steps over uneven rows, and an evaluation: losses and weights."""
    import contextlib

    with strategy.scope() if strategy else contextlib.nullcontext():
        made = pretrainer(BERT, 2, clipped_sgd, "MaskedLM")
    made.compile(made.optimizer, jit_compile=jit_compile)
    mine, losses = Uneven(16, host_index, host_count), Losses()
    made.fit(block_dataset(mine, strategy=strategy), epochs=2, steps_per_epoch=2, callbacks=[losses], verbose=0)
    evaluation = made.evaluate(block_dataset(mine, steps=2, strategy=strategy), verbose=0)
    return [*losses.steps.values(), *evaluation], weights(made)


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


def test_two_devices_are_one(tmp_path):
    file = tmp_path / "two.npz"
    process = in_another_process(f"FILE = {str(file)!r}" + TWO_DEVICES)
    losses, expected = run_steps()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    two = dict(np.load(file))
    np.testing.assert_allclose(two.pop("losses"), losses, rtol=1e-5)
    assert_close(two, expected, atol=1e-5)


TWO_WORKERS = """
import sys, numpy as np, tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
from tests.tfnlp.test_pretraining import run_steps
losses, weights = run_steps(strategy, INDEX, 2)
np.savez(FILE, losses=losses, **weights)
"""


@pytest.mark.slow
def test_two_workers_are_one(tmp_path):
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
        two = dict(np.load(tmp_path / f"{index}.npz"))
        np.testing.assert_allclose(two.pop("losses"), losses, rtol=1e-5)
        assert_close(two, expected, atol=1e-5)
