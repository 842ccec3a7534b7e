"""An index on disk of a folder's passages and their vectors, in which only what has changed is read again.

Files of the index: ``index.json`` names the others and says which files were read when; ``passages-*.jsonl`` has a passage per
line; ``vectors-*.npy`` is float32 [passages, size]. New data files have new names, and replacing ``index.json`` makes them valid,
so that a kill at any time leaves the old index readable. ``.lock`` is locked by the process that writes.
"""

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.retrieval.document import Document, Encoder
from duonlp.retrieval.files.passages import PassageSettings, document_files, read_passages
from duonlp.util.files import fsync_folder, storage_errors, try_lock, unlock, write_text
from duonlp.util.json_text import to_json
from duonlp.util.reading import parse_json, read_json_object

KIND, FORMAT = "duonlp passages", 1
INDEX, LOCK = "index.json", ".lock"
RACY = 2_000_000_000
"""Nanoseconds: a file that was changed less than this before it was read may change again without a new time."""

ENCODED_AT_ONCE = 256
"""Passages encoded between two reports of progress."""

ATTEMPTS = 50
"""Maximum number of attempts to read an index that other processes replace meanwhile."""


@dataclass(frozen=True)
class IndexReport:
    """What an update did.

    Attributes:
        added: Files read for the first time.
        changed: Files read again.
        deleted: Files that are gone.
        unchanged: Files whose passages were kept.
        passages: Passages in the index.
        encoded: Passages whose vectors were computed.
        problems: What could not be read, a line each.
    """

    added: int = 0
    changed: int = 0
    deleted: int = 0
    unchanged: int = 0
    passages: int = 0
    encoded: int = 0
    problems: tuple[str, ...] = ()


@dataclass
class _State:
    """The contents of an index.

    Attributes:
        files: {name: {"size", "mtime_ns", "read_ns", "sha256", "passages": their number, "problems"}}, in the passages' order.
        documents: All passages.
        vectors: float32 [passages, size], or None without an encoder.
        names: Names of the data files by kind, as they are on disk.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    documents: list[Document] = field(default_factory=list)
    vectors: np.ndarray | None = None
    fingerprint: str = ""
    names: dict[str, str | None] = field(default_factory=dict)

    def passages(self) -> dict[str, list[Document]]:
        """Return the passages of each file."""
        result, first = {}, 0
        for name, entry in self.files.items():
            result[name] = self.documents[first : first + entry["passages"]]
            first += entry["passages"]
        return result


def default_index_folder(source: str | Path, retriever: str) -> Path:
    """Return where the index of a source is kept: ``$XDG_CACHE_HOME/duonlp/indexes/NAME-HASH``, below ~/.cache by default.

    Args:
        source: The folder or file of documents, whose absolute path the hash is of.
        retriever: Name of the retriever, which the hash is of, too.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = os.path.realpath(source)
    name = re.sub(r"[^\w.-]+", "_", Path(path).name).strip("._")[:40] or "documents"
    digest = hashlib.sha256(os.fsencode(path) + b"\0" + retriever.encode()).hexdigest()
    return base / "duonlp" / "indexes" / f"{name}-{digest[:16]}"


class IndexFolder:
    """The passages of a folder or file, kept on disk.

    Args:
        folder: Folder of the index.
        source: Folder or file of documents.
        settings: How they are read and split; an index with other settings is built anew.
        encoder: Computes the vectors; None for none.
        fingerprint: Changes with the encoder's weights: vectors with another one are computed anew.

    Attributes:
        documents: The passages, with their vectors as embeddings; [] before :meth:`update`.

    Raises:
        InputError: The folder has other files, or an index of another source or encoder, or the source does not exist.
    """

    def __init__(
        self,
        folder: str | Path,
        source: str | Path,
        *,
        settings: PassageSettings | None = None,
        encoder: Encoder | None = None,
        fingerprint: str = "",
    ) -> None:
        self.folder, self.source = Path(folder), Path(os.path.realpath(source))
        self.settings, self.encoder, self.fingerprint = settings or PassageSettings(), encoder, fingerprint
        self.documents: list[Document] = []
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"the index {str(folder)!r} is a file; give a folder")
        if self.folder.is_dir() and not (self.folder / INDEX).exists():
            others = [name for name in os.listdir(self.folder) if not _is_own(name)]
            if others:
                raise InputError(
                    f"the folder {str(folder)!r} has no index, but other files ({sorted(others)[0]}); give another folder for it"
                )
        self._load()  # raises if it is another one's

    def update(
        self,
        *,
        progress: Callable[[str, int, int], None] | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> IndexReport:
        """Read what has changed, write the index if anything has, and set `documents`.

        Args:
            progress: Called with what is done ("files" or "passages"), how many of them are finished, and their total.
            on_wait: Called once if another process is writing the index, before waiting for it.

        Raises:
            InputError: The source has no documents.
            StorageError: The index cannot be written.
        """
        state = self._load()
        kept, stale = self._compare(state)
        current = state is not None and not stale and list(kept) == list(state.files)
        if state is None or not current or kept != state.files or not self._has_vectors(state):
            with self._locked(on_wait):
                state, report = self._updated(self._load() or _State(), progress)
        else:
            report = IndexReport(unchanged=len(kept))
        self.documents = state.documents
        if state.vectors is not None:
            for document, vector in zip(self.documents, state.vectors, strict=True):
                document.embedding = vector
        problems = tuple(problem for entry in state.files.values() for problem in entry["problems"])
        return replace(report, passages=len(self.documents), problems=problems)

    def _has_vectors(self, state: _State) -> bool:
        return self.encoder is None or (state.vectors is not None and state.fingerprint == self.fingerprint)

    def _compare(self, state: _State | None) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Return the entries of all files in order, of changed ones {}, and the names of the changed ones."""
        kept: dict[str, dict[str, Any]] = {}
        for name, status in document_files(self.source, self.folder).items():
            entry = state.files.get(name) if state is not None else None
            kept[name] = {}
            if entry is None or entry["sha256"] is None or entry["size"] != status.st_size:
                continue
            same_time = entry["mtime_ns"] == status.st_mtime_ns
            if same_time and status.st_mtime_ns < entry["read_ns"] - RACY:
                kept[name] = entry
            elif _digest(self._path(name)) == entry["sha256"]:
                kept[name] = entry if same_time else entry | {"mtime_ns": status.st_mtime_ns, "read_ns": time.time_ns()}
        return kept, [name for name, entry in kept.items() if not entry]

    def _path(self, name: str) -> Path:
        return self.source / name if self.source.is_dir() else self.source

    def _updated(self, old: _State, progress: Callable[[str, int, int], None] | None) -> tuple[_State, IndexReport]:
        """Read the changed files, encode new passages, and write the index."""
        files, stale = self._compare(old)
        passages = old.passages()
        for done, name in enumerate(stale, 1):
            files[name], passages[name] = self._read(name)
            if progress is not None:
                progress("files", done, len(stale))
        documents = [document for name in files for document in passages[name]]
        new = _State(files, documents, None, self.fingerprint, dict(old.names))
        same = [document.id for document in documents] == [document.id for document in old.documents]
        encoded = 0
        if self.encoder is not None:
            new.vectors, encoded = self._vectors(old, documents, progress)
        self._write(new, same and bool(old.names), same and not encoded and self._has_vectors(old))
        changed = sum(name in old.files for name in stale)
        deleted = len(old.files.keys() - files.keys())
        return new, IndexReport(len(stale) - changed, changed, deleted, len(files) - len(stale), encoded=encoded)

    def _read(self, name: str) -> tuple[dict[str, Any], list[Document]]:
        """Return the entry and the passages of a file; one that cannot be read is tried again by the next update."""
        path, read_ns = self._path(name), time.time_ns()
        try:
            status, digest = path.stat(), _digest(path)
        except FileNotFoundError:
            return {"size": 0, "mtime_ns": 0, "read_ns": read_ns, "sha256": None, "passages": 0, "problems": []}, []
        documents, problems = read_passages(path, name, self.settings)
        entry = {
            "size": status.st_size, "mtime_ns": status.st_mtime_ns, "read_ns": read_ns, "sha256": digest,
            "passages": len(documents), "problems": problems,
        }  # fmt: skip
        return entry, documents

    def _vectors(
        self, old: _State, documents: list[Document], progress: Callable[[str, int, int], None] | None
    ) -> tuple[np.ndarray, int]:
        """Return the vectors of passages, and how many had to be computed."""
        assert self.encoder is not None
        vectors = np.empty((len(documents), self.encoder.size), np.float32)
        rows = {document.id: row for row, document in enumerate(old.documents)} if self._has_vectors(old) else {}
        missing = []
        for row, document in enumerate(documents):
            if (source := rows.get(document.id)) is None:
                missing.append(row)
            elif old.vectors is not None:
                vectors[row] = old.vectors[source]
        for start in range(0, len(missing), ENCODED_AT_ONCE):
            part = missing[start : start + ENCODED_AT_ONCE]
            vectors[part] = self.encoder.encode_documents([documents[row].content for row in part])
            if progress is not None:
                progress("passages", start + len(part), len(missing))
        return vectors, len(missing)

    # -- files of the index --------------------------------------------------------------------------------------------

    def _load(self) -> _State | None:
        """Return what is on disk; None if there is no index, it has other settings or another format, or its data is damaged.

        Raises:
            InputError: It is the index of another source or encoder, or its file is not an index.
        """
        for _ in range(ATTEMPTS):
            if not (self.folder / INDEX).exists():
                return None
            header = read_json_object(self.folder / INDEX, advice="delete that folder")
            if header.get("kind") != KIND:
                raise InputError(
                    f"{str(self.folder / INDEX)!r} is not an index of passages; give another folder for the index"
                )
            if header.get("format") != FORMAT:
                return None
            self._check(header)
            if header["settings"] != asdict(self.settings):
                return None
            try:
                return self._read_state(header)
            except FileNotFoundError:  # another process has just replaced its files
                time.sleep(0.01)
            except (ValueError, KeyError, TypeError):
                return None
        return None

    def _check(self, header: Mapping[str, Any]) -> None:
        """Raise InputError if the index is of another source or encoder."""
        place = f"the index {str(self.folder)!r}"
        remedy = "give another --index, or delete that folder"
        if header["source"] != str(self.source):
            raise InputError(f"{place} is of {header['source']!r}, not of {str(self.source)!r}; {remedy}")
        stored = header["encoder"]
        if (stored is None) != (self.encoder is None):
            has = f"vectors of {stored['name']!r}" if stored else "no vectors"
            want = "keyword search uses none" if self.encoder is None else f"the retriever is {self.encoder.name!r}"
            raise InputError(f"{place} has {has}, but {want}; {remedy}")
        if self.encoder is None:
            return
        if (stored["name"], stored["size"]) != (self.encoder.name, self.encoder.size):
            raise InputError(
                f"{place} has vectors of {stored['name']!r} with {stored['size']} numbers, but the retriever is "
                f"{self.encoder.name!r} with {self.encoder.size}; {remedy}"
            )

    def _read_state(self, header: Mapping[str, Any]) -> _State:
        """Read the data files that a header names.

        Raises:
            FileNotFoundError: Another process has replaced them.
            ValueError: They are damaged.
        """
        lines = (self.folder / header["passages"]).read_bytes().splitlines()
        rows = [parse_json(line) for line in lines]
        documents = [Document(row["content"], row["meta"], row["id"]) for row in rows]
        vectors = None
        if header["vectors"] is not None:
            vectors = np.load(self.folder / header["vectors"], allow_pickle=False)
            if vectors.ndim != 2 or len(vectors) != len(documents):
                raise ValueError("vectors")
        if sum(entry["passages"] for entry in header["files"].values()) != len(documents):
            raise ValueError("passages")
        names = {"passages": header["passages"], "vectors": header["vectors"]}
        return _State(header["files"], documents, vectors, header["fingerprint"], names)

    def _write(self, state: _State, keep_passages: bool, keep_vectors: bool) -> None:
        """Write the data files, unless they are on disk already, then the header, and remove other data files."""
        token = secrets.token_hex(6)
        with storage_errors(self.folder):
            if not keep_passages:
                state.names["passages"] = f"passages-{token}.jsonl"
                lines = [to_json({"id": d.id, "content": d.content, "meta": d.meta}) + "\n" for d in state.documents]
                with _durable(self.folder / f"passages-{token}.jsonl") as stream:
                    stream.writelines(line.encode() for line in lines)
            if state.vectors is None:
                state.names["vectors"] = None
            elif not keep_vectors:
                state.names["vectors"] = f"vectors-{token}.npy"
                with _durable(self.folder / f"vectors-{token}.npy") as stream:
                    np.save(stream, state.vectors)
            fsync_folder(self.folder)
        encoder = self.encoder and {"name": self.encoder.name, "size": self.encoder.size}
        header = {
            "kind": KIND, "format": FORMAT, "source": str(self.source), "settings": asdict(self.settings), "encoder": encoder,
            "fingerprint": self.fingerprint, **state.names, "files": state.files,
        }  # fmt: skip
        write_text(self.folder / INDEX, to_json(header, indent=1) + "\n")
        for name in os.listdir(self.folder):
            if name.startswith(("passages-", "vectors-")) and name not in state.names.values():
                with contextlib.suppress(OSError):
                    os.unlink(self.folder / name)

    @contextmanager
    def _locked(self, on_wait: Callable[[], None] | None) -> Generator[None, None, None]:
        """Hold the lock of the index; wait for another process that holds it."""
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while try_lock(descriptor) is False:
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                time.sleep(0.1)
            yield
        finally:
            unlock(descriptor)


@contextmanager
def _durable(path: Path) -> Generator[Any, None, None]:
    """Yield a new binary file that is on the disk when the block ends."""
    with open(path, "wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def _digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None if it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise
    except OSError:
        return None


def _is_own(name: str) -> bool:
    """Return whether a file may have been left by an update that was killed."""
    return name == LOCK or name.startswith(("passages-", "vectors-", f".{INDEX}."))
