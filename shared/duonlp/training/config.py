"""Settings of a pretraining run, validated once and shared by both frameworks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from duonlp.dtypes import check_dtype
from duonlp.errors import InputError
from duonlp.training.schedules import SCHEDULES
from duonlp.training.settings import Settings

AXES = ("data", "fsdp", "tensor")
"""Axes of a device mesh: model replicas, sharded parameters, sharded matrix products."""

OPTIMIZERS = ("adamw", "adafactor", "lion")
PARALLELISM = ("jit", "pmap")
REMAT = ("none", "dots", "full")

FIXED_ON_RESUME = (
    "steps", "seconds", "batch_size", "seed", "optimizer", "learning_rate", "schedule", "warmup_share", "final_share",
    "weight_decay", "beta1", "beta2", "clip_norm", "dtype", "scan",
)  # fmt: skip
"""Settings that must not change on resume. The others (devices, logging, checkpoints) may."""


def default_mesh() -> dict[str, int]:
    """Return the default mesh: all devices along "data"."""
    return {"data": -1, "fsdp": 1, "tensor": 1}


@dataclass(frozen=True)
class PretrainingConfig(Settings):
    """Settings of a pretraining run.

    Attributes:
        steps: Optimizer steps.
        seconds: Time limit. The learning rate then follows its schedule over the time and training stops when it is up, however
            few steps that was. None for no limit. The first step, which compiles, is not counted; a resumed run keeps counting.
        batch_size: Blocks per step over all devices of all hosts.
        accumulation: Microbatches a batch is split into. They run one after the other, trading time for memory; the result is
            the same.
        seed: Seed for shuffling, masking and dropout. (Initial values have their own, in from_config.)
        optimizer: "adamw" (Loshchilov & Hutter 2019), "adafactor" (Shazeer & Stern 2018) or "lion" (Chen et al. 2023).
        learning_rate: Peak learning rate. It decays to `final_share` of the peak by `schedule`.
        schedule: "cosine", "linear", "inverse_sqrt" or "constant".
        warmup_share: Share of the run in which the learning rate rises from 0.
        final_share: Final learning rate as a share of the peak.
        weight_decay: Decoupled weight decay on matrices and embeddings, never on biases and norms.
        beta1: Decay of the first moment (adamw and lion).
        beta2: Decay of the second moment (adamw and lion).
        clip_norm: Largest global norm of the gradients.
        dtype: Compute dtype. Parameters, moments, norms, softmax and the loss stay in float32.
        parallelism: "jit" over `mesh`, or "pmap", which replicates everything on every device.
        mesh: Devices along each axis of :data:`AXES`. One of them may be -1 for all remaining devices.
        scan: Run one compiled layer over stacked parameters, so that deep models compile fast.
        remat: What the backward pass recomputes of a layer's activations: "none", "dots" (all but the results of matrix
            products) or "full" (everything but the layer's input).
        log_every: Steps between two log records; 0 for never.
        evaluate_every: Steps between two evaluations; 0 for never.
        evaluate_batches: Held-out batches per evaluation, evenly spaced; 0 for all.
        save_every: Steps between two checkpoints; 0 for never.
        keep_last: Number of most recent checkpoints to keep.
        keep_every: Also keep the checkpoints of every this many steps; 0 for none.
        keep_best: Also keep this many checkpoints with the lowest held-out loss.

    Raises:
        InputError: A value is out of range, or two of them are incompatible.
    """

    steps: int
    seconds: float | None = None
    batch_size: int = 8
    accumulation: int = 1
    seed: int = 0
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_share: float = 0.05
    final_share: float = 0.05
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0
    dtype: str = "float32"
    parallelism: str = "jit"
    mesh: Mapping[str, int] = field(default_factory=default_mesh)
    scan: bool = False
    remat: str = "none"
    log_every: int = 10
    evaluate_every: int = 0
    evaluate_batches: int = 0
    save_every: int = 0
    keep_last: int = 2
    keep_every: int = 0
    keep_best: int = 1

    settings_for: ClassVar[str] = "pretraining"
    fixed_on_resume: ClassVar[tuple[str, ...]] = FIXED_ON_RESUME

    def __post_init__(self) -> None:
        for name in ("steps", "seconds", "batch_size", "accumulation", "learning_rate", "clip_norm", "keep_last"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; it must be positive")
        for name in ("warmup_share", "final_share", "beta1", "beta2"):
            value = getattr(self, name)
            if not 0 <= value < 1 and (name, value) != ("final_share", 1):
                bounds = "[0, 1]" if name == "final_share" else "[0, 1)"
                raise InputError(f"{name} is {value}; it must be in {bounds}")
        for name in (
            "weight_decay",
            "log_every",
            "evaluate_every",
            "evaluate_batches",
            "save_every",
            "keep_every",
            "keep_best",
        ):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        check_dtype(self.dtype)
        if self.batch_size % self.accumulation:
            raise InputError(
                f"batch_size={self.batch_size} is not divisible by accumulation={self.accumulation}; make it a multiple"
            )
        check_layout(self.parallelism, self.mesh, self.remat)
        unused = unused_settings(self.optimizer, self.schedule, self.save_every)
        if not self.save_every:
            unused["keep_every"] = "save_every=0"
        if not self.evaluate_every:
            unused |= dict.fromkeys(("evaluate_batches", "keep_best"), "evaluate_every=0")
        self.check_effects(unused)


def unused_settings(optimizer: str, schedule: str, save_every: int | str) -> dict[str, str]:
    """Return the settings that have no effect with these values of others, each with the reason."""
    unused = {}
    if optimizer == "adafactor":
        unused |= dict.fromkeys(("beta1", "beta2"), "optimizer='adafactor'")
    if schedule == "constant":
        unused["final_share"] = "schedule='constant'"
    if save_every == 0:
        unused["keep_last"] = "save_every=0"
    return unused


def check_layout(parallelism: str, mesh: Mapping[str, int], remat: str) -> None:
    """Raise InputError for settings of that name that are unknown or incompatible."""
    for name, value, allowed in (("parallelism", parallelism, PARALLELISM), ("remat", remat, REMAT)):
        if value not in allowed:
            raise InputError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    check_mesh_axes(mesh)
    if parallelism == "pmap" and any(mesh.get(axis, 1) != 1 for axis in AXES[1:]):
        raise InputError(f"mesh={dict(mesh)} shards the model, and pmap replicates it; use parallelism='jit'")


def check_mesh_axes(mesh: Mapping[str, int]) -> None:
    """Raise InputError for an unknown axis, an invalid size, or more than one -1."""
    for axis, size in mesh.items():
        if axis not in AXES:
            raise InputError(f"unknown mesh axis {axis!r}; the axes are {', '.join(AXES)}")
        if not isinstance(size, int) or not (size > 0 or size == -1):
            raise InputError(
                f"mesh axis {axis!r} has size {size!r}; give a positive number, or -1 for all remaining devices"
            )
    if list(mesh.values()).count(-1) > 1:
        raise InputError(f"mesh {dict(mesh)} has several sizes of -1; only one axis can take the remaining devices")


def mesh_shape(mesh: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """Return the number of devices along each axis of :data:`AXES`.

    Args:
        mesh: Axis name to size; absent axes have size 1 and -1 takes all remaining devices.
        devices: Total number of devices.

    Raises:
        InputError: The sizes do not multiply to `devices`.
    """
    check_mesh_axes(mesh)
    sizes = {axis: mesh.get(axis, 1) for axis in AXES}
    fixed = 1
    for size in sizes.values():
        fixed *= max(size, 1)
    open_size, remainder = divmod(devices, fixed)
    if -1 in sizes.values() and not remainder and open_size:
        sizes = {axis: open_size if size == -1 else size for axis, size in sizes.items()}
    elif -1 in sizes.values() or fixed != devices:
        requested = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise InputError(
            f"mesh {requested} does not fit {devices} devices; make the sizes multiply to {devices} "
            "(-1 takes all remaining devices)"
        )
    return tuple(sizes[axis] for axis in AXES)
