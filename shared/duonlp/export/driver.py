"""Write an exported model with its configuration and tokenizer, and compare it with the original: shared by both engines."""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from duonlp import architectures
from duonlp.checkpoints.atomic_folder import atomic_folder
from duonlp.checkpoints.conversion.convert import check_output, copy_files, small_files
from duonlp.errors import InputError
from duonlp.export.files import find_exported, remove_exported
from duonlp.export.graphs import Graph, graphs_of
from duonlp.export.model import ExportedModel
from duonlp.export.settings import ExportSettings
from duonlp.export.validation import Forward, compare
from duonlp.heads import HEADS
from duonlp.util.json_text import to_json

TOKENIZER = ".tokenizer"
"""Temporary folder of the tokenizer's files."""

Write = Callable[[Path, tuple[Graph, ...]], None]


def write_exported(
    model: Any,
    output: str | os.PathLike[str],
    settings: ExportSettings,
    write: Write,
    forward: Forward,
    runtimes: Mapping[str, Callable[[Path], Any]],
    *,
    tokenizer: Any = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Export a model of an engine to a folder, atomically.

    Args:
        model: The model.
        output: The folder.
        settings: What to export.
        write: Writes the graphs into a folder.
        forward: The model as a function of its inputs.
        runtimes: See ExportedFiles.sessions.
        tokenizer: Tokenizer or image processor to save; None copies the small files of the folder that the model was loaded from.
        overwrite: Whether the folder may hold files.

    Returns:
        The report: "output", "format", "model_type", "head", "opset", "int8", "files" (bytes by name), "differences" (largest
        relative difference from the model by output), "tolerance" and "seconds".

    Raises:
        InputError: The output holds files, a setting does not fit the model, or outputs differ from the model's.
        MissingExtraError: A library of the extra ``export`` is not installed.
    """
    start, output = time.perf_counter(), Path(output).expanduser()
    check_output(output, overwrite)
    config, head, source = model.config, model.head, getattr(model, "folder", None)
    if config.quantization is not None and not config.quantization.simulated:
        raise InputError(
            f"this {config.model_type} is quantized, and its integer products have no form in {settings.to}",
            remedy="export the float model, with int8= if you want integers, or restore float weights with tfnlp.dequantize",
            argument="int8",
        )
    if source is not None and Path(source).resolve() == output.resolve():
        raise InputError(f"{str(output)!r} is the checkpoint itself; give another folder to write")
    graphs = graphs_of(config, head, settings)
    with atomic_folder(output) as new:
        remove_exported(new)
        write(new, graphs)
        texts = {"config.json": architectures.hf_config(config, head)}
        if HEADS[head].generates:
            texts["generation_config.json"] = model.generation_config.to_dict()
        for name, content in texts.items():
            (new / name).unlink(missing_ok=True)
            (new / name).write_text(to_json(content, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(new / TOKENIZER)  # not to `new`, whose files can be links to those they replace
            copy_files(new / TOKENIZER, new, [file.name for file in (new / TOKENIZER).iterdir()])
            shutil.rmtree(new / TOKENIZER)
        elif source is not None and Path(source).is_dir():
            copy_files(Path(source), new, [name for name in small_files(Path(source)) if name not in texts])
        files = find_exported(new)
        assert files is not None, "the engine has written no graph"
        exported = ExportedModel(config, head, files.sessions(runtimes))
        differences = compare(exported, forward, graphs, settings)
        sizes = _sizes(new, [*files.paths.values()])
    return {
        "output": str(output), "format": settings.to, "model_type": config.model_type, "head": head,
        "opset": settings.opset, "int8": settings.int8, "files": sizes, "differences": differences,
        "tolerance": settings.limit, "seconds": time.perf_counter() - start,
    }  # fmt: skip


def _sizes(folder: Path, paths: list[Path]) -> dict[str, int]:
    """Return the bytes of graphs by their names; of a SavedModel, those of all its files."""
    files = paths if paths != [folder] else [folder / "saved_model.pb", *(folder / "variables").iterdir()]
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
