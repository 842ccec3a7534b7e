"""Registry of model families: one module per family, used by both engines.

A family is a module of this package with:

- ``MODEL_TYPES``: the ``model_type`` values of config.json that it serves;
- ``PREFIX``: prefix of the base model's tensor names in a checkpoint with a head;
- ``heads(model_type) -> {head: Transformers class name}``;
- ``config(hf) -> TransformerConfig`` and its inverse ``hf_config(cfg) -> dict``;
- ``weights(cfg, head) -> list[Weight]``: the weight table, one row per tensor;
- ``SCHEMA``: kinds and bounds of the keys that ``config`` reads (see :mod:`duonlp.schema`), checked before it is called;
- optionally ``BASE_CLASSES``: if Transformers has several classes for the base model (DPR), the prefix of the tensors of each.

A module added here is discovered automatically: it loads, saves, is listed and is tested for parity without further code.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

from duonlp.architectures._common import COMMON_SCHEMA, Weight
from duonlp.architectures._pruning import PRUNED_LAYERS, layer_sizes, read_pruned_layers, with_sizes
from duonlp.architectures._quantization import quantized_rows, read_quantization, write_quantization
from duonlp.config import TransformerConfig
from duonlp.errors import ConfigError
from duonlp.heads import HEADS as HEADS
from duonlp.schema import check

HINTS = {
    "causal-lm": (
        "seq2seq-lm",
        "; it is an encoder-decoder: use AutoModelForSeq2SeqLM, or duonlp run text2text-generation or summarize",
    ),
    "seq2seq-lm": (None, "; use an encoder-decoder such as t5"),
}
"""Advice for a head that a family lacks, if the family has the other head (None: always)."""

COMPOSITES = {"rag": "RagSequence or RagToken of jaxnlp.rag or tfnlp.rag"}
"""What loads models that consist of several others, by ``model_type``."""

QUANTIZATION_KEYS = "quantization_config", "quantization_aware"
"""Keys of config.json that say how a model is quantized, and how quantization-aware training rounds it."""

FAMILY_ATTRIBUTES = ("MODEL_TYPES", "PREFIX", "heads", "config", "hf_config", "weights")
"""Attributes that a family must define."""


@cache
def _registry() -> dict[str, ModuleType]:
    modules = [
        importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
        if not info.name.startswith("_")
    ]
    return {model_type: module for module in modules for model_type in module.MODEL_TYPES}


def register(family: Any) -> None:
    """Add a family from outside this package.

    Args:
        family: A module, or another object, with the attributes that this package's docstring lists.

    Raises:
        ConfigError: Another family has one of its model types, or an attribute is missing.
    """
    missing = [name for name in FAMILY_ATTRIBUTES if not hasattr(family, name)]
    if missing:
        raise ConfigError(f"the family has no {', '.join(missing)}; define {', '.join(FAMILY_ATTRIBUTES)}")
    for model_type in family.MODEL_TYPES:
        if _registry().get(model_type, family) is not family:
            raise ConfigError(f"model_type {model_type!r} is taken by another family; use another name")
    _registry().update(dict.fromkeys(family.MODEL_TYPES, family))


def families() -> list[str]:
    """Return every supported ``model_type``, sorted."""
    return sorted(_registry())


def get(model_type: str) -> ModuleType:
    """Return the family module that serves ``model_type``.

    Raises:
        ConfigError: ``model_type`` is not supported.
    """
    registry = _registry()
    if model_type in COMPOSITES:
        raise ConfigError(
            f"model_type {model_type!r} is a model of several others; load it with {COMPOSITES[model_type]}"
        )
    if model_type not in registry:
        raise ConfigError(f"model_type {model_type!r} is not supported; use one of {', '.join(sorted(registry))}")
    return registry[model_type]


def config_from_hf(hf: Mapping[str, Any], file: str = "config.json") -> TransformerConfig:
    """Translate the contents of config.json to a TransformerConfig.

    Args:
        hf: The contents.
        file: Name of the file, for error messages.

    Raises:
        ConfigError: ``model_type`` is missing or unsupported, a value is of the wrong kind or out of bounds, or an option
            changes the computation in an unsupported way.
    """
    check(file, hf, COMMON_SCHEMA)
    if not hf.get("model_type"):
        raise ConfigError(f"{file} has no model_type; set it to one of {', '.join(families())}")
    family = get(hf["model_type"])
    check(file, hf, getattr(family, "SCHEMA", {}))
    hf = dict(hf)
    quantized, simulated = (hf.pop(key, None) for key in QUANTIZATION_KEYS)
    pruned = hf.pop(PRUNED_LAYERS, None)
    cfg = family.config(hf)
    cfg = cfg if pruned is None else read_pruned_layers(cfg, pruned)
    if quantized is None and simulated is None:
        return cfg
    rows = (row for head in family.heads(cfg.model_type) for row in family.weights(cfg, head))
    quantization = read_quantization(simulated if quantized is None else quantized, list(rows), family.PREFIX)
    return cfg.replace(quantization=replace(quantization, simulated=quantized is None))


def hf_config(cfg: TransformerConfig, head: str = "base") -> dict[str, Any]:
    """Translate a TransformerConfig to config.json, with ``architectures`` set to the class of ``head``.

    The inverse of :func:`config_from_hf`.
    """
    family = get(cfg.model_type)
    before = with_sizes(cfg, cfg.unpruned_sizes) if cfg.unpruned_sizes else cfg
    out = dict(cfg.extra) | {"model_type": cfg.model_type} | family.hf_config(before)
    if cfg.unpruned_sizes:
        out[PRUNED_LAYERS] = [list(sizes) for sizes in layer_sizes(cfg.layers)]
    out["architectures"] = [class_of(cfg, head)]
    if cfg.quantization is not None:
        out[QUANTIZATION_KEYS[cfg.quantization.simulated]] = write_quantization(cfg.quantization)
    return out


def weights(cfg: TransformerConfig, head: str) -> list[Weight]:
    """Return the weight table of a model: the family's, with the tensors of quantized layers in place of their weights."""
    return quantized_rows(get(cfg.model_type).weights(cfg, head), cfg.quantization)


def class_of(cfg: TransformerConfig, head: str) -> str:
    """Return the name of the Transformers class of a model.

    Raises:
        ConfigError: the family has no such head.
    """
    name = class_name(cfg.model_type, head)
    return cfg.base_class if name in base_classes(cfg.model_type) else name


def base_classes(model_type: str) -> dict[str, str]:
    """Return the prefix of the tensors of each class that Transformers has for the base model, if it has several; else {}."""
    return getattr(get(model_type), "BASE_CLASSES", {})


def with_base_class(cfg: TransformerConfig, hf: Mapping[str, Any], names: Iterable[str]) -> TransformerConfig:
    """Return a configuration with the class whose tensors a checkpoint has, if ``architectures`` in config.json names none.

    Args:
        cfg: The configuration according to config.json.
        hf: Contents of config.json.
        names: Names of the tensors.
    """
    classes = base_classes(cfg.model_type)
    if not classes or any(name in classes for name in hf.get("architectures") or []):
        return cfg
    first = next((prefix for name in names for prefix in classes.values() if name.startswith(prefix)), None)
    return next((replace(cfg, base_class=name) for name, prefix in classes.items() if prefix == first), cfg)


def class_name(model_type: str, head: str) -> str:
    """Return the name of the Transformers class for a (family, head) pair.

    Raises:
        ConfigError: the family has no such head.
    """
    names = get(model_type).heads(model_type)
    if head not in names:
        other, hint = HINTS.get(head, (None, ""))
        hint = hint if other is None or other in names else ""
        raise ConfigError(f"{model_type} has no {head!r} head; available heads are {', '.join(names)}{hint}")
    return names[head]


def head_of(hf: Mapping[str, Any]) -> str:
    """Return the head named by ``architectures`` in config.json, or "base" if it names none.

    Raises:
        ConfigError: ``architectures`` is not a list of names, or ``model_type`` is missing or unsupported.
    """
    check("config.json", hf, {key: COMMON_SCHEMA[key] for key in ("architectures", "model_type")})
    saved_class = (hf.get("architectures") or [""])[0]
    names = get(hf.get("model_type", "")).heads(hf["model_type"])
    # Transformers' Flax models are BertForCausalLM where those of PyTorch are BertLMHeadModel.
    saved = (saved_class, saved_class.replace("ForCausalLM", "LMHeadModel"))
    return next((head for head, name in names.items() if name in saved), "base")
