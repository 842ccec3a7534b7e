"""Configure the tests before a framework is imported: CPU only, no Hub, no C++ log lines, cheap compilation."""

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from duonlp.util.xla_flags import HOST_DEVICES, add_xla_flags

ROOT = Path(__file__).resolve().parent.parent

# Subprocesses of tests import this checkout, whatever their working directory and whatever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT / "shared"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
)

for name, value in {
    "CUDA_VISIBLE_DEVICES": "",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "JAX_PLATFORMS": "cpu",
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(name, value)

# Most of the tests' time went into LLVM, for programs that run a few times on arrays of a few hundred numbers: without its
# optimizations, and without MLIR's fusion emitters, they compile in half the CPU time. XLA's own passes and its floating-point
# rules are unchanged. DUONLP_TEST_DEFAULT_FLAGS=1 compiles with the flags that users have, as `make newest` does.
FEWER_PASSES = {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": "true",
    "xla_cpu_use_fusion_emitters": "false",  # removed in jaxlib 0.12
}
add_xla_flags({HOST_DEVICES: 8})  # for the tests of parallel training; all others use the first
if os.environ.get("DUONLP_TEST_DEFAULT_FLAGS", "0") == "0":
    add_xla_flags(FEWER_PASSES)


@pytest.fixture(autouse=True, scope="module")
def clear_compiled_programs():
    """Clear the compilation caches after each file: all programs of a run would fill several gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()


@pytest.fixture
def public():
    """Return a folder that every user may enter, unlike those of pytest."""
    path = Path(tempfile.mkdtemp(prefix="duonlp-test-"))
    path.chmod(0o755)
    yield path
    for parent, _, _ in os.walk(path):
        os.chmod(parent, 0o755)
    shutil.rmtree(path)
