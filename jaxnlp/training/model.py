"""A model as training wants it: parameters that are read straight onto their devices, layers scanned and rematerialised.

What is trained is plain pytrees: ``apply(params, batch, key)`` is pure, and ``params`` are nested dicts with the paths of
:func:`jaxnlp.parameter_tree`; scanned layers are stacked, ``decoder/layers/...`` [L, ...] for ``decoder/layer_i/...``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.checkpoints.pretrained import check_head, fresh_plan, resolve_config
from duonlp.config import TransformerConfig
from duonlp.data.objectives.language_modelling import PRETRAINED_HEADS
from duonlp.errors import InputError
from jaxnlp.heads import HEADS
from jaxnlp.layers import dropout
from jaxnlp.losses import cross_entropy_sum
from jaxnlp.pretrained import parameter_tree, split
from jaxnlp.training.mesh import batch_sharding, partition, path_of
from jaxnlp.transformer import Stack

ONE_BY_ONE = re.compile(r"/layer_(\d+)/")
STACKED = "/layers/"


class LazyModel:
    """A model described but not in memory: each parameter is made when it is asked for, then goes to its devices.

    For models that do not fit one device. ``pretrain`` takes one wherever it takes a model.
    """

    def __init__(self, config: TransformerConfig, head: str, plan):
        self.config, self.head = config, head
        self._sources = {source.path: source for source in plan}

    @classmethod
    def from_config(cls, config, *, head: str = "causal-lm", seed: int = 0, **overrides) -> "LazyModel":
        """Fresh values; the same seed gives the same in both packages. Arguments as for AutoModel.from_config."""
        cfg = resolve_config(config, overrides)
        check_head(HEADS[_known(head)], cfg)
        return cls(cfg, head, fresh_plan(cfg, head, seed))

    @classmethod
    def from_pretrained(cls, name_or_path, *, head: str = "causal-lm", seed: int = 0, revision=None) -> "LazyModel":
        """The values of a checkpoint in Hugging Face layout, to be trained further."""
        checkpoint = open_checkpoint(name_or_path, revision)
        cfg = checkpoint.transformer_config()
        check_head(HEADS[_known(head)], cfg)
        return cls(cfg, head, checkpoint.plan(cfg, head, seed))

    def read(self, path: str) -> np.ndarray:
        """The values of one parameter, float32."""
        return self._sources[path].read(np.dtype(np.float32))


def _known(head: str) -> str:
    if head not in PRETRAINED_HEADS:
        raise InputError(f"head is {head!r}; {', '.join(PRETRAINED_HEADS)} can be pretrained")
    return head


def reader(model) -> Callable[[str], np.ndarray]:
    """path -> values, of a LazyModel or of a model in memory."""
    if isinstance(model, LazyModel):
        return model.read
    values = parameter_tree(model)
    return lambda path: np.asarray(values[path], np.float32)


class TrainingStack(nnx.Module):
    """A Stack for training: scanned or not, rematerialised or not, its parameters gathered a layer at a time.

    Dropout draws from a key folded with the layer's number, so that none of these changes what is dropped.
    """

    def __init__(self, stack: Stack, *, scan: bool, remat: str, mesh: Mesh | None, dtype):
        self.config, self.scan, self.remat, self.mesh, self.dtype = stack.config, scan, remat, mesh, dtype
        count = stack.config.num_layer_weights
        layers = [getattr(stack, f"layer_{i}") for i in range(count)]
        if scan:
            graphdef, state = nnx.split(layers[0])
            self.layers = nnx.merge(graphdef, jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), state))
        else:
            for i, layer in enumerate(layers):
                setattr(self, f"layer_{i}", layer)
        if stack.config.attention.relative_buckets:
            self.relative_attention = stack.relative_attention
        if stack.config.norm.final:
            self.final_norm = stack.final_norm

    relative_bias = Stack.relative_bias

    def keys_and_values(self, source):
        """The source [B, S, D] as it is: each layer makes keys and values of it when its parameters are there."""
        return source

    def __call__(self, hidden_states, bias, cache=None, cache_index=None, rngs=None, source=None):
        """As Stack's, but for what only inference wants: no states, no probabilities, no cache."""
        key = None if rngs is None else rngs.dropout()
        order = self.config.layer_order
        graphdef, params = split(self.layers if self.scan else self.layer_0)
        layer = _rematerialised(lambda *args: self._layer(graphdef, bias, key, source, *args), self.remat, self.scan)
        x = rows_apart(hidden_states, self.mesh)
        if not self.scan:
            for step, i in enumerate(order):
                x = layer(split(getattr(self, f"layer_{i}"))[1], x, step)
        else:
            own = tuple(order) == tuple(range(len(order)))  # or steps share weights, and pick them by number
            weights, steps = params if own else jnp.asarray(order), jnp.arange(len(order))

            def one(x, each):
                mine, step = each
                return layer(mine if own else jax.tree.map(lambda p: p[mine], params), x, step), None

            x, _ = jax.lax.scan(one, x, (weights, steps))
        if self.config.norm.final:
            x = dropout(self.final_norm(x), self.config.norm.final_dropout, rngs)
        return x, [], [], None

    def _layer(self, graphdef, bias, key, source, params, hidden_states, step):
        """One layer on [B, T, D]. source: of an encoder-decoder, ([B, S, D], bias)."""
        layer = nnx.merge(graphdef, gathered(params, self.mesh, self.dtype))
        if source is not None:
            source = layer.cross_attention.keys_and_values(source[0]), source[1]
        rngs = None if key is None else nnx.Rngs(dropout=jax.random.fold_in(key, step))
        return rows_apart(layer(hidden_states, bias, step, rngs=rngs, source=source)[0], self.mesh)


def _rematerialised(layer, remat: str, scan: bool):
    if remat == "none":
        return layer
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(layer, prevent_cse=not scan, policy=policy)


def rows_apart(x, mesh: Mesh | None):
    """x [B, ...], or a pytree of such, with rows over the devices and nothing else cut."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def gathered(params, mesh: Mesh | None, dtype):
    """Parameters (nested dicts) as they are computed with: matrices in `dtype`, and no longer cut along "fsdp".

    Cast first, so that half the bytes travel. Norms and biases stay as they are stored.
    """

    def gather(keys, leaf):
        if leaf.ndim > 1:
            leaf = leaf.astype(dtype)
        if mesh is None or mesh.shape["fsdp"] == 1:
            return leaf
        path = "/" + path_of(keys)
        whole, cut = (
            NamedSharding(mesh, partition(path, leaf.shape, mesh, axes)) for axes in (("tensor",), ("fsdp", "tensor"))
        )
        return _gather(leaf, whole, cut)

    return jax.tree_util.tree_map_with_path(gather, params)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x, whole: NamedSharding, cut: NamedSharding):
    """x, cut, put together. Backward, the gradient is summed straight into its pieces (a reduce-scatter), not whole."""
    return jax.lax.with_sharding_constraint(x, whole)


_gather.defvjp(
    lambda x, whole, cut: (_gather(x, whole, cut), None),
    lambda whole, cut, _, gradient: (jax.lax.with_sharding_constraint(gradient, cut),),
)


@dataclass(frozen=True)
class Trainable:
    """A model made ready for training.

    loss: ``(params, batch, key) -> (sum of nats, labelled tokens)``, both float32; key is None for no dropout.
    abstract: nested dicts of jax.ShapeDtypeStruct: the parameters.
    paths: path of each of them -> the paths of the model's own that it holds, one, or one a layer.
    """

    config: TransformerConfig
    head: str
    loss: Callable
    abstract: dict
    paths: dict[str, tuple[str, ...]]

    def parameters(self, read: Callable[[str], np.ndarray], shardings) -> dict:
        """The parameters, one after the other made on the host and put where `shardings` say."""

        def make(keys, leaf, sharding):
            names = self.paths[path_of(keys)]
            stacked = STACKED in path_of(keys)
            value = np.stack([read(name) for name in names]) if stacked else read(names[0])
            return jax.make_array_from_callback(leaf.shape, sharding, lambda index: value[index])

        return jax.tree_util.tree_map_with_path(make, self.abstract, shardings)


def trainable(model, *, dtype="float32", scan=False, remat="none", mesh: Mesh | None = None) -> Trainable:
    """Prepares a model, in memory or lazy, for training; its values are not read.

    Args:
        model: a model of a language modelling head, or a LazyModel.
        dtype: what is computed in.
        scan, remat: as in PretrainingConfig.
        mesh: where the parameters will be; None for no constraints (pmap).
    """
    cfg, dtype = model.config, jnp.dtype(dtype)
    _known(model.head)
    stacks = {each.stack: each for each in (cfg, cfg.as_decoder())}  # one, or an encoder-decoder's two

    def build():
        built = HEADS[model.head](cfg, dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
        for name in stacks:
            stack = TrainingStack(getattr(built, name), scan=scan, remat=remat, mesh=mesh, dtype=dtype)
            setattr(built, name, stack)
        return built

    graphdef, abstract = split(nnx.eval_shape(build))
    paths = {}
    for keys, _ in jax.tree_util.tree_leaves_with_path(abstract):
        path = path_of(keys)
        count = stacks[path.split("/")[0]].num_layer_weights if STACKED in path else 1
        paths[path] = tuple(path.replace(STACKED, f"/layer_{i}/") for i in range(count))

    def loss(params, batch, key=None):
        around = gathered({k: v for k, v in params.items() if k not in stacks}, mesh, dtype)
        whole = nnx.merge(graphdef, {**params, **around})
        rngs = None if key is None else nnx.Rngs(dropout=key)
        logits = whole(**model_inputs(cfg, batch), rngs=rngs)["logits"]
        return cross_entropy_sum(logits, batch["labels"])

    return Trainable(cfg, model.head, loss, abstract, paths)


def model_inputs(cfg: TransformerConfig, batch: dict) -> dict:
    """What the model is called with for a batch of blocks: documents that share a row do not see each other.

    Args:
        batch: input_ids int [B, T], and optionally segment_ids int [B, T], equal within a document; for an encoder-decoder
            input_ids and attention_mask [B, S], and decoder_input_ids [B, U].
    """
    if cfg.decoder is not None:
        return {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    inputs = {"input_ids": batch["input_ids"]}
    if "segment_ids" in batch:
        segments = batch["segment_ids"]
        inputs["attention_mask"] = segments[:, :, None] == segments[:, None, :]  # [B, T, T]
        columns = jnp.arange(segments.shape[1])
        starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        first = jax.lax.cummax(jnp.where(starts, columns, 0), axis=1)
        inputs["position_ids"] = cfg.embedding.position_offset + columns - first
    return inputs
