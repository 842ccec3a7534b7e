"""Gradients of a batch in parts, and optimizers by name, without the learning rate, which the training step applies."""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
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


def accumulate_gradients(
    loss: Callable[..., tuple[jax.Array, PyTree]], params: PyTree, batch: PyTree, key: jax.Array | None, pieces: int,
    constrain: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> tuple[jax.Array, PyTree, PyTree]:  # fmt: skip
    """Sum losses and gradients over the microbatches of a batch, computed one after the other.

    Args:
        loss: ``(params, batch, key) -> (loss, aux)``; aux is a pytree of arrays that are summed as well.
        params: Parameters to differentiate with respect to.
        batch: Arrays [B, ...]. Microbatch i has every `pieces`-th row, so that each device has rows of every microbatch.
        key: PRNG key of dropout, or None. Each microbatch folds in its index.
        pieces: Number of microbatches.
        constrain: Function that applies sharding constraints to a microbatch.

    Returns:
        The summed loss, the summed aux, and the gradient of the summed loss, float32.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if pieces == 1:
        (total, aux), gradients = value_and_grad(params, batch, key)
        return total, aux, gradients
    # [B, ...] -> [pieces, B / pieces, ...]
    split = jax.tree.map(lambda x: x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(sums: PyTree, numbered_piece: tuple[jax.Array, PyTree]) -> tuple[PyTree, None]:
        number, piece = numbered_piece
        piece_key = None if key is None else jax.random.fold_in(key, number)
        (total, aux), gradients = value_and_grad(params, constrain(piece), piece_key)
        return jax.tree.map(jnp.add, sums, (total, aux, gradients)), None

    first = jax.tree.map(lambda x: x[0], split)
    zeros = jax.tree.map(jnp.zeros_like, (*jax.eval_shape(loss, params, first, key), params))
    sums, _ = jax.lax.scan(add, zeros, (jnp.arange(pieces), split))
    return sums
