"""Describe the machine a measurement ran on: processor, load and library versions."""

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "duonlp", "jax", "jaxlib", "flax", "tensorflow", "tensorflow-cpu", "keras", "keras-hub", "torch", "onnxruntime",
    "openvino", "transformers", "tokenizers", "numpy",
)  # fmt: skip
"""Distributions whose versions are reported if they are installed."""

VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS",
    "TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "KERAS_BACKEND", "XLA_FLAGS", "TF_XLA_FLAGS", "JAX_PLATFORMS",
    "JAX_DEFAULT_MATMUL_PRECISION", "JAX_DISABLE_JIT", "JAX_ENABLE_X64", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
"""Environment variables that affect a framework's speed."""


def machine() -> dict[str, Any]:
    """Describe this machine.

    Returns:
        "processor"; "cores", those this process may use; "load", the mean number of running processes over the last
        minute (None if unknown); "system"; "python"; "versions" of installed PACKAGES; and "environment", the VARIABLES
        that are set.
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def processor() -> str:
    """Return the processor's model name, or its architecture where the system does not tell."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def cpu_features() -> frozenset[str]:
    """Return the processor's instruction sets by their Linux names, such as "avx512_vnni" and "amx_int8".

    Empty where the system does not tell.
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(("flags", "Features")):
                    return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def physical_memory() -> int | None:
    """Return the size of this machine's memory in bytes; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
