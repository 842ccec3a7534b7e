"""A model prepared for training: parameters read straight onto their devices, layers scanned and rematerialized.

Training works on plain pytrees: ``loss(params, batch, key)`` is pure, and ``params`` are nested dicts with the paths of
:func:`jaxnlp.parameter_tree`. Scanned layers are stacked: ``decoder/layers/...`` [L, ...] for ``decoder/layer_i/...``; where
layers differ, the repeats of each layer of the period are, see :data:`STACKED`.
"""

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from duonlp import heads
from duonlp.checkpoints.checkpoint import Source, open_checkpoint
from duonlp.checkpoints.pretrained import check_head, default_generation_config, fresh_plan, resolve_config
from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.generation import GenerationConfig
from duonlp.heads import outputs_of
from duonlp.inputs import model_inputs, shift_right
from duonlp.quantization import check_trainable
from duonlp.typing import Batch
from jaxnlp import ops
from jaxnlp.heads import HEADS
from jaxnlp.layers import dropout
from jaxnlp.pretrained import Params, parameter_tree, split
from jaxnlp.quantization.simulated import simulated_paths
from jaxnlp.training.mesh import PyTree, gather_parameters, path_of, shard_rows
from jaxnlp.transformer import Biases, Stack, StackOutput, layer_positions, widen

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

    For models that do not fit on one device. ``pretrain``, ``fit`` and ``distill`` take one wherever they take a model.

    Args:
        config: Configuration of the model.
        head: Name of its head.
        plan: One source per parameter.
        generation_config: Default generation settings, which are saved with what is trained; None for those of ``config``.
    """

    def __init__(
        self,
        config: TransformerConfig,
        head: str,
        plan: Iterable[Source],
        generation_config: GenerationConfig | None = None,
    ):
        self.config, self.head = config, head
        self.generation_config = generation_config or default_generation_config(config)
        self._sources = {source.path: source for source in plan}

    @classmethod
    def from_config(
        cls, config: TransformerConfig | Mapping[str, Any], *, head: str = "causal-lm", seed: int = 0, **overrides: Any
    ) -> Self:
        """Describe a model with new parameters.

        Args:
            config: A TransformerConfig, or config.json as a dict.
            head: Name of the head.
            seed: Seed of the parameters; one seed gives the same parameters in both packages.
            overrides: Keys of config.json to replace.

        Raises:
            ConfigError: The configuration is unsupported, or the model cannot have the head.
        """
        cfg = resolve_config(config, overrides)
        check_head(HEADS[head], cfg)
        return cls(cfg, head, fresh_plan(cfg, head, seed))

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, head: str = "causal-lm", seed: int = 0, revision: str | None = None
    ) -> Self:
        """Describe a model with the parameters of a checkpoint in Hugging Face layout, to continue its training.

        Args:
            name_or_path: A folder or a Hub id.
            head: Name of the head.
            seed: Seed of the parameters of a head that the checkpoint lacks.
            revision: Branch, tag or commit on the Hub.

        Raises:
            CheckpointError: The checkpoint is not found, damaged or incompatible.
            ConfigError: The configuration is unsupported, or the model cannot have the head.
        """
        checkpoint = open_checkpoint(name_or_path, revision)
        cfg = checkpoint.transformer_config(head)
        check_head(HEADS[head], cfg)
        return cls(
            cfg, head, checkpoint.plan(cfg, head, seed), default_generation_config(cfg, checkpoint.generation_config)
        )

    def read(self, path: str) -> np.ndarray:
        """Return the values of one parameter, float32."""
        return self._sources[path].read(np.dtype(np.float32))


def parameter_reader(model: Any) -> Callable[[str], np.ndarray]:
    """Return a function from a parameter's path to its values, float32, of a LazyModel or a model in memory."""
    if isinstance(model, LazyModel):
        return model.read
    values = parameter_tree(model)
    return lambda path: np.asarray(values[path], np.float32)


LayerOutputs: TypeAlias = tuple[Any, Any]
"""Hidden states [B, T, D] and attention probabilities after a layer, each None unless requested."""


class TrainingStack(nnx.Module):
    """A Stack for training: optionally scanned and rematerialized, its parameters gathered one layer at a time.

    Dropout folds the layer's number into the key, so none of these options changes which activations are dropped.

    Args:
        stack: Stack to train.
        scan: Stack the parameters of each layer of the pattern's period, and scan over its repeats.
        remat: What the backward pass recomputes, as in PretrainingConfig.
        mesh: Mesh of the parameters; None for no sharding constraints.
        dtype: Compute dtype.
        outputs: Whether to return hidden states and attention probabilities.
    """

    def __init__(
        self, stack: Stack, *, scan: bool, remat: str, mesh: Mesh | None, dtype: DTypeLike,
        outputs: tuple[bool, bool] = (False, False),
    ):  # fmt: skip
        self.config, self.remat, self.mesh, self.dtype, self.outputs = stack.config, remat, mesh, dtype, outputs
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
                if any(
                    nnx.graphdef(getattr(stack, f"layer_{j}")) != graphdef
                    for j in range(i, start + self.repeats * size, size)
                ):
                    raise InputError(
                        "the layers of the stack are quantized in different ways, so they cannot be scanned; pass scan=False"
                    )
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
    ) -> StackOutput:  # fmt: skip
        """Run the layers as Stack does, without a cache.

        Args and results are those of Stack, except that ``source`` is an encoder's output [B, S, D] and its attention bias,
        and that lists are empty unless they are among the outputs.
        """
        key = None if rngs is None else rngs.dropout()
        pattern, dtype = self.config.layers, hidden_states.dtype
        hidden_states = widen(pattern, hidden_states)
        positions = layer_positions(pattern, bias, position_ids)
        x, kinds = shard_rows(hidden_states, self.mesh), {}
        outputs: list[LayerOutputs] = []

        def run(name: str, step: int) -> tuple[Callable, PyTree]:
            """Return the layer at a step as a function (parameters, hidden states, step) -> results, and its parameters."""
            graphdef, params = split(getattr(self, name))
            kind = pattern[step], graphdef, name in self.groups
            if kind not in kinds:  # layers of one kind share a function, which jax.checkpoint traces once
                layer = partial(self._layer, graphdef, positions[step], key, source)
                kinds[kind] = _rematerialize(layer, self.remat, name in self.groups)
            return kinds[kind], params

        start, size = len(pattern.prefix), len(pattern.period)
        end = start + self.repeats * size if not pattern.shared else len(pattern)
        for step, i in enumerate(pattern.layer_order):
            if self.groups and start < step < end:
                continue  # scanned at the first step
            if self.groups and step == start:
                x, more = self._scan([run(name, step + j) for j, name in enumerate(self.groups)], x)
            else:
                layer, params = run(f"layer_{i}", step)
                x, output = layer(params, x, step)
                more = [output]
            outputs += more
        if self.config.norm.final:
            x = dropout(self.final_norm(x), self.config.norm.final_dropout, rngs)
        has_states, has_attentions = self.outputs
        states = [hidden_states, *(state for state, _ in outputs[:-1]), x] if has_states else []
        attentions = [probabilities for _, probabilities in outputs] if has_attentions else []
        return x.astype(dtype), states, attentions, None

    def _scan(
        self, layers: Sequence[tuple[Callable, PyTree]], hidden_states: jax.Array
    ) -> tuple[jax.Array, list[LayerOutputs]]:
        """Scan hidden states [B, T, D] over the repeats of the period; `layers` are its layers from `run`."""
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
            outputs = []
            for j, (layer, _) in enumerate(layers):
                x, output = layer(weights[j], x, start + repeat * size + j)
                outputs.append(output)
            return x, outputs

        x, outputs = jax.lax.scan(period, hidden_states, (stacked if order is None else order, repeats))
        return x, [
            jax.tree.map(operator.itemgetter(i), layer_outputs)
            for i in range(len(repeats))
            for layer_outputs in outputs
        ]

    def _layer(self, graphdef, positions, key, source, params, hidden_states, step) -> tuple[jax.Array, LayerOutputs]:
        """Apply one layer to hidden states [B, T, D]. source: ([B, S, D], bias) of an encoder-decoder."""
        kept = ("feed_forward/down",) if self.config.layers.float32_sums else ()
        simulated = simulated_paths(nnx.merge(graphdef, params))
        layer = nnx.merge(graphdef, gather_parameters(params, self.mesh, self.dtype, kept, simulated))
        if source is not None:
            source = layer.cross_attention.keys_and_values(source[0]), source[1]
        rngs = None if key is None else nnx.Rngs(dropout=jax.random.fold_in(key, step))
        x, probabilities, _ = layer(hidden_states, *positions, step, rngs=rngs, source=source)
        x = shard_rows(x, self.mesh)
        return x, (x if self.outputs[0] else None, probabilities if self.outputs[1] else None)


def _rematerialize(layer: Callable, remat: str, scan: bool) -> Callable:
    if remat == "none":
        return layer
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(layer, prevent_cse=not scan, policy=policy)


@dataclass(frozen=True)
class Trainable:
    """A model prepared for training, without its parameters; hashable, so equal ones share compiled programs.

    Attributes:
        config: Configuration of the model.
        head: Name of its head.
        graphdef: Structure of the prepared model.
        stacks: Names of its stacks of layers.
        mesh: Mesh of the parameters; None for no sharding constraints.
        dtype: Compute dtype.
        options: Further arguments of the model's call, as sorted (name, value) pairs.
        plain: Structure of the model itself.
        abstract: Parameters as nested dicts of jax.ShapeDtypeStruct.
        paths: Path of each parameter -> paths of the model's parameters that it holds: one, or one per layer if stacked.
    """

    config: TransformerConfig
    head: str
    graphdef: nnx.GraphDef
    stacks: tuple[str, ...]
    mesh: Mesh | None
    dtype: np.dtype
    options: tuple[tuple[str, Any], ...]
    plain: nnx.GraphDef = field(compare=False)
    abstract: dict[str, Any] = field(compare=False)
    paths: dict[str, tuple[str, ...]] = field(compare=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the batch entries that the model learns from."""
        return tuple(output.labels for output in outputs_of(self.head, self.config))

    def outputs(
        self, params: Params, batch: Batch, key: jax.Array | None = None, *, as_teacher: bool = False, **labels: Any
    ) -> dict[str, Any]:
        """Return the outputs of the model for a batch.

        Args:
            params: Parameters, with the structure of ``abstract``; further entries are not read.
            batch: Arrays [B, ...]. With segment_ids int [B, T], equal within a document, the documents of a row do not see
                each other.
            key: PRNG key of dropout; None for no dropout.
            as_teacher: Whether to read ``teacher_input_ids``, ... if the batch has them.
            labels: Labels to pass to the model, which add its "loss".
        """
        inputs: dict[str, Any] = model_inputs(self.config, batch, as_teacher=as_teacher)
        if "segment_ids" in batch:
            inputs |= packed_inputs(self.config, batch["segment_ids"])
        if heads.HEADS[self.head].shifts_labels and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = shift_right(ops, batch["labels"], self.config)
        params = {name: params[name] for name in self.abstract}
        outside_stacks = {name: value for name, value in params.items() if name not in self.stacks}
        simulated = simulated_paths(nnx.merge(self.graphdef, params))
        gathered = gather_parameters(outside_stacks, self.mesh, self.dtype, simulated=simulated)
        model = nnx.merge(self.graphdef, {**params, **gathered})
        return model(**inputs, **labels, **dict(self.options), rngs=None if key is None else nnx.Rngs(dropout=key))

    def model(self, params: Params) -> Any:
        """Return the model itself with parameters from :meth:`unstack`."""
        return nnx.merge(self.plain, params)

    def parameters(self, read: Callable[[str], np.ndarray], shardings: PyTree = None) -> Params:
        """Return the parameters, made on the host one after the other and sharded.

        read: from :func:`parameter_reader`. shardings: those of all parameters and perhaps others; None for the default device.
        """

        def make(keys: jax.tree_util.KeyPath, leaf: Any, sharding: NamedSharding | None = None) -> jax.Array:
            names = self.paths[path_of(keys)]
            values = [read(name).astype(leaf.dtype, copy=False) for name in names]
            value = values[0] if names == (path_of(keys),) else np.stack(values)
            if sharding is None:
                return jnp.array(value)
            return jax.make_array_from_callback(leaf.shape, sharding, lambda index: value[index])

        trees = () if shardings is None else ({name: shardings[name] for name in self.abstract},)
        return jax.tree_util.tree_map_with_path(make, self.abstract, *trees)

    def unstack(self, params: Params) -> Params:
        """Return the parameters as the model itself has them; further entries are dropped."""
        params, unstacked = {name: params[name] for name in self.abstract}, {}
        for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
            names = self.paths[path_of(keys)]
            for i, name in enumerate(names):
                *parents, last = name.split("/")
                inner = reduce(lambda tree, key: tree.setdefault(key, {}), parents, unstacked)
                inner[last] = leaf if names == (path_of(keys),) else leaf[i]
        return unstacked


def make_trainable(
    model: Any, *, dtype: DTypeLike | None = None, param_dtype: DTypeLike | None = None, scan: bool = False,
    remat: str = "none", mesh: Mesh | None = None, options: Mapping[str, Any] = MappingProxyType({}), trains: bool = True,
) -> Trainable:  # fmt: skip
    """Prepare a model for training without reading its parameters.

    Args:
        model: A model, or a LazyModel.
        dtype: Compute dtype; None for the model's, which is float32 for a LazyModel.
        param_dtype: Dtype of the parameters, likewise.
        scan: Scan over stacked layers, as in PretrainingConfig.
        remat: What the backward pass recomputes, as in PretrainingConfig.
        mesh: Mesh of the parameters; None for no sharding constraints (pmap).
        options: Further arguments of the model's call, such as output_hidden_states=True.
        trains: Whether the parameters are trained; those of a teacher are not.

    Raises:
        InputError: The model is to be trained and quantized.
    """
    if trains:
        check_trainable(model.config)
    cfg, create = model.config, HEADS[model.head] if isinstance(model, LazyModel) else type(model)
    dtype, param_dtype = (
        jnp.dtype(getattr(model, name, "float32") if given is None else given)
        for name, given in (("dtype", dtype), ("param_dtype", param_dtype))
    )
    stacks = tuple(dict.fromkeys(stack.stack for stack in (cfg, cfg.as_decoder())))  # one, or two of an encoder-decoder
    outputs = bool(options.get("output_hidden_states")), bool(options.get("output_attentions"))

    def build(prepared: bool) -> nnx.Module:
        built = create(cfg, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
        for name in stacks if prepared else ():
            stack = getattr(built, name)
            setattr(built, name, TrainingStack(stack, scan=scan, remat=remat, mesh=mesh, dtype=dtype, outputs=outputs))
        return built

    graphdef, abstract = split(nnx.eval_shape(lambda: build(True)))
    plain = nnx.graphdef(nnx.eval_shape(lambda: build(False)))
    paths = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        path = path_of(keys)
        paths[path] = tuple(layer_paths(path, leaf.shape[0])) if STACKED.search(path) else (path,)
    return Trainable(
        cfg, model.head, graphdef, stacks, mesh, dtype, tuple(sorted(options.items())), plain, abstract, paths
    )


def packed_inputs(cfg: TransformerConfig, segment_ids: jax.Array) -> dict[str, jax.Array]:
    """Return the attention mask [B, T, T] and position ids [B, T] with which documents, segment ids [B, T], are apart."""
    columns = jnp.arange(segment_ids.shape[1])
    starts = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)  # [B, T]
    first = jax.lax.cummax(jnp.where(starts, columns, 0), axis=1)  # [B, T]
    return {
        "attention_mask": segment_ids[:, :, None] == segment_ids[:, None, :],
        "position_ids": cfg.embedding.position_offset + columns - first,
    }
