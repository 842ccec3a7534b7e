"""A model prepared for training: parameters read straight onto their devices, layers scanned and rematerialized.

Training works on plain pytrees: ``loss(params, batch, key)`` is pure, and ``params`` are nested dicts with the paths of
:func:`jaxnlp.parameter_tree`. Scanned layers are stacked: ``decoder/layers/...`` [L, ...] for ``decoder/layer_i/...``; where
layers differ, the repeats of each layer of the period are, see :data:`STACKED`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from duonlp.checkpoints.checkpoint import Source, open_checkpoint
from duonlp.checkpoints.pretrained import check_head, fresh_plan, resolve_config
from duonlp.config import TransformerConfig
from duonlp.data.objectives.language_modelling import PRETRAINED_HEADS
from duonlp.errors import InputError
from jaxnlp.heads import HEADS
from jaxnlp.layers import dropout
from jaxnlp.losses import cross_entropy_sum
from jaxnlp.pretrained import parameter_tree, split
from jaxnlp.training.mesh import PyTree, batch_sharding, partition, path_of
from jaxnlp.transformer import Biases, Stack, layer_positions

STACKED = re.compile(r"/layers(?:_(\d+)_(\d+))?/")
"""The part of a path that marks stacked layers: ``/layers/`` holds all, ``/layers_1_3/`` layers 1, 4, 7 ..."""


def layer_paths(path: str, count: int) -> list[str]:
    """Return the path in the model of each of ``count`` layers that a stacked parameter holds."""
    match = STACKED.search(path)
    assert match is not None, f"{path} is not the path of stacked layers"
    first, step = int(match[1] or 0), int(match[2] or 1)
    return [path.replace(match[0], f"/layer_{first + step * i}/") for i in range(count)]


class LazyModel:
    """A model described but not in memory: each parameter is made on demand and then sharded over its devices.

    For models that do not fit on one device. ``pretrain`` takes one wherever it takes a model.

    Args:
        config: Configuration of the model.
        head: Name of its head.
        plan: One source per parameter.

    Attributes:
        config: Configuration of the model.
        head: Name of its head.
    """

    def __init__(self, config: TransformerConfig, head: str, plan: Iterable[Source]):
        self.config, self.head = config, head
        self._sources = {source.path: source for source in plan}

    @classmethod
    def from_config(
        cls, config: TransformerConfig | Mapping[str, Any], *, head: str = "causal-lm", seed: int = 0, **overrides: Any
    ) -> Self:
        """Describe a model with new parameters.

        Args:
            config: A TransformerConfig, or config.json as a dict.
            head: Name of a head that can be pretrained.
            seed: Seed of the parameters; one seed gives the same parameters in both packages.
            overrides: Keys of config.json to replace.

        Raises:
            ConfigError: The configuration is unsupported, or the model cannot have the head.
            InputError: The head cannot be pretrained.
        """
        cfg = resolve_config(config, overrides)
        check_head(HEADS[_check_pretrainable(head)], cfg)
        return cls(cfg, head, fresh_plan(cfg, head, seed))

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, head: str = "causal-lm", seed: int = 0, revision: str | None = None
    ) -> Self:
        """Describe a model with the parameters of a checkpoint in Hugging Face layout, to continue its training.

        Args:
            name_or_path: A folder or a Hub id.
            head: Name of a head that can be pretrained.
            seed: Seed of the parameters of a head that the checkpoint lacks.
            revision: Branch, tag or commit on the Hub.

        Raises:
            CheckpointError: The checkpoint is not found, damaged or incompatible.
            ConfigError: The configuration is unsupported, or the model cannot have the head.
            InputError: The head cannot be pretrained.
        """
        checkpoint = open_checkpoint(name_or_path, revision)
        cfg = checkpoint.transformer_config()
        check_head(HEADS[_check_pretrainable(head)], cfg)
        return cls(cfg, head, checkpoint.plan(cfg, head, seed))

    def read(self, path: str) -> np.ndarray:
        """Return the values of one parameter, float32."""
        return self._sources[path].read(np.dtype(np.float32))


def _check_pretrainable(head: str) -> str:
    """Return `head`; raise InputError if it cannot be pretrained."""
    if head not in PRETRAINED_HEADS:
        raise InputError(f"head is {head!r}; only {', '.join(PRETRAINED_HEADS)} can be pretrained")
    return head


def parameter_reader(model: Any) -> Callable[[str], np.ndarray]:
    """Return a function from a parameter's path to its values, float32, of a LazyModel or a model in memory."""
    if isinstance(model, LazyModel):
        return model.read
    values = parameter_tree(model)
    return lambda path: np.asarray(values[path], np.float32)


class TrainingStack(nnx.Module):
    """A Stack for training: optionally scanned and rematerialized, its parameters gathered one layer at a time.

    Dropout folds the layer's number into the key, so none of these options changes which activations are dropped.

    Args:
        stack: Stack to train.
        scan: Stack the parameters of each layer of the pattern's period, and scan over its repeats.
        remat: What the backward pass recomputes, as in PretrainingConfig.
        mesh: Mesh of the parameters; None for no sharding constraints.
        dtype: Compute dtype.
    """

    def __init__(self, stack: Stack, *, scan: bool, remat: str, mesh: Mesh | None, dtype: DTypeLike):
        self.config, self.remat, self.mesh, self.dtype = stack.config, remat, mesh, dtype
        pattern, groups = stack.config.layers, []
        start, size = len(pattern.prefix), len(pattern.period)
        self.repeats = (len(pattern.weights) - start) // size if scan else 0
        for i in range(len(pattern.weights)):
            group, repeat = (i - start) % size, (i - start) // size
            if i < start or repeat >= self.repeats:
                setattr(self, f"layer_{i}", getattr(stack, f"layer_{i}"))
            elif repeat == 0:
                groups.append("layers" if (start, size) == (0, 1) else f"layers_{start + group}_{size}")
                graphdef, state = nnx.split(getattr(stack, f"layer_{i}"))
                stacked = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.repeats, *x.shape)), state)
                setattr(self, groups[-1], nnx.merge(graphdef, stacked))
        self.groups = tuple(groups)  # names of the stacked layers, in the order of the period
        if stack.config.attention.relative_buckets:
            self.relative_attention = stack.relative_attention
        if stack.config.norm.final:
            self.final_norm = stack.final_norm

    relative_bias = Stack.relative_bias

    def keys_and_values(self, source: jax.Array) -> jax.Array:
        """Return the source [B, S, D] unchanged: each layer computes its keys and values once its parameters are gathered."""
        return source

    def __call__(
        self, hidden_states: jax.Array, bias: Biases, position_ids: jax.Array, cache: Any = None, cache_index: Any = None,
        rngs: nnx.Rngs | None = None, source: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, list, list, None]:  # fmt: skip
        """Run the layers as Stack does, without what only inference needs: hidden states, attention maps and the cache.

        Args:
            hidden_states: [B, T, D].
            bias: Attention biases, as of Stack.
            position_ids: As of Stack.
            cache: Ignored.
            cache_index: Ignored.
            rngs: With the stream "dropout"; None for no dropout.
            source: Of an encoder-decoder: the encoder's output [B, S, D] and its attention bias.

        Returns:
            Hidden states [B, T, D], and empty values in place of the other results of Stack.
        """
        key = None if rngs is None else rngs.dropout()
        pattern = self.config.layers
        positions = layer_positions(pattern, bias, position_ids)
        x, kinds = shard_rows(hidden_states, self.mesh), {}

        def run(name: str, step: int) -> tuple[Callable, PyTree]:
            """Return the layer at a step as a function (parameters, hidden states, step) -> hidden states, and its parameters."""
            graphdef, params = split(getattr(self, name))
            kind = pattern[step], name in self.groups
            if kind not in kinds:  # layers of one kind share a function, which jax.checkpoint traces once
                layer = partial(self._layer, graphdef, positions[step], key, source)
                kinds[kind] = _rematerialize(layer, self.remat, name in self.groups)
            return kinds[kind], params

        start, size = len(pattern.prefix), len(pattern.period)
        end = start + self.repeats * size if not pattern.shared else len(pattern)
        for step, i in enumerate(pattern.layer_order):
            if self.groups and start <= step < end:
                x = x if step > start else self._scan([run(name, step + j) for j, name in enumerate(self.groups)], x)
                continue
            layer, params = run(f"layer_{i}", step)
            x = layer(params, x, step)
        if self.config.norm.final:
            x = dropout(self.final_norm(x), self.config.norm.final_dropout, rngs)
        return x, [], [], None

    def _scan(self, layers: Sequence[tuple[Callable, PyTree]], hidden_states: jax.Array) -> jax.Array:
        """Scan over the repeats of the period.

        Args:
            layers: Of each layer of the period: (parameters, hidden states, step) -> hidden states, and stacked parameters.
            hidden_states: [B, T, D].
        """
        pattern = self.config.layers
        start, size = len(pattern.prefix), len(pattern.period)
        stacked = [params for _, params in layers]
        # Steps that share weights select them by number; all their layers are alike, and so in one stack.
        order = jnp.asarray(pattern.layer_order) if pattern.shared else None
        repeats = jnp.arange(len(pattern) if pattern.shared else self.repeats)

        def period(x, weights_and_repeat):
            weights, repeat = weights_and_repeat
            if order is not None:
                weights = jax.tree.map(lambda p: p[weights], stacked)
            for j, (layer, _) in enumerate(layers):
                x = layer(weights[j], x, start + repeat * size + j)
            return x, None

        return jax.lax.scan(period, hidden_states, (stacked if order is None else order, repeats))[0]

    def _layer(self, graphdef, positions, key, source, params, hidden_states, step) -> jax.Array:
        """Apply one layer to hidden states [B, T, D]. source: ([B, S, D], bias) of an encoder-decoder."""
        layer = nnx.merge(graphdef, gather_parameters(params, self.mesh, self.dtype))
        if source is not None:
            source = layer.cross_attention.keys_and_values(source[0]), source[1]
        rngs = None if key is None else nnx.Rngs(dropout=jax.random.fold_in(key, step))
        return shard_rows(layer(hidden_states, *positions, step, rngs=rngs, source=source)[0], self.mesh)


def _rematerialize(layer: Callable, remat: str, scan: bool) -> Callable:
    if remat == "none":
        return layer
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(layer, prevent_cse=not scan, policy=policy)


def shard_rows(x: PyTree, mesh: Mesh | None) -> PyTree:
    """Constrain a pytree of arrays [B, ...] to have its rows over the devices and no other dimension sharded."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def gather_parameters(params: PyTree, mesh: Mesh | None, dtype: DTypeLike) -> PyTree:
    """Return parameters ready for computing: matrices cast to `dtype`, and all gathered over the "fsdp" axis.

    Casting comes first so that half the bytes are sent. Norms and biases keep their dtype.

    Args:
        params: Nested dicts of arrays.
        mesh: Mesh of the parameters; None for no sharding constraints.
        dtype: Compute dtype.
    """

    def gather(keys: jax.tree_util.KeyPath, leaf: jax.Array) -> jax.Array:
        if leaf.ndim > 1:
            leaf = leaf.astype(dtype)
        if mesh is None or mesh.shape["fsdp"] == 1:
            return leaf
        path = "/" + path_of(keys)
        gathered, sharded = (
            NamedSharding(mesh, partition(path, leaf.shape, mesh, axes)) for axes in (("tensor",), ("fsdp", "tensor"))
        )
        return _gather(leaf, gathered, sharded)

    return jax.tree_util.tree_map_with_path(gather, params)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: jax.Array, gathered: NamedSharding, sharded: NamedSharding) -> jax.Array:
    """All-gather `x`. Its gradient is summed straight into shards (a reduce-scatter), never as a whole array."""
    return jax.lax.with_sharding_constraint(x, gathered)


_gather.defvjp(
    lambda x, gathered, sharded: (_gather(x, gathered, sharded), None),
    lambda gathered, sharded, _, gradient: (jax.lax.with_sharding_constraint(gradient, sharded),),
)


@dataclass(frozen=True)
class Trainable:
    """A model prepared for training.

    Attributes:
        config: Configuration of the model.
        head: Name of its head.
        loss: ``(params, batch, key) -> (summed loss in nats, labeled tokens)``, both float32 []. Without a key there
            is no dropout.
        abstract: Parameters as nested dicts of jax.ShapeDtypeStruct.
        paths: Path of each parameter -> paths of the model's parameters that it holds: one, or one per layer if stacked.
    """

    config: TransformerConfig
    head: str
    loss: Callable[..., tuple[jax.Array, jax.Array]]
    abstract: dict[str, Any]
    paths: dict[str, tuple[str, ...]]

    def parameters(self, read: Callable[[str], np.ndarray], shardings: PyTree) -> dict[str, Any]:
        """Return the parameters, made on the host one after the other and sharded.

        Args:
            read: Path of a parameter -> its values, from :func:`parameter_reader`.
            shardings: NamedSharding of each parameter.
        """

        def make(keys: jax.tree_util.KeyPath, leaf: Any, sharding: NamedSharding) -> jax.Array:
            names = self.paths[path_of(keys)]
            is_stacked = STACKED.search(path_of(keys))
            value = np.stack([read(name) for name in names]) if is_stacked else read(names[0])
            return jax.make_array_from_callback(leaf.shape, sharding, lambda index: value[index])

        return jax.tree_util.tree_map_with_path(make, self.abstract, shardings)


def make_trainable(
    model: Any, *, dtype: DTypeLike = "float32", scan: bool = False, remat: str = "none", mesh: Mesh | None = None
) -> Trainable:
    """Prepare a model for training without reading its parameters.

    Args:
        model: A model with a language modeling head, or a LazyModel.
        dtype: Compute dtype.
        scan: Scan over stacked layers, as in PretrainingConfig.
        remat: What the backward pass recomputes, as in PretrainingConfig.
        mesh: Mesh of the parameters; None for no sharding constraints (pmap).

    Raises:
        InputError: The model's head cannot be pretrained.
    """
    cfg, dtype = model.config, jnp.dtype(dtype)
    _check_pretrainable(model.head)
    stacks = {stack.stack: stack for stack in (cfg, cfg.as_decoder())}  # one, or the two of an encoder-decoder

    def build() -> nnx.Module:
        built = HEADS[model.head](cfg, dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
        for name in stacks:
            stack = TrainingStack(getattr(built, name), scan=scan, remat=remat, mesh=mesh, dtype=dtype)
            setattr(built, name, stack)
        return built

    graphdef, abstract = split(nnx.eval_shape(build))
    paths = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        path = path_of(keys)
        paths[path] = tuple(layer_paths(path, leaf.shape[0])) if STACKED.search(path) else (path,)

    def loss(
        params: dict[str, Any], batch: Mapping[str, jax.Array], key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        outside_stacks = {name: value for name, value in params.items() if name not in stacks}
        built = nnx.merge(graphdef, {**params, **gather_parameters(outside_stacks, mesh, dtype)})
        rngs = None if key is None else nnx.Rngs(dropout=key)
        logits = built(**model_inputs(cfg, batch), rngs=rngs)["logits"]  # [B, T, V]
        return cross_entropy_sum(logits, batch["labels"])

    return Trainable(cfg, model.head, loss, abstract, paths)


def model_inputs(cfg: TransformerConfig, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the inputs of the model for a batch of blocks, in which documents that share a row do not see each other.

    Args:
        cfg: Configuration of the model.
        batch: input_ids int [B, T], and optionally segment_ids int [B, T], equal within a document. Of an encoder-decoder:
            input_ids and attention_mask [B, S], and decoder_input_ids [B, U].
    """
    if cfg.decoder is not None:
        return {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    inputs = {"input_ids": batch["input_ids"]}
    if "segment_ids" in batch:
        segments = batch["segment_ids"]
        inputs["attention_mask"] = segments[:, :, None] == segments[:, None, :]  # [B, T, T]
        columns = jnp.arange(segments.shape[1])
        starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)  # [B, T]
        first = jax.lax.cummax(jnp.where(starts, columns, 0), axis=1)  # [B, T]
        inputs["position_ids"] = cfg.embedding.position_offset + columns - first
    return inputs
