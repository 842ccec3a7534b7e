"""Safetensors files, one tensor at a time.

The safetensors library validates a file and lists its tensors; the bytes are read and written here with plain file
I/O, because the library maps the whole file into memory to read it and wants all tensors at once to write it.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

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
    """An empty vector that starts on a cache line, so that JAX can take it over on a CPU without a copy."""
    dtype = np.dtype(dtype)
    raw = np.empty(count * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * dtype.itemsize].view(dtype)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk: nothing is read until asked for."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int  # bytes from the start of the file

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows ``start:stop`` of the first axis (all of them by default) as a fresh array.

        Raises:
            CheckpointError: the file ends early, as one does that is still being written or was cut.
        """
        rows = self.shape[0] if self.shape else 1
        stop = rows if stop is None else min(stop, rows)
        row = int(np.prod(self.shape[1:], dtype=np.int64))
        count = (stop - start) * row
        values = aligned_empty(count, self.dtype)
        with open(self.file, "rb", buffering=0) as f:
            f.seek(self.offset + start * row * self.dtype.itemsize)
            got, view = 0, memoryview(values.view(np.uint8))
            while got < len(view) and (more := f.readinto(view[got:])):
                got += more
        if got != len(view):
            raise CheckpointError(f"{self.file} ends in the middle of tensor {self.name!r}; download or save it again")
        return values.reshape((stop - start, *self.shape[1:]) if self.shape else ())


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, in file order.

    Raises:
        CheckpointError: the file is truncated or corrupt, or holds a dtype NumPy cannot read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as f:
            slices = {name: f.get_slice(name) for name in f.offset_keys()}
            described = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); it was cut or damaged: download or save it again"
        ) from None
    with open(path, "rb") as f:
        offset = 8 + int.from_bytes(f.read(8), "little")
    tensors = {}
    # The library has checked that the tensors follow each other without gaps, in this order.
    for name, (shape, dtype_name) in described.items():
        if dtype_name not in DTYPES:
            raise CheckpointError(f"{path}: tensor {name!r} is {dtype_name}; supported are {', '.join(DTYPES)}")
        dtype = DTYPES[dtype_name]
        tensors[name] = StoredTensor(path, name, shape, dtype, offset)
        offset += int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return tensors


@dataclass(frozen=True)
class TensorToWrite:
    """What a file will hold under ``name``; ``value()`` is called when its turn comes, and then dropped."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    value: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write_tensors(path: Path, tensors: Iterable[TensorToWrite]) -> None:
    """Write one file, holding one tensor in memory at a time.

    Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the values).
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    tensors = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name))  # wide types first keeps all of them aligned
    header, offset = {"__metadata__": {"format": "pt"}}, 0
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
                raise CheckpointError(f"tensor {t.name!r} has shape {value.shape}, announced was {t.shape}")
            f.write(value.reshape(-1).view(np.uint8).data)
        f.flush()
        os.fsync(f.fileno())
