"""Write ONNX files with tf2onnx."""

import logging
import re
from pathlib import Path
from typing import Any

from duonlp.errors import InputError
from duonlp.export.onnx_fusion import fuse
from duonlp.export.sessions import require
from duonlp.export.settings import DEFAULT_OPSET

LARGEST = 2**31 - 2**20
"""Bytes of the largest protobuf message; larger models keep their weights in a file of their own."""


def write_onnx(function: Any, path: Path, opset: int | None) -> None:
    """Write a TensorFlow function as an ONNX file.

    Args:
        function: A tf.function with an input signature.
        path: The file; weights beyond 2 GB go to a file beside it.
        opset: Version of ONNX's operations; None for the newest.

    Raises:
        InputError: ONNX, or this opset, has no form of an operation.
        MissingExtraError: onnx or tf2onnx is not installed.
    """
    onnx, tf2onnx = require("onnx"), require("tf2onnx")
    opset = DEFAULT_OPSET if opset is None else opset
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    try:
        model, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=opset)
    except Exception as error:  # its converters raise errors of many classes
        raise InputError(f"tf2onnx cannot write this model with opset {opset}: {error}; {_REMEDY}") from error
    _check_operations(onnx, model, opset)
    fuse(onnx, model, opset)
    is_large = model.ByteSize() > LARGEST
    onnx.save_model(model, str(path), save_as_external_data=is_large, location=path.name + ".data")


_REMEDY = "use a newer opset, or export to savedmodel"


def _check_operations(onnx: Any, model: Any, opset: int) -> None:
    """Raise InputError if a node is no operation of ONNX, as tf2onnx leaves those that it does not know."""
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type, opset):
            continue
        layer = re.sub(r"^(StatefulPartitionedCall|PartitionedCall|\w+_1)/", "", node.name).rpartition("/")[0]
        where = f" of layer {layer!r}" if layer else ""
        raise InputError(f"ONNX opset {opset} has no operation {node.op_type!r}{where}; {_REMEDY}")
