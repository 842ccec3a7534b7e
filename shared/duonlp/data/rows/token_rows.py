"""Store rows of token ids of any lengths end to end in one array, in memory or memory-mapped."""

import os
from array import array
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from duonlp.errors import InputError


class TokenRows:
    """Ragged rows of token ids. Lists of Python ints would take about 10 times the memory.

    Attributes:
        values: All rows concatenated, int32 [tokens].
        offsets: Start of each row and the end of the last, int64 [rows + 1].
    """

    def __init__(self, values: np.ndarray, offsets: np.ndarray):
        """Wrap two arrays without copying them.

        Args:
            values: All rows concatenated, int32 [tokens].
            offsets: Start of each row and the end of the last, int64 [rows + 1].

        Raises:
            InputError: If the arrays have wrong types or shapes, or the offsets do not fit the values.
        """
        fits = offsets.ndim == values.ndim == 1 and len(offsets) and offsets[0] == 0 and offsets[-1] == len(values)
        if not fits or values.dtype != np.int32 or offsets.dtype != np.int64 or (np.diff(offsets) < 0).any():
            raise InputError(
                f"values are {values.dtype} {list(values.shape)} and offsets {offsets.dtype} {list(offsets.shape)}; expected "
                "int32 [tokens] and int64 [rows + 1], non-decreasing from 0 to the number of tokens"
            )
        self.values = values
        self.offsets = offsets

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> "TokenRows":
        """Build rows from a stream of sequences of ids."""
        builder = TokenRowsBuilder()
        for row in rows:
            builder.add(row)
        return builder.build()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the ids of a row, int32 [length]; raise IndexError if `index` is negative or past the end."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} is out of range for {len(self)} rows")
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of ids in each row, int64 [rows]."""
        return np.diff(self.offsets)

    def padded(self, indices: np.ndarray, width: int, fill: int) -> np.ndarray:
        """Return rows padded or truncated to `width` with `fill` on the right, int32 [len(indices), width].

        Args:
            indices: Rows to return, int [n].
            width: Width of the result.
            fill: Padding id.
        """
        indices = np.asarray(indices)
        places = self.offsets[indices][:, None] + np.arange(width)  # [rows, width]
        valid = places < self.offsets[indices + 1][:, None]
        rows = np.full(valid.shape, fill, np.int32)
        rows[valid] = self.values[places[valid]]
        return rows

    def save(self, folder: Path, name: str) -> None:
        """Write `name`.values.npy and `name`.offsets.npy to a folder and fsync them."""
        for part, values in (("values", self.values), ("offsets", self.offsets)):
            with open(folder / f"{name}.{part}.npy", "wb") as stream:
                np.save(stream, values, allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())

    @classmethod
    def open(cls, folder: Path, name: str) -> "TokenRows":
        """Memory-map the rows that `save` wrote.

        Raises:
            InputError: If a file is missing or corrupt.
        """
        try:
            parts = [np.load(folder / f"{name}.{part}.npy", mmap_mode="r") for part in ("values", "offsets")]
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"the rows {name!r} in {str(folder)!r} cannot be read: {error}") from error
        return cls(*parts)


class TokenRowsBuilder:
    """Builds `TokenRows` one row at a time."""

    def __init__(self) -> None:
        self.values = array("i")
        self.offsets = array("q", [0])

    def add(self, row: Sequence[int]) -> None:
        """Append a row."""
        self.values.extend(row)
        self.offsets.append(len(self.values))

    def build(self) -> TokenRows:
        """Return the rows, which share this builder's memory; no row can be added afterwards."""
        values = np.frombuffer(self.values, np.int32) if self.values else np.zeros(0, np.int32)
        return TokenRows(values, np.frombuffer(self.offsets, np.int64))
