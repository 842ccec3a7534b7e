"""Runs in separate processes: killed and restarted, and several processes together."""

import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("orbax.checkpoint")

from duonlp.training.log.metrics_file import read_metrics
from duonlp.util.xla_flags import HOST_DEVICES, add_xla_flags

PROGRAM = [sys.executable, "-m", "tests.jaxnlp.training.runs"]


def start(folder, devices, **options):
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    add_xla_flags({HOST_DEVICES: devices}, environment)
    arguments = [f"{name}={value!r}" for name, value in options.items()]
    return subprocess.Popen(
        [*PROGRAM, str(folder), *arguments], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output.strip().splitlines()[-1]


def losses(folder):
    return [record["loss"] for record in read_metrics(folder) if record["kind"] == "step"]


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_resumes_bit_identically(tmp_path, kills):
    """The kill hits a step, an evaluation or the writing of a checkpoint, one of which is written per step."""
    settings = {"steps": 12 + 12 * kills, "save_every": 1, "evaluate_every": 7, "keep_last": 2}
    folder, draw = tmp_path / "run", random.Random(0)
    file, size = folder / "metrics.jsonl", 0
    for _ in range(kills):
        process = start(folder, 1, **settings)
        while process.poll() is None and (not file.exists() or file.stat().st_size <= size):
            time.sleep(0.01)  # until it has begun to train
        time.sleep(draw.uniform(0, 0.5))
        assert process.poll() is None, f"the run ended before it could be killed: {process.communicate()[0]}"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        size = file.stat().st_size
    assert finish(start(folder, 1, **settings)) == f"done {settings['steps']}"
    finish(start(tmp_path / "whole", 1, **settings))
    assert len(losses(folder)) == settings["steps"]
    assert losses(folder) == losses(tmp_path / "whole")


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_fine_tuning_and_distillation_resume_bit_identically(tmp_path, kills):
    """With dropout, in turn; the kills hit steps, evaluations, checkpoints and the writing of the best model."""
    draw = random.Random(0)
    for kind in ("fit", "distill"):
        turns = kills // 2
        options = {"kind": kind, "epochs": 4 + 4 * turns, "save_every": 1, "dropout": 0.1}
        folder, (file, size) = tmp_path / kind, (tmp_path / kind / "metrics.jsonl", 0)
        for _ in range(turns):
            process = start(folder, 1, **options)
            while process.poll() is None and (not file.exists() or file.stat().st_size <= size):
                time.sleep(0.01)  # until it has begun to train
            time.sleep(draw.uniform(0, 0.3))
            assert process.poll() is None, f"the run ended before it could be killed: {process.communicate()[0]}"
            process.send_signal(signal.SIGKILL)
            process.communicate()
            size = file.stat().st_size
        steps = 3 * options["epochs"]
        assert finish(start(folder, 1, **options)) == f"done {steps}"
        assert finish(start(tmp_path / f"whole {kind}", 1, **options)) == f"done {steps}"
        assert len(losses(folder)) == steps and losses(folder) == losses(tmp_path / f"whole {kind}")
        assert parameters(folder) == parameters(tmp_path / f"whole {kind}")


def parameters(folder):
    """Return the bytes of the best model."""
    return (folder / "best" / "model.safetensors").read_bytes()


def start_two(folder, devices=2, **settings):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    return [start(folder, devices, coordinator=address, processes=2, process=i, **settings) for i in range(2)]


@pytest.mark.parametrize("kind", ["fit", "distill"])
def test_two_processes_fine_tune_like_one(tmp_path, kind):
    """Four devices each against eight, sharded, scanned and rematerialized; batches of 8 and 5 rows do not divide by 16."""
    settings = {
        "kind": kind,
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        "scan": True,
        "remat": "full",
        "accumulation": 2,
    }
    both = start_two(tmp_path / "two", 4, **settings)
    assert [finish(process) for process in both] == ["done 6", "done 6"]
    assert finish(start(tmp_path / "one", 8, **settings)) == "done 6"
    ours, theirs = (read_metrics(tmp_path / name) for name in ("two", "one"))
    assert len(ours) == 8
    for record, expected in zip(ours, theirs, strict=True):
        names = [name for name in expected if "loss" in name or name in ("hidden_mse", "layers", "examples")]
        assert "loss" in names
        for name in names:
            assert record[name] == pytest.approx(expected[name], rel=1e-5), name
    one, two = (load_file(tmp_path / name / "best" / "model.safetensors") for name in ("one", "two"))
    assert set(one) == set(two)
    for name, expected in one.items():
        # Softmax does not depend on the biases of keys: their gradient is rounding alone, which Adam scales to full steps.
        if not name.endswith("key.bias"):
            np.testing.assert_allclose(two[name], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_after_the_same_step(tmp_path):
    both, file = start_two(tmp_path / "run", steps=100_000), tmp_path / "run" / "metrics.jsonl"
    while not file.exists() or not file.stat().st_size:
        assert both[0].poll() is None
        time.sleep(0.05)
    both[1].send_signal(signal.SIGTERM)
    results = [finish(process) for process in both]
    step = len(losses(tmp_path / "run"))
    assert results == [f"preempted {step}"] * 2
    assert os.listdir(tmp_path / "run" / "checkpoints") == [str(step)]


def test_two_processes_of_two_devices_match_one_of_four(tmp_path):
    settings = {"steps": 10, "save_every": 5, "evaluate_every": 5, "mesh": {"data": 2, "fsdp": 2}}
    both = start_two(tmp_path / "two", **settings)
    assert [finish(process) for process in both] == ["done 10", "done 10"]
    assert finish(start(tmp_path / "one", 4, **settings)) == "done 10"
    ours, theirs = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert len(ours) == 10
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert sorted(os.listdir(tmp_path / "two" / "checkpoints")) == ["10", "5"]
