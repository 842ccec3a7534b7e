"""How a checkpoint says which of its layers are quantized: ``quantization_config`` of config.json.

Linear layers that are all quantized alike are described in the conventions of compressed-tensors
(https://github.com/vllm-project/compressed-tensors), which Transformers and vLLM read. Whatever those cannot express (quantized
tables, scaled channels, layers that differ) is described by our own paths, as quant_method "duonlp".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from duonlp.architectures._common import Weight
from duonlp.config import LayerQuantization, QuantizationConfig
from duonlp.errors import ConfigError
from duonlp.schema import shorten

METHOD, OTHERS = "duonlp", "compressed-tensors"
"""Values of ``quant_method`` that are supported: our own, and that of compressed-tensors."""

LAYOUTS = {"linear": "Linear", "embedding": "Embedding"}
"""Class of the module in PyTorch that holds a tensor, by the tensor's layout."""


def read_quantization(config: Any, rows: Iterable[Weight], prefix: str) -> QuantizationConfig:
    """Translate ``quantization_config`` to the quantization of our layers.

    Args:
        config: Contents of the key.
        rows: Weight tables of all heads of the family.
        prefix: Prefix of the base model's tensor names.

    Raises:
        ConfigError: The method, or one of its options, is unsupported.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"quantization_config is {shorten(config)}; it must be an object")
    method = config.get("quant_method")
    if method == METHOD:
        return _read_own(config.get("layers"))
    if method != OTHERS:
        raise ConfigError(
            f"quantization_config has the quant_method {shorten(method)}; supported are {METHOD!r} and {OTHERS!r}. Load the "
            "original model and call quantize"
        )
    groups, ignored = config.get("config_groups"), config.get("ignore") or []
    if not isinstance(groups, Mapping) or not isinstance(ignored, Sequence) or isinstance(ignored, str):
        raise ConfigError(
            "quantization_config has no valid config_groups and ignore; save or download the checkpoint again"
        )
    layers: dict[str, LayerQuantization] = {}
    for group in groups.values():
        if not isinstance(group, Mapping) or not isinstance(group.get("targets"), list):
            raise ConfigError(
                "a group of quantization_config has no list of targets; save or download the checkpoint again"
            )
        quantization = _read_group(group)
        for row in rows:
            if row.path is None or row.layout not in LAYOUTS:
                continue
            module, kind = row.name.rpartition(".")[0], LAYOUTS[row.layout]
            names = module, module.removeprefix(prefix)
            if _matches(group["targets"], names, kind) and not _matches(ignored, names, kind):
                if kind == "Embedding":
                    raise ConfigError(
                        f"quantization_config quantizes the table {module}, which is not supported; ignore it"
                    )
                layers[row.path.rpartition("/")[0]] = quantization
    return QuantizationConfig(tuple(layers.items()))


def _matches(targets: Sequence[Any], names: tuple[str, str], kind: str) -> bool:
    for target in targets:
        if not isinstance(target, str):
            raise ConfigError(f"quantization_config names the layer {shorten(target)}; a name is text")
        if target == kind or target in names:
            return True
        if target.startswith("re:"):
            try:
                if any(re.match(target.removeprefix("re:"), name) for name in names):
                    return True
            except re.error as error:
                raise ConfigError(f"quantization_config has the invalid pattern {shorten(target)}: {error}") from None
    return False


def _read_group(group: Mapping[str, Any]) -> LayerQuantization:
    weights: Any = group.get("weights")
    inputs = group.get("input_activations")
    bits = _option(weights, "num_bits", (8, 4), "weights")
    _option(weights, "type", ("int",), "weights")
    _option(weights, "symmetric", (True,), "weights")
    size = None
    if _option(weights, "strategy", ("channel", "group"), "weights") == "group":
        size = weights.get("group_size")
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 2**20:
            raise ConfigError(f"quantization_config has the group_size {shorten(size)}; it must be a positive number")
    if weights.get("actorder") not in (
        None,
        "static",
        "weight",
    ):  # which leave the order of the stored weights as it is
        raise ConfigError(f"quantization_config has actorder {shorten(weights['actorder'])}, which is not supported")
    if inputs is None:
        return LayerQuantization(bits, size)
    _option(inputs, "num_bits", (8,), "input_activations")
    _option(inputs, "type", ("int",), "input_activations")
    _option(inputs, "symmetric", (True,), "input_activations")
    is_dynamic = _option(inputs, "dynamic", (True, False), "input_activations")
    _option(inputs, "strategy", ("token",) if is_dynamic else ("tensor",), "input_activations")
    return LayerQuantization(bits, size, "dynamic" if is_dynamic else "static")


def _option(options: Any, name: str, allowed: tuple[Any, ...], what: str) -> Any:
    value = options.get(name) if isinstance(options, Mapping) else None
    if not any(value is x or (value == x and type(value) is type(x)) for x in allowed):
        raise ConfigError(
            f"quantization_config has {name} {shorten(value)} of {what}; supported is {' or '.join(map(repr, allowed))}"
        )
    return value


def _read_own(groups: Any) -> QuantizationConfig:
    if not isinstance(groups, list):
        raise ConfigError("quantization_config has no list of layers; save or download the checkpoint again")
    layers: dict[str, LayerQuantization] = {}
    names = set(LayerQuantization.__dataclass_fields__)
    for group in groups:
        options = dict(group) if isinstance(group, Mapping) else {}
        paths = options.pop("paths", None)
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths) or set(options) - names:
            raise ConfigError(
                f"quantization_config has the layers {shorten(group)}; save or download the checkpoint again"
            )
        _check_own(options)
        layers |= dict.fromkeys(paths, LayerQuantization(**options))
    return QuantizationConfig(tuple(layers.items()))


def _check_own(options: Mapping[str, Any]) -> None:
    size = options.get("group_size")
    is_size = size is None or (isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= 2**20)
    kinds = {"bits": int, "activations": str, "channel_scaled": bool}
    for name, kind in kinds.items():
        if name in options and type(options[name]) is not kind:
            raise ConfigError(f"quantization_config has {name} {shorten(options[name])}; it is of another kind")
    if not is_size:
        raise ConfigError(
            f"quantization_config has the group_size {shorten(size)}; it must be a positive number, or null"
        )


def write_quantization(quantization: QuantizationConfig, rows: Iterable[Weight]) -> dict[str, Any]:
    """Translate the quantization of a model's layers to ``quantization_config``; the inverse of :func:`read_quantization`.

    Args:
        quantization: The quantization.
        rows: The model's weight table.
    """
    rows = [row for row in rows if row.path is not None]
    present = {row.path.rpartition("/")[0] for row in rows if row.path is not None}
    layers = [(path, layer) for path, layer in quantization.layers if path in present]
    if (standard := _standard(dict(layers), rows)) is not None:
        return standard
    kinds = dict.fromkeys(layer for _, layer in layers)
    groups = [{"paths": [path for path, layer in layers if layer == kind], **asdict(kind)} for kind in kinds]
    return {"quant_method": METHOD, "layers": groups}


def _standard(layers: Mapping[str, LayerQuantization], rows: Sequence[Weight]) -> dict[str, Any] | None:
    """Return the description in the conventions of compressed-tensors; None if they cannot express it."""
    kinds = set(layers.values())
    if len(kinds) != 1 or (kind := next(iter(kinds))).channel_scaled:
        return None
    modules: dict[str, set[bool]] = {}
    for row in rows:
        path, _, leaf = str(row.path).rpartition("/")
        if path in layers and (row.layout != "linear" or row.part is not None or leaf != "kernel"):
            if leaf != "bias":
                return None
        elif row.layout == "linear":
            modules.setdefault(row.name.rpartition(".")[0], set()).add(path in layers)
    if any(len(states) > 1 for states in modules.values()):
        return None
    options = {"type": "int", "symmetric": True}
    weights = {
        "num_bits": kind.bits,
        **options,
        "strategy": "group" if kind.group_size else "channel",
        "dynamic": False,
    }
    weights |= {"group_size": kind.group_size} if kind.group_size else {}
    inputs = None
    if kind.activations != "float":
        is_dynamic = kind.activations == "dynamic"
        inputs = {"num_bits": 8, **options, "strategy": "token" if is_dynamic else "tensor", "dynamic": is_dynamic}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": OTHERS,
        "format": "pack-quantized" if kind.bits == 4 else "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": sorted(module for module, states in modules.items() if not any(states)),
    }


def quantized_rows(rows: Sequence[Weight], quantization: QuantizationConfig | None) -> list[Weight]:
    """Return a weight table with the tensors of quantized layers in place of their weights.

    ``X.weight`` of 8 bits has its layout as ever; of 4 bits, it is ``X.weight_packed`` int32 [out, ceil(in / 8)]. Beside it are
    ``X.weight_scale`` [out, 1], [out, groups] or [rows, 1]; ``X.input_scale`` [1] and our own ``X.channel_scale`` [in], of which
    each part of a fused tensor has its own.

    Args:
        rows: The family's table.
        quantization: Which layers are quantized; None for no layer.
    """
    if quantization is None or quantization.simulated:
        return list(rows)
    out = []
    for row in rows:
        layer, _, leaf = (row.path or "").rpartition("/")
        kind = quantization.of(layer) if leaf in ("kernel", "embedding") else None
        if kind is None:
            out.append(row)
            continue
        path = row.path
        if kind.bits == 4:
            out.append(_renamed(row, "_packed", path, "packed"))
            out.append(_renamed(row, "_shape", None, "shape"))
        else:
            out.append(row)
        out.append(_renamed(row, "_scale", f"{path}_scale", "linear" if kind.group_size else "scale"))
        own = "" if row.part is None else layer.rpartition("/")[2] + "."
        module = re.sub(r"\.?weight$", "", row.name)
        if kind.activations == "static":
            out.append(Weight(f"{module}.{own}input_scale", f"{layer}/input_scale", "scalar"))
        if kind.channel_scaled:
            out.append(Weight(f"{module}.{own}channel_scale", f"{layer}/channel_scale", "vector"))
    return out


def _renamed(row: Weight, ending: str, path: str | None, layout: str) -> Weight:
    """Return the row of a tensor that goes with a weight."""
    aliases, copies = (tuple(name + ending for name in names) for names in (row.aliases, row.copies))
    constant = "unused" if path is None else ""
    return Weight(row.name + ending, path, layout, row.part, aliases, copies, optional=row.optional, constant=constant)
