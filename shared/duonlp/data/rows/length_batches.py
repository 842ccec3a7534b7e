"""Batch rows of similar lengths in an order given by seed and epoch, and cache token ids on disk."""

import errno
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.data.rows.order import SEED_LIMIT, check_seed, permuted
from duonlp.data.rows.token_rows import TokenRows
from duonlp.errors import InputError
from duonlp.util.files import fsync_folder, storage_errors, unfinished

TOKENIZER_BATCH = 1024
"""Number of texts tokenized at a time."""
POOL = 64
"""Number of batches in a pool, in which shuffled rows are sorted by length before they are cut into batches."""


class LengthBatches(ABC):
    """Batches of rows, epoch by epoch. The seed, the epoch and the batch index determine any batch.

    Each epoch has every row once, in an order of its own. Rows of similar lengths are batched together:
    shuffled rows are sorted within pools of 64 batches, then the batches are shuffled. Every batch has
    `batch_size` rows: the last one is filled up.

    A subclass provides the number of rows, their order within a pool, and their arrays.

    Attributes:
        row_noun: What a row is called in messages, in the plural.
        batch_size: Rows per batch over all hosts.
        seed: Seed of the order.
        shuffle: Whether rows are shuffled.
        drop_last: Whether an incomplete last batch is dropped.
        hosts: (index of this host, number of hosts).
    """

    row_noun = "rows"

    def __init__(
        self, batch_size: int, seed: int, shuffle: bool, drop_last: bool, host_index: int = 0, host_count: int = 1
    ):
        """Check and store the settings.

        Args:
            batch_size: Rows per batch over all hosts.
            seed: Seed of the order, in [0, 2**64).
            shuffle: Whether to shuffle rows differently in each epoch; False gives the same order every time.
            drop_last: Drop the rows that do not fill a batch, different ones in each epoch, rather than
                fill the batch up.
            host_index: Index of this host, which gets its share of each batch's rows, in shapes that
                all hosts agree on.
            host_count: Number of hosts.

        Raises:
            InputError: If a number is out of range.
        """
        if host_count < 1 or not 0 <= host_index < host_count:
            raise InputError(f"host_index is {host_index} of {host_count} hosts; it must be from 0 to host_count - 1")
        if not isinstance(batch_size, (int, np.integer)) or batch_size < 1 or batch_size % host_count:
            raise InputError(
                f"batch_size is {batch_size} for {host_count} hosts; it must be a positive multiple of the number of hosts"
            )
        self.batch_size = int(batch_size)
        self.seed = check_seed(seed)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.hosts = host_index, host_count

    @property
    @abstractmethod
    def _count(self) -> int:
        """Number of rows."""

    @abstractmethod
    def _sort_by_length(self, rows: np.ndarray) -> np.ndarray:
        """Return row indices, int64 [n], ordered so that rows of similar lengths are adjacent."""

    @abstractmethod
    def _collate(self, rows: np.ndarray, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of a host's rows, [len(rows), ...].

        Args:
            rows: Row indices, int64 [n]; -1 fills up with a copy of the first.
            batch: Row indices of the global batch without filling, which decide the padded width.
        """

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(self._count, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def check_count(self) -> None:
        """Raise InputError if an epoch has no batch."""
        if not self._count:
            raise InputError(f"there are no {self.row_noun} to batch; check that the data is not empty")
        if not len(self):
            raise InputError(
                f"batch_size is {self.batch_size}, but there are only {self._count} {self.row_noun}; reduce batch_size, or "
                "set drop_last=False"
            )

    def epoch(self, number: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Return an iterator over the batches of an epoch.

        Args:
            number: Epoch, from 0 on.
            first: Index of the first batch to yield, for resuming within the epoch.

        Returns:
            Dicts of this host's arrays, [batch_size / host_count, ...] each.

        Raises:
            InputError: If the epoch is negative or `first` is out of range.
        """
        order = self.order(number)
        if not 0 <= first <= len(order):
            raise InputError(f"first is {first}; it must be from 0 to {len(order)}, the number of batches in an epoch")
        return map(self._batch, order[first:])

    def order(self, number: int) -> np.ndarray:
        """Return the row indices of each batch of an epoch, int64 [len(self), batch_size]; -1 marks filling."""
        if isinstance(number, bool) or number < 0:
            raise InputError(f"epoch is {number}; it must be a non-negative integer")
        count, size = self._count, self.batch_size
        order = self._unshuffled()
        if self.shuffle:
            order = permuted(np.arange(count), count, self.seed, number)
            # The remainder is set aside before sorting, so that it holds arbitrary rows, not the longest of a pool.
            end = count - count % size
            pools = _split_pools(order[:end], POOL * size)
            order = np.concatenate([*map(self._sort_by_length, pools), order[end:]])
        filled = np.full(-(-count // size) * size, -1, np.int64)
        filled[:count] = order
        batches = filled.reshape(-1, size)
        full = count // size
        if self.shuffle and full:
            places = permuted(np.arange(full), full, (self.seed + 1) % SEED_LIMIT, number)
            batches[:full] = batches[places]
        return batches[: len(self)]

    def _unshuffled(self) -> np.ndarray:
        return np.arange(self._count)

    def _batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        real = rows[rows >= 0]
        host, hosts = self.hosts
        share = len(rows) // hosts
        mine = rows[host * share : (host + 1) * share]
        if mine[0] < 0:  # only filling, which copies the first row of the batch, held by another host
            arrays = self._collate(np.concatenate([real[:1], mine]), real)
            return {name: values[1:] for name, values in arrays.items()}
        return self._collate(mine, real)


def _split_pools(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (order[start : start + size] for start in range(0, len(order), size))


def load_or_build_rows(
    folder: Path,
    names: Sequence[str],
    count: int | None,
    build: Callable[[], Sequence[TokenRows]],
    row_noun: str = "rows",
) -> tuple[TokenRows, ...]:
    """Memory-map token rows from a cache folder, building and writing it atomically if it is missing or corrupt.

    Args:
        folder: Cache folder, named by a hash of everything the rows depend on; see `cache_key`.
        names: Names of the `TokenRows` that `build` returns, in order.
        count: Number of rows in each; None if only `build` can tell.
        build: Called if the cache is missing or corrupt.
        row_noun: What a row is called in messages, in the plural.

    Raises:
        InputError: If what was just written cannot be read back, or `build` returned another number of rows.
        StorageError: If the cache cannot be written.
    """

    def load(folder: Path) -> tuple[TokenRows, ...]:
        loaded = tuple(TokenRows.open(folder, name) for name in names)
        counts = sorted({len(rows) for rows in loaded})
        if len(counts) > 1 or count not in (None, counts[0]):
            raise InputError(
                f"{str(folder)!r} is incomplete: expected the ids of {count or max(counts)} {row_noun}, found "
                f"{', '.join(map(str, counts))}; delete it to rebuild it"
            )
        return loaded

    with suppress(InputError):  # suppressed before `build` runs, whose errors must not be chained to a cache miss
        return _load_unmixed(folder, load)
    built = build()
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(folder, folder=True) as partial:
            for name, rows in zip(names, built, strict=True):
                rows.save(partial, name)
            loaded = load(partial)  # mapped before the rename, after which another process may replace the folder
            while True:
                try:
                    os.rename(partial, folder)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise
                else:
                    fsync_folder(folder.parent)
                    return loaded
                with suppress(InputError):  # another process has just written the same rows
                    return _load_unmixed(folder, load)
                with unfinished(folder, folder=True) as damaged, suppress(FileNotFoundError):
                    os.rename(folder, damaged / "damaged")


def _load_unmixed(folder: Path, load: Callable[[Path], tuple[TokenRows, ...]]) -> tuple[TokenRows, ...]:
    """Load from a folder; raise InputError if it was replaced meanwhile, so that its files may not belong together."""
    before = _identity(folder)
    loaded = load(folder)
    if _identity(folder) != before:
        raise InputError(f"{str(folder)!r} was replaced while it was read")
    return loaded


def _identity(folder: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        status = folder.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def cache_key(settings: Any, texts: Iterable[Any]) -> str:
    """Return a file name for JSON-serializable settings and texts: 32 hex digits of a SHA-256 over both."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for text in texts:
        digest.update(json.dumps(text).encode())
    return digest.hexdigest()[:32]
