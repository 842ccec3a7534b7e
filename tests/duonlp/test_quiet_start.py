"""The first lines on the screen are ours: what frameworks say of their start stays off it, unless a person asks for it."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.checkpoints.save import save_checkpoint
from duonlp.parameters import initial_value, parameters
from duonlp.tokenizers.train import train_tokenizer
from duonlp.util import frameworks

ROOT = Path(__file__).resolve().parents[2]
OURS = ("TF_", "XLA_", "JAX_", "KERAS_", "CUDA_", "GRPC_", "TRANSFORMERS_", "TOKENIZERS_")
"""What the Makefile, the tests or the command line may have set, and a person has not."""

ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(not frameworks.installed(name), reason=f"{name} is not installed"))
    for name in ("tf", "jax")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny GPT-2 and its tokenizer."""
    folder = tmp_path_factory.mktemp("quiet") / "model"
    tokenizer = train_tokenizer(["a b c\n"] * 20, vocab_size=270, min_frequency=0, max_length=32)
    sizes = {"vocab_size": len(tokenizer), "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = config_from_hf({"model_type": "gpt2", **sizes, "bos_token_id": 0, "eos_token_id": 0})
    spec = parameters(config, "causal-lm")
    save_checkpoint(folder, config, "causal-lm", lambda path: initial_value(path, spec[path]), np.float32, tokenizer)
    return folder


def said(code: str, **settings: str) -> tuple[str, str]:
    """Standard output and error of a fresh process with a person's environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    if find_spec("libtpu"):  # its notes are its own
        environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.representative
@pytest.mark.parametrize("engine", ENGINES)
def test_a_pipeline_says_nothing(engine, model):
    first = {
        "tf": "import tensorflow as tf; tf.function(lambda x: x + 1, jit_compile=True)(tf.constant(1.0))",
        "jax": "import jax; jax.jit(lambda x: x + 1)(jax.numpy.ones(3))",
    }[engine]
    code = (
        f"import {engine}nlp\n{first}\n"
        f"pipe = {engine}nlp.pipeline('text-generation', {str(model)!r})\npipe('a b', max_new_tokens=2)"
    )
    assert said(code) == ("", "")


@pytest.mark.representative
@pytest.mark.parametrize("engine", ENGINES)
def test_the_command_line_prints_its_results_alone(engine, model):
    arguments = ["generate", "a b", "--model", str(model), "-f", engine, "--max-new-tokens", "2", "--json"]
    out, err = said(f"from duonlp.cli import main\nmain({arguments})")
    assert err == "" and out.startswith("{") and out.endswith("}\n")


@pytest.mark.skipif(not frameworks.installed("tf"), reason="tf is not installed")
def test_whoever_asks_for_the_notes_sees_them():
    def lines(code, level):
        _, err = said(f"{code}\nimport os; assert os.environ['TF_CPP_MIN_LOG_LEVEL'] == '{level}'",
                      TF_CPP_MIN_LOG_LEVEL=level, KERAS_BACKEND="tensorflow")  # fmt: skip
        return {re.sub(r"^(.)\d+ [\d:.]+ +\d+ ", r"\1 ", line) for line in err.splitlines()}

    assert lines("import tfnlp", "0") >= lines("import keras, tensorflow", "0")
    assert lines("import tfnlp", "3") == set()


def test_a_person_s_advice_comes_back():
    code = "import os, sys; from duonlp.util import frameworks; frameworks.transformers(); print('transformers' in sys.modules)"
    variable = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    assert said(f"{code}; print(os.environ.get('{variable}'))") == ("True\nNone\n", "")
    out, err = said(code, **{variable: ""})
    assert out == "True\n" and ("PyTorch was not found" in err) == (not find_spec("torch"))


def test_filtering_needs_no_folder_for_temporary_files(monkeypatch):
    def no_folder():
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(frameworks.tempfile, "TemporaryFile", no_folder)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with frameworks.without_native_notes():
        pass
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)
