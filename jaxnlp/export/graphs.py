"""The graphs of duonlp.export.graphs as JAX functions."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from duonlp.export import Graph, decode_cache, flat_cache
from jaxnlp.pretrained import merge, split

if TYPE_CHECKING:
    from jaxnlp.model import Model

Arrays = dict[str, jax.Array]


def graph_function(model: "Model", graph: Graph) -> Any:
    """Return a graph as a function from a dict of its inputs to a dict of its outputs."""
    body = {"serve": _serve, "encode": _encode, "decode": _decode}[graph.name]
    graphdef, params = split(model)
    return jax.jit(lambda inputs: body(merge(graphdef, params), inputs))


def _serve(model: Any, inputs: Arrays) -> Arrays:
    return model(**inputs)


def _encode(model: Any, inputs: Arrays) -> Arrays:
    states = model.encode(inputs["input_ids"], inputs["attention_mask"])[0]
    return {"encoder_last_hidden_state": states} | flat_cache(model.decoder.keys_and_values(states), "source_")


def _decode(model: Any, inputs: Arrays) -> Arrays:
    layers, ids = model.config.as_decoder().layers, inputs["input_ids"]
    visible = tuple(inputs[f"visible_{w}"] for w in range(len(layers.windows)))
    index = tuple(inputs[f"index_{w}"] for w in range(len(layers.windows)))
    states, cache = model.decode(ids, inputs["position_ids"], visible, decode_cache(inputs, model.config), index)
    logits = model.next_logits(jnp.take(states, inputs["logit_positions"], axis=1))
    slots, n = dict(zip(layers.windows, index, strict=True)), ids.shape[1]
    new = {}
    for i, layer in enumerate(layers):
        part, start = cache[f"step_{i}"], slots[layer.attention.window]
        new[f"step_{i}"] = {
            kind: jax.lax.dynamic_slice_in_dim(part[kind], start, n, axis)
            for kind, axis in (("key", 3), ("value", 2))
        }  # fmt: skip
    return {"logits": logits} | flat_cache(new, "")
