"""How a checkpoint says which of its layers are quantized: ``quantization_config`` of config.json.

Linear layers that are all quantized alike are described in the conventions of compressed-tensors
(https://github.com/vllm-project/compressed-tensors), which Transformers and vLLM read. Whatever those cannot express (quantized
tables, scaled channels, layers that differ) is described by our own paths, as quant_method "duonlp".
"""

import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import regex

from duonlp.architectures._common import Weight
from duonlp.config import LayerQuantization, QuantizationConfig
from duonlp.errors import ConfigError
from duonlp.layer_config import QUANTIZED_LEAVES
from duonlp.schema import shorten

METHOD, OTHERS = "duonlp", "compressed-tensors"
"""Values of ``quant_method`` that are supported: our own, and that of compressed-tensors."""

LAYOUTS = {"linear": "Linear", "embedding": "Embedding"}
"""Class of the module in PyTorch that holds a tensor, by the tensor's layout."""

PACKED = "pack-quantized"
"""Format of layers whose activations are not quantized: several weights to an int32."""

FORMATS = "int-quantized", PACKED, "naive-quantized", "mixed-precision"
"""Formats of compressed-tensors that hold integers."""

TABLES = LayerQuantization(), LayerQuantization(activations="dynamic")
"""Kinds of quantized tables."""

LONGEST_PATTERN = 1000
"""Most characters of a regular expression."""

SECONDS = 5.0
"""Most seconds that the regular expressions of a configuration may take: some take exponential time."""

MOST_INPUTS = 2**20
"""Largest size of a group."""


def read_quantization(config: Any, rows: Iterable[Weight], prefix: str) -> QuantizationConfig:
    """Translate ``quantization_config`` to the quantization of our layers.

    Args:
        config: Contents of the key.
        rows: Weight tables of all heads of the family.
        prefix: Prefix of the base model's tensor names.

    Raises:
        ConfigError: The method, or one of its options, is unsupported, or a layer is not one of the family's.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"quantization_config is {shorten(config)}; it must be an object")
    method = config.get("quant_method")
    rows = [row for row in rows if _leaf(row) in QUANTIZED_LEAVES]
    if method == METHOD:
        return _read_own(config.get("layers"), {str(row.path) for row in rows})
    if method != OTHERS:
        raise ConfigError(
            f"quantization_config has the quant_method {shorten(method)}; supported are {METHOD!r} and {OTHERS!r}. Load the "
            "original model and call quantize"
        )
    _check_options(config)
    groups, ignored = config.get("config_groups"), config.get("ignore") or []
    if not isinstance(groups, Mapping) or not isinstance(ignored, list):
        raise ConfigError(
            "quantization_config has no valid config_groups and ignore; save or download the checkpoint again"
        )
    kinds: list[tuple[Any, LayerQuantization]] = []
    for group in groups.values():
        if not isinstance(group, Mapping) or not isinstance(group.get("targets"), list):
            raise ConfigError(
                "a group of quantization_config has no list of targets; save or download the checkpoint again"
            )
        kinds += [(target, kind) for kind in [_read_group(group)] for target in group["targets"]]
    deadline = time.monotonic() + SECONDS
    ranks: dict[str, tuple[int, int]] = {}  # of each layer, which heads may call by several names
    skipped = set()
    for row in rows:
        if row.layout not in LAYOUTS:
            continue
        module, kind, path = row.name.rpartition(".")[0], LAYOUTS[row.layout], str(row.path).rpartition("/")[0]
        names = module, module.removeprefix(prefix)
        if any(_rank(target, names, kind, deadline) is not None for target in ignored):
            skipped.add(path)
        for i, (target, _) in enumerate(kinds):
            if (rank := _rank(target, names, kind, deadline)) is not None:
                ranks[path] = min(ranks.get(path, (rank, i)), (rank, i))
    layers = {path: kinds[i][1] for path, (_, i) in ranks.items() if path not in skipped}
    if tables := [row.path for row in rows if _leaf(row) == "embedding" and str(row.path).rpartition("/")[0] in layers]:
        raise ConfigError(f"quantization_config quantizes the table {tables[0]}, which is not supported; ignore it")
    if not layers:
        raise ConfigError(
            f"quantization_config has the targets {shorten([target for target, _ in kinds])} and the ignored layers "
            f"{shorten(ignored)}, which leave no linear layer of the model; save or download the checkpoint again"
        )
    return QuantizationConfig(tuple(layers.items()))


def _leaf(row: Weight) -> str:
    return (row.path or "").rpartition("/")[2]


def _check_options(config: Mapping[str, Any]) -> None:
    """Raise ConfigError if compressed-tensors is told to do more than to quantize weights and activations."""
    status, sparsity = config.get("quantization_status"), config.get("sparsity_config")
    if status not in (None, "compressed"):
        raise ConfigError(
            f"quantization_config has the quantization_status {shorten(status)}; only 'compressed' is supported"
        )
    formats = [config.get("format")]
    groups = config.get("config_groups")
    formats += (
        [group.get("format") for group in groups.values() if isinstance(group, Mapping)]
        if isinstance(groups, Mapping)
        else []
    )
    for name in formats:
        if name is not None and name not in FORMATS:
            raise ConfigError(f"quantization_config has the format {shorten(name)}; supported are {', '.join(FORMATS)}")
    for name in ("kv_cache_scheme", "transform_config"):
        if config.get(name):
            raise ConfigError(f"quantization_config has {name} {shorten(config[name])}, which is not supported")
    if sparsity and not (isinstance(sparsity, Mapping) and sparsity.get("format") in (None, "dense")):
        raise ConfigError(
            f"quantization_config has sparsity_config {shorten(sparsity)}; only dense weights are supported"
        )


def _rank(target: Any, names: tuple[str, str], kind: str, deadline: float) -> int | None:
    """Return how precisely a target describes a module: 0 by its name, 1 by a pattern, 2 by its class; None if it does not.

    Of several targets, compressed-tensors takes the one with the lowest rank.
    """
    if not isinstance(target, str):
        raise ConfigError(f"quantization_config names the layer {shorten(target)}; a name is text")
    if target in names:
        return 0
    if target.startswith("re:"):
        pattern, left = target.removeprefix("re:"), max(deadline - time.monotonic(), 1e-3)
        if len(pattern) > LONGEST_PATTERN:
            raise ConfigError(
                f"quantization_config has a pattern of {len(pattern)} characters; expected at most {LONGEST_PATTERN}"
            )
        try:
            return 1 if any(regex.match(pattern, name, timeout=left) for name in names) else None
        except TimeoutError:
            raise ConfigError(
                f"quantization_config has the pattern {shorten(target)}, which takes too long to match; list the layers by name"
            ) from None
        except (regex.error, OverflowError, RecursionError, MemoryError) as error:
            raise ConfigError(f"quantization_config has the invalid pattern {shorten(target)}: {error}") from None
    return 2 if target == kind else None


def _read_group(group: Mapping[str, Any]) -> LayerQuantization:
    weights: Any = group.get("weights")
    inputs = group.get("input_activations")
    bits = _option(weights, "num_bits", (8, 4), "weights")
    _option(weights, "type", ("int", None), "weights")
    _option(weights, "symmetric", (True, None), "weights")
    _option(weights, "dynamic", (False, None), "weights")
    if group.get("output_activations") is not None:
        raise ConfigError(
            f"quantization_config has output_activations {shorten(group['output_activations'])}; only null is supported"
        )
    size = None
    if _option(weights, "strategy", ("channel", "group"), "weights") == "group":
        size = weights.get("group_size")
        if type(size) is not int or not 1 <= size <= MOST_INPUTS:
            raise ConfigError(f"quantization_config has the group_size {shorten(size)}; it must be a positive number")
    _option(weights, "actorder", (None, "static", "weight"), "weights")  # which keep the order of the stored weights
    if inputs is None:
        return LayerQuantization(bits, size)
    _option(inputs, "num_bits", (8,), "input_activations")
    _option(inputs, "type", ("int", None), "input_activations")
    _option(inputs, "symmetric", (True, None), "input_activations")
    is_dynamic = bool(_option(inputs, "dynamic", (True, False, None), "input_activations"))
    _option(inputs, "strategy", ("token",) if is_dynamic else ("tensor",), "input_activations")
    return LayerQuantization(bits, size, "dynamic" if is_dynamic else "static")


def _option(options: Any, name: str, allowed: tuple[Any, ...], what: str) -> Any:
    value = options.get(name) if isinstance(options, Mapping) else None
    if not any(value is x or (value == x and type(value) is type(x)) for x in allowed):
        raise ConfigError(
            f"quantization_config has {name} {shorten(value)} of {what}; supported is {' or '.join(map(repr, allowed))}"
        )
    return value


def _read_own(groups: Any, known: Collection[str]) -> QuantizationConfig:
    """Return the quantization that our own description says; ``known`` are the paths of the family's kernels and tables."""
    if not isinstance(groups, list):
        raise ConfigError("quantization_config has no list of layers; save or download the checkpoint again")
    layers: dict[str, LayerQuantization] = {}
    names = set(LayerQuantization.__dataclass_fields__)
    for group in groups:
        options = {"input_scale": None, **group} if isinstance(group, Mapping) else {}
        paths = options.pop("paths", None)
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths) or set(options) != names:
            raise ConfigError(
                f"quantization_config has the layers {shorten(group)}; save or download the checkpoint again"
            )
        kind = _own_kind(options)
        for path in paths:
            if path in layers or not {f"{path}/{leaf}" for leaf in QUANTIZED_LEAVES} & set(known):
                why = "twice" if path in layers else "which no head of this model has"
                raise ConfigError(f"quantization_config has the layer {shorten(path)} {why}; quantize the model again")
            is_table = f"{path}/embedding" in known
            if is_table and (path.endswith("relative_attention") or kind not in TABLES):
                raise ConfigError(
                    f"quantization_config has the table {path} as {shorten(asdict(kind))}; tables that are looked up have 8 "
                    "bits and a scale per row: quantize the model again"
                )
            layers[path] = kind
    return QuantizationConfig(tuple(layers.items()))


def _own_kind(options: Mapping[str, Any]) -> LayerQuantization:
    """Return one layer's quantization; raise ConfigError if an option is of the wrong kind."""
    size = options.get("group_size")
    if size is not None and (type(size) is not int or not 1 <= size <= MOST_INPUTS):
        raise ConfigError(
            f"quantization_config has the group_size {shorten(size)}; it must be a positive number, or null"
        )
    for name, kind in {"bits": int, "activations": str, "channel_scaled": bool}.items():
        if name in options and type(options[name]) is not kind:
            raise ConfigError(
                f"quantization_config has {name} {shorten(options[name])}, a {type(options[name]).__name__}; expected a "
                f"{kind.__name__}"
            )
    scale = options.get("input_scale")
    if (scale is not None and not isinstance(scale, (int, float))) or isinstance(scale, bool):
        raise ConfigError(f"quantization_config has the input_scale {shorten(scale)}; it must be a positive number")
    return LayerQuantization(**options)


def write_quantization(quantization: QuantizationConfig) -> dict[str, Any]:
    """Describe which layers are quantized by their paths; :func:`read_quantization` inverts it."""
    runs = groupby(quantization.layers, key=lambda item: item[1])
    groups: list[dict[str, Any]] = [{"paths": [path for path, _ in layers], **asdict(kind)} for kind, layers in runs]
    for group in groups:
        if group["input_scale"] is None:
            del group["input_scale"]
    return {"quant_method": METHOD, "layers": groups}


def standard_quantization(
    quantization: QuantizationConfig, rows: Sequence[Weight], sizes: Mapping[str, int], prefix: str = ""
) -> dict[str, Any] | None:
    """Describe which layers of a model with one head are quantized in the conventions of compressed-tensors.

    Args:
        quantization: The quantization.
        rows: The model's weight table.
        sizes: Number of inputs of each kernel, by its path.
        prefix: Prefix that the names of the tensors in the table have and those in the checkpoint have not.

    Returns:
        Contents of ``quantization_config``; None if they cannot express it.
    """
    present = {str(row.path).rpartition("/")[0] for row in rows}
    layers = {path: layer for path, layer in quantization.layers if path in present}
    kinds = set(layers.values())
    if len(kinds) != 1 or (kind := next(iter(kinds))).channel_scaled:
        return None
    modules: dict[str, set[bool]] = {}
    for row in rows:
        path = str(row.path).rpartition("/")[0]
        is_quantized = path in layers and _leaf(row) in QUANTIZED_LEAVES
        if is_quantized and (row.layout != "linear" or (row.part is not None and kind.activations == "static")):
            return None
        if row.layout == "linear":  # a tied output as well, which is a module in PyTorch
            modules.setdefault(row.name.rpartition(".")[0].removeprefix(prefix), set()).add(is_quantized)
    if any(kind.group_size and sizes[f"{path}/kernel"] % kind.group_size for path in layers):
        return None
    if any(len(states) > 1 for states in modules.values()):
        return None
    integers = {"type": "int", "symmetric": True}
    weights: dict[str, Any] = {"num_bits": kind.bits, **integers, "dynamic": False}
    weights |= {"strategy": "group", "group_size": kind.group_size} if kind.group_size else {"strategy": "channel"}
    inputs = None
    if kind.activations != "float":
        is_dynamic = kind.activations == "dynamic"
        inputs = {"num_bits": 8, **integers, "strategy": "token" if is_dynamic else "tensor", "dynamic": is_dynamic}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": OTHERS,
        "format": PACKED if inputs is None else "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": sorted(module for module, states in modules.items() if not any(states)),
    }


def quantized_rows(rows: Sequence[Weight], quantization: QuantizationConfig | None) -> list[Weight]:
    """Return a weight table with the tensors of quantized layers in place of their weights.

    ``X.weight`` of 8 bits has its layout as ever; of 4 bits, it is ``X.weight_packed`` int32 [out, ceil(in / 8)], beside
    ``X.weight_shape`` [2]. ``X.weight_scale`` is [out, 1], [out, groups] or [rows, 1], ``X.input_scale`` [1], and our own
    ``X.channel_scale`` [in]; each part of a fused tensor has its own of the last two. Zero points, which other software may
    write, are read if they are zeros.

    Args:
        rows: The family's table.
        quantization: Which layers are quantized; None for no layer.

    Raises:
        ConfigError: Layers whose weights are one tensor in a checkpoint, such as GPT-2's query, key and value, are not quantized
            alike.
    """
    if quantization is None or quantization.simulated:
        return list(rows)
    _check_fused(rows, quantization)
    out = []
    for row in rows:
        layer, leaf = str(row.path).rpartition("/")[0], _leaf(row)
        kind = quantization.of(layer) if leaf in QUANTIZED_LEAVES else None
        if kind is None:
            out.append(row)
            continue
        if kind.bits == 4:
            out += [_beside(row, "weight_packed", row.path, "packed"), _beside(row, "weight_shape", None, "shape")]
        else:
            out.append(row)
        out.append(_beside(row, "weight_scale", f"{row.path}_scale", "linear" if kind.group_size else "scale"))
        out.append(_beside(row, "weight_zero_point", None, "zeros"))
        own = layer.rpartition("/")[2] if row.part is not None else ""
        if kind.activations == "static":
            out.append(_beside(row, "input_scale", f"{layer}/input_scale", "scalar", own))
            out.append(_beside(row, "input_zero_point", None, "zeros"))
        if kind.channel_scaled:
            out.append(_beside(row, "channel_scale", f"{layer}/channel_scale", "vector", own))
    return out


def _check_fused(rows: Sequence[Weight], quantization: QuantizationConfig) -> None:
    kinds: dict[str, dict[str, LayerQuantization | None]] = {}
    for row in rows:
        if row.part is not None and _leaf(row) in QUANTIZED_LEAVES:
            layer = str(row.path).rpartition("/")[0]
            kinds.setdefault(row.name, {})[layer] = quantization.of(layer)
    for name, by_layer in kinds.items():
        if len(set(by_layer.values())) > 1:
            raise ConfigError(
                f"{', '.join(by_layer)} are one tensor of a checkpoint, {name!r}; quantize all of them alike, or none"
            )


def _beside(row: Weight, ending: str, path: str | None, layout: str, own: str = "") -> Weight:
    """Return the row of a tensor that goes with a weight.

    Args:
        row: Row of the weight.
        ending: Last component of the name.
        path: Path of the parameter.
        layout: Layout of the tensor.
        own: Name of a part of a fused tensor that has such a tensor of its own; one of the whole is read for all parts.
    """

    def name(weight: str, *parts: str) -> str:
        return ".".join(part for part in (re.sub(r"\.?weight$", "", weight), *parts, ending) if part)

    aliases = [name(weight, own) for weight in row.aliases]
    aliases += [name(weight) for weight in (row.name, *row.aliases)] if own else []
    copies = tuple(name(weight, own) for weight in row.copies)
    part = None if own else row.part
    constant = "unused" if path is None else ""
    return Weight(
        name(row.name, own), path, layout, part, tuple(aliases), copies, optional=row.optional,
        constant=constant,
    )  # fmt: skip
