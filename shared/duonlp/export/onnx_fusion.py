"""Rewrite what tf2onnx spells out in small operations so that runtimes run it as one: layer norm and exact gelu."""

import math
from typing import Any

import numpy as np

LAYER_NORM_OPSET = 17
"""First opset with LayerNormalization."""


def fuse(onnx: Any, model: Any, opset: int) -> None:
    """Rewrite an ONNX model in place.

    Layer norms become LayerNormalization. Gelu divides by sqrt 2 instead of multiplying by its inverse, which is the form that
    ONNX Runtime replaces by its own kernel.

    Args:
        onnx: The module.
        model: The model.
        opset: Its opset.
    """
    graph = model.graph
    maker = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    replaced: dict[str, Any] = {}  # the output of a node -> the node that computes it instead
    for node in graph.node:
        if node.op_type == "Erf":
            scaled = maker.get(node.input[0])
            if scaled is not None and scaled.op_type == "Mul" and _is(onnx, constants, scaled.input[1], math.sqrt(0.5)):
                name = scaled.output[0] + "/sqrt2"
                graph.initializer.append(onnx.numpy_helper.from_array(np.float32(math.sqrt(2)), name))
                replaced[scaled.output[0]] = onnx.helper.make_node(
                    "Div", [scaled.input[0], name], scaled.output, scaled.name
                )
        elif opset >= LAYER_NORM_OPSET and (norm := _layer_norm(onnx, node, maker, constants)) is not None:
            replaced[norm.output[0]] = norm
    nodes = [replaced.get(node.output[0], node) for node in graph.node]
    wanted, kept = {output.name for output in graph.output}, []
    for node in reversed(nodes):  # in topological order, so that consumers come first
        if any(output in wanted for output in node.output):
            wanted.update(_inputs(node))
            kept.append(node)
    used = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(used)


def _inputs(node: Any) -> set[str]:
    """Return what a node reads, the graphs in its attributes included."""
    inner = [child for attribute in node.attribute for child in attribute.g.node]
    return set(node.input).union(*map(_inputs, inner))


def _is(onnx: Any, constants: dict[str, Any], name: str, value: float) -> bool:
    """Return whether an input is a constant of one value."""
    if name not in constants:
        return False
    array = onnx.numpy_helper.to_array(constants[name])
    return array.size == 1 and math.isclose(float(array.reshape(())), value, rel_tol=1e-6)


def _layer_norm(onnx: Any, last: Any, maker: dict[str, Any], constants: dict[str, Any]) -> Any:
    """Return a LayerNormalization in place of the last node of a layer norm; None for other nodes.

    tfnlp computes centered * (1 / sqrt(mean(centered^2) + epsilon) * gamma), + beta if it has one.
    """
    scaled, bias = last, None
    if last.op_type == "Add" and len(last.input) == 2:
        bias = next((name for name in last.input if name in constants), None)
        scaled = maker.get(next((name for name in last.input if name != bias), ""))
    if scaled is None or scaled.op_type != "Mul" or len(scaled.input) != 2:
        return None
    for centered, factor in (scaled.input, reversed(scaled.input)):
        product, difference = maker.get(factor), maker.get(centered)
        if product is None or difference is None or (product.op_type, difference.op_type) != ("Mul", "Sub"):
            continue
        gamma = next((name for name in product.input if name in constants), None)
        inverse = maker.get(next((name for name in product.input if name != gamma), ""))
        chain = _chain(inverse, maker, ("Reciprocal", "Sqrt", "Add", "ReduceMean", "Mul"))
        if gamma is None or chain is None or set(chain[-1].input) != {centered}:
            continue
        epsilon = next((name for name in chain[2].input if name in constants), None)
        mean = maker.get(difference.input[1])
        if epsilon is None or mean is None or mean.op_type != "ReduceMean" or mean.input[0] != difference.input[0]:
            continue
        value = float(onnx.numpy_helper.to_array(constants[epsilon]).reshape(()))
        inputs = [difference.input[0], gamma, *([] if bias is None else [bias])]
        return onnx.helper.make_node("LayerNormalization", inputs, last.output, last.name, axis=-1, epsilon=value)
    return None


def _chain(node: Any, maker: dict[str, Any], kinds: tuple[str, ...]) -> list[Any] | None:
    """Return nodes of these kinds, each computing the first input of the one before; None if there are no such nodes."""
    nodes = []
    for kind in kinds:
        if node is None or node.op_type != kind:
            return None
        nodes.append(node)
        node = maker.get(node.input[0])
    return nodes
