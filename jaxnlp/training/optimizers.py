"""Optimizers by name, but for the learning rate, which the training step multiplies in."""

from collections.abc import Callable

import jax
import numpy as np
import optax

from duonlp.parameters import decays
from duonlp.training.config import PretrainingConfig
from duonlp.training.fit_config import FitConfig
from jaxnlp.training.mesh import path_of
from jaxnlp.training.model import STACKED


def make_optimizer(
    config: PretrainingConfig | FitConfig, rate_factors: Callable[[str], float] | None = None
) -> optax.GradientTransformation:
    """Clipping to a global norm, the optimizer of that name, and decoupled weight decay on matrices and embeddings.

    AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), Adafactor (Shazeer & Stern 2018,
    https://arxiv.org/abs/1804.04235; factored second moments, no first, relative to the size of the parameter) or Lion
    (Chen et al. 2023, https://arxiv.org/abs/2302.06675).

    Args:
        config: which of them, and its settings.
        rate_factors: what the learning rate of the parameter of a path is multiplied with, such as
            ``duonlp.training.layer_decay.rate_factor``; weight decay with it. None: the same rate for all.
    """
    rules = {
        "adamw": lambda: optax.scale_by_adam(b1=config.beta1, b2=config.beta2),
        "lion": lambda: optax.scale_by_lion(b1=config.beta1, b2=config.beta2),
        "adafactor": lambda: one_by_one(
            optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
        ),
    }
    parts = [
        optax.clip_by_global_norm(config.clip_norm),
        rules[config.optimizer](),
        optax.add_decayed_weights(config.weight_decay, mask=_mask),
    ]
    return optax.chain(*parts, *([] if rate_factors is None else [_times(rate_factors)]))


def _mask(params):
    return jax.tree_util.tree_map_with_path(lambda keys, _: decays(path_of(keys)), params)


def _times(factors: Callable[[str], float]) -> optax.GradientTransformation:
    """Updates times the factor of their path; each layer's own, where the layers are stacked."""

    def one(keys, update):
        path = path_of(keys)
        if STACKED not in path:
            return update * factors(path)
        each = [factors(path.replace(STACKED, f"/layer_{i}/")) for i in range(update.shape[0])]
        return update * np.asarray(each, update.dtype).reshape(-1, *[1] * (update.ndim - 1))

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(one, updates))


def one_by_one(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transform` over each layer's own parameters, where the layers are stacked.

    For rules that look at a whole array: its rows and columns, or its size. So scanning changes no result, and the
    optimizer's state has the paths of a model that is not scanned.
    """

    def split(tree):
        apart = {}
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            path = path_of(keys)
            if STACKED in path:
                apart |= {path.replace(STACKED, f"/layer_{i}/"): leaf[i] for i in range(leaf.shape[0])}
            else:
                apart[path] = leaf
        return apart

    def join(apart, like):
        def leaf(keys, old):
            path = path_of(keys)
            if STACKED not in path:
                return apart[path]
            return jax.numpy.stack([apart[path.replace(STACKED, f"/layer_{i}/")] for i in range(old.shape[0])])

        return jax.tree_util.tree_map_with_path(leaf, like)

    def update(updates, state, params):
        new, state = transform.update(split(updates), state, split(params))
        return join(new, updates), state

    return optax.GradientTransformation(lambda params: transform.init(split(params)), update)
