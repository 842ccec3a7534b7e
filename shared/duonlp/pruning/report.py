"""What pruning has done: the sparsity of each kernel, histograms of weights and scores, and accuracy against sparsity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.pruning.sparse_file import sparse_bytes
from duonlp.util.pictures import COLOURS, check_picture_file, picture, require_matplotlib


@dataclass(frozen=True)
class KernelSparsity:
    """Sparsity of one kernel.

    Attributes:
        path: Its path.
        shape: Its shape.
        sparsity: Share of its values that are zero.
        dense_bytes: Bytes with its zeros.
        sparse_bytes: Bytes in sparse storage (:func:`save_sparse`).
    """

    path: str
    shape: tuple[int, ...]
    sparsity: float
    dense_bytes: int
    sparse_bytes: int


def sparsity_report(values: Mapping[str, Any]) -> list[KernelSparsity]:
    """Return the sparsity of each kernel of a parameter tree by path, in its order."""
    kernels = {path: np.asarray(value) for path, value in values.items() if path.endswith("/kernel")}
    return [
        KernelSparsity(path, v.shape, 1 - np.count_nonzero(v) / max(v.size, 1), v.nbytes, sparse_bytes(v))
        for path, v in kernels.items()
    ]


def total_sparsity(rows: Sequence[KernelSparsity]) -> float:
    """Return the share of the values of all rows that are zero."""
    sizes = [row.dense_bytes for row in rows]
    return float(np.average([row.sparsity for row in rows], weights=sizes)) if rows else 0.0


def sparsity_table(rows: Sequence[KernelSparsity]) -> str:
    """Return the rows, and their total, as a Markdown table."""
    lines = ["| kernel | shape | sparsity | MB | sparse MB |", "|---|---:|---:|---:|---:|"]
    total = sum(row.dense_bytes for row in rows), sum(row.sparse_bytes for row in rows)
    named = [(row.path, "x".join(map(str, row.shape)), row.sparsity, row.dense_bytes, row.sparse_bytes) for row in rows]
    for name, shape, sparsity, dense, sparse in [*named, ("total", "", total_sparsity(rows), *total)]:
        lines.append(f"| {name} | {shape} | {sparsity:.1%} | {dense / 1e6:.3f} | {sparse / 1e6:.3f} |")
    return "\n".join(lines)


def plot_accuracy(file: str | Path, points: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Plot accuracy against sparsity, one line per method.

    Args:
        file: Image to write; its ending decides the format.
        points: Method -> (sparsity, accuracy) of each model.

    Raises:
        InputError: The file cannot be a figure.
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib("accuracy is plotted")
    check_picture_file(Path(file))
    with picture(Path(file), 6, 4) as figure:
        ax: Any = figure.subplots()
        for (name, line), colour in zip(points.items(), COLOURS * len(points)):
            ax.plot(*zip(*sorted(line)), marker="o", label=name, color=colour)
        ax.set_xlabel("sparsity")
        ax.set_ylabel("accuracy")
        ax.legend()


def plot_histograms(file: str | Path, values: Mapping[str, Any], bins: int = 100) -> None:
    """Plot histograms of the nonzero values of kernels, or of all values of scores, by name.

    Args:
        file: Image to write; its ending decides the format.
        values: Arrays by name.
        bins: Number of bins.

    Raises:
        InputError: The file cannot be a figure.
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib("histograms are plotted")
    check_picture_file(Path(file))
    with picture(Path(file), 6, 2.2 * len(values)) as figure:
        axes: Any = figure.subplots(len(values), squeeze=False)[:, 0]
        for ax, (name, value) in zip(axes, values.items(), strict=True):
            flat = np.asarray(value, np.float32).ravel()
            nonzero = flat[flat != 0]
            ax.stairs(*np.histogram(nonzero, bins), color=COLOURS[0])
            ax.set_title(f"{name} ({1 - nonzero.size / max(flat.size, 1):.1%} zero)", fontsize=8)
            ax.tick_params(labelsize=7)
