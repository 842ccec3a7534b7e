"""Loading, random initialization and saving, shared by all model classes of heads.py, and NNX's functional API."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from duonlp.checkpoints.checkpoint import Source
from duonlp.checkpoints.pretrained import PretrainedBase
from duonlp.checkpoints.save import save_checkpoint, saved_values
from duonlp.config import TransformerConfig
from duonlp.errors import ConfigError
from duonlp.generation import GenerationConfig
from duonlp.heads import HEADS
from duonlp.parameters import parameters
from duonlp.typing import Array

M = TypeVar("M", bound=nnx.Module)

Params: TypeAlias = dict[str, Any]
"""Parameters of a model: nested dicts of arrays."""


# The final class is an nnx.Module, which the type checker needs to know of its mixins.
_Module = nnx.Module if TYPE_CHECKING else object


class Pretrained(PretrainedBase, _Module):
    """Mixin of the model classes that loads and saves checkpoints.

    Attributes:
        head: Name of the model's head.
        config: The model's configuration.
        generation_config: Default generation options.
        dtype: Compute dtype.
        param_dtype: Storage dtype of the parameters.
    """

    config: TransformerConfig
    generation_config: GenerationConfig
    dtype: np.dtype
    param_dtype: np.dtype

    def save_pretrained(
        self, folder: str | Path, tokenizer: Any = None, max_shard_size: int | str = "5GB", dequantize: bool = False
    ) -> None:
        """Write the model in Hugging Face layout; see duonlp.checkpoints.save_checkpoint.

        Args:
            folder: Folder to write to.
            tokenizer: Tokenizer or image processor to save.
            max_shard_size: See save_checkpoint.
            dequantize: Whether to write the weights of quantized layers in floating point, for software that does not read
                quantized ones.
        """
        values = parameter_tree(self)
        cfg, read = saved_values(self.config, self.head, lambda path: np.asarray(values[path]), dequantize)
        save_checkpoint(
            folder, cfg, self.head, read, self.param_dtype, tokenizer, max_shard_size,
            self.generation_config.to_dict() if HEADS[self.head].generates else None, self.image_config,
        )  # fmt: skip

    @classmethod
    def _from_plan(cls, cfg: TransformerConfig, plan: list[Source], dtype: str, param_dtype: str) -> Self:
        create: Any = cls  # takes the arguments of model.Model
        abstract = nnx.eval_shape(lambda: create(cfg, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(abstract)
        leaves = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
        expected = {source.path for source in plan}
        if set(leaves) != expected:
            raise ConfigError(f"model and parameter table differ in {sorted(set(leaves) ^ expected)}")
        for source in plan:
            leaf = leaves[source.path]
            # Blocks, so that the host copy is freed before the next tensor is read.
            value = jax.block_until_ready(jnp.asarray(source.read(np.dtype(leaf.dtype))))
            if value.shape != leaf.shape:
                raise ConfigError(
                    f"{source.path} has shape {leaf.shape} in the model and {value.shape} in the parameter table"
                )
            leaf.set_value(value)
        return nnx.merge(graphdef, state)


P = TypeVar("P", bound=Pretrained)


def parameter_tree(model: Any) -> dict[str, jax.Array]:
    """Return all parameters by path, e.g. ``encoder/layer_0/attention/query/kernel``; tfnlp has the same paths."""
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def split(model: M) -> tuple[nnx.GraphDef[M], Params]:
    """Split a model into its structure, hashable and so a valid static argument of jit, and its parameters."""
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def merge(graphdef: nnx.GraphDef[M], params: Params) -> M:
    """Invert :func:`split`; cheap enough to call inside jit and grad."""
    return nnx.merge(graphdef, params)


def update(model: P, params: Params) -> P:
    """Return a model of the same structure with new parameters, e.g. trained ones from :func:`functional`."""
    new = merge(nnx.graphdef(model), params)
    new.generation_config = model.generation_config
    return new


def functional(model: nnx.Module) -> tuple[Callable[..., dict[str, Array]], Params]:
    """Split a model once into a pure function and its parameters, for jit, grad, sharding and donation.

    Returns:
        ``apply(params, **inputs)``, the model's call over plain pytrees, and ``params``, nested dicts of
        arrays.
    """
    graphdef, params = split(model)

    def apply(params: Params, *args: Any, **inputs: Any) -> dict[str, Array]:
        return merge(graphdef, params)(*args, **inputs)

    return apply, params


def rebuilt(model: P, cfg: TransformerConfig, values: Mapping[str, np.ndarray]) -> P:
    """Return a model of another configuration, with new values of some parameters and the model's own of the others."""
    specs, own = parameters(cfg, model.head), parameter_tree(model)
    plan = [Source(p, spec, values=values[p] if p in values else np.asarray(own[p])) for p, spec in specs.items()]
    create: Any = type(model)  # with the engine's mixin
    new = create._from_plan(cfg, plan, model.dtype.name, model.param_dtype.name)
    new.generation_config, new.folder, new.image_config = model.generation_config, model.folder, model.image_config
    return new
