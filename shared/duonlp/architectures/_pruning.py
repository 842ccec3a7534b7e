"""How a checkpoint says that heads and feed-forward rows have been removed: ``pruned_layers`` of config.json.

``pruned_layers`` has [num_attention_heads, num_key_value_heads or null, intermediate_size] of each layer; the family's own keys
keep the numbers before pruning, from which the width of a head follows. Transformers 5 has no such key, and cannot load these
checkpoints: its layers are all alike.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from duonlp.config import TransformerConfig
from duonlp.errors import ConfigError
from duonlp.layer_config import LayerConfig, LayerPattern
from duonlp.schema import shorten

PRUNED_LAYERS = "pruned_layers"
"""Key of config.json."""

Sizes: TypeAlias = tuple[int, int | None, int]
"""Attention heads, key-value heads (None: as many) and feed-forward rows of a layer."""


def layer_sizes(layers: LayerPattern) -> tuple[Sizes, ...]:
    """Return the sizes of each layer."""
    return tuple((x.attention.num_heads, x.attention.num_kv_heads, x.feed_forward.size) for x in layers)


def with_sizes(cfg: TransformerConfig, sizes: Sequence[Sizes]) -> TransformerConfig:
    """Return a configuration whose layers have other sizes; those before are kept as ``unpruned_sizes``."""

    def changed(layer: LayerConfig, heads: int, kv_heads: int | None, size: int) -> LayerConfig:
        attention = replace(layer.attention, num_heads=heads, num_kv_heads=kv_heads)
        return replace(layer, attention=attention, feed_forward=replace(layer.feed_forward, size=size))

    before = cfg.unpruned_sizes or layer_sizes(cfg.layers)
    layers = LayerPattern.of([changed(layer, *of) for layer, of in zip(cfg.layers, sizes, strict=True)])
    return cfg.replace(layers=layers, unpruned_sizes=() if tuple(sizes) == before else before)


def read_pruned_layers(cfg: TransformerConfig, value: Any) -> TransformerConfig:
    """Return the configuration with the sizes of ``pruned_layers``.

    Raises:
        ConfigError: They are not those of some of the heads and rows of each layer.
    """
    before = layer_sizes(cfg.layers)
    fits = isinstance(value, list) and len(value) == len(before) and cfg.decoder is None and not cfg.layers.shared
    for row, most in zip(value if fits else [], before):
        fits = fits and isinstance(row, list) and len(row) == 3 and (row[1] is None) == (most[1] is None)
        fits = fits and all(
            new is old is None or (type(new) is int and old is not None and 1 <= new <= old)
            for new, old in zip(row, most)
        )
    if not fits:
        raise ConfigError(
            f"{PRUNED_LAYERS} is {shorten(value)}; it needs [heads, key-value heads or null, feed-forward rows] of each of the "
            f"{len(before)} layers, none above {shorten(list(before[0]))}"
        )
    return with_sizes(cfg, [tuple(row) for row in value])
