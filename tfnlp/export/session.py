"""Run the signatures of a SavedModel."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from duonlp.errors import CheckpointError
from duonlp.typing import Array
from duonlp.util.frameworks import check_process

PUBLIC = ("serve", "encode", "decode")
"""Names of graphs; Keras adds ``serving_default``, which is the first one."""


class GraphSession:
    """A signature of a SavedModel, see duonlp.export.Session.

    Args:
        signature: The signature.
        owner: The SavedModel, whose variables live as long as it does.
    """

    def __init__(self, signature: Any, owner: Any):
        self._signature, self._owner = signature, owner
        self._specs = signature.structured_input_signature[1]
        self.inputs = {name: tuple(spec.shape) for name, spec in self._specs.items()}
        self.outputs = tuple(signature.structured_outputs)

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """Return the outputs for arrays of all inputs."""
        check_process()
        feeds = {name: tf.constant(arrays[name], spec.dtype) for name, spec in self._specs.items()}
        return {name: value.numpy() for name, value in self._signature(**feeds).items()}


def saved_model_sessions(folder: Path) -> dict[str, GraphSession]:
    """Return the signatures of a SavedModel.

    Raises:
        CheckpointError: It is damaged.
    """
    check_process()
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:  # of several classes of TensorFlow and protobuf
        raise CheckpointError(
            f"TensorFlow cannot load the SavedModel {str(folder)!r}: {error}; export it again"
        ) from error
    return {name: GraphSession(loaded.signatures[name], loaded) for name in PUBLIC if name in loaded.signatures}


RUNTIMES: dict[str, Callable[[Path], Any]] = {"savedmodel": saved_model_sessions}
"""Formats that only this engine runs."""
