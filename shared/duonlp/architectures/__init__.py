"""The registry of model families. One file a family; both engines run whatever stands here.

A family is a module of this package with:

- ``MODEL_TYPES``: the ``model_type`` values of config.json it serves;
- ``PREFIX``: what stands before the base model's tensor names in a checkpoint with a head;
- ``heads(model_type) -> {head: Hugging Face class name}``;
- ``config(hf) -> TransformerConfig`` and ``hf_config(cfg) -> dict``, each other's inverse;
- ``weights(cfg, head) -> list[Weight]``: one row a tensor.

Add a module, and it is found here, loaded, saved, listed and tested for parity without another line.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

from duonlp.config import TransformerConfig
from duonlp.errors import ConfigError

HEADS = (
    "base",
    "masked-lm",
    "causal-lm",
    "seq2seq-lm",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "next-sentence-prediction",
    "pretraining",
    "replaced-token-detection",
)
"""Every head, in the order tables list them."""


@cache
def _registry() -> dict[str, ModuleType]:
    modules = [
        importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
        if not info.name.startswith("_")
    ]
    return {model_type: module for module in modules for model_type in module.MODEL_TYPES}


def families() -> list[str]:
    """Every ``model_type`` that can be loaded."""
    return sorted(_registry())


def get(model_type: str) -> ModuleType:
    """The family that serves ``model_type``; raises ConfigError when none does."""
    registry = _registry()
    if model_type not in registry:
        raise ConfigError(f"model_type {model_type!r} is not supported; supported are {', '.join(sorted(registry))}")
    return registry[model_type]


def config_from_hf(hf: Mapping[str, Any]) -> TransformerConfig:
    """config.json as a dict to a TransformerConfig.

    Raises:
        ConfigError: no or unknown ``model_type``, or an option whose arithmetic no engine has.
    """
    if not hf.get("model_type"):
        raise ConfigError(f"config.json has no model_type; supported are {', '.join(families())}")
    return get(hf["model_type"]).config(dict(hf))


def hf_config(cfg: TransformerConfig, head: str = "base") -> dict[str, Any]:
    """The inverse of :func:`config_from_hf`, with ``architectures`` naming the class of ``head``."""
    family = get(cfg.model_type)
    out = dict(cfg.extra) | {"model_type": cfg.model_type} | family.hf_config(cfg)
    out["architectures"] = [class_name(cfg.model_type, head)]
    return out


def class_name(model_type: str, head: str) -> str:
    """The Transformers class of a (family, head); raises ConfigError when the family has no such head."""
    names = get(model_type).heads(model_type)
    if head not in names:
        hints = {
            "causal-lm": "; it writes text from text: AutoModelForSeq2SeqLM, duonlp run text2text-generation or summarize",
            "seq2seq-lm": "; take an encoder-decoder, such as t5",
        }
        hint = hints.get(head, "") if head != "causal-lm" or "seq2seq-lm" in names else ""
        raise ConfigError(f"{model_type} has no {head!r} head; it has {', '.join(names)}{hint}")
    return names[head]


def head_of(hf: Mapping[str, Any]) -> str:
    """The head a checkpoint was saved with, by its ``architectures``; "base" when that says nothing."""
    saved = (hf.get("architectures") or [""])[0]
    names = get(hf["model_type"]).heads(hf["model_type"])
    return next((head for head, name in names.items() if name == saved), "base")
