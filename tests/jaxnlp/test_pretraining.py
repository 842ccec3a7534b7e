"""Pretraining: it learns, keeps to its clock, and gives the same losses however many devices share a batch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("flax")

import jax

import jaxnlp
from jaxnlp.pretraining import PretrainingConfig, data_mesh, held_out_loss, optimizer, pretrain
from shared.data.packing import shuffled_batches
from shared.errors import InputError

GPT2 = {
    "model_type": "gpt2", "vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip


def blocks():
    """Counting: each token is the one before it plus one."""
    return ((np.arange(64)[:, None] + np.arange(16)) % 32).astype(np.int32)


def losses(steps=3, mesh=None):
    model = jaxnlp.AutoModelForCausalLM.from_config(GPT2, seed=1)
    config = PretrainingConfig(steps=steps, learning_rate=1e-2)
    return model, [step.loss for step in pretrain(model, shuffled_batches(blocks(), 8, 0), config, mesh)]


def test_it_learns_and_the_model_holds_what_was_learnt():
    model, history = losses(120)
    assert history[0] == pytest.approx(np.log(32), abs=0.2) and history[-1] < 0.5
    assert held_out_loss(model, blocks(), 8) < 0.5
    ids = model.generate(np.array([[3, 4, 5]]), max_new_tokens=4, eos_token_id=31, pad_token_id=0)
    np.testing.assert_array_equal(ids, [[3, 4, 5, 6, 7, 8, 9]])


def test_two_devices_give_the_losses_of_one():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    code = (
        "import sys, json; sys.path.insert(0, '.'); from tests.jaxnlp.test_pretraining import losses; import jax; "
        "assert jax.device_count() == 2; print(json.dumps(losses()[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), losses(mesh=data_mesh(jax.devices()[:1]))[1], rtol=1e-4)


def test_the_learning_rate_rises_and_comes_down():
    config = PretrainingConfig(steps=100, learning_rate=1.0, warmup_share=0.1, final_share=0.1)
    rates = [config.learning_rate_at(progress) for progress in np.linspace(0, 1, 101)]
    assert rates[0] == 0 and rates[10] == pytest.approx(1) and rates[-1] == pytest.approx(0.1)
    assert np.all(np.diff(rates[:11]) > 0) and np.all(np.diff(rates[10:]) < 0)


def test_the_clock_ends_training_early():
    model = jaxnlp.AutoModelForCausalLM.from_config(GPT2)
    config = PretrainingConfig(steps=10**6, seconds=0.2)
    steps = list(pretrain(model, shuffled_batches(blocks(), 8, 0), config))
    assert 1 < len(steps) < 10**5 and steps[-1].progress == 1.0
    assert steps[-1].learning_rate < steps[len(steps) // 2].learning_rate


def test_vectors_do_not_decay():
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    transform = optimizer(PretrainingConfig(steps=1))
    updates, _ = transform.update(jax.tree.map(np.zeros_like, params), transform.init(params), params)
    assert np.all(np.asarray(updates["bias"]) == 0)
    np.testing.assert_allclose(updates["kernel"], 0.1)


def test_mistakes_are_said():
    for bad in ({"steps": 0}, {"steps": 1, "learning_rate": -1.0}, {"steps": 1, "warmup_share": 1.5}):
        with pytest.raises(InputError, match="it must be"):
            PretrainingConfig(**bad)
    model = jaxnlp.AutoModelForCausalLM.from_config(GPT2)
    with pytest.raises(InputError, match="ran out after 1 of 2"):
        list(pretrain(model, [blocks()[:8]], PretrainingConfig(steps=2)))
    with pytest.raises(InputError, match="at least one batch"):
        held_out_loss(model, blocks()[:3], 8)
