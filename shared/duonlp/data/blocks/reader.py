"""Text, tokenised once, in blocks of one length on disk: made restartably, and read at random.

A folder of blocks holds `manifest.json` and shards in the ArrayRecord format. A record is one block: its token ids as
little-endian uint16 when the vocabulary fits, else uint32, and behind them, when documents are told apart, the places
in the block where another document begins.
"""

import os
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from duonlp.data.blocks.writer import write_blocks
from duonlp.data.rows.manifest import (
    Manifest,
    array_record,
    border_dtype,
    check_shards,
    file_sha256,
    read_manifest,
    tokenizer_hash,
    vocab_size,
)
from duonlp.errors import InputError

__all__ = ["Blocks", "Manifest", "open_blocks", "tokenizer_hash", "write_blocks"]

MOST_OPEN = 256
"""Shards held open by a reader; systems allow about a thousand open files."""
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # as ArrayRecord advises for random access


def open_blocks(folder: str | Path, tokenizer=None, *, verify: bool = False) -> "Blocks":
    """Opens a complete folder of blocks.

    Args:
        folder: what `write_blocks` wrote.
        tokenizer: when given, it must be the one that the blocks were made with.
        verify: compare every shard's checksum, which reads all of them; their sizes are always compared.

    Raises:
        InputError: there is no manifest, it is damaged, or not complete; a shard is missing, of another size, or of
            another checksum; or the tokenizer is another.
        MissingExtraError: array-record is not installed.
    """
    array_record()
    folder = Path(folder)
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise InputError(
            f"{str(folder)!r} is not complete ({manifest.blocks} blocks of {manifest.documents} documents so far); "
            "prepare it to the end: call write_blocks again with the same texts"
        )
    if tokenizer is not None:
        found = (vocab_size(tokenizer), tokenizer_hash(tokenizer))
        if found != (manifest.vocab_size, manifest.tokenizer_hash):
            raise InputError(
                f"the blocks in {str(folder)!r} were made with another tokenizer: of {manifest.vocab_size} tokens, hash "
                f"{manifest.tokenizer_hash[:12]}; given: {found[0]} tokens, hash {found[1][:12]}; give that tokenizer, "
                "or make the blocks again with this one"
            )
    check_shards(folder, manifest)
    blocks = Blocks(folder, manifest)
    if verify:
        blocks.verify()
    return blocks


class Blocks:
    """Blocks on disk, read at random. Threads may read at the same time, and spawned processes may be sent one."""

    def __init__(self, folder: Path, manifest: Manifest):
        """Use `open_blocks`, which checks first."""
        self.folder = Path(folder)
        self.manifest = manifest
        self._readers: OrderedDict[int, object] = OrderedDict()
        self._process = os.getpid()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.manifest.blocks

    @property
    def block_length(self) -> int:
        return self.manifest.block_length

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns blocks in the order asked for.

        Args:
            indices: int [n], each in `range(len(self))`; the same one may come twice.

        Returns:
            `input_ids`, int32 [n, block_length], and if they were stored, `segment_ids` of the same shape: 1 for the
            block's first document, 2 for the next one, ...

        Raises:
            InputError: an index is out of range, or a record is damaged, which the message names.
        """
        indices = np.asarray(indices)
        if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
            raise InputError(f"indices are {indices.dtype} {list(indices.shape)}; give whole numbers in one row")
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise InputError(f"indices go from {indices.min()} to {indices.max()}; there are {len(self)} blocks")
        records: list[bytes] = [b""] * len(indices)
        shards, places = np.divmod(indices.astype(np.int64), self.manifest.shard_blocks)
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            for row, record in zip(rows.tolist(), self._records(shard, places[rows].tolist()), strict=True):
                records[row] = record
        return self._decoded(records, shards, places)

    def verify(self):
        """Compares every shard's checksum with the manifest's.

        Raises:
            InputError: one differs, which the message names.
        """
        for shard in self.manifest.shards:
            found = file_sha256(self.folder / shard.file)
            if found != shard.sha256:
                raise InputError(
                    f"{str(self.folder / shard.file)!r} is damaged: its SHA-256 is {found[:12]}..., the manifest's "
                    f"{shard.sha256[:12]}...; copy it again, or make the blocks again"
                )

    def _records(self, shard: int, places: list[int]) -> list[bytes]:
        path = self.folder / self.manifest.shards[shard].file
        with self._lock:
            if self._process != os.getpid():
                # ArrayRecord's threads do not live on in a fork: it would wait for them for ever.
                raise InputError(
                    "blocks cannot be read in a forked process; start worker processes with 'spawn' "
                    "(multiprocessing.get_context('spawn')) and hand them these blocks"
                )
            reader = self._readers.pop(shard, None) or self._opened(shard, path)
            records = []
            for place in places:
                try:
                    # One by one: the reader's own way with lists, a thread each, takes twice as long for a few blocks.
                    reader.seek(place)
                    records.append(reader.read())
                except (RuntimeError, IndexError) as error:
                    raise _damaged(path, place, error) from error
            self._readers[shard] = reader  # the last used is at the end; one that failed is not kept
            if len(self._readers) > MOST_OPEN:
                self._readers.popitem(last=False)[1].close()
            return records

    def _opened(self, shard: int, path: Path):
        try:
            reader = array_record().ArrayRecordReader(str(path), READER_OPTIONS)
        except RuntimeError as error:
            raise InputError(f"{str(path)!r} cannot be opened: {error}") from error
        if reader.num_records() != self.manifest.shards[shard].blocks:
            raise InputError(
                f"{str(path)!r} is damaged: it has {reader.num_records()} records, and the manifest says "
                f"{self.manifest.shards[shard].blocks}; copy it again, or make the blocks again"
            )
        return reader

    def _decoded(self, records: list[bytes], shards: np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
        length = self.block_length
        width = length * self.manifest.token_bytes
        border = np.dtype(border_dtype(length))
        for record, shard, place in zip(records, shards, places):
            extra = len(record) - width
            if extra < 0 or (extra and not self.manifest.segment_ids) or extra % border.itemsize:
                raise _damaged(self.folder / self.manifest.shards[shard].file, place, f"it has {len(record)} bytes")
        flat = np.frombuffer(b"".join(record[:width] for record in records), dtype=f"<u{self.manifest.token_bytes}")
        input_ids = flat.reshape(len(records), length)
        for row in np.flatnonzero((input_ids >= self.manifest.vocab_size).any(axis=1)).tolist():
            file = self.manifest.shards[shards[row]].file
            raise _damaged(self.folder / file, places[row], f"a token id is {input_ids[row].max()}")
        rows = {"input_ids": input_ids.astype(np.int32)}
        if self.manifest.segment_ids:
            begins = np.zeros((len(records), length), dtype=np.int32)
            for row, record in enumerate(records):
                borders = np.frombuffer(record, dtype=border, offset=width)
                if borders.size and borders.max() >= length:
                    file = self.manifest.shards[shards[row]].file
                    raise _damaged(self.folder / file, places[row], f"a document begins at {borders.max()}")
                begins[row, borders] = 1
            rows["segment_ids"] = 1 + np.cumsum(begins, axis=1, dtype=np.int32)
        return rows

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict):
        self.__init__(**state)


def _damaged(path: Path, place: int, error: object) -> InputError:
    return InputError(f"record {place} of {str(path)!r} is damaged: {error}; copy it again, or make the blocks again")
