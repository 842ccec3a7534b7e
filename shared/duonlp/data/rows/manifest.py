"""What a folder of blocks holds, and how far its making has come: `manifest.json`, written whole or not at all."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from duonlp.errors import InputError, MissingExtraError

MANIFEST_FILE = "manifest.json"
FORMAT = 1
PARTIAL = ".partial"
"""The end of the name of a file that is still being written."""


@dataclass(frozen=True)
class Shard:
    """A file of blocks."""

    file: str
    """Its name in the folder."""
    blocks: int
    size: int
    """Bytes of the file."""
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of blocks holds. While it is being made, all counts are of the shards that are there."""

    block_length: int
    blocks: int
    documents: int
    """Documents of the stream that have a token in the shards or came before one that has; all, when complete."""
    tokens: int
    """In the blocks, separators among them: blocks x block_length."""
    leftover_tokens: int
    """Tokens of those documents that are in no block: carried over to the next shard, and dropped at the end."""
    characters: int
    """Unicode characters of those documents."""
    bytes: int
    """Bytes of those documents in UTF-8."""
    documents_sha256: str
    """Of those documents, each with its length before it."""
    vocab_size: int
    separator_id: int
    tokenizer_hash: str
    segment_ids: bool
    shard_blocks: int
    """Blocks in each shard but the last."""
    shards: tuple[Shard, ...]
    complete: bool

    @property
    def token_bytes(self) -> int:
        """Bytes of a stored token: 2 when the vocabulary fits, else 4."""
        return 2 if self.vocab_size <= 2**16 else 4


def tokenizer_hash(tokenizer) -> str:
    """Returns a SHA-256, in hex, of everything in a tokenizer that decides which ids a text gets.

    That is its normalizer, pre-tokenizer, model and added tokens, in a canonical form: the hash stays the same when the
    tokenizer is saved and loaded, and when truncation, padding or a template of special tokens is set on it.

    Args:
        tokenizer: a `transformers` fast tokenizer.

    Raises:
        InputError: it is not a fast tokenizer.
    """
    description = json.loads(backend(tokenizer).to_str())
    parts = {name: description.get(name) for name in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    # Older files write a merge as "a b", newer ones as ["a", "b"].
    merges = parts["model"].get("merges", [])
    if merges:
        parts["model"]["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    parts["added_tokens"] = sorted(parts["added_tokens"] or [], key=lambda token: token["id"])
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def backend(tokenizer):
    """Returns the `tokenizers.Tokenizer` inside a fast tokenizer, or raises an `InputError`."""
    found = getattr(tokenizer, "backend_tokenizer", None)
    if found is None:
        raise InputError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; load it with AutoTokenizer.from_pretrained(...), and "
            "see that the checkpoint has a tokenizer.json"
        )
    return found


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_in_place(partial: Path, path: Path):
    """Renames a written file to its real name, when its bytes and then its name are safe on the disk."""
    for each, flags in ((partial, os.O_RDWR), (path.parent, os.O_RDONLY)):
        descriptor = os.open(each, flags)
        try:
            os.fsync(descriptor)
            if each is partial:
                os.replace(partial, path)
        finally:
            os.close(descriptor)


def write_manifest(manifest: Manifest, folder: Path):
    """Writes the manifest of a folder in place of the one that is there."""
    partial = folder / (MANIFEST_FILE + PARTIAL)
    partial.write_text(json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1) + "\n", encoding="utf-8")
    put_in_place(partial, folder / MANIFEST_FILE)


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of a folder.

    Raises:
        InputError: there is none, or it is not one of this format: a key missing, unknown, or of another type.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise InputError(
            f"{str(folder)!r} has no {MANIFEST_FILE}: it is not a folder of blocks; make one: write_blocks"
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.get("format") != FORMAT:
            raise InputError(
                f"{str(path)!r} has format {stored.get('format')!r}; this version reads {FORMAT}: make the blocks again"
            )
        del stored["format"]
        shards = tuple(_typed(Shard, shard) for shard in stored.pop("shards"))
        return _typed(Manifest, {**stored, "shards": shards})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r} is damaged ({error}); make the blocks again") from error


def _typed(kind: type, values: dict):
    """Returns the dataclass of these values, each of exactly the type that it declares."""
    for field in fields(kind):
        expected = tuple if field.name == "shards" else field.type
        if type(values[field.name]) is not expected:
            raise ValueError(f"{field.name} is {values[field.name]!r}")
    return kind(**values)


def shard_file(index: int) -> str:
    """Returns the name of a shard."""
    return f"blocks-{index:05d}.array_record"


def check_shards(folder: Path, manifest: Manifest):
    """Raises an `InputError` unless the manifest agrees with itself, and every shard is there with its size."""
    shards = manifest.shards
    whole = all(shard.blocks == manifest.shard_blocks for shard in shards[:-1])
    consistent = (
        whole
        and (not shards or 0 < shards[-1].blocks <= manifest.shard_blocks)
        and sum(shard.blocks for shard in shards) == manifest.blocks
        and manifest.tokens == manifest.blocks * manifest.block_length
        and all(shard.file == shard_file(index) for index, shard in enumerate(shards))
    )
    if not consistent:
        raise InputError(f"the manifest in {str(folder)!r} is damaged: its counts disagree; make the blocks again")
    for shard in shards:
        path = folder / shard.file
        if not path.is_file():
            raise InputError(f"{str(path)!r} is missing; copy it here, or make the blocks again")
        if path.stat().st_size != shard.size:
            raise InputError(
                f"{str(path)!r} has {path.stat().st_size} bytes, and the manifest says {shard.size}; copy it again, or "
                "make the blocks again"
            )


def vocab_size(tokenizer) -> int:
    """Returns one more than the largest id of a tokenizer, added tokens included."""
    return max(backend(tokenizer).get_vocab(with_added_tokens=True).values(), default=-1) + 1


def border_dtype(block_length: int) -> str:
    """Returns the type in which places in a block are stored."""
    return "<u2" if block_length <= 2**16 else "<u4"


def array_record():
    """Returns the module that reads and writes shards, or raises a `MissingExtraError`."""
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise MissingExtraError(
            'blocks are kept with array-record, which is missing; pip install "duonlp[data]"'
        ) from error
    return array_record_module
