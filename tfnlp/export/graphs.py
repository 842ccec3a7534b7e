"""The graphs of duonlp.export.graphs as TensorFlow functions."""

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from duonlp.export import Graph, decode_cache, flat_cache
from tfnlp.kernels.choice import FLOAT, products

if TYPE_CHECKING:
    from tfnlp.model import Model

Arrays = dict[str, tf.Tensor]


def graph_function(model: "Model", graph: Graph) -> Any:
    """Return a graph as a function from a dict of its inputs to a dict of its outputs, with a signature."""
    body = {"serve": _serve, "encode": _encode, "decode": _decode}[graph.name]
    signature = {spec.name: tf.TensorSpec(spec.shape, spec.dtype, name=spec.name) for spec in graph.inputs}

    def run(inputs: Arrays) -> Arrays:
        with products(FLOAT):  # operations that any runtime has
            return body(model, inputs)

    return tf.function(run, [signature], autograph=False)


def _serve(model: "Model", inputs: Arrays) -> Arrays:
    return model(inputs, training=False)


def _encode(model: Any, inputs: Arrays) -> Arrays:
    states = model.encode(inputs["input_ids"], inputs["attention_mask"], training=False)[0]
    return {"encoder_last_hidden_state": states} | flat_cache(model.decoder.keys_and_values(states), "source_")


def _decode(model: Any, inputs: Arrays) -> Arrays:
    layers, ids = model.config.as_decoder().layers, inputs["input_ids"]
    visible = tuple(inputs[f"visible_{w}"] for w in range(len(layers.windows)))
    index = tuple(inputs[f"index_{w}"] for w in range(len(layers.windows)))
    states, cache = model.decode(ids, inputs["position_ids"], visible, decode_cache(inputs, model.config), index)
    logits = model.next_logits(tf.gather(states, inputs["logit_positions"], axis=1))
    slots, n = dict(zip(layers.windows, index, strict=True)), tf.shape(ids)[1]
    new = {}
    for i, layer in enumerate(layers):
        part, start = cache[f"step_{i}"], slots[layer.attention.window]
        new[f"step_{i}"] = {
            "key": part["key"][:, :, :, start : start + n], "value": part["value"][:, :, start : start + n],
        }  # fmt: skip
    return {"logits": logits} | flat_cache(new, "")
