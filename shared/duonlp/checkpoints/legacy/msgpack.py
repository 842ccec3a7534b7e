"""List the arrays of a msgpack file, such as ``flax_model.msgpack``, without reading their values.

The file is a map from names to maps or arrays, as ``flax.serialization.to_bytes`` writes it: an array is an extension of type 1
that holds its shape, its dtype and its bytes; one of more than 1 GiB is a map of flat chunks. A library would read each
array to find out where the next one starts. The format is described at https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

import math
from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np

from duonlp.checkpoints.open_files import OpenFile
from duonlp.checkpoints.safetensors_file import StoredTensor, aligned_empty
from duonlp.errors import CheckpointError

ARRAY, SCALAR = 1, 3
"""Types of the extensions in which Flax stores a NumPy array and a NumPy scalar."""

CHUNKED = "__msgpack_chunked_array__"
KINDS = ("f8", "f4", "f2", ml_dtypes.bfloat16, "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?")
DTYPES: dict[str, np.dtype] = {np.dtype(kind).name: np.dtype(kind) for kind in KINDS}
MOST_DEPTH, MOST_DIMENSIONS, MOST_NAME_BYTES = 64, 32, 10_000
WINDOW = 4096
"""Bytes that are read at a time; the values between two names are skipped."""

LENGTHS = {
    0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4), 0xC7: ("extension", 1), 0xC8: ("extension", 2),
    0xC9: ("extension", 4), 0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4), 0xDC: ("list", 2), 0xDD: ("list", 4),
    0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
"""Kind of value, and how many bytes its length takes, by first byte."""

NUMBERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xCA: 4, 0xCB: 8}
"""Bytes of a number by first byte; unsigned, signed, and two kinds of floats."""


@dataclass(frozen=True)
class ChunkedTensor(StoredTensor):
    """A tensor whose values lie in several pieces.

    Attributes:
        pieces: Position and size in bytes of each piece, in order.
    """

    pieces: tuple[tuple[int, int], ...] = field(default=(), kw_only=True)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows ``start:stop`` of the first axis, by default all, into a new array; see StoredTensor."""
        rows = self.shape[0] if self.shape else 1
        stop = rows if stop is None else min(stop, rows)
        row = math.prod(self.shape[1:])
        values = aligned_empty((stop - start) * row, self.dtype)
        view, position = values.view(np.uint8).data, start * row * self.dtype.itemsize
        done, begin = 0, 0  # bytes of `view` that are filled, and where the piece begins in the tensor
        for offset, size in self.pieces:
            skip = max(0, position + done - begin)
            part = view[done : done + max(0, size - skip)]
            if len(part) and self.file.read_into(part, offset + skip) != len(part):
                raise CheckpointError(f"{self.file} ends within tensor {self.name!r}; download or save it again")
            done, begin = done + len(part), begin + size
        return values.reshape((stop - start, *self.shape[1:]) if self.shape else ())


def list_arrays(file: OpenFile) -> dict[str, StoredTensor]:
    """Return the arrays of a msgpack file by their paths, such as ``bert/pooler/dense/kernel``.

    Raises:
        CheckpointError: the file is truncated or corrupt, or holds something else than maps of arrays.
    """
    try:
        scanner = _Scanner(file)
        tensors: dict[str, StoredTensor] = {}
        _scan_map(scanner, scanner.expect("map"), "", 0, tensors)
        if scanner.position != file.size:
            raise ValueError(f"the values end at byte {scanner.position} of {file.size}")
        return tensors
    except ValueError as error:
        raise CheckpointError(
            f"{file} is not a valid msgpack file of arrays ({str(error)[:200]}); it is truncated or corrupt: download or save "
            "it again"
        ) from None


class _Scanner:
    """A position in a file, and the bytes around it."""

    def __init__(self, file: OpenFile):
        self.file, self.position = file, 0
        self._window, self._start = b"", 0

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        end = self.position + count
        if end > self.file.size:
            raise ValueError(f"{count} bytes at {self.position} of a file of {self.file.size}")
        if not self._start <= self.position <= end <= self._start + len(self._window):
            self._start, size = self.position, min(max(count, WINDOW), self.file.size - self.position)
            self._window = self.file.read_bytes(self._start, size)
        first = self.position - self._start
        self.position = end
        return self._window[first : first + count]

    def skip(self, count: int) -> int:
        """Skip bytes and return where they start."""
        start, self.position = self.position, self.position + count
        if self.position > self.file.size:
            raise ValueError(f"{count} bytes at {start} of a file of {self.file.size}")
        return start

    def head(self) -> tuple[str, int]:
        """Return the kind of the next value, and its length or, for a number, its value."""
        first = self.take(1)[0]
        for kind, low, high in (("number", 0, 0x7F), ("map", 0x80, 0x8F), ("list", 0x90, 0x9F), ("text", 0xA0, 0xBF)):
            if low <= first <= high:
                return kind, first - low
        if first in NUMBERS:
            value = int.from_bytes(self.take(NUMBERS[first]), "big")
            return ("number" if 0xCC <= first <= 0xCF else "other number"), value
        if first in LENGTHS:
            kind, size = LENGTHS[first]
            return kind, int.from_bytes(self.take(size), "big")
        if 0xD4 <= first <= 0xD8:
            return "extension", 1 << first - 0xD4
        names = {0xC0: "null", 0xC2: "false", 0xC3: "true"}
        return names.get(first, "other number" if first >= 0xE0 else "an unknown value"), 0

    def expect(self, expected: str) -> int:
        """Return the length of the next value, which is of one kind."""
        start = self.position
        kind, length = self.head()
        if kind != expected:
            raise ValueError(f"{kind} instead of {expected} at byte {start}")
        return length

    def text(self) -> str:
        """Return the next value, a text or, as older versions wrote them, bytes."""
        start = self.position
        kind, length = self.head()
        if kind not in ("text", "bytes") or length > MOST_NAME_BYTES:
            raise ValueError(f"{kind} of length {length} instead of a name at byte {start}")
        return self.take(length).decode()


def _scan_map(scanner: _Scanner, count: int, path: str, depth: int, tensors: dict[str, StoredTensor]) -> None:
    """Add the arrays of a map of `count` entries, at which the scanner is, to `tensors`."""
    if depth > MOST_DEPTH:
        raise ValueError(f"maps nested more than {MOST_DEPTH} deep")
    keys: set[str] = set()
    for _ in range(count):
        key = scanner.text()
        name = f"{path}/{key}" if path else key
        if key in keys or not key or name in tensors:
            raise ValueError(f"the name {name[:200]!r} twice")
        keys.add(key)
        kind, length = scanner.head()
        if kind == "map" and key != CHUNKED:
            _scan_map(scanner, length, name, depth + 1, tensors)
        elif kind == "extension":
            tensors[name] = _array(scanner, length, name)
        elif kind == "true" and key == CHUNKED and len(keys) == 1 and count == 3:
            tensors[path] = _chunked(scanner, path)
            return
        else:
            raise ValueError(f"{name[:200]!r} is {kind}, not an array")


def _array(scanner: _Scanner, length: int, name: str) -> StoredTensor:
    """Return the array of an extension whose type comes next, and skip its values."""
    code = scanner.take(1)[0]
    end = scanner.position + length
    if code not in (ARRAY, SCALAR) or scanner.expect("list") != 3:
        raise ValueError(f"{name[:200]!r} is an extension of type {code}, not an array")
    rank = scanner.expect("list")
    if rank > MOST_DIMENSIONS:
        raise ValueError(f"{name[:200]!r} has {rank} dimensions")
    shape = tuple(scanner.expect("number") for _ in range(rank))
    dtype_name = scanner.text()
    if (dtype := DTYPES.get(dtype_name)) is None:
        raise CheckpointError(
            f"{scanner.file}: tensor {name[:200]!r} has dtype {dtype_name[:50]!r}; supported are {', '.join(DTYPES)}"
        )
    size = scanner.expect("bytes")
    offset = scanner.skip(size)
    if (
        size != math.prod(shape) * dtype.itemsize
        or scanner.position != end
        or max(shape, default=0) > scanner.file.size
    ):
        raise ValueError(f"{name[:200]!r} of shape {list(shape)} has {size} bytes")
    return StoredTensor(scanner.file, name, shape, dtype, offset)


def _chunked(scanner: _Scanner, name: str) -> StoredTensor:
    """Return the array of a map of chunks, of which the first key was read: its shape and its flat pieces follow."""
    if scanner.text() != "shape":
        raise ValueError(f"no shape of {name[:200]!r}")
    rank = scanner.expect("map")
    if rank > MOST_DIMENSIONS:
        raise ValueError(f"{name[:200]!r} has {rank} dimensions")
    sizes = {scanner.text(): scanner.expect("number") for _ in range(rank)}
    if scanner.text() != "chunks":
        raise ValueError(f"no chunks of {name[:200]!r}")
    chunks: dict[str, StoredTensor] = {}
    for _ in range(scanner.expect("map")):
        key = scanner.text()
        chunks[key] = _array(scanner, scanner.expect("extension"), name)
    numbers = [str(i) for i in range(len(chunks))]
    if set(sizes) != {str(i) for i in range(rank)} or set(chunks) != set(numbers) or not chunks:
        raise ValueError(f"{name[:200]!r} lacks a chunk")
    shape, pieces = tuple(sizes[str(i)] for i in range(rank)), [chunks[number] for number in numbers]
    if (
        max(shape, default=0) > scanner.file.size
        or len({piece.dtype for piece in pieces}) > 1
        or math.prod(shape) != sum(math.prod(piece.shape) for piece in pieces)
    ):
        raise ValueError(f"{name[:200]!r} of shape {list(shape)} has chunks of other sizes")
    dtype = pieces[0].dtype
    extents = tuple((piece.offset, math.prod(piece.shape) * dtype.itemsize) for piece in pieces)
    if len(pieces) == 1:
        return replace(pieces[0], shape=shape)
    return ChunkedTensor(scanner.file, name, shape, dtype, pieces[0].offset, pieces=extents)
