"""Prune a model at once, and remove what is zero."""

from typing import Any, TypeVar

import numpy as np

from duonlp.pruning import Pruning, pruned_values, shrunk_values
from tfnlp.pretrained import Pretrained, merged_values, rebuilt

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
    return rebuilt(model, model.config, pruned_values(_read(model), model.config, model.head, settings))


def shrink(model: P) -> P:
    """Return a model without the attention heads and feed-forward rows that are zero; the given one is not changed.

    It computes the same, faster, and is saved and loaded like any other. Transformers cannot load it.

    Args:
        model: A model that was pruned with ``structure="units"``.

    Raises:
        InputError: Nothing can be removed.
    """
    return rebuilt(model, *shrunk_values(_read(model), model.config, model.head))


def _read(model: Any) -> Any:
    return lambda path: np.asarray(merged_values(model, path))
