"""What quantization does to each tensor: bytes, error, and histograms of the weights."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.config import LayerQuantization, QuantizationConfig, TransformerConfig
from duonlp.errors import InputError
from duonlp.parameters import QUANTIZED_LEAVES, Parameter, parameters, quantized_parameters
from duonlp.quantization.arithmetic import limits, unpack_int4
from duonlp.quantization.driver import dequantized_value
from duonlp.quantization.settings import SCHEMES
from duonlp.util.pictures import picture
from duonlp.util.suggestions import nearest

TABLES = "_embeddings"
"""Ending of the paths of tables."""

Read = Callable[[str], np.ndarray]
"""Returns a parameter by its path."""


def scheme_of(quantization: QuantizationConfig | None) -> str | None:
    """Return the name of the scheme of most linear layers, such as "int8-static"; None for a float model.

    Other schemes are added after a comma, and "(simulated)" if parameters are in floating point.
    """
    if quantization is None:
        return None
    layers = [how for path, how in quantization.layers if not path.endswith(TABLES)]
    kinds = Counter((how.bits, how.activations) for how in layers or (how for _, how in quantization.layers))
    names = {(how.bits, how.activations): name for name, how in SCHEMES.items()}
    text = ", ".join(names.get(kind, f"int{kind[0]}-{kind[1]}") for kind, _ in kinds.most_common())
    return text + " (simulated)" * quantization.simulated


@dataclass(frozen=True)
class TensorStorage:
    """Storage of one tensor of the float model.

    Attributes:
        path: Its path.
        shape: Its shape.
        bits: Bits of a stored value.
        group_size: Inputs that share a scale; None without groups.
        before: Bytes in float32.
        after: Bytes of the integers and all scales.
        error: Root mean square of the rounding error, relative to that of the tensor; None if it is not quantized.
    """

    path: str
    shape: tuple[int, ...]
    bits: int
    group_size: int | None
    before: int
    after: int
    error: float | None


def storage_report(original: Read, quantized: Read, cfg: TransformerConfig, head: str) -> list[TensorStorage]:
    """Return the storage of each tensor before and after quantization, the largest first.

    Args:
        original: Returns the parameters of the float model.
        quantized: Returns those of the quantized one.
        cfg: The quantized model.
        head: Its head.
    """
    rows = []
    kinds = _kinds(cfg, head)
    for path, parameter in parameters(cfg.replace(quantization=None), head).items():
        how = kinds[path][1] if path in kinds else None
        before = after = 4 * parameter.size
        error = None
        if how is not None:
            parts = quantized_parameters(path, parameter.shape, how).values()
            after = sum(part.size * np.dtype(part.dtype).itemsize for part in parts)
            restored = dequantized_value(quantized, path, parameter.shape, how)  # one tensor at a time
            error = relative_error(np.asarray(original(path), np.float32), restored)
        bits, group = (32, None) if how is None else (how.bits, how.group_size)
        rows.append(TensorStorage(path, parameter.shape, bits, group, before, after, error))
    return sorted(rows, key=lambda row: -row.before)


def relative_error(values: np.ndarray, rounded: np.ndarray) -> float:
    """Return the root mean square of the difference divided by that of the values; 0 where all values are."""
    norm = float(np.linalg.norm(values))
    return float(np.linalg.norm(rounded - values)) / norm if norm else 0.0


@dataclass(frozen=True)
class WeightHistograms:
    """Histograms of a tensor before and after quantization, and of the difference.

    Attributes:
        path: Path of the tensor.
        edges: Bin edges of the values, float64 [bins + 1].
        values: Counts of the original values, int64 [bins].
        rounded: Counts of the values that the integers stand for, int64 [bins].
        error_edges: Bin edges of the differences, float64 [bins + 1].
        errors: Counts of the differences, int64 [bins].
        integers: Counts of the integers, int64, from the smallest to the largest that the bits allow.
        low: The smallest integer.
    """

    path: str
    edges: np.ndarray
    values: np.ndarray
    rounded: np.ndarray
    error_edges: np.ndarray
    errors: np.ndarray
    integers: np.ndarray
    low: int


def weight_histograms(
    original: Read, quantized: Read, cfg: TransformerConfig, head: str, paths: Sequence[str] = (), bins: int = 200
) -> list[WeightHistograms]:
    """Return histograms of quantized tensors.

    Args:
        original: Returns the parameters of the float model.
        quantized: Returns those of the quantized one.
        cfg: The quantized model.
        head: Its head.
        paths: Tensors; by default the table and the kernels with the most values, three at most.
        bins: Number of bins.

    Raises:
        InputError: A path is not that of a quantized tensor.
    """
    kinds = _kinds(cfg, head)
    chosen = paths or sorted(kinds, key=lambda path: -kinds[path][0].size)[:3]
    for path in chosen:
        if path not in kinds:
            raise InputError(f"{path!r} is no quantized tensor of the model{nearest(path, list(kinds))}")
    return [_histograms(path, original, quantized, *kinds[path], bins) for path in chosen]


def _kinds(cfg: TransformerConfig, head: str) -> dict[str, tuple[Parameter, LayerQuantization]]:
    """Return the float parameter and the quantization of each quantized tensor."""
    kinds = {}
    for path, parameter in parameters(cfg.replace(quantization=None), head).items():
        layer, _, leaf = path.rpartition("/")
        how = cfg.quantization.of(layer) if cfg.quantization is not None and leaf in QUANTIZED_LEAVES else None
        if how is not None:
            kinds[path] = parameter, how
    return kinds


def _histograms(
    path: str, original: Read, quantized: Read, parameter: Parameter, how: LayerQuantization, bins: int
) -> WeightHistograms:
    values, integers = np.asarray(original(path), np.float32), np.asarray(quantized(path))
    rounded = dequantized_value(quantized, path, parameter.shape, how)
    if how.bits == 4:
        integers = unpack_int4(integers, len(values))
    low, high = limits(how)
    # Rounding may leave the range of the values: -8 steps are more than their largest magnitude.
    ends = min(values.min(), rounded.min()), max(values.max(), rounded.max())
    edges = np.histogram_bin_edges(values, bins, (float(ends[0]), float(ends[1])))
    error_edges = np.histogram_bin_edges(rounded - values, bins)
    return WeightHistograms(
        path, edges, np.histogram(values, edges)[0], np.histogram(rounded, edges)[0], error_edges,
        np.histogram(rounded - values, error_edges)[0],
        np.bincount(integers.ravel().astype(np.int64) - low, minlength=high - low + 1), low,
    )  # fmt: skip


def plot_histograms(histograms: Sequence[WeightHistograms], file: str | Path) -> None:
    """Plot histograms, one row per tensor: values, integers, and the error.

    Args:
        histograms: As :func:`weight_histograms` returns them.
        file: Image to write; its ending decides the format.

    Raises:
        InputError: matplotlib does not know the ending.
        MissingExtraError: matplotlib is not installed.
    """
    with picture(Path(file), 12, 2.6 * len(histograms)) as figure:
        axes: Any = figure.subplots(len(histograms), 3, squeeze=False)
        for row, h in zip(axes, histograms, strict=True):
            row[0].stairs(h.values, h.edges, label="float32", color="tab:blue")
            row[0].stairs(h.rounded, h.edges, label="quantized", color="tab:orange", alpha=0.7)
            row[0].set_title(h.path, fontsize=8)
            row[0].legend(fontsize=7)
            row[1].bar(np.arange(h.low, h.low + len(h.integers)), h.integers, width=1.0, color="tab:orange")
            row[1].set_title("integers", fontsize=8)
            row[2].stairs(h.errors, h.error_edges, color="tab:red")
            row[2].set_title("error of a weight", fontsize=8)
            for ax in row:
                ax.set_yscale("log")
                ax.tick_params(labelsize=7)
