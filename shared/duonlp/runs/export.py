"""Export a checkpoint: from a folder to a folder, with the engine that writes the format."""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from duonlp import architectures
from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.checkpoints.conversion import check_output
from duonlp.errors import InputError
from duonlp.export import ExportSettings, find_exported
from duonlp.parity import AUTO_CLASSES
from duonlp.runs.quantization import CalibrationData, calibration_inputs
from duonlp.util.frameworks import load_package

FRAMEWORKS = {"onnx": "tf", "litert": "tf", "savedmodel": "tf", "stablehlo": "jax"}
"""Formats, and the framework that writes them."""


def export_checkpoint(
    model: str,
    output: str | os.PathLike[str],
    settings: ExportSettings | None = None,
    *,
    head: str | None = None,
    data: CalibrationData | None = None,
    overwrite: bool = False,
    on_stage: Callable[[str], Any] = str,
) -> dict[str, Any]:
    """Export a checkpoint to ONNX, LiteRT, a SavedModel or StableHLO, and compare the graph with the model.

    Args:
        model: The checkpoint: a folder or a Hub id.
        output: Folder to write: the graphs, config.json, and the tokenizer.
        settings: The format, shapes and so on; by default ONNX for all shapes.
        head: Head to load; by default the one the checkpoint was saved with.
        data: Texts to calibrate with, for static int8.
        overwrite: Whether ``output`` may hold files.
        on_stage: Called with what happens next, such as "exporting".

    Returns:
        The report of :func:`duonlp.export.write_exported`, with "source".

    Raises:
        InputError: See the engines' ``export_model``.
        CheckpointError: The checkpoint cannot be read.
        MissingExtraError: The format's framework, or a library of the extra ``export``, is not installed.
    """
    settings, data = settings or ExportSettings(), data or CalibrationData()
    if find_exported(model) is not None:
        raise InputError(f"{model!r} is an exported model already; give the checkpoint that it was exported from")
    check_output(Path(output).expanduser(), overwrite)
    checkpoint = open_checkpoint(model)
    head = checkpoint.head if head is None else head
    config = checkpoint.transformer_config(head)
    architectures.class_name(config.model_type, head)  # raises for a head that the family does not have
    batches = None
    if settings.int8 == "static":
        texts = data.texts()
        batches = calibration_inputs(checkpoint, config, head, texts, data) if texts else None
    on_stage("loading")
    package, _ = load_package(FRAMEWORKS[settings.to])
    loaded = getattr(package, AUTO_CLASSES[head]).from_pretrained(checkpoint, dtype="float32")
    on_stage("exporting")
    options = asdict(settings)
    report = package.export_model(loaded, output, options.pop("to"), batches=batches, overwrite=overwrite, **options)
    return {"source": model, **report}
