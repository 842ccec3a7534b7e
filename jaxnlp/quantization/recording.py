"""Run a model on calibration data and observe the inputs of its layers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from duonlp.inputs import check_inputs
from duonlp.quantization.calibration import rows_without_padding
from duonlp.typing import Batch
from jaxnlp.layers import Linear
from jaxnlp.pretrained import merge, split


class RecordedLinear(Linear):
    """Linear layer that appends its inputs to a list while the model is traced."""

    path: str
    seen: "_Seen"

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., in] to [..., out]."""
        self.seen.values.append((self.path, x))
        return super().__call__(x)


class _Seen:
    """A list that is the same object in every copy of a module, and equal for jit."""

    def __init__(self):
        self.values: list[tuple[str, jax.Array]] = []

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def record_inputs(
    model: Any, batches: Iterable[Batch], paths: Sequence[str], observe: Callable[[str, np.ndarray], Any],
    values: Mapping[str, np.ndarray] | None = None,
) -> None:  # fmt: skip
    """Run a model on batches and observe the inputs of its linear layers.

    Args:
        model: A model without quantized layers.
        batches: The model's inputs, as dicts of NumPy arrays.
        paths: Paths of the layers to observe.
        observe: Called with a path and the layer's inputs float32 [rows, n], without those at padding.
        values: Kernels by path that replace the model's own.

    Raises:
        InputError: The model does not accept the inputs.
    """
    seen, copy, wanted = _Seen(), merge(*split(model)), set(paths)
    for path, module in list(nnx.iter_modules(copy)):
        name = "/".join(map(str, path))
        if isinstance(module, Linear) and values and f"{name}/kernel" in values:
            module.kernel = nnx.Param(jnp.asarray(values[f"{name}/kernel"], module.kernel.dtype))
        if name in wanted:
            recorded: Any = module
            recorded.__class__, recorded.path, recorded.seen = RecordedLinear, name, seen
    graphdef, params = split(copy)

    @jax.jit
    def run(params: Any, inputs: dict[str, Any]) -> list[jax.Array]:
        seen.values.clear()
        merge(graphdef, params)(**inputs)
        return [x.astype(jnp.float32) for _, x in seen.values]

    for batch in batches:
        inputs = {name: np.asarray(value) for name, value in batch.items()}
        check_inputs(model.config, model.head, inputs)
        arrays = jax.device_get(run(params, inputs))
        for path, x in zip([path for path, _ in seen.values], arrays, strict=True):
            observe(path, rows_without_padding(path, x, inputs))
    seen.values.clear()
