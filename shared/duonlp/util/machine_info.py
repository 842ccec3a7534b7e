"""What a measured figure depends on: the processor, how busy it is, and the versions of what ran."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "duonlp", "jax", "jaxlib", "flax", "tensorflow", "tensorflow-cpu", "keras", "keras-hub", "torch", "onnxruntime",
    "transformers", "tokenizers", "numpy",
)  # fmt: skip
"""Those whose versions are told, where they are installed."""

VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS",
    "TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS", "JAX_PLATFORMS", "JAX_DEFAULT_MATMUL_PRECISION",
)  # fmt: skip
"""Environment variables that change how fast a framework computes."""


def machine() -> dict:
    """Processor, cores that this process may use, load (processes over the last minute), Python and versions.

    "environment" has the variables of VARIABLES that are set: how many threads a framework was told to use, for one.
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
    """The processor's model, as it calls itself where the system tells."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            for line in f:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
