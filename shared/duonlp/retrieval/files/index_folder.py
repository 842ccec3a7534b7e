"""An index on disk of a folder's passages, in which only what has changed is read and encoded again.

``index.json`` says which files were read when, and names the folder ``store-*`` with the passages, their vectors and the index
of their words. An update saves a new store; replacing ``index.json`` makes it valid, and only then the old one is removed, so
that a kill at any time leaves the old index readable. ``.lock`` is locked by the process that writes.
"""

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.errors import DuonlpError, InputError
from duonlp.retrieval.document import Document, Encoder
from duonlp.retrieval.files.passages import PassageSettings, document_files, read_passages
from duonlp.retrieval.memory_store import MemoryStore
from duonlp.util.files import storage_errors, try_lock, unlock, write_text
from duonlp.util.json_text import to_json
from duonlp.util.reading import read_json_object

KIND, FORMAT = "duonlp passages", 1
INDEX, LOCK, STORE = "index.json", ".lock", "store-"
KEYS = {"source", "settings", "encoder", "store", "files"}
"""Keys of index.json besides its kind and format."""

RACY = 2_000_000_000
"""Nanoseconds: a file that was changed less than this before it was read may change again without a new time."""

ATTEMPTS = 50
"""Maximum number of attempts to read an index that other processes replace meanwhile."""

Progress = Callable[[str, int, int], None]
"""Called with what is done ("files" or "passages"), how many of them are finished, and their total."""


@dataclass(frozen=True)
class IndexReport:
    """The outcome of an update.

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
        store: The passages.
        files: {name: {"size", "mtime_ns", "read_ns", "sha256", "ids" of its passages, "problems"}}.
        folder: Name of the store's folder; "" if there is none.
    """

    store: MemoryStore
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    folder: str = ""


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

    Attributes:
        store: The passages, with vectors if there is an encoder; empty before :meth:`update`.

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
    ) -> None:
        self.folder, self.source = Path(folder), Path(os.path.realpath(source))
        self.settings, self.encoder = settings or PassageSettings(), encoder
        self.store = self._new_store()
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"the index {str(folder)!r} is a file; give a folder")
        if self.folder.is_dir() and not (self.folder / INDEX).exists():
            others = [name for name in os.listdir(self.folder) if not _is_own(name)]
            if others:
                raise InputError(
                    f"the folder {str(folder)!r} has no index, but other files ({sorted(others)[0]}); give another folder for it"
                )
        self._header()  # raises if it is another one's

    def update(self, *, progress: Progress | None = None, on_wait: Callable[[], None] | None = None) -> IndexReport:
        """Read what has changed, write the index if anything has, and set `store`.

        Args:
            progress: Called whenever some files were read or some passages encoded.
            on_wait: Called once if another process is writing the index, before waiting for it.

        Raises:
            InputError: The source has no documents.
            StorageError: The index cannot be written.
        """
        state = self._load()
        if state is not None and self._compare(state) == state.files:
            report = IndexReport(unchanged=len(state.files))
        else:
            with self._locked(on_wait):
                state, report = self._updated(self._load() or _State(self._new_store()), progress)
        self.store = state.store
        problems = tuple(problem for entry in state.files.values() for problem in entry["problems"])
        return replace(report, passages=self.store.count_documents(), problems=problems)

    def _new_store(self) -> MemoryStore:
        return MemoryStore(encoder=None if self.encoder is None else self.encoder.name)

    def _compare(self, state: _State) -> dict[str, dict[str, Any]]:
        """Return the entries of the files that are there now, {} for those that have to be read."""
        entries: dict[str, dict[str, Any]] = {}
        for name, status in document_files(self.source, self.folder).items():
            entry = state.files.get(name, {})
            entries[name] = {}
            if not entry or entry["sha256"] is None or entry["size"] != status.st_size:
                continue
            same_time = entry["mtime_ns"] == status.st_mtime_ns
            if same_time and status.st_mtime_ns < entry["read_ns"] - RACY:
                entries[name] = entry
            elif _digest(self._path(name)) == entry["sha256"]:
                entries[name] = (
                    entry if same_time else entry | {"mtime_ns": status.st_mtime_ns, "read_ns": time.time_ns()}
                )
        return entries

    def _path(self, name: str) -> Path:
        return self.source / name if self.source.is_dir() else self.source

    def _updated(self, state: _State, progress: Progress | None) -> tuple[_State, IndexReport]:
        """Read the changed files, encode new passages, and write the index."""
        files, old, passages = self._compare(state), state.files, []
        stale = [name for name, entry in files.items() if not entry]
        for done, name in enumerate(stale, 1):
            files[name], documents = self._read(name)
            passages += documents
            if progress is not None:
                progress("files", done, len(stale))
        had = {name for entry in old.values() for name in entry["ids"]}
        has = {name for entry in files.values() for name in entry["ids"]}
        if had - has:
            state.store.delete_documents(sorted(had - has))
        if added := [document for document in passages if document.id not in had]:
            state.store.write_documents(added)
        if added and self.encoder is not None:
            state.store.update_embeddings(_Reporting(self.encoder, len(added), progress))
        folder = state.folder if had == has and state.folder else f"{STORE}{secrets.token_hex(6)}"
        state = _State(state.store, files, folder)
        self._write(state)
        changed = sum(name in old for name in stale)
        counts = len(stale) - changed, changed, len(old.keys() - files.keys()), len(files) - len(stale)
        return state, IndexReport(*counts, encoded=0 if self.encoder is None else len(added))

    def _read(self, name: str) -> tuple[dict[str, Any], list[Document]]:
        """Return the entry and the passages of a file; one that cannot be read is tried again by the next update."""
        path, read_ns = self._path(name), time.time_ns()
        entry: dict[str, Any] = {
            "size": 0,
            "mtime_ns": 0,
            "read_ns": read_ns,
            "sha256": None,
            "ids": [],
            "problems": [],
        }
        try:
            status, digest = path.stat(), _digest(path)
        except OSError:  # it was deleted meanwhile
            return entry, []
        documents, problems = read_passages(path, name, self.settings)
        ids = [document.id for document in documents]
        entry |= {
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": digest,
            "ids": ids,
            "problems": problems,
        }
        return entry, documents

    # -- files of the index --------------------------------------------------------------------------------------------

    def _header(self) -> dict[str, Any] | None:
        """Return the contents of index.json; None if there is none, or it has other settings or another format.

        Raises:
            InputError: It is of another source or encoder, or no index.
        """
        if not (self.folder / INDEX).exists():
            return None
        header = read_json_object(self.folder / INDEX, advice="delete that folder")
        if header.get("kind") != KIND:
            raise InputError(
                f"{str(self.folder / INDEX)!r} is not an index of passages; give another folder for the index"
            )
        if header.get("format") != FORMAT or not header.keys() >= KEYS:
            return None
        self._check(header)
        return header if header["settings"] == asdict(self.settings) else None

    def _check(self, header: Mapping[str, Any]) -> None:
        """Raise InputError if the index is of another source or encoder."""
        place, remedy = f"the index {str(self.folder)!r}", "give another folder for the index, or delete that one"
        if header["source"] != str(self.source):
            raise InputError(f"{place} is of {header['source']!r}, not of {str(self.source)!r}; {remedy}")
        stored, wanted = header["encoder"], self._encoder()
        if stored is None or wanted is None:
            if stored is not wanted:
                has = "no vectors" if stored is None else f"vectors of {stored['name']!r}"
                want = "keyword search uses none" if wanted is None else f"the retriever is {wanted['name']!r}"
                raise InputError(f"{place} has {has}, but {want}; {remedy}")
        elif stored != wanted:
            raise InputError(
                f"{place} has vectors of {stored['name']!r} with {stored['size']} values, but the retriever is "
                f"{wanted['name']!r} with {wanted['size']}; {remedy}"
            )

    def _encoder(self) -> dict[str, Any] | None:
        return None if self.encoder is None else {"name": self.encoder.name, "size": self.encoder.size}

    def _load(self) -> _State | None:
        """Return what is on disk; None if there is no index, it has other settings or is damaged."""
        for _ in range(ATTEMPTS):
            header = self._header()
            if header is None:
                return None
            try:
                store = MemoryStore.open(self.folder / header["store"])
            except DuonlpError:
                if (self.folder / header["store"]).is_dir():
                    return None  # it is damaged
                time.sleep(0.01)  # another process has just replaced it
            else:
                return _State(store, header["files"], header["store"])
        return None

    def _write(self, state: _State) -> None:
        """Save the store, unless it is on disk already, then the header, and remove other stores."""
        if not (self.folder / state.folder).exists():
            state.store.save(self.folder / state.folder)
        header = {
            "kind": KIND, "format": FORMAT, "source": str(self.source), "settings": asdict(self.settings),
            "encoder": self._encoder(), "store": state.folder, "files": state.files,
        }  # fmt: skip
        write_text(self.folder / INDEX, to_json(header) + "\n")
        for name in os.listdir(self.folder):
            if _is_own(name) and name not in (LOCK, state.folder):
                shutil.rmtree(self.folder / name, ignore_errors=True)

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


class _Reporting:
    """An encoder that reports its progress."""

    def __init__(self, encoder: Encoder, total: int, progress: Progress | None):
        self.encoder, self.total, self.progress, self.done = encoder, total, progress, 0
        self.name, self.size = encoder.name, encoder.size

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of questions."""
        return self.encoder.encode_queries(texts)

    def encode_documents(self, texts: Sequence[str], titles: Sequence[str] | None = None) -> np.ndarray:
        """Return the vectors of passages."""
        vectors = self.encoder.encode_documents(texts, titles)
        self.done += len(texts)
        if self.progress is not None:
            self.progress("passages", self.done, self.total)
        return vectors


def _digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None if it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def _is_own(name: str) -> bool:
    """Return whether this is a file or folder of an index, or what an update that was killed may have left."""
    return name == LOCK or name.startswith((STORE, f".{STORE}", f".{INDEX}."))
