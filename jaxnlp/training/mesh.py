"""Device meshes, and the sharding of each parameter, which its path determines so that models carry no annotations.

The tensor axis follows Megatron (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053): of a pair of matrices, the first is
sharded by columns and the second by rows; embeddings are sharded over the vocabulary. The fsdp axis follows ZeRO stage 3
(Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054): every matrix is sharded along its other dimension.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from duonlp.dtypes import without_float16
from duonlp.training.config import AXES, mesh_shape

PyTree: TypeAlias = Any
"""Nested containers of arrays, such as parameters (nested dicts) or the state of an optimizer."""

BATCH = ("data", "fsdp")
"""Axes that the rows of a batch are sharded over."""

RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attention/(query|key|value)/kernel$", ("fsdp", "tensor")),  # [D, N x H]: heads over devices
    (r"attention/(query|key|value)/bias$", ("tensor",)),
    (r"attention/output/kernel$", ("tensor", "fsdp")),
    (r"feed_forward/(gate|up)/kernel$", ("fsdp", "tensor")),
    (r"feed_forward/(gate|up)/bias$", ("tensor",)),
    (r"feed_forward/down/kernel$", ("tensor", "fsdp")),
    (r"relative_attention/embedding$", (None, "tensor")),  # [buckets, N]
    (r"embeddings/word_embeddings/embedding$", ("tensor", "fsdp")),
    (r"lm_head/output/kernel$", ("fsdp", "tensor")),
    (r"lm_head/bias$", ("tensor",)),
    (r"/embedding$", (None, "fsdp")),
    (r"/kernel$", ("fsdp", None)),
)
"""(pattern of a parameter's path, mesh axis of each dimension). The first match counts; without one, it is replicated."""


def make_mesh(axes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh with the axes "data", "fsdp" and "tensor" of type Auto, so XLA chooses the shardings in between.

    Args:
        axes: Devices along each axis: 1 if left out, -1 once for all remaining devices. By default all are along "data".
        devices: Devices of the mesh; by default all devices of all hosts.

    Raises:
        InputError: The axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = mesh_shape({"data": -1} if axes is None else axes, len(devices))
    types = (AxisType.Auto,) * len(AXES)
    if any(device.platform == "tpu" for device in devices):
        return jax.make_mesh(shape, AXES, types, devices=devices)  # orders devices by their place in the torus
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=types)


def partition(path: str, shape: Sequence[int], mesh: Mesh, axes: Sequence[str] = AXES) -> PartitionSpec:
    """Return the PartitionSpec of a parameter.

    Args:
        path: Path such as ``decoder/layer_0/attention/query/kernel``. Stacked parameters (``decoder/layers/...``) have a
            leading dimension, which is never sharded.
        shape: Shape of the parameter. A dimension that is not divisible by its axis is not sharded.
        mesh: Mesh to shard over.
        axes: Shard over these axes only.

    Raises:
        ValueError: The parameter has fewer dimensions than the rule of its path.
    """
    for pattern, dimension_axes in RULES:
        if re.search(pattern, path):
            dimension_axes = (None,) * (len(shape) - len(dimension_axes)) + dimension_axes
            spec = [
                axis if axis in axes and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 else None
                for axis, size in zip(dimension_axes, shape, strict=True)
            ]
            return PartitionSpec(*spec)
    return PartitionSpec()


def path_of(keys: jax.tree_util.KeyPath) -> str:
    """Return the parameter path of a pytree key path: its names joined by slashes."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in keys)


def shardings(tree: PyTree, mesh: Mesh, axes: Sequence[str] = AXES) -> PyTree:
    """Return the NamedSharding of every array of a pytree of parameters or of optimizer state.

    A moment's path ends in its parameter's path, so it is sharded like its parameter. State of another shape (Adafactor's
    factored moments, counters) is replicated.

    Args:
        tree: Arrays or jax.ShapeDtypeStructs.
        mesh: Mesh to shard over.
        axes: Shard over these axes only.
    """

    def sharding_of(keys: jax.tree_util.KeyPath, leaf: Any) -> NamedSharding:
        try:
            spec = partition(path_of(keys), leaf.shape, mesh, axes)
        except ValueError:  # fewer dimensions than the rule: a factored moment
            spec = PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding_of, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its rows over the axes of :data:`BATCH`, replicated over "tensor"."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_rows(x: PyTree, mesh: Mesh | None) -> PyTree:
    """Constrain a pytree of arrays [B, ...] to have its rows over the devices and no other dimension sharded."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def gather_parameters(
    params: PyTree, mesh: Mesh | None, dtype: DTypeLike, keeps_float32: tuple[str, ...] = (), simulated: tuple[str, ...] = ()
) -> PyTree:  # fmt: skip
    """Return parameters ready for computing: matrices cast to `dtype`, and all gathered over the "fsdp" axis of the mesh.

    Casting comes first so that half the bytes are sent. Norms and biases keep their dtype, and so do the layers in
    `keeps_float32` if `dtype` is float16, and those in `simulated`, whose rounding is that of the parameters. Without a mesh
    nothing is gathered.
    """
    simulated = tuple(f"{path}/" for path in simulated)

    def gather(keys: jax.tree_util.KeyPath, leaf: jax.Array) -> jax.Array:
        is_floating = jnp.issubdtype(leaf.dtype, jnp.floating) and not path_of(keys).endswith("_scale")
        if leaf.ndim > 1 and is_floating and not path_of(keys).startswith(simulated):
            leaf = leaf.astype(without_float16(dtype) if path_of(keys).startswith(keeps_float32) else dtype)
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
