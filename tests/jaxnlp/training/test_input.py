"""Input of pretraining: prefetching with grain, which only the extra `pretrain` installs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

from jaxnlp.training.input import read_ahead
from tests.jaxnlp.training.runs import batches

ROOT = Path(__file__).resolve().parents[3]
MISSING = ("grain", "array_record", "datasets", "datasketch", "detect_secrets", "pyarrow", "tensorboardX", "zstandard")
"""Packages that the extra `pretrain` adds to `jax`."""

WITHOUT_PRETRAIN = f"""
import sys

sys.path[:0] = ["shared", "."]
sys.modules.update(dict.fromkeys({MISSING}))  # importing them raises ImportError
import jaxnlp.training
from duonlp.errors import MissingExtraError
from tests.jaxnlp.training.runs import GPT2, batches, settings

try:
    jaxnlp.training.pretrain(jaxnlp.training.LazyModel.from_config(GPT2), batches(), settings(), sys.argv[1])
except MissingExtraError as error:
    print(error)
"""


def test_batches_are_those_of_the_steps():
    ahead = list(read_ahead(batches(), 2, 5))
    assert len(ahead) == 3 and not list(read_ahead(batches(), 5, 5))
    for step, batch in enumerate(ahead, 2):
        np.testing.assert_array_equal(batch["input_ids"], batches()[step]["input_ids"])


def test_without_the_extra_training_can_be_imported_and_pretrain_names_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PRETRAIN, str(tmp_path / "run")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'pretraining requires grain; install it with pip install "duonlp[pretrain]"'
    assert not (tmp_path / "run").exists()
