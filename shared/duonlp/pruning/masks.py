"""Masks of a model's kernels from their scores, in NumPy, so that both engines prune the same weights."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.parameters import parameters
from duonlp.pruning.settings import Pruning
from duonlp.quantization import quantizable
from duonlp.util.suggestions import select_layers

Masks: TypeAlias = dict[str, np.ndarray]
"""Path of a kernel [in, out] -> bool [in / r, out / c], True for the blocks of r inputs and c outputs that stay."""

UNITS = "/attention/output", "/cross_attention/output", "/feed_forward/down"
"""Ends of the paths of the layers whose rows are heads or feed-forward units: zeroing them removes these from the model."""


def mask_shapes(settings: Pruning, cfg: TransformerConfig, head: str) -> dict[str, tuple[int, int]]:
    """Return the shape of the mask of each kernel that is pruned, by path.

    Raises:
        InputError: A pattern matches no layer, nothing is pruned, a kernel is not a multiple of its blocks, or the model is
            quantized or consists of several.
    """
    if not isinstance(cfg, TransformerConfig):
        raise InputError("a model of several parts cannot be pruned while it trains; prune its parts")
    if cfg.quantization is not None:
        raise InputError("a quantized model cannot be pruned; prune the original, then quantize the result")
    paths, _ = quantizable(cfg, head)
    chosen = select_layers(paths, settings.layers, settings.skip)
    if settings.structure == "units":
        chosen = [path for path in chosen if path.endswith(UNITS)]
    if not chosen:
        raise InputError("the settings prune no layer of the model; choose other layers")
    shapes, specs = {}, parameters(cfg, head)
    for path in chosen:
        shape = specs[f"{path}/kernel"].shape
        rows, columns = _block(settings, cfg, path, shape)
        divisor = settings.n_of_m[1] if settings.n_of_m else rows
        if shape[0] % divisor or shape[1] % columns:
            what = settings.structure if settings.n_of_m else f"blocks of {rows} x {columns}"
            raise InputError(
                f"{path} has {shape[0]} inputs and {shape[1]} outputs, which do not divide into {what}; skip it, or choose "
                "another structure"
            )
        shapes[f"{path}/kernel"] = shape[0] // rows, shape[1] // columns
    return shapes


def _block(settings: Pruning, cfg: TransformerConfig, path: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the inputs and outputs of a kernel that are pruned together."""
    if settings.structure == "blocks":
        return settings.block
    if settings.structure != "units":
        return 1, 1
    if path.endswith("/down"):
        return 1, shape[1]
    stack, layer, block = path.split("/")[:3]
    own = cfg if stack == cfg.stack else cfg.as_decoder()
    config = own.layers.weights[int(layer.removeprefix("layer_"))]
    attention = config.attention if block == "attention" else config.cross_attention
    assert attention is not None
    return attention.head_dim * (attention.num_heads // attention.kv_heads), shape[1]


def compute_masks(
    settings: Pruning, shapes: Mapping[str, tuple[int, int]], values: Mapping[str, Any], step: int
) -> Masks:
    """Return the masks after ``step`` steps.

    Args:
        settings: Resolved settings.
        shapes: From :func:`mask_shapes`.
        values: Scores of the shapes of the masks, or kernels for pruning by magnitude, by path of the kernel.
        step: Optimizer steps done.
    """
    sparsity = settings.sparsity_at(step)
    scores = {path: _scores(settings, np.asarray(values[path], np.float32), shape) for path, shape in shapes.items()}
    if settings.structure == "units":
        for score in scores.values():  # a layer keeps at least one head and one row
            score[np.unravel_index(np.argmax(score), score.shape)] = np.inf
    if settings.method == "soft-movement":
        masks = {path: 1 / (1 + np.exp(-score)) > sparsity for path, score in scores.items()}
    elif settings.n_of_m is not None:
        group = settings.n_of_m[1]
        kept = group - round(sparsity * group)
        masks = {path: _keep_in_groups(score, group, kept) for path, score in scores.items()}
    else:
        masks = {}
        for pool in _pools(settings, shapes):
            joined = np.concatenate([scores[path].ravel() for path in pool])
            count = joined.size - round(sparsity * joined.size)
            keep, start = _keep(joined, max(count, len(pool)) if settings.structure == "units" else count), 0
            for path in pool:
                size = scores[path].size
                masks[path] = keep[start : start + size].reshape(shapes[path])
                start += size
    return masks


def _scores(settings: Pruning, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the score of each block: the trained one, or the root mean square of its weights."""
    if settings.trains_scores:
        return values.copy()
    if values.shape == shape:
        return np.abs(values)
    (rows, columns), (inputs, outputs) = shape, values.shape
    blocks = values.reshape(rows, inputs // rows, columns, outputs // columns)
    return np.sqrt(np.mean(blocks**2, axis=(1, 3)))


def _pools(settings: Pruning, shapes: Mapping[str, Any]) -> list[list[str]]:
    """Return the groups of kernels whose weights compete."""
    if settings.scope == "layer":
        return [[path] for path in shapes]
    if settings.structure != "units":
        return [list(shapes)]
    rows = [path for path in shapes if path.endswith("/down/kernel")]
    heads = [path for path in shapes if path not in rows]
    return [pool for pool in (heads, rows) if pool]


def _keep(scores: np.ndarray, count: int) -> np.ndarray:
    """Return a mask of the ``count`` largest of scores [n]; of equal ones, the first."""
    if count <= 0:
        return np.zeros(scores.shape, bool)
    least = np.partition(scores, scores.size - count)[scores.size - count]
    keep = scores > least
    keep[np.flatnonzero(scores == least)[: count - int(keep.sum())]] = True
    return keep


def _keep_in_groups(scores: np.ndarray, group: int, kept: int) -> np.ndarray:
    """Return a mask of the ``kept`` largest of each ``group`` consecutive inputs of an output, of scores [in, out]."""
    grouped = scores.reshape(-1, group, scores.shape[1])
    ranks = np.argsort(np.argsort(-grouped, axis=1, kind="stable"), axis=1, kind="stable")
    return (ranks < kept).reshape(scores.shape)


def expand(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a mask of blocks [..., in / r, out / c] as one of weights of a shape [..., in, out]."""
    rows, columns = (size // blocks for size, blocks in zip(shape[-2:], mask.shape[-2:], strict=True))
    return mask.repeat(rows, -2).repeat(columns, -1)


def pruned_values(
    read: Callable[[str], np.ndarray], cfg: TransformerConfig, head: str, settings: Pruning
) -> dict[str, np.ndarray]:
    """Return the kernels of a model that is pruned at once, by path.

    Args:
        read: Returns the model's parameters.
        cfg: The model.
        head: Its head.
        settings: Which weights to prune, by magnitude.

    Raises:
        InputError: As :func:`mask_shapes`, or the settings need trained scores.
    """
    if settings.trains_scores:
        raise InputError(
            f"{settings.method} prunes by scores that only training gives; pass the settings to FitConfig(pruning=...)"
        )
    shapes = mask_shapes(settings, cfg, head)
    kernels = {path: np.asarray(read(path), np.float32) for path in shapes}
    masks = compute_masks(replace(settings, begin=0, end=0), shapes, kernels, 0)
    return {path: kernel * expand(masks[path], kernel.shape) for path, kernel in kernels.items()}
