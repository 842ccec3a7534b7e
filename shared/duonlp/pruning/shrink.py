"""Remove the heads and feed-forward rows that pruning has made zero, so that the model is smaller and faster."""

from collections.abc import Callable

import numpy as np

from duonlp.architectures._pruning import Sizes, with_sizes
from duonlp.config import AttentionConfig, TransformerConfig
from duonlp.errors import InputError
from duonlp.parameters import parameters

Read = Callable[[str], np.ndarray]
"""Returns a parameter by its path."""


def shrunk_values(read: Read, cfg: TransformerConfig, head: str) -> tuple[TransformerConfig, dict[str, np.ndarray]]:
    """Return the configuration of a model without its zero heads and rows, and the values of its smaller parameters by path.

    A head is zero if its rows of the attention's output kernel are, a feed-forward row if that of the down projection is:
    removing them changes no output. Each layer keeps one of each at least, and heads that share keys go together.

    Args:
        read: Returns the model's parameters.
        cfg: The model.
        head: Its head.

    Raises:
        InputError: Nothing can be removed, or the model has no layers of its own to remove it from.
    """
    if cfg.quantization is not None:
        raise InputError("a quantized model cannot be shrunk; shrink the original, then quantize the result")
    if cfg.decoder is not None or cfg.layers.shared:
        what = "an encoder-decoder" if cfg.decoder is not None else "a model whose layers share weights"
        raise InputError(f"heads and rows cannot be removed from {what}; its masks still apply")
    specs = parameters(cfg, head)
    values: dict[str, np.ndarray] = {}
    sizes: list[Sizes] = []

    def cut(path: str, axis: int, keep: np.ndarray) -> None:
        if path in specs:
            values[path] = np.compress(keep, values[path] if path in values else np.asarray(read(path)), axis)

    for number, layer in enumerate(cfg.layers):
        path = f"{cfg.stack}/layer_{number}"
        groups = _kept_groups(read, layer.attention, path)
        width, shared = layer.attention.head_dim, layer.attention.num_heads // layer.attention.kv_heads
        for name, times in (("query", width * shared), ("key", width), ("value", width)):
            for leaf in ("kernel", "bias"):
                cut(f"{path}/attention/{name}/{leaf}", -1, groups.repeat(times))
        cut(f"{path}/attention/output/kernel", 0, groups.repeat(width * shared))
        rows = _nonzero(np.asarray(read(f"{path}/feed_forward/down/kernel")))
        for name in ("gate", "up"):
            for leaf in ("kernel", "bias"):
                cut(f"{path}/feed_forward/{name}/{leaf}", -1, rows)
        cut(f"{path}/feed_forward/down/kernel", 0, rows)
        kv_heads = int(groups.sum())
        sizes.append((kv_heads * shared, layer.attention.num_kv_heads and kv_heads, int(rows.sum())))
    smaller = with_sizes(cfg, sizes)
    if smaller.layers == cfg.layers:
        raise InputError(
            "no head and no feed-forward row of the model is zero, so nothing can be removed; prune with structure='units' first"
        )
    return smaller, values


def _kept_groups(read: Read, attention: AttentionConfig, path: str) -> np.ndarray:
    """Return which heads, or groups of heads that share keys and values, stay: bool [kv_heads]."""
    if attention.qk_norm_over_heads or attention.relative_buckets:  # parameters that all heads have in common
        return np.ones(attention.kv_heads, bool)
    return _nonzero(np.asarray(read(f"{path}/attention/output/kernel")).reshape(attention.kv_heads, -1))


def _nonzero(rows: np.ndarray) -> np.ndarray:
    """Return which rows have a nonzero value; the first if none has."""
    keep = (rows != 0).any(axis=1)
    keep[0] |= not keep.any()
    return keep
