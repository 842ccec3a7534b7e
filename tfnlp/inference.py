"""A model made ready to be called many times: traced once for all shapes."""

import numpy as np
import tensorflow as tf

from shared.inputs import check_inputs

FLAGS = ("output_hidden_states", "output_attentions")
"""Arguments of a model that are no arrays."""


def compiled(model):
    """A function with the model's inputs and outputs, in NumPy, that runs as one TensorFlow graph.

    The graph takes every shape, so a new length compiles nothing. It is left to TensorFlow's own kernels, which fuse
    matmul, bias and gelu on a CPU: XLA was slower there for BERT-base and for large batches, and compiles each shape.
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
        key = kinds, tuple(flags.items())
        if key not in functions:
            spec = {name: tf.TensorSpec([None] * rank, dtype, name=name) for name, dtype, rank in kinds}
            functions[key] = tf.function(lambda given: model(given, training=False, **flags), [spec], autograph=False)
        outputs = functions[key]({name: tf.convert_to_tensor(value) for name, value in inputs.items()})
        return tf.nest.map_structure(lambda value: value.numpy(), outputs)

    return run
