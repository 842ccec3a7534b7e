"""Optimizers by name, but for the learning rate, which the training step multiplies in."""

import jax
import optax

from jaxnlp.training.mesh import path_of
from jaxnlp.training.model import STACKED
from shared.parameters import decays
from shared.training.config import PretrainingConfig


def make_optimizer(config: PretrainingConfig) -> optax.GradientTransformation:
    """Clipping to a global norm, the optimizer of that name, and decoupled weight decay on matrices and embeddings.

    AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), Adafactor (Shazeer & Stern 2018,
    https://arxiv.org/abs/1804.04235; factored second moments, no first, relative to the size of the parameter) or Lion
    (Chen et al. 2023, https://arxiv.org/abs/2302.06675).
    """
    rules = {
        "adamw": lambda: optax.scale_by_adam(b1=config.beta1, b2=config.beta2),
        "lion": lambda: optax.scale_by_lion(b1=config.beta1, b2=config.beta2),
        "adafactor": lambda: one_by_one(
            optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
        ),
    }
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        rules[config.optimizer](),
        optax.add_decayed_weights(config.weight_decay, mask=_mask),
    )


def _mask(params):
    return jax.tree_util.tree_map_with_path(lambda keys, _: decays(path_of(keys)), params)


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
