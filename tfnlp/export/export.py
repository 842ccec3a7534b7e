"""Export a Keras model to ONNX, LiteRT or a SavedModel."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.export import ExportSettings, Graph, write_exported
from duonlp.export.graphs import STEMS
from duonlp.export.onnx_int8 import quantize_onnx
from duonlp.export.sessions import require
from tfnlp.export.graphs import graph_function
from tfnlp.export.onnx_files import write_onnx
from tfnlp.export.session import RUNTIMES

if TYPE_CHECKING:
    from tfnlp.model import Model


def export_model(
    model: "Model", output: str | os.PathLike[str], to: str = "onnx", *, tokenizer: Any = None, batches: Any = None,
    overwrite: bool = False, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Write a model for another runtime, with its configuration and tokenizer, and compare it with the original.

    Args:
        model: A model with float32 weights and compute dtype.
        output: Folder to write.
        to: "onnx", "litert" or "savedmodel"; jaxnlp writes "stablehlo".
        tokenizer: Tokenizer or image processor to save; by default that of the checkpoint that the model was loaded from.
        batches: Typical inputs, as dicts of arrays, for int8="static".
        overwrite: Whether the folder may hold files.
        settings: Further fields of duonlp.export.ExportSettings: opset, batch_size, length, int8, cache, tolerance, ...

    Returns:
        The report, see duonlp.export.write_exported.

    Raises:
        InputError: A setting is invalid or does not fit the model, an operation has no form in the format, or outputs differ
            from the model's; nothing is written.
        MissingExtraError: A library of the extra ``export`` is not installed.
    """
    options = ExportSettings(to, **settings)
    if to not in WRITERS:
        raise InputError(f"tfnlp does not export to {to}; use jaxnlp.export_model")
    if options.int8 == "static" and not batches:
        raise InputError(
            "static int8 needs calibration data", remedy="pass typical inputs as batches", argument="calibration"
        )
    if model.compute_dtype != "float32":
        raise InputError(f"this model computes in {model.compute_dtype}; load it with dtype='float32' to export it")

    def write(folder: Path, graphs: tuple[Graph, ...]) -> None:
        WRITERS[to](model, folder, graphs, options, batches)

    return write_exported(model, output, options, write, model, RUNTIMES, tokenizer=tokenizer, overwrite=overwrite)


def _write_onnx(
    model: "Model", folder: Path, graphs: tuple[Graph, ...], settings: ExportSettings, batches: Any
) -> None:
    for graph in graphs:
        path = folder / f"{STEMS[graph.name]}.onnx"
        write_onnx(graph_function(model, graph), path, settings.opset)
        if settings.int8:
            quantize_onnx(path, settings.int8, batches)


def _write_saved_model(
    model: "Model", folder: Path, graphs: tuple[Graph, ...], settings: ExportSettings, batches: Any
) -> None:
    archive = keras.export.ExportArchive()
    archive.track(model)
    for graph in graphs:
        archive.add_endpoint(graph.name, graph_function(model, graph))
    archive.write_out(str(folder), verbose=False)


def _write_litert(
    model: "Model", folder: Path, graphs: tuple[Graph, ...], settings: ExportSettings, batches: Any
) -> None:
    require("ai_edge_litert")  # before a long conversion that could not be checked
    with tempfile.TemporaryDirectory() as temporary:
        _write_saved_model(model, Path(temporary), graphs, settings, batches)
        lite: Any = tf.lite
        converter = lite.TFLiteConverter.from_saved_model(temporary, [graph.name for graph in graphs])
        if settings.int8:
            converter.optimizations = [lite.Optimize.DEFAULT]
        try:
            content = converter.convert()
        except Exception as error:  # of several classes
            raise InputError(f"LiteRT cannot represent this model: {error}; export to onnx or savedmodel") from error
    (folder / "model.tflite").write_bytes(content)


WRITERS = {"onnx": _write_onnx, "litert": _write_litert, "savedmodel": _write_saved_model}
"""Function that writes the graphs of a model, by format."""
