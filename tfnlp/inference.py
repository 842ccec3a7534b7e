"""A model made ready to be called many times: compiled, not run operation by operation."""

from types import SimpleNamespace

import numpy as np
import tensorflow as tf

from duonlp.inputs import check_inputs

FLAGS = ("output_hidden_states", "output_attentions")
"""Arguments of a model that are no arrays."""

SMALL = 256
"""Tokens of a batch up to which XLA is the faster way."""


def compiled(model):
    """A function with the model's inputs and outputs, in NumPy, that runs as one TensorFlow graph.

    A large batch runs as a graph that takes every shape, by TensorFlow's own kernels, which fuse matmul, bias and gelu on a
    CPU. A few hundred tokens go through XLA, which spares the overhead of many small kernels and compiles each shape once:
    pad to a few (duonlp.util.buckets).
    New values of the weights are seen; ask for a new function after the layers have changed (LoRA, quantisation).
    """
    functions = {}

    def run(**inputs):
        flags = {name: inputs.pop(name) for name in FLAGS if name in inputs}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        check_inputs(model.config, model.head, inputs)
        inputs = {name: np.asarray(value) for name, value in inputs.items()}
        inputs = {name: value.astype(np.int32) if value.dtype == np.int64 else value for name, value in inputs.items()}
        kinds = tuple((name, value.dtype, value.ndim) for name, value in sorted(inputs.items()))
        small = inputs["input_ids"].size <= SMALL
        key = kinds, tuple(flags.items()), small
        if key not in functions:
            spec = {name: tf.TensorSpec([None] * rank, dtype, name=name) for name, dtype, rank in kinds}
            function = tf.function(
                lambda given: model(given, training=False, **flags), [spec], autograph=False, jit_compile=small
            )
            # called itself, which spares finding out each time which of a function's traces is meant
            functions[key] = function.get_concrete_function()
        outputs = functions[key]({name: tf.convert_to_tensor(value) for name, value in inputs.items()})
        return tf.nest.map_structure(lambda value: value.numpy(), outputs)

    return run


def compiled_once(model):
    """:func:`compiled`, which gives the same function again until the model has other layers, weights or dtypes.

    For what is called again and again during a training: an evaluation would trace and compile the model each time.
    """
    policies = [layer.dtype_policy.name for layer in model._flatten_layers()]  # quantisation is in the names
    variables, kept = list(model.variables), getattr(model, "_compiled_once", None)
    if kept is None or kept.policies != policies or [*map(id, kept.variables)] != [*map(id, variables)]:
        # With the model, not in a table of all: the function holds the model. Keras looks into containers, not into this.
        kept = model._compiled_once = SimpleNamespace(run=compiled(model), policies=policies, variables=variables)
    return kept.run
