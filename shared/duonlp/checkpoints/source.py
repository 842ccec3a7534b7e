"""Origin of a parameter's values."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike

from duonlp.architectures._common import Part
from duonlp.checkpoints.layouts import our_layout, resized_positions
from duonlp.checkpoints.safetensors_file import StoredTensor
from duonlp.errors import CheckpointError
from duonlp.parameters import Parameter, initial_value


@dataclass(frozen=True)
class Source:
    """Origin of one parameter's values: a stored tensor (or a part of one), or the initializer.

    Attributes:
        path: Path of the parameter.
        parameter: Its shape and initializer.
        tensor: The stored tensor, or None to initialize the parameter.
        layout: Layout of the stored tensor, see ``Weight``.
        part: Place of the parameter in the tensor, see ``Weight``.
        grid: Rows and columns of patches, if the parameter is the position table of an image.
        seed: Seed of the initializer.
        values: Values to take instead, in the parameter's shape.
    """

    path: str
    parameter: Parameter
    tensor: StoredTensor | None = None
    layout: str = ""
    part: Part | None = None
    grid: tuple[int, ...] = ()
    seed: int = 0
    values: np.ndarray | None = field(default=None, compare=False)

    def read(self, dtype: DTypeLike = np.float32) -> np.ndarray:
        """Return the values in the parameter's shape, possibly as a transposed view."""
        if self.values is not None:
            return np.array(self.values, dtype)
        if self.tensor is None:
            return initial_value(self.path, self.parameter, self.seed).astype(dtype, copy=False)
        values = our_layout(self.layout, self.tensor.read())
        if self.layout == "packed":
            values = values[: self.parameter.shape[0]]
        values = values if self.part is None else self.part.of(values)
        values = resized_positions(values, self.parameter.shape[0], self.grid) if self.grid else values
        if self.parameter.dtype == "float32":
            with np.errstate(over="ignore"):  # a scale in float64 may be infinite in float32, which is an error
                values = values.astype(np.float32, copy=False)
            self._check_scale(values)
        return values.astype(dtype, copy=False)

    def _check_scale(self, values: np.ndarray) -> None:
        """Raise CheckpointError if a scale of a quantized layer is not a positive number that can be computed with."""
        # The inverse of a scale of inputs is computed.
        least = 0.0 if self.path.endswith(("kernel_scale", "embedding_scale")) else float(np.finfo(np.float32).tiny)
        wrong = ~(np.isfinite(values) & (values > least))
        if wrong.any():
            assert self.tensor is not None
            raise CheckpointError(
                f"{self.tensor.file}: tensor {self.tensor.name!r} has the scale {float(values[wrong].flat[0])} in float32; a "
                "scale is a positive number: quantize the original model again"
            )

    def chunks(self, dtype: DTypeLike = np.float32, max_bytes: int = 4 << 20) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, rows) pairs that cover the parameter.

        Embedding tables are split into chunks of about ``max_bytes``; other parameters are one chunk.
        """
        if (
            self.values is not None
            or self.tensor is None
            or self.layout != "embedding"
            or len(self.parameter.shape) < 2
        ):
            yield 0, self.read(dtype)
            return
        rows, width = self.parameter.shape
        step = max(1, max_bytes // (width * self.tensor.dtype.itemsize))
        for start in range(0, rows, step):
            yield start, self.tensor.read(start, start + step).astype(dtype, copy=False)
