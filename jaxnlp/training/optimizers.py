"""Optimizers by name, without the learning rate, which the training step applies."""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
import optax

from duonlp.parameters import decays
from duonlp.training.config import PretrainingConfig
from duonlp.training.fit_config import FitConfig
from jaxnlp.training.mesh import PyTree, path_of
from jaxnlp.training.model import STACKED, layer_paths


def make_optimizer(
    config: PretrainingConfig | FitConfig, rate_factors: Callable[[str], float] | None = None
) -> optax.GradientTransformation:
    """Return a chain of clipping by global norm, an optimizer, and decoupled weight decay on matrices and embeddings.

    The optimizer is AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), Adafactor (Shazeer & Stern 2018,
    https://arxiv.org/abs/1804.04235; factored second moments, no first moment, updates relative to the scale of the
    parameter) or Lion (Chen et al. 2023, https://arxiv.org/abs/2302.06675).

    Args:
        config: Name and settings of the optimizer. A clip_norm of None disables clipping.
        rate_factors: Path of a parameter -> factor of its learning rate and weight decay, such as
            ``duonlp.training.layer_decay.rate_factor``. None applies one rate to all.
    """
    rules = {
        "adamw": lambda: optax.scale_by_adam(b1=config.beta1, b2=config.beta2),
        "lion": lambda: optax.scale_by_lion(b1=config.beta1, b2=config.beta2),
        "adafactor": lambda: per_layer(
            optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
        ),
    }
    transforms = [
        # An infinite norm keeps the structure of the state the same without clipping.
        optax.clip_by_global_norm(math.inf if config.clip_norm is None else config.clip_norm),
        rules[config.optimizer](),
        optax.add_decayed_weights(config.weight_decay, mask=_decay_mask),
    ]
    return optax.chain(*transforms, *([] if rate_factors is None else [_scale_updates(rate_factors)]))


def _decay_mask(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda keys, _: decays(path_of(keys)), params)


def _scale_updates(factors: Callable[[str], float]) -> optax.GradientTransformation:
    """Return a transform that multiplies updates by the factor of their path; stacked ones by the factor of each layer."""

    def scale(keys: jax.tree_util.KeyPath, update: jax.Array) -> jax.Array:
        path = path_of(keys)
        if not STACKED.search(path):
            return update * factors(path)
        layer_factors = [factors(name) for name in layer_paths(path, update.shape[0])]
        return update * np.asarray(layer_factors, update.dtype).reshape(-1, *[1] * (update.ndim - 1))

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def per_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return `transform` applied to the parameters of each layer separately where layers are stacked.

    Needed for rules that depend on the whole array: its rows and columns, or its scale. Scanning then changes no result, and
    the optimizer state has the paths of a model that is not scanned.
    """

    def unstack(tree: PyTree) -> dict[str, Any]:
        leaves = {}
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            path = path_of(keys)
            if STACKED.search(path):
                leaves |= {name: leaf[i] for i, name in enumerate(layer_paths(path, leaf.shape[0]))}
            else:
                leaves[path] = leaf
        return leaves

    def restack(leaves: dict[str, Any], like: PyTree) -> PyTree:
        def leaf_of(keys: jax.tree_util.KeyPath, leaf: jax.Array) -> jax.Array:
            path = path_of(keys)
            if not STACKED.search(path):
                return leaves[path]
            return jax.numpy.stack([leaves[name] for name in layer_paths(path, leaf.shape[0])])

        return jax.tree_util.tree_map_with_path(leaf_of, like)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        new_updates, state = transform.update(unstack(updates), state, unstack(params))
        return restack(cast(dict[str, Any], new_updates), updates), state

    return optax.GradientTransformation(lambda params: transform.init(unstack(params)), update)
