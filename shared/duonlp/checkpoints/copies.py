"""Compare tensors of a checkpoint that stand for the same values: other names, tied outputs, computed positions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np

from duonlp.architectures._common import Weight
from duonlp.checkpoints.layouts import fixed_positions
from duonlp.checkpoints.safetensors_file import FLOATS, StoredTensor
from duonlp.config import TransformerConfig
from duonlp.errors import CheckpointError

WORDS = ("decoder_embeddings/word_embeddings/embedding", "embeddings/word_embeddings/embedding")
"""Paths of the table that a tied output is a copy of; the first that a model has."""


def owners(rows: Iterable[Weight]) -> dict[str, set[str]]:
    """Return, for every name that a row reads or writes, the main names of those rows."""
    out: dict[str, set[str]] = {}
    for row in rows:
        for name in (row.name, *row.aliases, *row.copies):
            out.setdefault(name, set()).add(row.name)
    return out


def check_float(tensor: StoredTensor) -> None:
    """Raise CheckpointError if the values of a parameter are stored as integers."""
    if tensor.dtype not in FLOATS:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name!r} has dtype {tensor.dtype}; expected one of "
            f"{', '.join(map(str, FLOATS))}: save the model again in one of these"
        )


def check_same(first: StoredTensor, second: StoredTensor, remedy: str) -> None:
    """Raise CheckpointError, naming both, if two tensors that stand for the same values differ.

    Args:
        first: A tensor.
        second: Another one.
        remedy: What to do, for the error message.
    """
    check_float(first)
    check_float(second)
    if first.shape == second.shape and all(_equal(*rows) for rows in _pairs_of_rows(first, second)):
        return
    raise CheckpointError(
        f"{first.file}: the tensors {first.name!r} and {second.name!r} stand for the same values and differ; {remedy}"
    )


def check_positions(tensor: StoredTensor, layout: str, cfg: TransformerConfig) -> None:
    """Raise CheckpointError if stored positions are not those that the model computes, in the rows that both have."""
    check_float(tensor)
    table = fixed_positions(layout, cfg)
    rows = min(len(table), tensor.shape[0] if tensor.shape else 0)
    # Sines of large angles differ between libraries; half precision rounds them.
    tolerance = 1e-3 + float(ml_dtypes.finfo(tensor.dtype).eps)
    if tensor.shape[1:] == table.shape[1:]:
        stored = tensor.read(0, rows).astype(np.float32)
        if np.abs(stored - table[:rows]).max(initial=0.0) <= tolerance:  # False for NaN
            return
    raise CheckpointError(
        f"{tensor.file}: the positions {tensor.name!r} differ from those that {cfg.model_type} computes; correct config.json, "
        "or remove the tensor"
    )


def check_tied(
    rows: Sequence[Weight],
    names: Mapping[str, Sequence[str]],
    tensors: Mapping[str, StoredTensor],
    loaded: Mapping[str, StoredTensor | None],
    cfg: TransformerConfig,
) -> None:
    """Compare the tensors that are recognized but not loaded with what they copy.

    Args:
        rows: The weight table.
        names: All names of each row without a path, by its main name.
        tensors: The checkpoint's tensors by name.
        loaded: The tensor of each parameter by path.
        cfg: The model.

    Raises:
        CheckpointError: One differs from what it copies.
    """
    words = next((loaded[path] for path in WORDS if path in loaded), None)
    for row in rows:
        for tensor in (tensors[name] for name in names.get(row.name, ()) if name in tensors):
            if row.layout == "linear" and words is not None:
                check_same(
                    words, tensor, "set tie_word_embeddings to false in config.json, or remove the one that is wrong"
                )
            elif row.layout.endswith("positions"):
                check_positions(tensor, row.layout, cfg)


def _pairs_of_rows(first: StoredTensor, second: StoredTensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the same rows of two tensors of one shape, about 4 MB at a time."""
    rows = first.shape[0] if first.shape else 1
    size = max(1, int(np.prod(first.shape[1:], dtype=np.int64)) * first.dtype.itemsize)
    step = max(1, (4 << 20) // size)
    for start in range(0, rows, step):
        yield first.read(start, start + step), second.read(start, start + step)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Compare bits, or, for different dtypes, values."""
    if a.dtype == b.dtype:
        return a.tobytes() == b.tobytes()
    return np.array_equal(a.astype(np.float64), b.astype(np.float64))
