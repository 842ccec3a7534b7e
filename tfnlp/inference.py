"""A model made ready to be called many times: compiled once for each shape."""

import numpy as np
import tensorflow as tf

from shared.inputs import check_inputs


def compiled(model):
    """A function with the model's inputs and outputs, in NumPy, that runs as one compiled program.

    Each shape is compiled once, so pad to a few (shared.buckets). New values of the weights are seen; ask for a new
    function after the layers have changed (LoRA, quantisation).
    """
    function = tf.function(lambda inputs: model(inputs, training=False), jit_compile=True, autograph=False)

    def run(**inputs):
        inputs = {name: np.asarray(value) for name, value in inputs.items() if value is not None}
        check_inputs(model.config, model.head, inputs)
        inputs = {name: value.astype(np.int32) if value.dtype == np.int64 else value for name, value in inputs.items()}
        outputs = function({name: tf.convert_to_tensor(value) for name, value in inputs.items()})
        return tf.nest.map_structure(lambda value: value.numpy(), outputs)

    return run
