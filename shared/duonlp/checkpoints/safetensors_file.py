"""Read and write safetensors files one tensor at a time.

The safetensors library validates a file and lists its tensors. Values are read and written with plain file I/O, because
the library memory-maps the whole file when reading and needs all tensors at once when writing.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from duonlp.errors import CheckpointError

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
        file: The safetensors file.
        name: Name of the tensor.
        shape: Shape of the tensor.
        dtype: Stored dtype.
        offset: Position of the values in the file, in bytes.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows ``start:stop`` of the first axis, by default all, into a new array.

        Raises:
            CheckpointError: the file ends early, because it is truncated or still being written.
        """
        rows = self.shape[0] if self.shape else 1
        stop = rows if stop is None else min(stop, rows)
        row = int(np.prod(self.shape[1:], dtype=np.int64))
        count = (stop - start) * row
        values = aligned_empty(count, self.dtype)
        with open(self.file, "rb", buffering=0) as f:
            f.seek(self.offset + start * row * self.dtype.itemsize)
            num_read, view = 0, values.view(np.uint8).data
            while num_read < len(view) and (num_bytes := f.readinto(view[num_read:])):
                num_read += num_bytes
        if num_read != len(view):
            raise CheckpointError(f"{self.file} ends within tensor {self.name!r}; download or save it again")
        return values.reshape((stop - start, *self.shape[1:]) if self.shape else ())


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file by name, in file order.

    Raises:
        CheckpointError: the file is truncated or corrupt, or has a tensor of an unsupported dtype.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as f:
            slices = {name: f.get_slice(name) for name in f.offset_keys()}
            described = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a valid safetensors file ({error}); it is truncated or corrupt: download or save it again"
        ) from None
    with open(path, "rb") as f:
        offset = 8 + int.from_bytes(f.read(8), "little")
    tensors = {}
    # The library has checked that the tensors are contiguous and in this order.
    for name, (shape, dtype_name) in described.items():
        if dtype_name not in DTYPES:
            raise CheckpointError(f"{path}: tensor {name!r} has dtype {dtype_name}; supported are {', '.join(DTYPES)}")
        dtype = DTYPES[dtype_name]
        tensors[name] = StoredTensor(path, name, shape, dtype, offset)
        offset += int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return tensors


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
