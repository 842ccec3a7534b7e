"""Run StableHLO that ``jax.export`` has serialized."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from duonlp.errors import CheckpointError
from duonlp.typing import Array
from duonlp.util.frameworks import check_process


class GraphSession:
    """A StableHLO file, see duonlp.export.Session.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is damaged, or of an incompatible version of JAX.
    """

    def __init__(self, path: Path):
        check_process()
        try:
            self._exported = export.deserialize(bytearray(path.read_bytes()))
            ((names,), _) = jax.tree.unflatten(self._exported.in_tree, self._exported.in_avals)
            self.outputs = tuple(jax.tree.unflatten(self._exported.out_tree, self._exported.out_avals))
        except Exception as error:  # of flatbuffers, struct and JAX
            raise CheckpointError(f"JAX cannot load {str(path)!r}: {error}; export the model again") from error
        self.inputs = {
            name: tuple(n if isinstance(n, int) else None for n in aval.shape) for name, aval in names.items()
        }
        self._dtypes = {name: aval.dtype for name, aval in names.items()}
        self._call = jax.jit(self._exported.call)

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """Return the outputs for arrays of all inputs."""
        check_process()
        return jax.device_get(self._call({name: np.asarray(arrays[name], d) for name, d in self._dtypes.items()}))


RUNTIMES: dict[str, Callable[[Path], Any]] = {"stablehlo": GraphSession}
"""Formats that only this engine runs."""
