"""Find the graphs of an exported model on disk."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duonlp.checkpoints.weight_files import weight_files
from duonlp.errors import InputError
from duonlp.export.graphs import STEMS
from duonlp.export.sessions import OnnxSession, Session, litert_sessions

ENDINGS = {"onnx": ".onnx", "litert": ".tflite", "stablehlo": ".stablehlo"}
"""Formats and the endings of their files; a SavedModel is a folder."""

SAVED_MODEL = "saved_model.pb"


@dataclass(frozen=True)
class ExportedFiles:
    """The files of an exported model.

    Attributes:
        format: See :data:`duonlp.export.settings.TOLERANCES`.
        folder: Folder with its config.json and tokenizer.
        paths: File of each graph; {"": path} for one that holds all of them.
    """

    format: str
    folder: Path
    paths: dict[str, Path]

    def sessions(self, runtimes: Mapping[str, Callable[[Path], Any]]) -> dict[str, Session]:
        """Open the graphs.

        Args:
            runtimes: The engine's: "savedmodel" -> function from a folder to its sessions by name, "stablehlo" -> from a file to
                its session.

        Raises:
            InputError: The format is of the other engine.
            CheckpointError: A file is damaged.
            MissingExtraError: The format's runtime is not installed.
        """
        known: dict[str, Callable[[Path], Any]] = {"onnx": OnnxSession, "litert": litert_sessions, **runtimes}
        if self.format not in known:
            package = {"savedmodel": "tfnlp", "stablehlo": "jaxnlp"}[self.format]
            raise InputError(
                f"{str(self.folder)!r} is a {self.format} export, which {package} runs; use {package}.pipeline"
            )
        opened = {name: known[self.format](path) for name, path in self.paths.items()}
        return dict(opened[""]) if "" in opened else opened


def find_exported(model: Any) -> ExportedFiles | None:
    """Return the files of an exported model; None if a path is none, such as that of a checkpoint.

    Args:
        model: A file (.onnx, .tflite, .stablehlo, or saved_model.pb), or a folder with such files and no weights of a
            checkpoint. Anything else is none.
    """
    if not isinstance(model, (str, os.PathLike)):
        return None
    path = Path(model).expanduser()
    formats = {ending: name for name, ending in ENDINGS.items()}
    try:
        if path.is_file():
            if path.name == SAVED_MODEL:
                return ExportedFiles("savedmodel", path.parent, {"": path.parent})
            return _from_file(formats[path.suffix], path) if path.suffix in formats else None
        if not path.is_dir() or weight_files(path):
            return None
        if (path / SAVED_MODEL).is_file():
            return ExportedFiles("savedmodel", path, {"": path})
        files = sorted(file for file in path.iterdir() if file.suffix in formats)
    except OSError:  # a name that is no path, or one that may not be read, which the checkpoint's reader explains
        return None
    return _from_file(formats[files[0].suffix], files[0]) if files else None


def _from_file(name: str, path: Path) -> ExportedFiles:
    if name == "litert":
        return ExportedFiles(name, path.parent, {"": path})
    parts = {graph: path.with_name(STEMS[graph] + path.suffix) for graph in ("encode", "decode")}
    if path not in parts.values():
        return ExportedFiles(name, path.parent, {"serve": path})
    return ExportedFiles(name, path.parent, {graph: file for graph, file in parts.items() if file.is_file()})


def remove_exported(folder: Path) -> None:
    """Remove the files of an earlier export from a folder, whose links would otherwise be written through."""
    for file in folder.iterdir():
        if file.suffix in (*ENDINGS.values(), ".pb", ".data"):
            file.unlink()
    for name in ("variables", "assets"):
        shutil.rmtree(folder / name, ignore_errors=True)
