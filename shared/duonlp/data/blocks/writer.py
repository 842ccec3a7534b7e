"""Text to blocks on disk, restartably: what `duonlp.data.blocks.reader.write_blocks` is made of."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from duonlp.data.rows.manifest import (
    MANIFEST_FILE,
    PARTIAL,
    Manifest,
    Shard,
    array_record,
    backend,
    border_dtype,
    check_shards,
    file_sha256,
    put_in_place,
    read_manifest,
    shard_file,
    tokenizer_hash,
    vocab_size,
    write_manifest,
)
from duonlp.errors import InputError
from duonlp.util.files import locked_folder

SHARD_TOKENS = 2**25
"""Tokens of a shard unless told otherwise: what is lost when the making is killed is a part of one shard."""
BATCH_CHARACTERS = 2**21
"""Characters tokenised at a time, in parallel."""
WRITER_OPTIONS = "group_size:1"  # a record a chunk, so that reading one does not decode its neighbours


def write_blocks(
    texts: Iterable[str],
    tokenizer,
    folder: str | Path,
    *,
    block_length: int,
    segment_ids: bool = False,
    shard_blocks: int | None = None,
    separator_id: int | None = None,
) -> Manifest:
    """Tokenises texts and packs them end to end into blocks, with a separator after each (GPT-2, Radford et al. 2019).

    Every position of every block is a real token; the last tokens that do not fill a block are dropped. Text is only
    text: a special token spelled out in it is tokenised as the characters it is, and no special tokens are added
    but the separator. A text without tokens adds nothing.

    Killed at any moment and called again with the same texts, it goes on from the last whole shard, and ends with the
    same bytes as if it had never stopped. Called again on a complete folder, it only compares the texts.

    Args:
        texts: one for each document, in an order that is the same each time. Read once, as a stream.
        tokenizer: a `transformers` fast tokenizer.
        folder: where the shards and the manifest go; made when it is not there.
        block_length: tokens in a block, at least 2.
        segment_ids: store where documents begin, so that attention can stop there.
        shard_blocks: blocks in a shard; by default as many as hold 2**25 tokens.
        separator_id: the id that ends a document; by default the tokenizer's end-of-text token, else its `sep_token`.

    Returns:
        The manifest of the complete folder.

    Raises:
        InputError: a number is out of range; the tokenizer is not a fast one, is random (BPE dropout) or has no
            separator; a text is not a string of valid Unicode; all texts together do not fill a block; the folder was
            begun with other settings, another tokenizer or other texts, is damaged, or is being written by another
            process.
        MissingExtraError: array-record is not installed.
    """
    array_record()
    if block_length < 2:
        raise InputError(
            f"block_length is {block_length}; it must be at least 2, since a block predicts its next token"
        )
    if shard_blocks is None:
        shard_blocks = max(1, SHARD_TOKENS // block_length)
    if shard_blocks < 1:
        raise InputError(f"shard_blocks is {shard_blocks}; a shard needs at least 1 block")
    encoder = _Encoder(tokenizer, separator_id)
    fresh = Manifest(
        block_length=int(block_length), blocks=0, documents=0, tokens=0, leftover_tokens=0, characters=0, bytes=0,
        documents_sha256=hashlib.sha256().hexdigest(), vocab_size=encoder.vocab_size, separator_id=encoder.separator_id,
        tokenizer_hash=tokenizer_hash(tokenizer), segment_ids=bool(segment_ids), shard_blocks=int(shard_blocks), shards=(),
        complete=False,
    )  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder):
        manifest = _manifest_to_go_on_from(fresh, folder)
        texts = iter(texts)
        counts = _Counts()
        carried = np.zeros(0, dtype=encoder.dtype)
        last = _skip(texts, manifest, counts, folder)
        if manifest.complete:
            if next(texts, None) is not None:
                raise InputError(
                    f"{str(folder)!r} is complete with {manifest.documents} documents, and more were given; write to "
                    "another folder, or remove this one first"
                )
            return manifest
        if manifest.leftover_tokens:
            carried = encoder.encode([last])[0][-manifest.leftover_tokens :]
        packer = _Packer(folder, manifest, encoder, counts, carried)
        try:
            for batch in _batches_of_text(texts, manifest.documents):
                packer.add(batch)
            return packer.finish()
        finally:
            packer.close()


class _Encoder:
    """Texts to ids, each with the separator behind it."""

    def __init__(self, tokenizer, separator_id: int | None):
        from tokenizers import Tokenizer

        # A copy: truncation and padding may be set on the caller's, and must stay as they are.
        self.tokenizer = Tokenizer.from_str(backend(tokenizer).to_str())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True
        if getattr(self.tokenizer.model, "dropout", None):
            raise InputError(
                f"the tokenizer has BPE dropout {self.tokenizer.model.dropout}, so that each run gives other tokens; set "
                "it to None"
            )
        self.vocab_size = vocab_size(tokenizer)
        self.dtype = np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")
        if separator_id is None:
            separator_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if separator_id is None:
            raise InputError("the tokenizer has neither eos_token nor sep_token to end a document; give separator_id")
        if not 0 <= separator_id < self.vocab_size:
            raise InputError(f"separator_id is {separator_id}; the tokenizer has ids from 0 to {self.vocab_size - 1}")
        self.separator_id = int(separator_id)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids of each text, of `dtype`; of a text without tokens, none, not even the separator."""
        found = []
        for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            ids = encoding.ids
            if ids:
                ids.append(self.separator_id)
            found.append(np.asarray(ids, dtype=self.dtype))
        return found


def checked(text: str, index: int) -> bytes:
    """Returns a document in UTF-8, or raises an `InputError` that names it."""
    if not isinstance(text, str):
        raise InputError(f"document {index} is a {type(text).__name__}; write_blocks takes strings")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"document {index} is not valid Unicode ({error}); leave it out") from error


class _Counts:
    """What has been read of the documents, and a running hash over them."""

    def __init__(self):
        self.documents = self.characters = self.bytes = 0
        self.hash = hashlib.sha256()

    def add(self, text: str):
        encoded = checked(text, self.documents)
        self.documents += 1
        self.characters += len(text)
        self.bytes += len(encoded)
        self.hash.update(len(encoded).to_bytes(8, "little"))
        self.hash.update(encoded)

    def onto(self, manifest: Manifest) -> Manifest:
        return replace(
            manifest, documents=self.documents, characters=self.characters, bytes=self.bytes,
            documents_sha256=self.hash.hexdigest(),
        )  # fmt: skip


class _Packer:
    """Fills blocks, and shards with blocks; each shard that is done goes into the manifest."""

    def __init__(self, folder: Path, manifest: Manifest, encoder: _Encoder, counts: _Counts, carried: np.ndarray):
        self.folder = folder
        self.manifest = manifest
        self.encoder = encoder
        self.counts = counts
        self.carried = carried  # tokens since the last whole block
        self.begins = np.zeros(0, dtype=np.int64)  # where among them a document begins
        self.writer = None
        self.written = 0  # blocks in the shard that is being written

    def add(self, texts: list[str]):
        encoded = self.encoder.encode(texts)
        starts = len(self.carried) + np.cumsum([0, *map(len, encoded)], dtype=np.int64)  # and the end of the last one
        tokens = np.concatenate([self.carried, *encoded])
        begins = np.concatenate([self.begins, starts[:-1]])
        length = self.manifest.block_length
        end = len(tokens) // length * length
        borders = np.searchsorted(begins, np.arange(0, end + 1, length))  # of blocks, among the documents
        counted = 0
        for index, start in enumerate(range(0, end, length)):
            here = begins[borders[index] : borders[index + 1]] - start
            self._write(tokens[start : start + length], here)
            if self.written == self.manifest.shard_blocks:
                # The shard's documents are those with a token before its end; the last of them may go on behind it.
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
        self.add([])  # what a document carried over may fill blocks by itself
        manifest = self.manifest
        if not manifest.blocks and not self.written:
            raise InputError(
                f"{self.counts.documents} documents with {len(self.carried)} tokens do not fill one block of "
                f"{manifest.block_length}; give more text or a smaller block_length"
            )
        if self.written:
            self._end_shard(leftover=len(self.carried), complete=True)
        else:
            self._write_manifest(replace(manifest, leftover_tokens=len(self.carried), complete=True))
        return self.manifest

    def close(self):
        writer, self.writer = self.writer, None
        if writer is not None:
            writer.close()

    @property
    def file(self) -> str:
        return shard_file(len(self.manifest.shards))

    def _write(self, tokens: np.ndarray, begins: np.ndarray):
        if self.writer is None:
            self.writer = array_record().ArrayRecordWriter(str(self.folder / (self.file + PARTIAL)), WRITER_OPTIONS)
        record = tokens.tobytes()
        if self.manifest.segment_ids:
            record += np.unique(begins[begins > 0]).astype(border_dtype(len(tokens))).tobytes()
        self.writer.write(record)
        self.written += 1

    def _end_shard(self, leftover: int, complete: bool = False):
        self.close()
        path = self.folder / self.file
        partial = self.folder / (self.file + PARTIAL)
        # A disk that ran full shows here at the latest: the file must be read back with all its records.
        reader = array_record().ArrayRecordReader(str(partial))
        if reader.num_records() != self.written:
            raise OSError(f"{str(partial)!r} has {reader.num_records()} of {self.written} records; is the disk full?")
        reader.close()
        shard = Shard(self.file, self.written, partial.stat().st_size, file_sha256(partial))
        put_in_place(partial, path)
        blocks = self.manifest.blocks + self.written
        self.written = 0
        self._write_manifest(
            replace(
                self.manifest, blocks=blocks, tokens=blocks * self.manifest.block_length, leftover_tokens=leftover,
                shards=(*self.manifest.shards, shard), complete=complete,
            )
        )  # fmt: skip

    def _write_manifest(self, manifest: Manifest):
        self.manifest = self.counts.onto(manifest)
        write_manifest(self.manifest, self.folder)


def _manifest_to_go_on_from(fresh: Manifest, folder: Path) -> Manifest:
    """Returns the manifest of a folder that was begun with these settings, or begins one."""
    for partial in folder.glob("*" + PARTIAL):
        partial.unlink()
    if not (folder / MANIFEST_FILE).exists():
        if any(folder.glob("blocks-*.array_record")):
            raise InputError(f"{str(folder)!r} has shards without a {MANIFEST_FILE}; give another folder, or empty it")
        write_manifest(fresh, folder)
        return fresh
    found = read_manifest(folder)
    settings = ("block_length", "segment_ids", "shard_blocks", "separator_id", "vocab_size", "tokenizer_hash")
    other = [
        f"{name} {getattr(found, name)!r}, now {getattr(fresh, name)!r}"
        for name in settings
        if getattr(found, name) != getattr(fresh, name)
    ]
    if other:
        raise InputError(
            f"{str(folder)!r} was begun with {'; '.join(other)}; give the same again, or another folder, or remove it"
        )
    check_shards(folder, found)
    return found


def _skip(texts: Iterator[str], manifest: Manifest, counts: _Counts, folder: Path) -> str:
    """Reads the documents that the shards hold, sees that they are the same, and returns the last."""
    text = ""
    for _ in range(manifest.documents):
        text = next(texts, None)
        if text is None:
            raise InputError(
                f"{str(folder)!r} was begun with more documents than the {counts.documents} given; give the same texts "
                "in the same order, or write to another folder"
            )
        counts.add(text)
    if counts.hash.hexdigest() != manifest.documents_sha256:
        raise InputError(
            f"{str(folder)!r} was begun with other texts: its first {manifest.documents} documents are not the ones "
            "given; give the same texts in the same order, or write to another folder"
        )
    return text


def _batches_of_text(texts: Iterator[str], documents: int) -> Iterator[list[str]]:
    batch, characters = [], 0
    for index, text in enumerate(texts, documents):
        checked(text, index)
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
