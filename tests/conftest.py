"""Before any framework is imported: the CPU alone, no Hub, no notes from C++, programs compiled with little effort."""

import gc
import os
import sys
from pathlib import Path

import pytest

from duonlp.util.xla_flags import HOST_DEVICES, add_xla_flags

ROOT = Path(__file__).resolve().parent.parent

# Processes that tests start import what is tested here, wherever they run and whatever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT / "shared"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
)

for name, value in {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "JAX_PLATFORMS": "cpu",
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(name, value)

# Most of the tests' time was LLVM's, for programs that run a few times on arrays of a few hundred numbers: without its
# optimisation, and without MLIR's emitters of fusions, they compile in half the processor time. What XLA does to a program
# before it is code, and its rules of floating point, stay as they are. DUONLP_TEST_DEFAULT_FLAGS=1 compiles what users
# compile, as `make newest` does.
FEWER_PASSES = {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": "true",
    "xla_cpu_use_fusion_emitters": "false",  # no flag of jaxlib 0.12 any more
}
add_xla_flags({HOST_DEVICES: 8})  # for the tests of parallel training; every other test uses the first
if os.environ.get("DUONLP_TEST_DEFAULT_FLAGS", "0") == "0":
    add_xla_flags(FEWER_PASSES)


@pytest.fixture(autouse=True, scope="module")
def forget_what_was_compiled():
    """After each file: the programs of a whole run would fill several gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
