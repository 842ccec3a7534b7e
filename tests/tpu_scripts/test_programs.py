"""The programs in sequence, from raw text to a model that both packages load."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

from tests.duonlp.runs.test_run import SMALL, write_source


def program(name, *arguments, status=0):
    done = subprocess.run(
        [sys.executable, f"tpu_scripts/{name}.py", *map(str, arguments)], env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done


def test_from_text_to_a_model(tmp_path):
    run, data, output = tmp_path / "run.json", tmp_path / "data", tmp_path / "run"
    run.write_text(json.dumps(SMALL | {"corpus": str(write_source(tmp_path / "source"))}))
    made = json.loads(program("prepare", run, "--data", data, "--workers", 1, "--json").stdout)
    assert made["blocks"]["training"]["complete"] and made["corpus"]["kept"]["documents"] > 20

    options = ["training.evaluate_every=2", "--data", data, "--output", output, "--host-devices", 2, "--tensorboard"]
    result = program("pretrain", run, *options)
    assert "done after 4 steps, 128 tokens" in result.stderr and result.stdout.strip() == str(output)
    assert list(output.rglob("events.out.tfevents.*"))
    assert "done after 4 steps" in program("pretrain", run, *options).stderr  # without further training

    program("export", output, "--data", data, "--output", tmp_path / "model")
    import jaxnlp
    import tfnlp

    outputs = [
        np.asarray(
            package.AutoModelForCausalLM.from_pretrained(tmp_path / "model")(input_ids=np.arange(8)[None])["logits"]
        )
        for package in (jaxnlp, tfnlp)
    ]
    np.testing.assert_allclose(*outputs, atol=1e-5)

    wrong = program("pretrain", run, "training.learning_rate=1", *options, status=2)
    assert "learning_rate=0.001 (now 1.0)" in wrong.stderr and len(wrong.stderr.strip().splitlines()) == 1


def test_usage_errors_are_one_line(tmp_path):
    stderr = program("prepare", tmp_path / "nowhere.py", status=2).stderr
    assert "does not exist" in stderr and len(stderr.strip().splitlines()) == 1
    assert "No such option" in program("pretrain", tmp_path, "--step", 3, status=2).stderr
    assert "cannot read" in program("export", tmp_path, status=2).stderr
