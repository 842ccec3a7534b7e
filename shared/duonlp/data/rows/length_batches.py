"""What batches of texts have in common: an order by seed and epoch in which like lengths come together, and ids kept on disk."""

import hashlib
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.data.rows.order import MOST_SEED, check_seed, permuted
from duonlp.data.rows.token_rows import TokenRows
from duonlp.errors import InputError

TOKENISED_TOGETHER = 1024  # texts
POOL = 64
"""Batches' worth of shuffled rows that are sorted by length before they are cut into batches."""


class LengthBatches(ABC):
    """The batches of rows, epoch by epoch: any batch of any epoch from the seed and two numbers.

    Each epoch has every row once, in an order of its own. Rows of like lengths come together: shuffled rows are sorted
    within pools of 64 batches, and the batches shuffled. Every batch has `batch_size` rows: the last one is filled up.

    A subclass says how many rows there are, which come first in a pool, and what arrays they make.
    """

    of_what = "rows"
    """What the rows are, for messages."""

    def __init__(
        self, batch_size: int, seed: int, shuffle: bool, drop_last: bool, host_index: int = 0, host_count: int = 1
    ):
        """
        Args:
            batch_size: rows of the batch, over all hosts.
            seed: decides the order; from 0 to 2**64 - 1.
            shuffle: False: the same order each epoch.
            drop_last: leave out the rows that fill no batch, others in each epoch, rather than fill it up.
            host_index: which host this is; it gets its share of each batch's rows, in shapes that all hosts agree on.
            host_count: how many hosts there are.

        Raises:
            InputError: a number is out of range.
        """
        if host_count < 1 or not 0 <= host_index < host_count:
            raise InputError(f"host_index is {host_index} of {host_count} hosts; it must be from 0 to host_count - 1")
        if not isinstance(batch_size, (int, np.integer)) or batch_size < 1 or batch_size % host_count:
            raise InputError(
                f"batch_size is {batch_size}, over {host_count} hosts; it must be a multiple of the hosts, from 1 on"
            )
        self.batch_size = int(batch_size)
        self.seed = check_seed(seed)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.hosts = host_index, host_count

    @property
    @abstractmethod
    def _count(self) -> int:
        """How many rows there are."""

    @abstractmethod
    def _sorted(self, rows: np.ndarray) -> np.ndarray:
        """Rows in the order that those of like lengths come together in."""

    @abstractmethod
    def _arrays(self, rows: np.ndarray, batch: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of rows, where -1 fills up with a copy of the first; as wide as those of the whole batch want it."""

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(self._count, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def check_count(self) -> None:
        """Raises InputError when there is no batch."""
        if not self._count:
            raise InputError(f"there are no {self.of_what} to make batches of; look at what was read")
        if not len(self):
            raise InputError(
                f"batch_size is {self.batch_size} and there are {self._count} {self.of_what}; with drop_last there is no "
                "batch: take a smaller one"
            )

    def epoch(self, number: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields an epoch's batches, from its batch `first` on: where a run that was stopped goes on.

        Returns:
            Dicts of arrays [B, ...], B being batch_size / host_count.

        Raises:
            InputError: there is no such epoch or batch.
        """
        order = self.order(number)
        if not 0 <= first <= len(order):
            raise InputError(f"first is {first}; an epoch has {len(order)} batches, from 0 on")
        return map(self._batch, order[first:])

    def order(self, number: int) -> np.ndarray:
        """Which row each row of each batch of an epoch is, int64 [len(self), batch_size]; -1 where one is filled up."""
        if isinstance(number, bool) or number < 0:
            raise InputError(f"the epoch is {number}; epochs begin at 0")
        count, size = self._count, self.batch_size
        order = self._unshuffled()
        if self.shuffle:
            order = permuted(np.arange(count), count, self.seed, number)
            # What is left over is any rows, not the longest of a pool.
            order = np.concatenate(
                [*map(self._sorted, _pools(order[: count - count % size], POOL * size)), order[count - count % size :]]
            )
        filled = np.full(-(-count // size) * size, -1, np.int64)
        filled[:count] = order
        batches = filled.reshape(-1, size)
        whole = count // size
        if self.shuffle and whole:
            places = permuted(np.arange(whole), whole, (self.seed + 1) % MOST_SEED, number)
            batches[:whole] = batches[places]
        return batches[: len(self)]

    def _unshuffled(self) -> np.ndarray:
        return np.arange(self._count)

    def _batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        real = rows[rows >= 0]
        host, hosts = self.hosts
        share = len(rows) // hosts
        mine = rows[host * share : (host + 1) * share]
        if mine[0] < 0:  # nothing but what fills up: it repeats another host's row
            arrays = self._arrays(np.concatenate([real[:1], mine]), real)
            return {name: values[1:] for name, values in arrays.items()}
        return self._arrays(mine, real)


def _pools(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (order[start : start + size] for start in range(0, len(order), size))


def kept_rows(
    folder: Path, names: Sequence[str], count: int, make: Callable[[], Sequence[TokenRows]], of_what: str = "rows"
) -> tuple[TokenRows, ...]:
    """Rows mapped into memory from a folder, which is written first where they are not there or are damaged.

    They are written under another name, which is changed once all are there: whole or not at all.

    Args:
        folder: named by a hash of everything that they depend on; see `hash_of`.
        names: of the rows that `make` gives, in its order.
        count: of each.
        make: called when they are not there.
        of_what: what is counted, for messages.
    """

    def opened() -> tuple[TokenRows, ...]:
        rows = tuple(TokenRows.open(folder, name) for name in names)
        if {len(each) for each in rows} != {count}:
            raise InputError(f"{str(folder)!r} has not the ids of {count} {of_what}; remove it")
        return rows

    with suppress(InputError):  # what is wrong with what is made has nothing to do with what is not there
        return opened()
    _write(folder, names, make())
    return opened()


def _write(folder: Path, names: Sequence[str], rows: Sequence[TokenRows]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, each in zip(names, rows, strict=True):
            each.save(partial, name)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(partial, folder)
        except OSError:
            if not folder.is_dir():  # another process has just put the same there
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def hash_of(settings: Any, texts: Iterable[Any]) -> str:
    """A name that changes with settings and texts, which JSON can write: 32 hex digits of a SHA-256."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for text in texts:
        digest.update(json.dumps(text).encode())
    return digest.hexdigest()[:32]
