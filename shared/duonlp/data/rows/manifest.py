"""Read and atomically write `manifest.json`, which records the contents and progress of a folder of blocks."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from duonlp.errors import InputError, MissingExtraError
from duonlp.util.files import fsync_folder, may_read, write_text
from duonlp.util.json_text import to_json
from duonlp.util.reading import first_line, parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

MANIFEST_FILE = "manifest.json"
FORMAT = 1
PARTIAL = ".partial"
"""Suffix of a file that is still being written."""


@dataclass(frozen=True)
class Shard:
    """A file of blocks.

    Attributes:
        file: File name in the folder.
        blocks: Number of blocks.
        size: File size in bytes.
        sha256: SHA-256 of the file, in hex.
    """

    file: str
    blocks: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Contents of a folder of blocks. While the folder is incomplete, all counts cover only the finished shards.

    Attributes:
        block_length: Tokens per block.
        blocks: Number of blocks.
        documents: Number of documents consumed: up to the last one with a token in the shards, or all
            when complete.
        tokens: Number of tokens in the blocks including separators, blocks * block_length.
        leftover_tokens: Tokens of these documents that are in no block: carried over to the next shard,
            or dropped at the end.
        characters: Number of Unicode characters in these documents.
        bytes: Size of these documents in bytes of UTF-8.
        documents_sha256: SHA-256 of these documents, each preceded by its length, in hex.
        vocab_size: One more than the largest id of the tokenizer.
        separator_id: Id that ends each document.
        tokenizer_hash: See :func:`tokenizer_hash`.
        segment_ids: Whether document borders are stored.
        shard_blocks: Number of blocks in every shard but the last.
        shards: Finished shards in order.
        complete: Whether all documents have been written.
    """

    block_length: int
    blocks: int
    documents: int
    tokens: int
    leftover_tokens: int
    characters: int
    bytes: int
    documents_sha256: str
    vocab_size: int
    separator_id: int
    tokenizer_hash: str
    segment_ids: bool
    shard_blocks: int
    shards: tuple[Shard, ...]
    complete: bool

    @property
    def token_bytes(self) -> int:
        """Bytes per stored token: 2 if the vocabulary fits, else 4."""
        return 2 if self.vocab_size <= 2**16 else 4


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the SHA-256, in hex, of everything in a tokenizer that decides which ids a text gets.

    Covers the normalizer, pre-tokenizer, model and added tokens in a canonical form. So the hash
    survives saving and loading, and does not depend on truncation, padding or the template of special tokens.

    Args:
        tokenizer: A `transformers` fast tokenizer.

    Raises:
        InputError: If it is not a fast tokenizer.
    """
    description = json.loads(backend_tokenizer(tokenizer).to_str())
    parts: dict[str, Any] = {
        name: description.get(name) for name in ("normalizer", "pre_tokenizer", "model", "added_tokens")
    }
    # Older files write a merge as "a b", newer ones as ["a", "b"].
    merges = parts["model"].get("merges", [])
    if merges:
        parts["model"]["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    parts["added_tokens"] = sorted(parts["added_tokens"] or [], key=lambda token: token["id"])
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def backend_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer":
    """Return the `tokenizers.Tokenizer` inside a fast tokenizer; raise InputError if there is none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; load it with AutoTokenizer.from_pretrained(...) from a "
            "checkpoint that has a tokenizer.json"
        )
    return backend


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_and_rename(partial: Path, path: Path) -> None:
    """Rename a written file to its final name durably: fsync the file, rename it, then fsync the folder."""
    descriptor = os.open(partial, os.O_RDWR)
    try:
        os.fsync(descriptor)
        os.replace(partial, path)
    finally:
        os.close(descriptor)
    fsync_folder(path.parent)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest of a folder atomically, replacing any existing one; raise StorageError if it cannot be written."""
    write_text(folder / MANIFEST_FILE, to_json({"format": FORMAT, **asdict(manifest)}, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder.

    Raises:
        InputError: If it is missing or unreadable, has another format version, or has a key that is missing,
            unknown or of the wrong type.
    """
    path = folder / MANIFEST_FILE
    if not may_read(folder) or not may_read(path):
        raise InputError(
            f"{str(folder)!r} is not a folder of blocks: it has no {MANIFEST_FILE}; create one with write_blocks"
        )
    try:
        stored = parse_json(path.read_bytes(), unique=True)
        if stored.get("format") != FORMAT:
            raise InputError(
                f"{str(path)!r} has format {stored.get('format')!r}, but this version reads {FORMAT}; write the blocks again"
            )
        del stored["format"]
        shards = tuple(_build_checked(Shard, shard) for shard in stored.pop("shards"))
        return _build_checked(Manifest, {**stored, "shards": shards})
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is corrupt ({first_line(error)}); write the blocks again") from error


Record = TypeVar("Record", Shard, Manifest)


def _build_checked(kind: type[Record], values: dict[str, Any]) -> Record:
    """Return a dataclass of these values; raise ValueError unless each has exactly the declared type."""
    for field in fields(kind):
        expected = tuple if field.name == "shards" else field.type
        if type(values[field.name]) is not expected:
            raise ValueError(f"{field.name} is {values[field.name]!r}")
    return kind(**values)


def shard_file(index: int) -> str:
    """Return the file name of the shard with this index."""
    return f"blocks-{index:05d}.array_record"


def check_shards(folder: Path, manifest: Manifest) -> None:
    """Raise InputError unless the manifest is consistent and every shard exists with its recorded size."""
    shards = manifest.shards
    consistent = (
        all(shard.blocks == manifest.shard_blocks for shard in shards[:-1])
        and (not shards or 0 < shards[-1].blocks <= manifest.shard_blocks)
        and sum(shard.blocks for shard in shards) == manifest.blocks
        and manifest.tokens == manifest.blocks * manifest.block_length
        and all(shard.file == shard_file(index) for index, shard in enumerate(shards))
    )
    if not consistent:
        raise InputError(
            f"the manifest in {str(folder)!r} is corrupt: its counts are inconsistent; write the blocks again"
        )
    for shard in shards:
        path = folder / shard.file
        if not may_read(path):
            raise InputError(f"{str(path)!r} is missing; restore it, or write the blocks again")
        if path.stat().st_size != shard.size:
            raise InputError(
                f"{str(path)!r} has {path.stat().st_size} bytes, but the manifest says {shard.size}; copy the file again, or "
                "write the blocks again"
            )


def vocab_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return one more than the largest id of a tokenizer, including added tokens."""
    return max(backend_tokenizer(tokenizer).get_vocab(with_added_tokens=True).values(), default=-1) + 1


def border_dtype(block_length: int) -> str:
    """Return the dtype of stored document borders, offsets in a block."""
    return "<u2" if block_length <= 2**16 else "<u4"


def import_array_record() -> Any:
    """Return the ArrayRecord module; raise MissingExtraError if it is not installed."""
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise MissingExtraError(
            'storing blocks requires array-record; install it with pip install "duonlp[data]"'
        ) from error
    return array_record_module
