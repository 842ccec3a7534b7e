"""Loading, starting afresh and saving: what every model class of heads.py can do."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from shared import architectures
from shared.checkpoint import Source, open_checkpoint, override
from shared.config import TransformerConfig
from shared.dtypes import check_dtype
from shared.errors import ConfigError
from shared.generation import GenerationConfig
from shared.parameters import initial_value, parameters
from shared.save import save_checkpoint


class Pretrained:
    """Mixin of the model classes; they bring ``head``, ``config``, ``dtype`` and ``param_dtype``."""

    @classmethod
    def from_pretrained(
        cls, name_or_path, *, revision=None, local_files_only=False, dtype="float32", param_dtype="float32", seed=0,
        ignore_mismatched_sizes=False, **config_overrides,
    ):  # fmt: skip
        """Load a checkpoint in Hugging Face layout.

        Args:
            name_or_path: a folder or a Hub id.
            revision: branch, tag or commit on the Hub.
            local_files_only: never go to the network.
            dtype: float32, bfloat16 or float16: what is computed in.
            param_dtype: the same choices: what the parameters are stored as.
            seed: for parameters of a head the checkpoint lacks.
            ignore_mismatched_sizes: start a head afresh whose stored shapes do not fit.
            config_overrides: keys of config.json to replace, such as ``num_labels=3``.

        Raises:
            CheckpointError: not found, damaged, or not this model's.
            ConfigError: an unsupported family, head or option.
            InputError: an unknown keyword.
        """
        checkpoint = open_checkpoint(name_or_path, revision, local_files_only)
        cfg = checkpoint.transformer_config(**config_overrides)
        check_head(cls, cfg)
        check_dtype(dtype), check_dtype(param_dtype, "param_dtype")
        plan = checkpoint.plan(cfg, cls.head, seed, ignore_mismatched_sizes)
        model = _build(cls, cfg, dtype, param_dtype, plan)
        model.generation_config = GenerationConfig.for_model(cfg, checkpoint.generation_config)
        return model

    @classmethod
    def from_config(cls, config, *, seed=0, dtype="float32", param_dtype="float32", **config_overrides):
        """A model with random weights; the same seed gives the same weights in tfnlp.

        Args:
            config: a TransformerConfig, or config.json as a dict.
        """
        cfg = architectures.config_from_hf(override(config, config_overrides)) if isinstance(config, dict) else config
        check_head(cls, cfg)
        check_dtype(dtype), check_dtype(param_dtype, "param_dtype")
        plan = [Source(path, parameter, seed=seed) for path, parameter in parameters(cfg, cls.head).items()]
        return _build(cls, cfg, dtype, param_dtype, plan)

    def save_pretrained(self, folder, tokenizer=None, max_shard_size="5GB"):
        """Write the model in Hugging Face layout; see shared.save.save_checkpoint."""
        values = parameter_tree(self)
        save_checkpoint(
            folder, self.config, self.head, lambda path: np.asarray(values[path]), self.param_dtype, tokenizer,
            max_shard_size, self.generation_config.to_dict() if self.head == "causal-lm" else None,
        )  # fmt: skip

    def num_parameters(self) -> int:
        """How many values the parameters have."""
        return sum(p.size for p in parameters(self.config, self.head).values())


def check_head(cls, cfg: TransformerConfig) -> None:
    """Raise ConfigError when the family has no such head, or could not learn anything with it."""
    architectures.class_name(cfg.model_type, cls.head)
    if cls.head == "causal-lm" and not cfg.causal:
        raise ConfigError(
            f"this {cfg.model_type} looks both ways, so it is no causal language model; pass is_decoder=True"
        )


def _build(cls, cfg, dtype, param_dtype, plan):
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
            raise ConfigError(f"{source.path}: the engine wants {leaf.shape}, the parameter table says {value.shape}")
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
