"""Report on one engine from a process of its own: ``python -m duonlp.doctor.probe tf``."""

import importlib
import sys
from typing import Any

from duonlp.util.frameworks import PACKAGES, calm_frameworks, package, quiet_stdout
from duonlp.util.json_text import to_json


def probe(framework: str) -> dict[str, Any]:
    """Import an engine and describe what it sees.

    Args:
        framework: "tf" or "jax".

    Returns:
        "devices", names of what it computes on; "threads" per operation, None if the framework does not tell; "kernels", the
        implementations by what they compute; "onednn", whether TensorFlow's graph uses oneDNN, None if unknown.
    """
    calm_frameworks()
    package(framework)
    try:
        kernels = importlib.import_module(f"{PACKAGES[framework]}.kernels").kernels()
    except ImportError:
        kernels = {}
    describe = _describe_tensorflow if framework == "tf" else _describe_jax
    return {"kernels": dict(kernels)} | describe()


def _describe_tensorflow() -> dict[str, Any]:
    tf: Any = importlib.import_module("tensorflow")
    devices = []
    for device in tf.config.list_logical_devices():
        devices.append(device.name.removeprefix("/device:"))
    return {
        "devices": devices,
        "threads": tf.config.threading.get_intra_op_parallelism_threads() or None,
        "onednn": importlib.import_module("tfnlp.kernels.onednn").graph_has_onednn(),
    }


def _describe_jax() -> dict[str, Any]:
    jax: Any = importlib.import_module("jax")
    devices = [f"{device.platform}:{device.id} ({device.device_kind})" for device in jax.devices()]
    return {"devices": devices, "threads": None, "onednn": None}


if __name__ == "__main__":
    with quiet_stdout():
        answer = probe(sys.argv[1])
    print(to_json(answer))
