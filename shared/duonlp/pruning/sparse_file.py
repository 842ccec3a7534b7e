"""Sparse storage: of each tensor with enough zeros, a bit per value and the values that are not zero."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from duonlp.checkpoints.safetensors_file import TensorToWrite, list_tensors, write_tensors
from duonlp.errors import CheckpointError
from duonlp.util.files import storage_errors

BITS, VALUES, SHAPE = "::bits", "::values", "::shape"
"""Ends of the names of the three tensors that stand for a sparse one."""


def sparse_bytes(values: np.ndarray) -> int:
    """Return the bytes of a tensor in sparse storage, or as it is if that is less."""
    bits = -(-values.size // 8) + 8 * values.ndim
    return min(values.nbytes, bits + int(np.count_nonzero(values)) * values.dtype.itemsize)


def save_sparse(file: str | Path, tensors: Mapping[str, np.ndarray]) -> int:
    """Write tensors to a safetensors file with the zeros left out, and return its size in bytes.

    A tensor that would not get smaller is written as it is. The others become ``name::bits`` (uint8, a bit per value, the first
    value highest), ``name::values`` (those that are not zero) and ``name::shape``. :func:`load_sparse` reads the file back.

    Args:
        file: The file.
        tensors: Arrays by name, such as a model's parameter tree.

    Raises:
        StorageError: The file cannot be written.
    """
    file, stored = Path(file), {}
    for name, value in tensors.items():
        value = np.asarray(value)
        if sparse_bytes(value) == value.nbytes:
            stored[name] = value
            continue
        stored[name + BITS] = np.packbits(value.ravel() != 0)
        stored[name + VALUES] = value[value != 0]
        stored[name + SHAPE] = np.array(value.shape, np.int64)
    with storage_errors(file):
        partial = file.with_name(file.name + ".partial")
        try:
            write_tensors(partial, [TensorToWrite(n, v.shape, v.dtype, lambda v=v: v) for n, v in stored.items()])
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        return file.stat().st_size


def load_sparse(file: str | Path) -> dict[str, np.ndarray]:
    """Return the tensors of a file from :func:`save_sparse`, with their zeros.

    Raises:
        CheckpointError: The file is damaged.
    """
    stored, tensors = list_tensors(Path(file)), {}
    for name, tensor in stored.items():
        base, mark, _ = name.rpartition("::")
        if not mark:
            tensors[name] = tensor.read()
        elif name.endswith(SHAPE):
            if base + BITS not in stored or base + VALUES not in stored:
                raise CheckpointError(f"{str(file)!r} has only a part of the tensor {base!r}; save it again")
            shape, values = tuple(map(int, tensor.read())), stored[base + VALUES].read()
            bits = np.unpackbits(stored[base + BITS].read())
            size = int(np.prod([max(length, 0) for length in shape], dtype=np.float64))
            if bits.size != -(-size // 8) * 8 or np.count_nonzero(bits) != values.size:
                raise CheckpointError(f"{str(file)!r} has bits of {base!r} that do not fit its values; save it again")
            dense = np.zeros(size, values.dtype)
            dense[bits[:size].astype(bool)] = values
            tensors[base] = dense.reshape(shape)
    return tensors
