"""Run exported graphs: ONNX Runtime and LiteRT; the engines run SavedModels and StableHLO (their ``export/session.py``)."""

import importlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from duonlp.errors import CheckpointError, InputError, MissingExtraError
from duonlp.typing import Array

Shape = tuple[int | None, ...]


class Session(Protocol):
    """A graph that can be run, by any number of threads at once.

    Attributes:
        inputs: Its inputs and their shapes, None for any size.
        outputs: Names of its outputs.
    """

    inputs: dict[str, Shape]
    outputs: tuple[str, ...]

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """Return the outputs for arrays of all inputs."""
        ...


def require(module: str) -> ModuleType:
    """Import a module of the extra ``export``.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise MissingExtraError(
            f'exported models need {module.split(".")[0]}, which is not installed; pip install "duonlp[export]"'
        ) from None


def check_shapes(inputs: Mapping[str, Shape], arrays: Mapping[str, Array]) -> None:
    """Raise InputError unless a graph takes arrays of these shapes."""
    for name, shape in inputs.items():
        if name not in arrays:
            raise InputError(f"the exported graph needs {name}, and the inputs are {', '.join(arrays)}; pass it")
        actual = np.shape(arrays[name])
        if len(actual) != len(shape) or any(n is not None and n != m for n, m in zip(shape, actual)):
            expected = ", ".join("any" if n is None else str(n) for n in shape)
            raise InputError(
                f"{name} has shape {list(actual)}, but the graph was exported for [{expected}]; pad or truncate the inputs to "
                "that, or export it for all shapes"
            )


class OnnxSession:
    """A graph of an ONNX file, run by ONNX Runtime on the CPU.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is damaged, or ONNX Runtime does not know one of its operations.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path):
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # warnings are about its own optimizations
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base class
            raise CheckpointError(
                f"ONNX Runtime cannot load {str(path)!r}: {_first_line(error)}; export the model again"
            ) from error
        arguments = self._session.get_inputs()
        self.inputs: dict[str, Shape] = {
            a.name: tuple(n if isinstance(n, int) else None for n in a.shape) for a in arguments
        }
        if unknown := [a.type for a in arguments if a.type not in DTYPES]:
            raise CheckpointError(f"{str(path)!r} takes {unknown[0]}; only {', '.join(DTYPES)} are supported")
        self._dtypes = {a.name: DTYPES[a.type] for a in arguments}
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """Return the outputs for arrays of all inputs."""
        feeds = {name: np.asarray(arrays[name], dtype) for name, dtype in self._dtypes.items()}
        return dict(zip(self.outputs, self._session.run(None, feeds), strict=True))


DTYPES = {
    "tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(bool)": np.bool_,
}  # fmt: skip
"""ONNX Runtime's names of the dtypes of inputs."""


class LiteRTSession:
    """A signature of a LiteRT file.

    Args:
        interpreter: Interpreter of the file.
        name: The signature.
        lock: Held while the interpreter runs.
    """

    def __init__(self, interpreter: Any, name: str, lock: threading.Lock):
        self._runner, self._lock = interpreter.get_signature_runner(name), lock
        details = self._runner.get_input_details()
        self.inputs: dict[str, Shape] = {
            name: tuple(None if n < 0 else int(n) for n in detail["shape_signature"])
            for name, detail in details.items()
        }
        self._dtypes = {name: detail["dtype"] for name, detail in details.items()}
        self.outputs = tuple(self._runner.get_output_details())

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """Return the outputs for arrays of all inputs."""
        feeds = {name: np.asarray(arrays[name], dtype) for name, dtype in self._dtypes.items()}
        with self._lock:
            return {name: np.array(value) for name, value in self._runner(**feeds).items()}


def litert_sessions(path: Path) -> dict[str, Session]:
    """Return the signatures of a LiteRT file.

    Raises:
        CheckpointError: The file is damaged.
        MissingExtraError: ai-edge-litert is not installed.
    """
    litert = require("ai_edge_litert.interpreter")
    try:
        interpreter = litert.Interpreter(str(path), num_threads=os.cpu_count())
        names, lock = list(interpreter.get_signature_list()), threading.Lock()
        return {name: LiteRTSession(interpreter, name, lock) for name in names}
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"LiteRT cannot load {str(path)!r}: {_first_line(error)}; export the model again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
