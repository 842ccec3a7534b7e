"""Fine-tuning and distillation under MirroredStrategy on two logical CPUs match training on one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.tfnlp import test_biencoder, test_distiller, test_finetune, test_grouped

ROOT = Path(__file__).parents[2]
# One process for all runs: TensorFlow takes seconds to start, and its devices are fixed from then on.
TWO_DEVICES = """
import sys, numpy as np, tensorflow as tf
sys.path.insert(0, ".")
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
from tests.tfnlp.test_two_devices import RUNS
for name, run in RUNS.items():
    np.savez(f"{sys.argv[1]}/{name}.npz", **run(strategy))
"""
RUNS = {
    "distiller": test_distiller.run_steps, "finetune": test_finetune.run_steps, "biencoder": test_biencoder.run_steps,
    "grouped": test_grouped.run_steps,
}  # fmt: skip


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    """Results of the runs on two devices, by name."""
    folder = tmp_path_factory.mktemp("two")
    process = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, str(folder)], cwd=ROOT, env=os.environ, text=True, capture_output=True,
        timeout=900,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return {name: dict(np.load(folder / f"{name}.npz")) for name in RUNS}


@pytest.mark.filterwarnings(
    "ignore:Even though the .* option is set, this option does not apply to tf.data:UserWarning"
)
@pytest.mark.parametrize("name", RUNS)
def test_two_devices_match_one(on_two, eagerly, name):
    one, two = RUNS[name](tf.distribute.get_strategy()), on_two[name]
    assert set(two) == set(one)
    for key, value in one.items():
        if not key.endswith("key/bias"):  # its gradient is rounding noise
            np.testing.assert_allclose(two[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
