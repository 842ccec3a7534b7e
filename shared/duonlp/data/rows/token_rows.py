"""Rows of token ids of any lengths, end to end in one array: in memory, or mapped from files."""

import os
from array import array
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from duonlp.errors import InputError


class TokenRows:
    """Rows of ids. A list of lists of Python numbers would take some 10 times the memory.

    Args:
        values: int32 [tokens], all rows one after the other.
        offsets: int64 [rows + 1], where each begins, and the end of the last.

    Raises:
        InputError: the offsets do not fit the values.
    """

    def __init__(self, values: np.ndarray, offsets: np.ndarray):
        fits = offsets.ndim == values.ndim == 1 and len(offsets) and offsets[0] == 0 and offsets[-1] == len(values)
        if not fits or values.dtype != np.int32 or offsets.dtype != np.int64 or (np.diff(offsets) < 0).any():
            raise InputError(
                f"values are {values.dtype} {list(values.shape)} and offsets {offsets.dtype} {list(offsets.shape)}; they must be "
                "int32 [tokens] and int64 [rows + 1], growing from 0 to the number of tokens"
            )
        self.values = values
        self.offsets = offsets

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> "TokenRows":
        """Rows of a stream, each copied as it comes."""
        builder = TokenRowsBuilder()
        for row in rows:
            builder.add(row)
        return builder.build()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """The ids of a row, int32 [length]; raises IndexError past the end."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Ids in each row, int64 [rows]."""
        return np.diff(self.offsets)

    def padded(self, indices: np.ndarray, width: int, fill: int) -> np.ndarray:
        """Rows side by side with `fill` behind each, int32 [len(indices), width]."""
        indices = np.asarray(indices)
        places = self.offsets[indices][:, None] + np.arange(width)  # [rows, width]
        real = places < self.offsets[indices + 1][:, None]
        rows = np.full(real.shape, fill, np.int32)
        rows[real] = self.values[places[real]]
        return rows

    def save(self, folder: Path, name: str) -> None:
        """Writes `name`.values.npy and `name`.offsets.npy, which are on the disk when it returns."""
        for part, values in (("values", self.values), ("offsets", self.offsets)):
            with open(folder / f"{name}.{part}.npy", "wb") as stream:
                np.save(stream, values, allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())

    @classmethod
    def open(cls, folder: Path, name: str) -> "TokenRows":
        """What `save` wrote, mapped into memory.

        Raises:
            InputError: a file is not there or is damaged.
        """
        try:
            parts = [np.load(folder / f"{name}.{part}.npy", mmap_mode="r") for part in ("values", "offsets")]
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"the rows {name!r} in {str(folder)!r} cannot be read: {error}") from error
        return cls(*parts)


class TokenRowsBuilder:
    """Rows that are added one at a time."""

    def __init__(self):
        self.values = array("i")
        self.offsets = array("q", [0])

    def add(self, row: Sequence[int]) -> None:
        """Adds a row behind the others."""
        self.values.extend(row)
        self.offsets.append(len(self.values))

    def build(self) -> TokenRows:
        """All rows so far, in the memory that they are in; nothing can be added after that."""
        values = np.frombuffer(self.values, np.int32) if self.values else np.zeros(0, np.int32)
        return TokenRows(values, np.frombuffer(self.offsets, np.int64))
