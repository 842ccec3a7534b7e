"""Read and write safetensors files one tensor at a time, with plain file I/O.

The safetensors library memory-maps the whole file when reading, opens it by its path, takes the last of several tensors of one
name, and needs all tensors at once when writing.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from duonlp.checkpoints.open_files import OpenFile
from duonlp.errors import CheckpointError
from duonlp.util.reading import parse_json

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
FLOATS = tuple(DTYPES[name] for name in ("F64", "F32", "F16", "BF16"))
"""Dtypes that a parameter may be stored in."""

MOST_HEADER_BYTES = 100_000_000
"""Length of a header above which the safetensors library refuses a file, too."""


def aligned_empty(count: int, dtype: np.dtype) -> np.ndarray:
    """Return an uninitialized vector aligned to 64 bytes, which JAX can use on the CPU without a copy."""
    dtype = np.dtype(dtype)
    raw = np.empty(count * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * dtype.itemsize].view(dtype)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, read on demand.

    Attributes:
        file: The file, which is open.
        name: Name of the tensor.
        shape: Shape of the tensor.
        dtype: Stored dtype.
        offset: Position of the values in the file, in bytes.
        origin: Name in the file, if it is another: that of a TensorFlow or Flax model.
    """

    file: OpenFile
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    origin: str = ""

    @property
    def has_rows(self) -> bool:
        """Whether a range of rows can be read without reading the whole tensor."""
        return True

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows ``start:stop`` of the first axis, by default all, into a new array.

        Raises:
            CheckpointError: the file ends early, because it is truncated, or was overwritten since it was opened.
        """
        rows = self.shape[0] if self.shape else 1
        stop = rows if stop is None else min(stop, rows)
        row = math.prod(self.shape[1:])
        values = aligned_empty((stop - start) * row, self.dtype)
        view = values.view(np.uint8).data
        if self.file.read_into(view, self.offset + start * row * self.dtype.itemsize) != len(view):
            raise CheckpointError(f"{self.file} ends within tensor {self.name!r}; download or save it again")
        return values.reshape((stop - start, *self.shape[1:]) if self.shape else ())


@dataclass(frozen=True)
class UnpackedBytes(StoredTensor):
    """Integers int8 [out, in] that are packed on disk, four to an int32, each as value + 128 (compressed-tensors).

    Attributes:
        stored: The tensor on disk, int32 [out, ceil(in / 4)].
    """

    stored: StoredTensor = field(kw_only=True)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows ``start:stop`` of the first axis, by default all, into a new array."""
        packed = self.stored.read(start, stop)
        return (packed.view(np.uint8)[:, : self.shape[1]] ^ 0x80).view(np.int8)


def with_bytes(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return tensors with packed weights of 8 bits as weights int8; those of 4 bits stay packed."""
    out = dict(tensors)
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition("weight_packed")
        shape = tensors.get(f"{module}weight_shape")
        if leaf or not name.endswith("weight_packed") or tensor.dtype != np.int32 or len(tensor.shape) != 2:
            continue
        if shape is None or shape.shape != (2,) or shape.dtype.kind != "i" or f"{module}weight" in tensors:
            continue
        rows, columns = shape.read().tolist()
        if tensor.shape == (rows, -(-columns // 4)) and tensor.shape[1] != -(-columns // 8):
            del out[name], out[f"{module}weight_shape"]
            out[f"{module}weight"] = UnpackedBytes(
                tensor.file, f"{module}weight", (rows, columns), np.dtype(np.int8), tensor.offset, name, stored=tensor
            )
    return out


def list_tensors(file: Path | OpenFile) -> dict[str, StoredTensor]:
    """Return the tensors of one file by name, in file order; they keep it open.

    Raises:
        CheckpointError: the file is missing, truncated or corrupt, has two tensors of one name, or one of an unsupported dtype.
    """
    opened = file if isinstance(file, OpenFile) else OpenFile.open(file)
    if opened is None:
        raise CheckpointError(f"{file} does not exist; pass the path of a safetensors file")
    try:
        header, start = _read_header(opened)
        return _parse_header(opened, header, start)
    except ValueError as error:
        raise CheckpointError(
            f"{file} is not a valid safetensors file ({str(error)[:200]}); it is truncated or corrupt: download or save it again"
        ) from None


def _read_header(file: OpenFile) -> tuple[dict[str, Any], int]:
    """Return the header and where the values start; raise ValueError if it is invalid."""
    length = int.from_bytes(file.read_bytes(0, 8), "little")
    if file.size < 8 or length > min(MOST_HEADER_BYTES, file.size - 8):
        raise ValueError(f"a header of {length} bytes in a file of {file.size}")
    text = file.read_bytes(8, length)
    if text[:1] != b"{":
        raise ValueError("the header is not a JSON object")
    return parse_json(text, unique=True), 8 + length


def _parse_header(file: OpenFile, header: dict[str, Any], start: int) -> dict[str, StoredTensor]:
    """Return the tensors of a header whose values start at byte `start`; raise ValueError if they do not fill the file."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is not a map from names to texts")
    for name, entry in header.items():
        name.encode()  # raises for lone surrogates
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
        if not _are_sizes(entry["shape"]) or not _are_sizes(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
            raise ValueError(f"tensor {name!r} has the shape {entry['shape']} and the offsets {entry['data_offsets']}")
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        if dtype is None:
            raise CheckpointError(
                f"{file}: tensor {name!r} has dtype {entry['dtype']}; supported are {', '.join(DTYPES)}"
            )
        shape, first = tuple(entry["shape"]), end
        end += math.prod(shape) * dtype.itemsize
        if entry["data_offsets"] != [first, end]:
            raise ValueError(f"tensor {name!r} is at {entry['data_offsets']}; expected {[first, end]}")
        tensors[name] = StoredTensor(file, name, shape, dtype, start + first)
    if start + end != file.size:
        raise ValueError(f"the tensors end at byte {start + end} of {file.size}")
    return tensors


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor to write; ``value()`` is called when the tensor is written, and its result is not kept.

    Attributes:
        name: Name of the tensor in the file.
        shape: Shape of the tensor.
        dtype: Dtype in the file.
        value: Function that returns the values, in this shape.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    value: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def packed_bytes(tensor: TensorToWrite) -> list[TensorToWrite]:
    """Return the packed weight and its shape that stand for a weight int8 [out, in]; :func:`with_bytes` inverts it."""
    rows, columns = tensor.shape
    words = -(-columns // 4)

    def packed() -> np.ndarray:
        values = np.pad(np.ascontiguousarray(tensor.value()).view(np.uint8) ^ 0x80, ((0, 0), (0, 4 * words - columns)))
        return np.ascontiguousarray(values).view(np.int32)

    return [
        TensorToWrite(f"{tensor.name}_packed", (rows, words), np.dtype(np.int32), packed),
        TensorToWrite(f"{tensor.name}_shape", (2,), np.dtype(np.int64), lambda: np.array(tensor.shape)),
    ]


def write_tensors(path: Path, tensors: Iterable[TensorToWrite]) -> None:
    """Write one file while holding only one tensor in memory.

    The format is described at https://huggingface.co/docs/safetensors: 8 bytes of header length, a JSON header, the values.

    Raises:
        CheckpointError: a value does not have the declared shape.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    tensors = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name))  # wide types first: all stay aligned
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for t in tensors:
        header[t.name] = {
            "dtype": names[t.dtype],
            "shape": list(t.shape),
            "data_offsets": [offset, offset + t.nbytes],
        }
        offset += t.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        for t in tensors:
            value = np.asarray(t.value(), t.dtype, order="C")
            if value.shape != t.shape:
                raise CheckpointError(f"tensor {t.name!r} has shape {value.shape}; declared was {t.shape}")
            f.write(value.reshape(-1).view(np.uint8).data)
        f.flush()
        os.fsync(f.fileno())
