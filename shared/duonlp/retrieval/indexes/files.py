"""The folder of a document store: JSON lines, safetensors, and for FAISS its own format, each with its hash in a manifest.

Nothing is unpickled, and no file is parsed before its hash was compared, because FAISS trusts what it reads.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.checkpoints.atomic_folder import ATTEMPTS, SAVED, atomic_folder, finish_save
from duonlp.checkpoints.safetensors_file import TensorToWrite, list_tensors, write_tensors
from duonlp.errors import DuonlpError, InputError
from duonlp.util.files import storage_errors
from duonlp.util.json_text import to_json
from duonlp.util.reading import parse_json, read_json, read_json_object, why_unreadable

MANIFEST, DOCUMENTS, ARRAYS, VOCABULARY, FAISS = (
    "store.json", "documents.jsonl", "arrays.safetensors", "vocabulary.json", "vectors.faiss",
)  # fmt: skip
VERSION = 1
"""Version of the layout."""

ADVICE = "save the store again, or build it anew from its documents"
CHUNK = 1 << 22


@dataclass
class StoreFiles:
    """The contents of a store's folder.

    Attributes:
        kind: Name of the class of the store.
        settings: Its JSON-compatible settings.
        documents: One dict per document: "id", "content" and "meta".
        arrays: Arrays by name.
        vocabulary: Words of the keyword index, in order.
        faiss: A serialized FAISS index, uint8 [bytes], or None.
    """

    kind: str
    settings: dict[str, Any]
    documents: Iterable[Mapping[str, Any]]
    arrays: dict[str, np.ndarray]
    vocabulary: list[str] = field(default_factory=list)
    faiss: np.ndarray | None = None

    def array(self, name: str, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
        """Return an array after comparing its dtype and shape, in which None stands for any size.

        Raises:
            InputError: It is missing or another.
        """
        array = self.arrays.get(name)
        if array is None or array.dtype != dtype or len(array.shape) != len(shape):
            raise InputError(f"the array {name!r} of the store is missing or of another type; {ADVICE}")
        if any(size not in (None, actual) for size, actual in zip(shape, array.shape, strict=True)):
            raise InputError(f"the array {name!r} of the store has the shape {array.shape}, not {shape}; {ADVICE}")
        return array


def write_store(folder: str | os.PathLike[str], files: StoreFiles) -> None:
    """Write the folder of a store atomically: when this is killed, the folder still holds the store that was there.

    Raises:
        InputError: A document's meta is not JSON-compatible, or ``folder`` is a file.
        StorageError: The folder cannot be written.
    """
    with storage_errors(folder), atomic_folder(folder) as new:
        for name in (MANIFEST, DOCUMENTS, ARRAYS, VOCABULARY, FAISS):
            (new / name).unlink(missing_ok=True)  # a link to the file that is being replaced
        with open(new / DOCUMENTS, "wb") as stream:
            for document in files.documents:
                try:
                    stream.write(to_json(document).encode() + b"\n")
                except (TypeError, RecursionError) as error:
                    raise InputError(
                        f"document {document['id']!r} cannot be saved: in its meta, {error}; use texts, numbers, lists and dicts"
                    ) from None
        write_tensors(
            new / ARRAYS,
            [TensorToWrite(name, a.shape, a.dtype, partial(np.asarray, a)) for name, a in files.arrays.items()],
        )
        (new / VOCABULARY).write_bytes(to_json(files.vocabulary).encode())
        if files.faiss is not None:
            (new / FAISS).write_bytes(files.faiss.data)
        names = [DOCUMENTS, ARRAYS, VOCABULARY, *([] if files.faiss is None else [FAISS])]
        contents = {
            "format": "duonlp document store",
            "version": VERSION,
            "kind": files.kind,
            "settings": files.settings,
            "files": {name: {"bytes": (new / name).stat().st_size, "sha256": _hash(new / name)} for name in names},
        }
        manifest = {"sha256": _hash_contents(contents), "contents": contents}
        (new / MANIFEST).write_bytes(to_json(manifest, indent=2).encode() + b"\n")


def read_store(folder: str | os.PathLike[str], kind: str) -> StoreFiles:
    """Read the folder of a store, all of one version even if another process replaces it meanwhile.

    Args:
        folder: The folder.
        kind: Name of the class of the store.

    Raises:
        InputError: The folder is missing, holds no store or one of another class, or a file is damaged.
        CheckpointError: A save was interrupted, and this process may not finish it.
    """
    folder = Path(folder).expanduser()
    for _ in range(ATTEMPTS):
        finish_save(folder)
        before = _state(folder)
        try:
            files = _read(folder, kind)
        except (DuonlpError, OSError) as error:
            if before == _state(folder) and SAVED not in before:
                if isinstance(error, DuonlpError):
                    raise
                raise InputError(f"cannot read the store {str(folder)!r}: {why_unreadable(error)}") from None
        else:
            if before == _state(folder) and SAVED not in before:
                return files
        time.sleep(0.01)
    raise InputError(f"{str(folder)!r} is replaced again and again while it is being read; wait for the other process")


def _read(folder: Path, kind: str) -> StoreFiles:
    if not (folder / MANIFEST).is_file():
        what = "does not exist" if not folder.exists() else f"has no {MANIFEST}, so it is not a saved document store"
        raise InputError(f"{str(folder)!r} {what}; pass a folder that a store's save has written")
    manifest = read_json_object(folder / MANIFEST, advice=ADVICE)
    contents = manifest.get("contents")
    if not isinstance(contents, dict) or manifest.get("sha256") != _hash_contents(contents):
        raise InputError(f"{str(folder / MANIFEST)!r} is damaged; {ADVICE}")
    if contents.get("version") != VERSION:
        raise InputError(
            f"{str(folder)!r} is a store of version {contents.get('version')!r}; this duonlp reads version {VERSION}: update it, "
            "or build the store anew from its documents"
        )
    if contents.get("kind") != kind:
        raise InputError(
            f"{str(folder)!r} is a {contents.get('kind')}, not a {kind}; open it with {contents.get('kind')}.open"
        )
    for name, entry in contents["files"].items():
        _verify(folder / name, entry["bytes"], entry["sha256"])
    arrays = {name: tensor.read() for name, tensor in list_tensors(folder / ARRAYS).items()}
    vocabulary = read_json(folder / VOCABULARY, advice=ADVICE)
    if not isinstance(vocabulary, list) or not all(isinstance(word, str) for word in vocabulary):
        raise InputError(f"{str(folder / VOCABULARY)!r} is not a list of words; {ADVICE}")
    faiss = np.fromfile(folder / FAISS, np.uint8) if FAISS in contents["files"] else None
    return StoreFiles(kind, contents["settings"], list(_documents(folder / DOCUMENTS)), arrays, vocabulary, faiss)


def _documents(file: Path) -> Iterator[Mapping[str, Any]]:
    with open(file, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield parse_json(line)
            except ValueError as error:
                raise InputError(f"line {number} of {str(file)!r} is damaged: {error}; {ADVICE}") from None


def _verify(file: Path, size: int, digest: str) -> None:
    """Raise InputError unless a file has the size and hash that the manifest states."""
    try:
        actual = file.stat().st_size
    except FileNotFoundError:
        raise InputError(f"{str(file)!r} is missing; {ADVICE}") from None
    if actual != size:
        raise InputError(f"{str(file)!r} is damaged: it has {actual} bytes, not {size}; {ADVICE}")
    if _hash(file) != digest:
        raise InputError(f"{str(file)!r} is damaged: its SHA-256 is not the one in {MANIFEST}; {ADVICE}")


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _hash_contents(contents: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(contents, sort_keys=True).encode()).hexdigest()


def _state(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return what changes when a file of the folder is replaced."""
    try:
        with os.scandir(folder) as entries:
            stats = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    except OSError:
        return {}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats.items()}
