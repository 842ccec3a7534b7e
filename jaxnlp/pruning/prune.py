"""Prune a model at once, and remove what is zero."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from duonlp.checkpoints.source import Source
from duonlp.config import TransformerConfig
from duonlp.parameters import parameters
from duonlp.pruning import Pruning, pruned_values, shrunk_values
from jaxnlp.pretrained import Pretrained, parameter_tree

P = TypeVar("P", bound=Pretrained)


def prune(model: P, settings: Pruning) -> P:
    """Return a model whose weights of least magnitude are zero; the given one is not changed.

    To train while pruning, which loses less accuracy, pass the settings to ``FitConfig(pruning=...)`` instead.

    Args:
        model: A model with floating-point weights.
        settings: Which weights to prune.

    Raises:
        InputError: The settings do not fit the model, or need training.
    """
    return _rebuilt(model, model.config, pruned_values(_read(model), model.config, model.head, settings))


def shrink(model: P) -> P:
    """Return a model without the attention heads and feed-forward rows that are zero; the given one is not changed.

    It computes the same, faster, and is saved and loaded like any other. Transformers cannot load it.

    Args:
        model: A model that was pruned with ``structure="units"``.

    Raises:
        InputError: Nothing can be removed.
    """
    return _rebuilt(model, *shrunk_values(_read(model), model.config, model.head))


def _read(model: Any) -> Any:
    values = parameter_tree(model)
    return lambda path: np.asarray(values[path])


def _rebuilt(model: P, cfg: TransformerConfig, values: Mapping[str, np.ndarray]) -> P:
    """Return a model of another configuration, with new values of some parameters and the model's own of the others."""
    specs, read = parameters(cfg, model.head), _read(model)
    plan = [Source(p, spec, values=values[p] if p in values else read(p)) for p, spec in specs.items()]
    create: Any = type(model)  # with the engine's mixin
    new = create._from_plan(cfg, plan, model.dtype.name, model.param_dtype.name)
    new.generation_config, new.folder, new.image_config = model.generation_config, model.folder, model.image_config
    return new
