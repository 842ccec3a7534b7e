"""Devices in a mesh, and where on it each parameter lives: by its path, so that models carry no annotations.

The rules are Megatron's for the tensor axis (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053: the first matrix of
a pair by columns, the second by rows, the vocabulary by rows) and ZeRO's third stage for the fsdp axis (Rajbhandari et
al. 2020, https://arxiv.org/abs/1910.02054: every matrix cut along its other side).
"""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from duonlp.training.config import AXES, mesh_shape

BATCH = ("data", "fsdp")
"""Axes that the rows of a batch are cut along."""

RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attention/(query|key|value)/kernel$", ("fsdp", "tensor")),  # [D, N x H]: each device some heads
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
"""(pattern of a parameter's path, an axis a dimension): the first that matches; all others are on every device."""


def make_mesh(axes: Mapping[str, int] | None = None, devices: Sequence | None = None) -> Mesh:
    """A mesh with the axes "data", "fsdp" and "tensor", each of type Auto: XLA works out what lies between.

    Args:
        axes: devices along each axis, 1 where left out, -1 once for all that are left; by default all along "data".
        devices: by default all of all hosts.

    Raises:
        InputError: they do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = mesh_shape({"data": -1} if axes is None else axes, len(devices))
    types = (AxisType.Auto,) * len(AXES)
    if any(device.platform == "tpu" for device in devices):
        return jax.make_mesh(shape, AXES, types, devices=devices)  # orders them by their place in the torus
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=types)


def partition(path: str, shape: Sequence[int], mesh: Mesh, axes: Sequence[str] = AXES) -> PartitionSpec:
    """Where a parameter lives.

    Args:
        path: e.g. ``decoder/layer_0/attention/query/kernel``; a stacked one (``decoder/layers/...``) has one axis more
            in front, which is never cut.
        shape: its shape. A dimension that an axis does not divide is not cut along it.
        axes: only cut along these.
    """
    for pattern, wanted in RULES:
        if re.search(pattern, path):
            wanted = (None,) * (len(shape) - len(wanted)) + wanted
            fits = [
                axis if axis in axes and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 else None
                for axis, size in zip(wanted, shape, strict=True)
            ]
            return PartitionSpec(*fits)
    return PartitionSpec()


def path_of(keys) -> str:
    """A pytree path as one of ours: its names joined by slashes."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in keys)


def shardings(tree, mesh: Mesh, axes: Sequence[str] = AXES):
    """The NamedSharding of every array of a pytree of parameters, or of an optimizer's state over them.

    A moment has the path of its parameter at its end and so lies where that lies; what has another shape than its
    parameter (Adafactor's factored moments, counters) is on every device.
    """

    def place(keys, leaf):
        try:
            spec = partition(path_of(keys), leaf.shape, mesh, axes)
        except ValueError:  # fewer dimensions than the rule has: a factored moment
            spec = PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over all devices that do not share one row."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device."""
    return NamedSharding(mesh, PartitionSpec())
