"""Run a model on calibration data and observe the inputs of its layers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.inputs import check_inputs
from duonlp.quantization.calibration import rows_without_padding
from duonlp.typing import Batch
from tfnlp.inference import TRACING, NARROWED
from tfnlp.pretrained import find_layer


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
    names: list[str] = []

    @tf.function(autograph=False)
    def run(inputs: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        with _watched(model, paths) as seen:
            model(inputs, training=False)
        names[:] = [path for path, _ in seen]
        return [tf.cast(x, tf.float32) for _, x in seen]

    with _replaced(model, values or {}):
        for batch in batches:
            inputs = {name: np.asarray(value) for name, value in batch.items()}
            check_inputs(model.config, model.head, inputs)
            narrow = {name: value.astype(NARROWED.get(value.dtype.name, value.dtype)) for name, value in inputs.items()}
            with TRACING:
                arrays = run({name: tf.convert_to_tensor(value) for name, value in narrow.items()})
            for path, x in zip(names, arrays, strict=True):
                observe(path, rows_without_padding(path, x.numpy(), inputs))


@contextmanager
def _watched(model: Any, paths: Sequence[str]):
    """Yield a list to which layers append (path, inputs) while the model is traced."""
    seen: list[tuple[str, tf.Tensor]] = []
    layers = [(path, find_layer(model, f"{path}/kernel")[0]) for path in paths]

    def watch(path: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(x: tf.Tensor, *arguments: Any, **options: Any) -> tf.Tensor:
            seen.append((path, x))
            return call(x, *arguments, **options)

        return watched

    for path, layer in layers:
        layer.__dict__["call"] = watch(path, layer.call)
    try:
        yield seen
    finally:
        for _, layer in layers:
            del layer.__dict__["call"]


@contextmanager
def _replaced(model: Any, values: Mapping[str, np.ndarray]):
    """Give kernels other values, and afterwards their own again."""
    variables: dict[str, keras.Variable] = {path: find_layer(model, path)[0]._kernel for path in values}
    own = {path: variable.numpy() for path, variable in variables.items()}
    try:
        for path, variable in variables.items():
            variable.assign(values[path])
        yield
    finally:
        for path, variable in variables.items():
            variable.assign(own[path])
