"""A cleaned corpus written to disk as a part to train on and a part held out."""

import gzip
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from duonlp.data.reading.corpus import is_held_out
from duonlp.data.reading.documents import Document
from duonlp.errors import InputError, MissingExtraError

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")


def write_split(
    documents: Iterable[Document],
    folder: str | Path,
    *,
    held_out: float = 0.05,
    salt: str = "",
    ending: str = ".jsonl.gz",
) -> dict[str, Path]:
    """Writes `training` and `held_out` files of JSON lines, which `read_documents` reads, split by a hash of each name.

    Give it documents that `clean` has rid of near duplicates: the split does not look at the text, so that of two that
    are alike one could be trained on and the other held out.

    Args:
        documents: what to write; read once, as it is written.
        folder: where; made when it is not there. Files that are there already are replaced once both are whole.
        held_out: the expected share of documents to hold out, in (0, 1).
        salt: another salt gives another split.
        ending: one of ENDINGS.

    Returns:
        {"training": file, "held_out": file}.

    Raises:
        InputError: an argument is out of its range, or a side of the split is empty.
        MissingExtraError: .zst is asked for and zstandard is not installed.
    """
    if ending not in ENDINGS:
        raise InputError(f"ending is {ending!r}; it must be one of {', '.join(ENDINGS)}")
    is_held_out("", held_out)  # says what is wrong with the share before anything is read
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {side: folder / f"{side}{ending}" for side in ("training", "held_out")}
    partial = {side: file.with_name(f".{file.name}.partial") for side, file in files.items()}
    counts = dict.fromkeys(files, 0)
    try:
        with ExitStack() as stack:
            streams = {side: stack.enter_context(_writer(file, ending)) for side, file in partial.items()}
            for document in documents:
                side = "held_out" if is_held_out(document.name, held_out, salt) else "training"
                streams[side].write(json.dumps(asdict(document), ensure_ascii=False).encode("utf-8") + b"\n")
                counts[side] += 1
        if not all(counts.values()):
            raise InputError(
                f"{sum(counts.values())} documents leave {counts['training']} to train on and {counts['held_out']} held out; "
                "give more documents, or another held_out or salt"
            )
        for side, file in files.items():
            os.replace(partial[side], file)
    finally:
        for file in partial.values():
            file.unlink(missing_ok=True)
    return files


@contextmanager
def _writer(file: Path, ending: str):
    """A binary stream into the file, compressed as its ending says, and on the disk when it is left."""
    with open(file, "wb") as raw:
        if ending.endswith(".gz"):
            # No name and no time in it: the same documents give the same bytes.
            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream:
                yield stream
        elif ending.endswith(".zst"):
            with _zstandard().ZstdCompressor(level=6).stream_writer(raw, closefd=False) as stream:
                yield stream
        else:
            yield raw
        raw.flush()
        os.fsync(raw.fileno())


def _zstandard():
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError(
            '.zst is written with zstandard, which is missing; pip install "duonlp[data]", or choose .jsonl.gz'
        ) from error
    return zstandard
