"""Loading, starting afresh and saving: what every model class of heads.py can do."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from duonlp.checkpoints.pretrained import PretrainedBase
from duonlp.checkpoints.save import save_checkpoint
from duonlp.errors import ConfigError


class Pretrained(PretrainedBase):
    """Mixin of the model classes; they bring ``head``, ``config``, ``dtype`` and ``param_dtype``."""

    def save_pretrained(self, folder, tokenizer=None, max_shard_size="5GB"):
        """Write the model in Hugging Face layout; see duonlp.checkpoints.save_checkpoint."""
        values = parameter_tree(self)
        save_checkpoint(
            folder, self.config, self.head, lambda path: np.asarray(values[path]), self.param_dtype, tokenizer,
            max_shard_size, self.generation_config.to_dict() if self.head in ("causal-lm", "seq2seq-lm") else None,
        )  # fmt: skip

    @classmethod
    def _from_plan(cls, cfg, plan, dtype, param_dtype):
        abstract = nnx.eval_shape(lambda: cls(cfg, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(abstract)
        flat = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
        expected = {source.path for source in plan}
        if set(flat) != expected:
            raise ConfigError(f"engine and parameter table disagree on {sorted(set(flat) ^ expected)}")
        numpy_dtype = np.dtype(jnp.dtype(param_dtype))
        for source in plan:
            leaf = flat[source.path]
            # waits, so that what was read is let go before the next tensor is
            value = jax.block_until_ready(jnp.asarray(source.read(numpy_dtype)))
            if value.shape != leaf.shape:
                raise ConfigError(
                    f"{source.path}: the engine wants {leaf.shape}, the parameter table says {value.shape}"
                )
            leaf.set_value(value)
        return nnx.merge(graphdef, state)


def parameter_tree(model) -> dict[str, jax.Array]:
    """Path -> array of every parameter, e.g. ``encoder/layer_0/attention/query/kernel``; the same paths as tfnlp's."""
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def split(model):
    """A model's structure (hashable: a static argument of jit) and its parameters, nested dicts of arrays."""
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def merge(graphdef, params):
    """The inverse of :func:`split`, cheap enough to call inside jit and grad."""
    return nnx.merge(graphdef, params)


def update(model, params):
    """A model of the same structure with other parameters, as :func:`functional` gave them and training changed them."""
    new = merge(nnx.graphdef(model), params)
    new.generation_config = model.generation_config
    return new


def functional(model):
    """Split a model once into a pure function and its parameters, for jit, grad, sharding and donation.

    Returns:
        ``apply(params, **inputs)``, the model's call over plain pytrees, and ``params``, nested dicts of arrays.
    """
    graphdef, params = split(model)

    def apply(params, *args, **inputs):
        return merge(graphdef, params)(*args, **inputs)

    return apply, params
