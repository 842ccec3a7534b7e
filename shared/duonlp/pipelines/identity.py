"""Identify the model of a pipeline by the contents of its files."""

import hashlib
from functools import lru_cache
from pathlib import Path

from duonlp.errors import InputError
from duonlp.pipelines.pipeline import Pipeline

WEIGHTS = (".safetensors", ".h5", ".msgpack")
"""Endings of the files whose contents identify a model."""


def weights_hash(pipe: Pipeline) -> str:
    """Return a hash of the files of a pipeline's model, in hex, wherever they are.

    Raises:
        InputError: The model has no files with weights, or was passed to the pipeline loaded.
    """
    folder = pipe.weights_folder
    if folder is None and pipe.task.folder is not None:
        raise InputError(
            f"the model of {pipe!r} was passed to it loaded, and may have been trained since; make the pipeline from its folder, "
            "or pass name=, a name that changes with the model"
        )
    files = [] if folder is None else sorted(path for path in folder.rglob("*") if path.suffix in WEIGHTS)
    if not files:
        raise InputError(
            f"the model of {pipe!r} has no files that would identify it; pass name=, a name that changes with the model"
        )
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(_digest(file, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _digest(file: Path, size: int, modified: int) -> bytes:
    """Return the hash of a file that has not changed since it had this size and time."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
