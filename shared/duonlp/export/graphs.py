"""The graphs of an exported model, and their inputs, as data; each engine traces them in its ``export/graphs.py``.

A model is one graph, ``serve``, from ``config.inputs`` to the outputs of its head. A model that generates text is exported as
``decode`` instead, one step of :class:`duonlp.generation.strategies.search.DecoderModel`, and an encoder-decoder as ``encode``
and ``decode``. Their inputs besides the tokens, with L layers:

    visible_w, index_w: for each of ``config.layers.windows``, the slots of the cache that each token attends to, and the slot of
        the first token.
    logit_positions: the tokens of which logits are returned.
    past_key_0 ... past_value_L: keys [B, K, H, S] and values [B, K, S, H] of earlier tokens. The step returns those of its own
        tokens, key_0 [B, K, H, n] ... value_L [B, K, n, H]; the caller writes them to their slots.
    source_mask, source_key_0 ... source_value_L: what ``encode`` returned, of an encoder-decoder.
    past_position_ids: positions of the tokens in the cache, of a model with relative positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.export.settings import ExportSettings
from duonlp.heads import HEADS
from duonlp.input_specs import InputSpec
from duonlp.inputs import input_specs
from duonlp.layer_config import AttentionConfig
from duonlp.typing import Array

STEMS = {"serve": "model", "encode": "encoder", "decode": "decoder"}
"""Graphs, and the names without ending of their files in formats with one file per graph."""


@dataclass(frozen=True)
class Graph:
    """A graph.

    Attributes:
        name: "serve", "encode" or "decode".
        inputs: Its inputs; arrays of its function by name.
    """

    name: str
    inputs: tuple[InputSpec, ...]


def graphs_of(config: TransformerConfig, head: str, settings: ExportSettings) -> tuple[Graph, ...]:
    """Return the graphs of a model.

    Raises:
        InputError: A setting does not fit the model.
    """
    if not (HEADS[head].generates and settings.cache):
        return (Graph("serve", settings.fix_sizes(serve_inputs(config, head), config)),)
    if settings.length is not None or settings.target_length is not None or settings.batch_size is not None:
        raise InputError(
            "a decoder with past keys and values takes any number of tokens; omit batch_size, length and target_length, or pass "
            "cache=False to export one pass over whole texts"
        )
    decode = Graph("decode", _decode_inputs(config))
    if config.decoder is None:
        return (decode,)
    return Graph("encode", tuple(_ids(name, ("batch", "source_length")) for name in ENCODED)), decode


ENCODED = ("input_ids", "attention_mask")
"""Inputs of ``encode``."""


def serve_inputs(config: TransformerConfig, head: str) -> tuple[InputSpec, ...]:
    """Return the inputs of an exported model: those of ``config.inputs`` that are exported."""
    specs = [spec for spec in input_specs(config, head) if spec.exported]
    if not HEADS[head].reads_target:  # other heads with a decoder feed it the source
        specs = [spec for spec in specs if "target_length" not in spec.axes]
    return tuple(specs)


def _decode_inputs(config: TransformerConfig) -> tuple[InputSpec, ...]:
    """Return the inputs of ``decode``."""
    layers, tokens = config.as_decoder().layers, ("batch", "tokens")
    slots = {window: f"slots_{w}" for w, window in enumerate(layers.windows)}
    specs = [_ids("input_ids", tokens), _ids("position_ids", tokens), _ids("logit_positions", ("logits",))]
    for w, axis in enumerate(slots.values()):
        specs += [InputSpec(f"visible_{w}", (*tokens, axis), "bool", "cache"), _ids(f"index_{w}", ())]
    for i, layer in enumerate(layers):
        specs += _keys_and_values("past", i, layer.attention, slots[layer.attention.window])
    if config.decoder is None:
        return tuple(specs)
    specs.append(_ids("source_mask", ("batch", "source_length")))
    for i, layer in enumerate(layers):
        assert layer.cross_attention is not None
        specs += _keys_and_values("source", i, layer.cross_attention, "source_length")
    if layers[0].attention.relative_buckets:
        specs.append(_ids("past_position_ids", ("batch", "slots_0")))
    return tuple(specs)


def _ids(name: str, axes: tuple[str, ...]) -> InputSpec:
    return InputSpec(name, axes, required=True, exported=True)


def _keys_and_values(prefix: str, step: int, attention: AttentionConfig, slots: str) -> list[InputSpec]:
    sizes = ("heads", attention.kv_heads), ("width", attention.head_dim)
    axes = {"key": ("batch", "heads", "width", slots), "value": ("batch", "heads", slots, "width")}
    return [InputSpec(f"{prefix}_{part}_{step}", axes[part], "float32", "cache", sizes=sizes) for part in axes]


def flat_cache(cache: Mapping[str, Any], prefix: str) -> dict[str, Array]:
    """Return keys and values {"step_i": {"key": ..., "value": ...}} by the names of a graph's inputs or outputs.

    Args:
        cache: See DecoderModel.start_cache; other entries are ignored.
        prefix: "past_", "source_" or "".
    """
    steps = {name.removeprefix("step_"): part for name, part in cache.items() if name.startswith("step_")}
    return {f"{prefix}{kind}_{i}": part[kind] for i, part in steps.items() for kind in ("key", "value")}


def nested_cache(arrays: Mapping[str, Array], prefix: str, steps: int) -> dict[str, dict[str, Array]]:
    """Invert :func:`flat_cache` for a number of steps."""
    return {f"step_{i}": {kind: arrays[f"{prefix}{kind}_{i}"] for kind in ("key", "value")} for i in range(steps)}


def decode_cache(inputs: Mapping[str, Array], config: TransformerConfig) -> dict[str, Any]:
    """Return the cache, as of DecoderModel.start_cache, in the inputs of ``decode``."""
    steps = len(config.as_decoder().layers)
    cache: dict[str, Any] = nested_cache(inputs, "past_", steps)
    if config.decoder is not None:
        cache |= {"source": nested_cache(inputs, "source_", steps), "source_mask": inputs["source_mask"]}
        cache |= {"position": inputs["past_position_ids"]} if "past_position_ids" in inputs else {}
    return cache
