"""Tokenize texts and pack them into blocks on disk, resumably."""

import hashlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.data.rows.manifest import (
    MANIFEST_FILE,
    PARTIAL,
    Manifest,
    Shard,
    backend_tokenizer,
    border_dtype,
    check_shards,
    file_sha256,
    fsync_and_rename,
    import_array_record,
    read_manifest,
    shard_file,
    tokenizer_hash,
    vocab_size,
    write_manifest,
)
from duonlp.errors import InputError
from duonlp.util.files import locked_folder, storage_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARD_TOKENS = 2**25
"""Default number of tokens per shard; a killed run loses at most one unfinished shard."""
BATCH_CHARACTERS = 2**21
"""Number of characters tokenized at a time, in parallel."""
WRITER_OPTIONS = "group_size:1"  # one record per chunk, so that reading one does not decode its neighbors


def write_blocks(
    texts: Iterable[str],
    tokenizer: "PreTrainedTokenizerBase",
    folder: str | Path,
    *,
    block_length: int,
    segment_ids: bool = False,
    shard_blocks: int | None = None,
    separator_id: int | None = None,
) -> Manifest:
    """Tokenize texts and pack them end to end into blocks, each followed by a separator (GPT-2, Radford et al. 2019).

    Blocks have no padding; the last tokens that do not fill a block are dropped. Special tokens spelled
    out in a text are tokenized as plain characters, and the separator is the only special token added.
    A text without tokens adds nothing.

    A killed call resumes after the last complete shard when repeated with the same texts, and ends with
    exactly the same bytes. Repeated on a complete folder, the call only verifies that the texts are the same.

    Args:
        texts: One text per document, in a reproducible order. Consumed once, as a stream.
        tokenizer: A `transformers` fast tokenizer.
        folder: Output folder for shards and manifest, created if needed.
        block_length: Tokens per block, at least 2.
        segment_ids: Store where documents begin, so that attention can be restricted to a document.
        shard_blocks: Blocks per shard (default: as many as hold 2**25 tokens).
        separator_id: Id that ends a document (default: the tokenizer's end-of-text token, else its `sep_token`).

    Returns:
        The manifest of the complete folder.

    Raises:
        InputError: If a number is out of range; the tokenizer is slow, random (BPE dropout) or without
            a separator; a text is not a string of valid Unicode; the texts do not fill one block; or
            the folder is corrupt, locked by another process or thread, or was started with other
            settings, another tokenizer or other texts.
        StorageError: If the folder cannot be written, for example because the disk is full; repeat the
            call to resume after the last complete shard.
        MissingExtraError: If array-record is not installed.
    """
    import_array_record()
    if block_length < 2:
        raise InputError(f"block_length is {block_length}; it must be at least 2 for a token to predict")
    if shard_blocks is None:
        shard_blocks = max(1, SHARD_TOKENS // block_length)
    if shard_blocks < 1:
        raise InputError(f"shard_blocks is {shard_blocks}; it must be at least 1")
    encoder = _Encoder(tokenizer, separator_id)
    fresh = Manifest(
        block_length=int(block_length), blocks=0, documents=0, tokens=0, leftover_tokens=0, characters=0, bytes=0,
        documents_sha256=hashlib.sha256().hexdigest(), vocab_size=encoder.vocab_size, separator_id=encoder.separator_id,
        tokenizer_hash=tokenizer_hash(tokenizer), segment_ids=bool(segment_ids), shard_blocks=int(shard_blocks), shards=(),
        complete=False,
    )  # fmt: skip
    folder = Path(folder)
    with locked_folder(folder):
        manifest = _resume_or_start(fresh, folder)
        texts = iter(texts)
        counts = _DocumentCounts()
        carried = np.zeros(0, dtype=encoder.dtype)
        last = _skip_written(texts, manifest, counts, folder)
        if manifest.complete:
            if next(texts, None) is not None:
                raise InputError(
                    f"{str(folder)!r} is complete with {manifest.documents} documents, but more were given; write to "
                    "another folder, or delete this one first"
                )
            return manifest
        if manifest.leftover_tokens:
            carried = encoder.encode([last])[0][-manifest.leftover_tokens :]
        packer = _Packer(folder, manifest, encoder, counts, carried)
        try:
            for batch in _batch_texts(texts, manifest.documents):
                packer.add(batch)
            return packer.finish()
        finally:
            packer.close()


class _Encoder:
    """Tokenizes texts and appends the separator to each.

    Attributes:
        tokenizer: Copy of the `tokenizers.Tokenizer`, without truncation and padding.
        vocab_size: One more than the largest id.
        dtype: Stored dtype of ids, little-endian uint16 or uint32.
        separator_id: Id that ends a document.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", separator_id: int | None):
        from tokenizers import Tokenizer

        # A copy, because the caller's truncation and padding settings must stay unchanged.
        self.tokenizer = Tokenizer.from_str(backend_tokenizer(tokenizer).to_str())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True
        if getattr(self.tokenizer.model, "dropout", None):
            raise InputError(
                f"the tokenizer has BPE dropout {self.tokenizer.model.dropout}, which makes its tokens random; set "
                "tokenizer.backend_tokenizer.model.dropout to None"
            )
        self.vocab_size = vocab_size(tokenizer)
        self.dtype = np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")
        if separator_id is None:
            separator_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if separator_id is None:
            raise InputError(
                "the tokenizer has neither an eos_token nor a sep_token to end documents with; give separator_id"
            )
        if not 0 <= separator_id < self.vocab_size:
            raise InputError(f"separator_id is {separator_id}; it must be an id from 0 to {self.vocab_size - 1}")
        self.separator_id = int(separator_id)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text followed by the separator, `dtype` [tokens]; empty for a text without tokens."""
        encoded = []
        for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            ids = encoding.ids
            if ids:
                ids.append(self.separator_id)
            encoded.append(np.asarray(ids, dtype=self.dtype))
        return encoded


def encode_document(text: str, index: int) -> bytes:
    """Return a document in UTF-8; raise InputError, naming its index, if it is not a string of valid Unicode."""
    if not isinstance(text, str):
        raise InputError(f"document {index} has type {type(text).__name__}; expected str")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"document {index} is not valid Unicode ({error}); remove it") from error


class _DocumentCounts:
    """Running counts and a running hash of the documents consumed so far.

    Attributes:
        documents, characters, bytes: As in `Manifest`.
        hash: SHA-256 over all documents, each preceded by its length.
    """

    def __init__(self) -> None:
        self.documents = self.characters = self.bytes = 0
        self.hash = hashlib.sha256()

    def add(self, text: str) -> None:
        encoded = encode_document(text, self.documents)
        self.documents += 1
        self.characters += len(text)
        self.bytes += len(encoded)
        self.hash.update(len(encoded).to_bytes(8, "little"))
        self.hash.update(encoded)

    def updated(self, manifest: Manifest) -> Manifest:
        """Return the manifest with these counts."""
        return replace(
            manifest, documents=self.documents, characters=self.characters, bytes=self.bytes,
            documents_sha256=self.hash.hexdigest(),
        )  # fmt: skip


class _Packer:
    """Packs tokens into blocks and blocks into shards, and records each finished shard in the manifest.

    Attributes:
        folder: Output folder.
        manifest: Contents of the finished shards.
        encoder: Tokenizes texts.
        counts: Counts of the documents consumed.
        carried: Tokens after the last full block.
        begins: Offsets in `carried` where a document begins, int64.
        writer: ArrayRecordWriter of the current shard, or None between shards.
        written: Number of blocks in the current shard.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, encoder: _Encoder, counts: _DocumentCounts, carried: np.ndarray
    ):
        self.folder = folder
        self.manifest = manifest
        self.encoder = encoder
        self.counts = counts
        self.carried = carried
        self.begins = np.zeros(0, dtype=np.int64)
        self.writer: Any = None
        self.written = 0

    def add(self, texts: list[str]) -> None:
        """Tokenize texts and write the blocks they fill."""
        encoded = self.encoder.encode(texts)
        # Start of each text among `tokens`, and the end of the last one, [len(texts) + 1].
        starts = len(self.carried) + np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        tokens = np.concatenate([self.carried, *encoded])
        begins = np.concatenate([self.begins, starts[:-1]])
        length = self.manifest.block_length
        end = len(tokens) // length * length
        borders = np.searchsorted(begins, np.arange(0, end + 1, length))  # borders[i]: first of `begins` in block i
        counted = 0
        for index, start in enumerate(range(0, end, length)):
            self._write(tokens[start : start + length], begins[borders[index] : borders[index + 1]] - start)
            if self.written == self.manifest.shard_blocks:
                # The shard's documents are those with a token before its end; the last one may continue after it.
                documents = int(np.searchsorted(starts[:-1], start + length))
                for text in texts[counted:documents]:
                    self.counts.add(text)
                counted = documents
                self._end_shard(leftover=int(starts[documents]) - (start + length))
        for text in texts[counted:]:
            self.counts.add(text)
        self.carried = tokens[end:].copy()
        self.begins = begins[borders[-1] :] - end

    def finish(self) -> Manifest:
        """Write the last shard and return the complete manifest; raise InputError if there is no block."""
        self.add([])  # tokens carried over from an earlier run may fill blocks by themselves
        manifest = self.manifest
        if not manifest.blocks and not self.written:
            raise InputError(
                f"{self.counts.documents} documents with {len(self.carried)} tokens do not fill one block of "
                f"{manifest.block_length} tokens; give more text or a smaller block_length"
            )
        if self.written:
            self._end_shard(leftover=len(self.carried), complete=True)
        else:
            self._write_manifest(replace(manifest, leftover_tokens=len(self.carried), complete=True))
        return self.manifest

    def close(self) -> None:
        """Discard the current shard, if any; the folder keeps the finished ones."""
        writer, self.writer = self.writer, None
        if writer is not None:
            with suppress(RuntimeError, OSError):  # what cannot be flushed is discarded anyway
                writer.close()
        (self.folder / (self.file + PARTIAL)).unlink(missing_ok=True)

    @property
    def file(self) -> str:
        """File name of the current shard."""
        return shard_file(len(self.manifest.shards))

    def _write(self, tokens: np.ndarray, begins: np.ndarray) -> None:
        """Write a block of tokens, [block_length], and the offsets in it where a document begins."""
        record = tokens.tobytes()
        if self.manifest.segment_ids:
            record += np.unique(begins[begins > 0]).astype(border_dtype(len(tokens))).tobytes()
        with self._storage_errors() as partial:
            if self.writer is None:
                self.writer = import_array_record().ArrayRecordWriter(str(partial), WRITER_OPTIONS)
            self.writer.write(record)
        self.written += 1

    def _end_shard(self, leftover: int, complete: bool = False) -> None:
        """Finish the current shard and record it, with `leftover` tokens of its documents in no block so far."""
        with self._storage_errors() as partial:
            writer, self.writer = self.writer, None
            writer.close()
            # Read the file back, because a full disk may only show here.
            reader = import_array_record().ArrayRecordReader(str(partial))
            count = reader.num_records()
            reader.close()
            if count != self.written:
                raise OSError(f"it has {count} of {self.written} records, as if the disk were full")
            shard = Shard(self.file, self.written, partial.stat().st_size, file_sha256(partial))
            fsync_and_rename(partial, self.folder / self.file)
        blocks = self.manifest.blocks + self.written
        self.written = 0
        self._write_manifest(
            replace(
                self.manifest, blocks=blocks, tokens=blocks * self.manifest.block_length, leftover_tokens=leftover,
                shards=(*self.manifest.shards, shard), complete=complete,
            )
        )  # fmt: skip

    @contextmanager
    def _storage_errors(self) -> Generator[Path, None, None]:
        """Yield the unfinished file of the current shard, and turn errors of writing it into a StorageError."""
        partial = self.folder / (self.file + PARTIAL)
        try:
            yield partial
        except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError
            raise storage_error(partial, error) from error

    def _write_manifest(self, manifest: Manifest) -> None:
        self.manifest = self.counts.updated(manifest)
        write_manifest(self.manifest, self.folder)


def _resume_or_start(fresh: Manifest, folder: Path) -> Manifest:
    """Return the manifest of a folder started with the same settings, or write `fresh` to a new folder."""
    for partial in folder.glob("*" + PARTIAL):
        partial.unlink()
    if not (folder / MANIFEST_FILE).exists():
        if any(folder.glob("blocks-*.array_record")):
            raise InputError(f"{str(folder)!r} has shards without a {MANIFEST_FILE}; empty it, or give another folder")
        write_manifest(fresh, folder)
        return fresh
    manifest = read_manifest(folder)
    settings = ("block_length", "segment_ids", "shard_blocks", "separator_id", "vocab_size", "tokenizer_hash")
    changes = [
        f"{name} {getattr(manifest, name)!r}, now {getattr(fresh, name)!r}"
        for name in settings
        if getattr(manifest, name) != getattr(fresh, name)
    ]
    if changes:
        raise InputError(
            f"{str(folder)!r} was started with {'; '.join(changes)}; use the same settings, give another folder, or delete it"
        )
    check_shards(folder, manifest)
    return manifest


def _skip_written(texts: Iterator[str], manifest: Manifest, counts: _DocumentCounts, folder: Path) -> str:
    """Consume the documents that the shards hold, check that they are the same, and return the last of them."""
    last = ""
    for _ in range(manifest.documents):
        text = next(texts, None)
        if text is None:
            raise InputError(
                f"{str(folder)!r} was started with more documents than the {counts.documents} given; give the same texts in "
                "the same order, or write to another folder"
            )
        counts.add(text)
        last = text
    if counts.hash.hexdigest() != manifest.documents_sha256:
        raise InputError(
            f"{str(folder)!r} was started with other texts: the first {manifest.documents} documents differ; give the same "
            "texts in the same order, or write to another folder"
        )
    return last


def _batch_texts(texts: Iterator[str], first_index: int) -> Iterator[list[str]]:
    """Yield checked texts in lists of about `BATCH_CHARACTERS` characters."""
    batch, characters = [], 0
    for index, text in enumerate(texts, first_index):
        encode_document(text, index)
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
