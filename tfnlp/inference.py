"""Compile a model for repeated calls, instead of running it operation by operation."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from duonlp.inputs import check_inputs, input_specs, num_tokens
from duonlp.typing import Array
from duonlp.util.frameworks import check_process
from tfnlp.kernels import choice

if TYPE_CHECKING:
    from tfnlp.model import Model

FLAGS = ("output_hidden_states", "output_attentions")
"""Arguments of a model that are not arrays."""

NARROWED = {"int64": np.int32, "float64": np.float32}
"""Dtypes of NumPy's numbers and the dtypes that models compute with."""

CPU_BATCH_TOKENS = 2048
"""Tokens in a batch of long texts up to which a CPU's caches hold their attention: MiniLM-L6 reads rows of 384 tokens as fast in
larger batches, and smaller ones need less padding."""


TRACING = threading.RLock()
"""Held while a model is traced, so that a thread finds what another has traced, and Keras' layers run in one thread."""


def compiled(model: "Model") -> Callable[..., dict[str, Array]]:
    """Return a function with the model's inputs and outputs, in NumPy, that runs as one TensorFlow graph.

    A large batch runs as a graph for all shapes on TensorFlow's own kernels, which fuse matmul, bias and gelu
    on a CPU. A batch of few tokens (kernels.choice.uses_xla) runs with XLA, which avoids the overhead of many small
    kernels and compiles once per shape; pad to few shapes (duonlp.util.buckets). New weight values take effect.
    Any number of threads may call the function. Get a new function after the layers have changed (LoRA, quantization).
    """
    functions: dict[tuple, Callable[..., Any]] = {}
    specs = {spec.name: spec for spec in input_specs(model.config, model.head)}

    def trace(types: tuple, flags: dict[str, Any], use_xla: bool) -> Callable[..., Any]:
        shapes = {name: specs[name].shape if name in specs else () for name, _, _ in types}
        signature = {
            name: tf.TensorSpec(shapes[name] if len(shapes[name]) == rank else [None] * rank, dtype, name=name)
            for name, dtype, rank in types
        }
        function = tf.function(
            lambda tensors: model(tensors, training=False, **flags),
            [signature],
            autograph=False,
            jit_compile=use_xla,
        )
        with choice.products(choice.XLA if use_xla else choice.graph_product()):
            return function.get_concrete_function()  # to skip selecting a trace in each call

    def run(**inputs: Array) -> dict[str, Array]:
        check_process()
        flags = {name: inputs.pop(name) for name in FLAGS if name in inputs}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        check_inputs(model.config, model.head, inputs)
        inputs = {name: np.asarray(value) for name, value in inputs.items()}
        inputs = {name: value.astype(NARROWED.get(value.dtype.name, value.dtype)) for name, value in inputs.items()}
        types = tuple((name, value.dtype, value.ndim) for name, value in sorted(inputs.items()))
        integers = model.config.quantization is not None and model.config.quantization.multiplies_integers
        use_xla = choice.uses_xla(num_tokens(model.config, inputs), model.compute_dtype, integers)
        key = types, tuple(flags.items()), use_xla
        if key not in functions:
            with TRACING:
                if key not in functions:
                    functions[key] = trace(types, flags, use_xla)
        outputs = functions[key]({name: tf.convert_to_tensor(value) for name, value in inputs.items()})
        return tf.nest.map_structure(lambda value: value.numpy(), outputs)

    return run


def batch_tokens() -> int | None:
    """Return the number of tokens in a batch that is fastest on the default device; None if a larger one always is."""
    return None if tf.config.list_physical_devices("GPU") else CPU_BATCH_TOKENS


def get_compiled(model: "Model") -> Callable[..., dict[str, Array]]:
    """Return :func:`compiled`, cached on the model until its layers, weight variables or dtypes change.

    For repeated calls during training, where each evaluation would trace and compile the model again.
    """
    return cached(model, "_compiled_forward", lambda: compiled(model))


def cached(model: Any, name: str, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """Return a function that traces a model, cached on it until its layers, weight variables or dtypes change.

    Args:
        model: The model.
        name: Name of the attribute to keep it in.
        make: Creates the function.
    """
    policies = [layer.dtype_policy.name for layer in model._flatten_layers()]  # quantization is part of the names
    variables, entry = list(model.variables), getattr(model, name, None)
    if entry is None or entry.policies != policies or [*map(id, entry.variables)] != [*map(id, variables)]:
        # On the model, not in a global table, since the function references the model. In a SimpleNamespace,
        # since Keras tracks what is in containers.
        entry = SimpleNamespace(run=make(), policies=policies, variables=variables)
        setattr(model, name, entry)
    return entry.run
