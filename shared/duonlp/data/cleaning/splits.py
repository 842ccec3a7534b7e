"""Write a cleaned corpus to disk as a training and a held-out file."""

import gzip
import os
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from duonlp.data.reading.corpus import is_held_out
from duonlp.data.reading.documents import Document
from duonlp.errors import InputError, MissingExtraError
from duonlp.util.files import fsync_folder, locked_folder, storage_errors, unfinished
from duonlp.util.json_text import to_json

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")


def write_split(
    documents: Iterable[Document],
    folder: str | Path,
    *,
    held_out: float = 0.05,
    salt: str = "",
    ending: str = ".jsonl.gz",
) -> dict[str, Path]:
    """Write documents to `training` and `held_out` JSONL files, split by a hash of their names.

    `read_documents` reads the files back. Remove near duplicates with `clean` first: the split ignores
    the text, so it could put one of two near duplicates on each side.

    Args:
        documents: Documents to write, consumed once.
        folder: Output folder, created if needed. Existing files are replaced only after both new ones
            are complete.
        held_out: Expected fraction of documents to hold out, in (0, 1).
        salt: Change it to get a different split.
        ending: File ending, one of `ENDINGS`.

    Returns:
        {"training": file, "held_out": file}.

    Raises:
        InputError: If an argument is out of range, one side of the split is empty, or another process or
            thread is writing to the folder.
        StorageError: If the files cannot be written; existing ones are unchanged.
        MissingExtraError: If `ending` is .jsonl.zst and zstandard is not installed.
    """
    if ending not in ENDINGS:
        raise InputError(f"ending is {ending!r}; it must be one of {', '.join(ENDINGS)}")
    is_held_out("", held_out)  # validates held_out before anything is read
    folder = Path(folder)
    files = {side: folder / f"{side}{ending}" for side in ("training", "held_out")}
    counts = dict.fromkeys(files, 0)
    with ExitStack() as locks:
        locks.enter_context(locked_folder(folder))
        locks.enter_context(storage_errors(folder))
        partial = {side: locks.enter_context(unfinished(file)) for side, file in files.items()}
        with ExitStack() as stack:
            streams = {side: stack.enter_context(_writer(file, ending)) for side, file in partial.items()}
            for document in documents:
                side = "held_out" if is_held_out(document.name, held_out, salt) else "training"
                streams[side].write(to_json(asdict(document)).encode("utf-8") + b"\n")
                counts[side] += 1
        if not all(counts.values()):
            raise InputError(
                f"{sum(counts.values())} documents split into {counts['training']} for training and {counts['held_out']} held "
                "out, but neither may be empty; give more documents, or change held_out or salt"
            )
        for side, file in files.items():
            os.replace(partial[side], file)
        fsync_folder(folder)
    return files


@contextmanager
def _writer(file: Path, ending: str) -> Generator[IO[bytes] | gzip.GzipFile, None, None]:
    """Open a binary stream to a file, compressed according to `ending`, and fsync it on exit."""
    with open(file, "wb") as raw:
        if ending.endswith(".gz"):
            # Without a name and a time stamp the same documents give the same bytes.
            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream:
                yield stream
        elif ending.endswith(".zst"):
            with _import_zstandard().ZstdCompressor(level=6).stream_writer(raw, closefd=False) as stream:
                yield stream
        else:
            yield raw
        raw.flush()
        os.fsync(raw.fileno())


def _import_zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError(
            'writing .zst requires zstandard; install it with pip install "duonlp[data]", or choose .jsonl.gz'
        ) from error
    return zstandard
