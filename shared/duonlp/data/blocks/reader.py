"""Read blocks of tokenized text from disk in random order.

A folder of blocks holds `manifest.json` and shards in the ArrayRecord format. A record is one block:
its token ids as little-endian uint16 if the vocabulary fits, else uint32, followed, if segment ids are
stored, by the offsets in the block where a new document begins.
"""

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.data.blocks.writer import write_blocks
from duonlp.data.rows.manifest import (
    Manifest,
    border_dtype,
    check_shards,
    file_sha256,
    import_array_record,
    read_manifest,
    tokenizer_hash,
    vocab_size,
)
from duonlp.errors import InputError
from duonlp.util.files import may_read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Blocks", "Manifest", "open_blocks", "tokenizer_hash", "write_blocks"]

MAX_OPEN_SHARDS = 256
"""Maximum number of shards a reader keeps open; systems allow about a thousand open files."""
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # recommended by ArrayRecord for random access


def open_blocks(
    folder: str | Path, tokenizer: "PreTrainedTokenizerBase | None" = None, *, verify: bool = False
) -> "Blocks":
    """Open a complete folder of blocks.

    Args:
        folder: Folder written by `write_blocks`.
        tokenizer: If given, it must be the one the blocks were written with.
        verify: Compare the checksums of all shards, which reads them all. Their sizes are always compared.

    Raises:
        InputError: If the manifest is missing, corrupt or incomplete; a shard is missing or has the
            wrong size or checksum; or the tokenizer is a different one.
        MissingExtraError: If array-record is not installed.
    """
    import_array_record()
    folder = Path(folder)
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise InputError(
            f"{str(folder)!r} is not complete ({manifest.blocks} blocks of {manifest.documents} documents so far); call "
            "write_blocks again with the same texts to finish it"
        )
    if tokenizer is not None:
        size, digest = vocab_size(tokenizer), tokenizer_hash(tokenizer)
        if (size, digest) != (manifest.vocab_size, manifest.tokenizer_hash):
            raise InputError(
                f"the blocks in {str(folder)!r} were written with another tokenizer ({manifest.vocab_size} tokens, hash "
                f"{manifest.tokenizer_hash[:12]}) than the one given ({size} tokens, hash {digest[:12]}); pass that tokenizer, "
                "or write the blocks again with this one"
            )
    check_shards(folder, manifest)
    blocks = Blocks(folder, manifest)
    if verify:
        blocks.verify()
    return blocks


class Blocks:
    """Blocks on disk with random access. Safe to share between threads and to pickle to spawned processes.

    Attributes:
        folder: Folder of the shards.
        manifest: Contents of the folder.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        """Create a reader without checking the folder; `open_blocks` checks it first.

        Args:
            folder: Folder of the shards.
            manifest: Contents of the folder.
        """
        self.folder = Path(folder)
        self.manifest = manifest
        self._readers: OrderedDict[int, Any] = OrderedDict()  # shard -> ArrayRecordReader, least recently used first
        self._process = os.getpid()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.manifest.blocks

    @property
    def block_length(self) -> int:
        """Number of tokens per block."""
        return self.manifest.block_length

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the blocks with the given indices, in order.

        Args:
            indices: int [n], each in `range(len(self))`; may repeat.

        Returns:
            `input_ids`, int32 [n, block_length], and, if stored, `segment_ids` of the same shape: 1 for
            the first document in the block, 2 for the next one, and so on.

        Raises:
            InputError: If an index is out of range, or a record is corrupt; the message names the record.
        """
        indices = np.asarray(indices)
        if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
            raise InputError(
                f"indices are {indices.dtype} {list(indices.shape)}; expected a one-dimensional array of integers"
            )
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise InputError(f"indices are from {indices.min()} to {indices.max()}; they must be in range({len(self)})")
        records: list[bytes] = [b""] * len(indices)
        shards, places = np.divmod(indices.astype(np.int64), self.manifest.shard_blocks)
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            for row, record in zip(rows.tolist(), self._records(shard, places[rows].tolist()), strict=True):
                records[row] = record
        return self._decode(records, shards, places)

    def verify(self) -> None:
        """Compare every shard's SHA-256 with the manifest's.

        Raises:
            InputError: If one differs; the message names the shard.
        """
        for shard in self.manifest.shards:
            digest = file_sha256(self.folder / shard.file)  # `open_blocks` has checked that it can be read
            if digest != shard.sha256:
                raise InputError(
                    f"{str(self.folder / shard.file)!r} is corrupt: its SHA-256 is {digest[:12]}..., but the manifest says "
                    f"{shard.sha256[:12]}...; copy it again, or write the blocks again"
                )

    def _records(self, shard: int, places: list[int]) -> list[bytes]:
        path = self.folder / self.manifest.shards[shard].file
        with self._lock:
            if self._process != os.getpid():
                # ArrayRecord's threads do not survive a fork, so reading would deadlock.
                raise InputError(
                    "blocks cannot be read in a forked process; start workers with multiprocessing.get_context('spawn') and "
                    "pass them the blocks"
                )
            reader = self._readers.pop(shard, None) or self._open_shard(shard, path)
            records = []
            for place in places:
                try:
                    # One at a time: the reader's batched read starts a thread per record, which takes
                    # twice as long for a few blocks.
                    reader.seek(place)
                    records.append(reader.read())
                except (RuntimeError, IndexError) as error:
                    raise _corrupt_record(path, place, error) from error
            self._readers[shard] = reader  # most recently used last; a reader that failed is dropped
            if len(self._readers) > MAX_OPEN_SHARDS:
                self._readers.popitem(last=False)[1].close()
            return records

    def _open_shard(self, shard: int, path: Path) -> Any:
        try:
            reader = import_array_record().ArrayRecordReader(str(path), READER_OPTIONS)
        except RuntimeError as error:
            if not may_read(path):
                raise InputError(f"{str(path)!r} is missing; restore it, or write the blocks again") from error
            raise InputError(f"{str(path)!r} cannot be opened: {error}") from error
        if reader.num_records() != self.manifest.shards[shard].blocks:
            raise InputError(
                f"{str(path)!r} is corrupt: it has {reader.num_records()} records, but the manifest says "
                f"{self.manifest.shards[shard].blocks}; copy it again, or write the blocks again"
            )
        return reader

    def _decode(self, records: list[bytes], shards: np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of `read` for raw records; `shards` and `places`, int64 [n], locate them for messages."""
        length = self.block_length
        width = length * self.manifest.token_bytes
        border = np.dtype(border_dtype(length))
        for record, shard, place in zip(records, shards, places):
            extra = len(record) - width
            if extra < 0 or (extra and not self.manifest.segment_ids) or extra % border.itemsize:
                raise _corrupt_record(
                    self.folder / self.manifest.shards[shard].file, place, f"it has {len(record)} bytes"
                )
        flat = np.frombuffer(b"".join(record[:width] for record in records), dtype=f"<u{self.manifest.token_bytes}")
        input_ids = flat.reshape(len(records), length)  # [n, T]
        for row in np.flatnonzero((input_ids >= self.manifest.vocab_size).any(axis=1)).tolist():
            file = self.manifest.shards[shards[row]].file
            raise _corrupt_record(
                self.folder / file,
                places[row],
                f"it has token id {input_ids[row].max()}, but the vocabulary has {self.manifest.vocab_size}",
            )
        rows = {"input_ids": input_ids.astype(np.int32)}
        if self.manifest.segment_ids:
            begins = np.zeros((len(records), length), dtype=np.int32)
            for row, record in enumerate(records):
                borders = np.frombuffer(record, dtype=border, offset=width)
                if borders.size and borders.max() >= length:
                    file = self.manifest.shards[shards[row]].file
                    raise _corrupt_record(
                        self.folder / file, places[row], f"a document begins at {borders.max()} of {length} tokens"
                    )
                begins[row, borders] = 1
            rows["segment_ids"] = 1 + np.cumsum(begins, axis=1, dtype=np.int32)
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def _corrupt_record(path: Path, place: int, error: object) -> InputError:
    return InputError(
        f"record {place} of {str(path)!r} is corrupt: {error}; copy the file again, or write the blocks again"
    )
