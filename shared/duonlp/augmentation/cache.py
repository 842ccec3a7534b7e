"""Keep copies on disk, so that later runs read them instead of making them again."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duonlp.augmentation.augmenter import Augmenter, check_request
from duonlp.data.rows.length_batches import cache_key
from duonlp.tasks.base import check_int
from duonlp.util.files import storage_errors, unreadable, updating
from duonlp.util.json_text import to_json
from duonlp.util.reading import parse_json

VERSION = 1
DIGEST = 16
"""Hex digits of the hash before each line."""


class CachedAugmenter:
    """Makes the copies of an augmenter that are not in a folder yet, and keeps them there.

    The folder has a file for each seed and each settings, which include the contents of models. A line of it is one copy with a
    hash: a line that is incomplete, after a crash or on a full disk, or damaged is skipped, and its copy made again. Any number
    of processes may use a folder at once, and all get the copy that was written first. Nothing is unpickled.

    Args:
        augmenter: The augmenter.
        folder: The folder, which is made if it is missing.
        chunk: Number of texts after which copies are written, so that an interrupted run loses few.

    Attributes:
        made: Number of copies that were not in the folder and so had to be made.

    Raises:
        InputError: The augmenter's model was passed loaded, without a name that identifies it.
    """

    def __init__(self, augmenter: Augmenter, folder: str | Path, chunk: int = 256):
        check_int("chunk", chunk, minimum=1)
        self.augmenter, self.folder, self.chunk = augmenter, Path(os.path.expanduser(folder)), int(chunk)
        self.made = 0
        self._settings = augmenter.settings()
        self._files: dict[int, _CopyFile] = {}

    def settings(self) -> dict[str, Any]:
        """Return the settings of the augmenter."""
        return self._settings

    def augment(self, texts: Sequence[str], per_text: int = 1, seed: int = 0) -> list[list[str]]:
        """Return `per_text` copies of each text; see :class:`Augmenter`.

        Raises:
            StorageError: The folder cannot be written.
        """
        texts = check_request(texts, per_text, seed)
        file = self._files.get(seed)
        if file is None:
            name = f"{cache_key([VERSION, self._settings, int(seed)], ())}.jsonl"
            file = self._files[seed] = _CopyFile(self.folder / name)
        file.read()
        keys = {text: text_key(text) for text in texts}
        missing = [
            text for text, key in keys.items() if any((key, copy) not in file.copies for copy in range(per_text))
        ]
        for start in range(0, len(missing), self.chunk):
            part = missing[start : start + self.chunk]
            copies = self.augmenter.augment(part, per_text, seed)
            self.made += per_text * len(part)
            file.add({(keys[text], copy): made for text, of in zip(part, copies) for copy, made in enumerate(of)})
        return [[file.copies[keys[text], copy] for copy in range(per_text)] for text in texts]


def cached(augmenter: Augmenter, folder: str | Path) -> CachedAugmenter:
    """Return an augmenter that reads copies from a folder and writes those that are missing; see :class:`CachedAugmenter`."""
    return CachedAugmenter(augmenter, folder)


def text_key(text: str) -> str:
    """Return a hash of a text, 32 hex digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _CopyFile:
    """The copies of one seed.

    Attributes:
        copies: Copy by hash of its text and number, of the lines read so far; of several, the first.
    """

    def __init__(self, path: Path):
        self.path, self.copies = path, {}
        self.copies: dict[tuple[str, int], str] = {}
        self._position = 0

    def read(self) -> None:
        """Read the complete lines that were written since the last call."""
        try:
            with open(self.path, "rb") as stream:
                if os.fstat(stream.fileno()).st_size < self._position:
                    self._position = 0  # another file
                stream.seek(self._position)
                data = stream.read()
        except FileNotFoundError:
            self._position = 0
            return
        except OSError as error:
            raise unreadable(self.path, error) from None
        end = data.rfind(b"\n") + 1
        self._position += end
        for line in data[:end].splitlines():
            if (entry := _parsed(line)) is not None:
                self.copies.setdefault(entry[:2], entry[2])

    def add(self, copies: dict[tuple[str, int], str]) -> None:
        """Append copies unless another process has written them meanwhile, and read all that are new.

        Raises:
            StorageError: The file cannot be written.
        """
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with updating(self.path):
            self.read()
            lines = [_line(*key, copy) for key, copy in copies.items() if key not in self.copies]
            with storage_errors(self.path), open(self.path, "ab+", buffering=0) as stream:
                if end := stream.seek(0, os.SEEK_END):
                    stream.seek(end - 1)
                    lines = [b"\n" * (stream.read(1) != b"\n"), *lines]  # after a line that was never finished
                rest = memoryview(b"".join(lines))
                while rest:
                    rest = rest[stream.write(rest) :]
                os.fsync(stream.fileno())
            self.read()
        for key, copy in copies.items():  # if the file was damaged right now
            self.copies.setdefault(key, copy)


def _line(key: str, number: int, copy: str) -> bytes:
    payload = to_json([key, number, copy], ensure_ascii=True).encode()
    return hashlib.sha256(payload).hexdigest()[:DIGEST].encode() + b" " + payload + b"\n"


def _parsed(line: bytes) -> tuple[str, int, str] | None:
    """Return (hash of the text, number of the copy, copy), or None for a damaged line."""
    digest, _, payload = line.partition(b" ")
    if hashlib.sha256(payload).hexdigest()[:DIGEST].encode() != digest:
        return None
    try:
        key, number, copy = parse_json(payload)
    except ValueError:
        return None
    return (key, number, copy) if (type(key), type(number), type(copy)) == (str, int, str) else None
