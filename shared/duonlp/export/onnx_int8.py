"""Quantize an ONNX file to int8 with ONNX Runtime."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.export.sessions import require
from duonlp.typing import Array

QUANTIZED = ("MatMul", "Gemm", "Gather")
"""Operations whose constants are quantized: products, and tables of embeddings."""


def quantize_onnx(path: Path, kind: str, batches: Iterable[Mapping[str, Array]] | None = None) -> None:
    """Quantize the matrix products and the tables of an ONNX file in place, weights to int8 per channel.

    Weights have 7 bits, because the products of 8-bit ones overflow on CPUs without VNNI (AVX2).

    Args:
        path: The file.
        kind: "dynamic" or "static", see ExportSettings.int8.
        batches: Typical inputs, for "static".

    Raises:
        InputError: A batch lacks an input.
        MissingExtraError: onnx or ONNX Runtime is not installed.
    """
    require("onnx")
    quantization = require("onnxruntime.quantization")
    float_path = path.with_name("float-" + path.name)
    path.rename(float_path)
    options: dict[str, Any] = {
        "weight_type": quantization.QuantType.QInt8, "per_channel": True, "reduce_range": True, "op_types_to_quantize": QUANTIZED,
    }  # fmt: skip
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advice about preprocessing, which changes nothing in these graphs
    try:
        if kind == "dynamic":
            quantization.quantize_dynamic(float_path, path, **options)
        else:
            reader = _reader(quantization, float_path, batches)
            quantization.quantize_static(
                float_path, path, reader, activation_type=quantization.QuantType.QUInt8, **options
            )
    finally:
        logging.disable(level)
        float_path.unlink()


def _reader(quantization: Any, path: Path, batches: Iterable[Mapping[str, Array]] | None) -> Any:
    """Return ONNX Runtime's reader of the inputs of a graph."""
    session = require("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def feeds() -> Iterator[dict[str, np.ndarray]]:
        for batch in batches or ():
            if missing := [name for name in names if name not in batch]:
                raise InputError(f"a batch to calibrate with lacks {', '.join(missing)}; it needs {', '.join(names)}")
            yield {
                name: np.asarray(batch[name], np.int32 if np.asarray(batch[name]).dtype.kind in "iu" else None)
                for name in names
            }

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = feeds()

        def get_next(self) -> Any:
            return next(self._feeds, None)

    return Reader()
