"""Masks in the step of training: kernels times their masks, and new masks where they are due.

Masks and scores are dicts by path of a kernel among the trained parameters, where those of stacked layers are stacked.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from duonlp.pruning import Pruning, compute_masks, mask_shapes
from duonlp.training.fit_config import FitConfig
from jaxnlp.pretrained import Params
from jaxnlp.training.mesh import path_of
from jaxnlp.training.model import Trainable

SCORES = "pruning"
"""Key of the trained scores among the trained parameters, and of the masks in the state of a run."""

SUFFIX = "_scores"
"""End of the name of a kernel's scores, so that they get no weight decay."""


def stacked_shapes(settings: Pruning, trainable: Trainable) -> dict[str, tuple[int, ...]]:
    """Return the shape of the mask of each kernel that is pruned; raise InputError as :func:`mask_shapes`."""
    shapes = mask_shapes(settings, trainable.config, trainable.head)
    return {
        path: shapes[names[0]] if names == (path,) else (len(names), *shapes[names[0]])
        for path, names in trainable.paths.items()
        if names[0] in shapes
    }


def initial_scores(settings: Pruning | None, trainable: Trainable) -> Params:
    """Return {SCORES: ...}, zeros to add to the trained parameters; {} without trained scores."""
    if settings is None or not settings.trains_scores:
        return {}
    shapes = stacked_shapes(settings, trainable)
    return {SCORES: {path + SUFFIX: np.zeros(shape, np.float32) for path, shape in shapes.items()}}


def initial_masks(settings: Pruning, trainable: Trainable) -> dict[str, Any]:
    """Return the masks before the first step, which keep everything, and the weight of the penalty."""
    shapes = stacked_shapes(settings, trainable)
    return {"masks": {path: jnp.ones(shape, bool) for path, shape in shapes.items()}, "penalty": jnp.zeros(())}


def pruned(params: Params, masks: Mapping[str, jax.Array]) -> Params:
    """Return the parameters with kernels times their masks.

    The gradient of a kernel is masked. That of a score is that of its mask: W (sg(M) + S - sg(S)), the straight-through
    estimator of Sanh et al. 2020.
    """
    scores = params.get(SCORES, {})

    def leaf(keys: jax.tree_util.KeyPath, kernel: jax.Array) -> jax.Array:
        path = path_of(keys)
        if path not in masks:
            return kernel
        gate = masks[path].astype(kernel.dtype)
        if path + SUFFIX in scores:
            score = scores[path + SUFFIX]
            gate = gate + (score - jax.lax.stop_gradient(score))
        for axis in (-2, -1):
            times = kernel.shape[axis] // gate.shape[axis]
            gate = gate if times == 1 else jnp.repeat(gate, times, axis)
        return kernel * gate

    return jax.tree_util.tree_map_with_path(leaf, params)


def rate_factor_of_scores(path: str, factor: float, others: Callable[[str], float] | None) -> float:
    """Return the factor of a parameter's learning rate: ``factor`` for scores, and that of ``others`` for the rest."""
    if path.startswith(f"{SCORES}/"):
        return factor
    return 1.0 if others is None else others(path)


def penalty_term(params: Params, weight: jax.Array) -> tuple[jax.Array, jax.Array, float]:
    """Return soft movement's penalty as a term of the loss: the weight times the mean of sigmoid(score)."""
    scores = params[SCORES].values()
    total = sum(jnp.sum(jax.nn.sigmoid(score)) for score in scores) / sum(score.size for score in scores)
    return weight * total, jnp.ones(()), 1.0


def updated_masks(
    config: FitConfig, trainable: Trainable, params: Params, step: int, total: int, fetch: Callable[[jax.Array], np.ndarray]
) -> dict[str, Any] | None:  # fmt: skip
    """Return the masks after ``step`` of ``total`` steps, and the weight of the penalty; None if none are due.

    Args:
        config: Settings of the run.
        trainable: The prepared model.
        params: Trained parameters.
        step: Optimizer steps done.
        total: Optimizer steps of the run.
        fetch: Returns the whole of an array as NumPy.
    """
    settings = config.pruning and config.pruning.resolved(total)
    if settings is None or not settings.due(step):
        return None
    shapes, values = mask_shapes(settings, trainable.config, trainable.head), {}
    leaves = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path, names in trainable.paths.items():
        if names[0] in shapes:
            source = fetch(leaves[f"{SCORES}/{path}{SUFFIX}" if settings.trains_scores else path])
            values |= {path: source} if names == (path,) else dict(zip(names, source, strict=True))
    masks = compute_masks(settings, shapes, values, step)
    stacked = {
        path: masks[path] if names == (path,) else np.stack([masks[name] for name in names])
        for path, names in trainable.paths.items()
        if names[0] in shapes
    }
    return {"masks": stacked, "penalty": np.float32(settings.penalty_at(step))}
