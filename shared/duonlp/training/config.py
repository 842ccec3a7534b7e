"""How a model is pretrained: every setting of a run, checked once, the same for both frameworks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from duonlp.dtypes import check_dtype
from duonlp.errors import InputError
from duonlp.training.schedules import SCHEDULES
from duonlp.training.settings import Settings

AXES = ("data", "fsdp", "tensor")
"""Axes of a device mesh: whole copies of the model, its parameters cut up, its matrix products cut up."""

OPTIMIZERS = ("adamw", "adafactor", "lion")
PARALLELISM = ("jit", "pmap")
REMAT = ("none", "dots", "full")

CURVE = (
    "steps", "seconds", "batch_size", "seed", "optimizer", "learning_rate", "schedule", "warmup_share", "final_share",
    "weight_decay", "beta1", "beta2", "clip_norm", "dtype", "scan",
)  # fmt: skip
"""Settings that a run is resumed with unchanged; the others (devices, logs, checkpoints) may change on the way."""


@dataclass(frozen=True)
class PretrainingConfig(Settings):
    """How a model is pretrained.

    steps: optimizer steps.
    seconds: the learning rate is brought down to its end and training stopped after this long, however few steps
        that was; None for no limit. The first step, which compiles, is not counted, and a resumed run's clock goes on.
    batch_size: blocks in a step, over all devices of all hosts.
    accumulation: pieces that a batch is computed in, one after the other: memory for time, the same result.
    seed: of the order of the blocks, the masks and dropout. (Initial values have their own, in from_config.)
    optimizer: "adamw" (Loshchilov & Hutter 2019), "adafactor" (Shazeer & Stern 2018) or "lion" (Chen et al. 2023).
    learning_rate: its peak; it ends at `final_share` of it, by `schedule`: "cosine", "linear", "inverse_sqrt", "constant".
    warmup_share: share of the run in which the learning rate rises from 0.
    weight_decay: decoupled, on matrices and embeddings, never on biases and norms.
    beta1, beta2: decay of the moments, for adamw and lion.
    clip_norm: largest global norm of the gradients.
    dtype: what is computed in; parameters, moments, norms, softmax and the loss are float32.
    parallelism: "jit" over `mesh`, or "pmap", a copy of everything on every device.
    mesh: devices along each axis of :data:`AXES`; one of them may be -1, for all that are left.
    scan: one compiled layer that is run over stacked parameters: short compilation for deep models.
    remat: what of a layer's activations is computed again in the backward pass: "none", "dots" (all but the results
        of matrix products), or "full" (everything but the layer's input).
    log_every, evaluate_every, save_every: steps between two; 0 for never.
    evaluate_batches: how many of the held-out batches an evaluation reads, evenly spaced; 0 for all.
    keep_last, keep_every, keep_best: checkpoints that are kept: the last n, every k steps (0: none), and the n of the
        lowest held-out loss.
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
    mesh: Mapping[str, int] = field(default_factory=lambda: {"data": -1, "fsdp": 1, "tensor": 1})
    scan: bool = False
    remat: str = "none"
    log_every: int = 10
    evaluate_every: int = 0
    evaluate_batches: int = 0
    save_every: int = 0
    keep_last: int = 2
    keep_every: int = 0
    keep_best: int = 1

    of_what: ClassVar[str] = "pretraining"
    curve: ClassVar[tuple[str, ...]] = CURVE

    def __post_init__(self):
        for name in ("steps", "seconds", "batch_size", "accumulation", "learning_rate", "clip_norm", "keep_last"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; it must be positive")
        for name in ("warmup_share", "final_share", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1 and (name, getattr(self, name)) != ("final_share", 1):
                raise InputError(f"{name} is {getattr(self, name)}; it must be a share from 0 to 1")
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
        choices = (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("parallelism", PARALLELISM), ("remat", REMAT))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        check_dtype(self.dtype)
        if self.batch_size % self.accumulation:
            raise InputError(
                f"a batch_size of {self.batch_size} does not fall into {self.accumulation} equal pieces; "
                "make batch_size a multiple of accumulation"
            )
        check_mesh_axes(self.mesh)
        if self.parallelism == "pmap" and any(self.mesh.get(axis, 1) != 1 for axis in AXES[1:]):
            raise InputError(
                f"pmap copies the model to every device, so mesh={dict(self.mesh)} needs parallelism='jit'"
            )

    def to_dict(self) -> dict[str, Any]:
        """Every setting, for JSON."""
        return super().to_dict() | {"mesh": dict(self.mesh)}


def check_mesh_axes(mesh: Mapping[str, int]) -> None:
    """Raises InputError for axes that do not exist, sizes that are none, or more than one -1."""
    for axis, size in mesh.items():
        if axis not in AXES:
            raise InputError(f"the mesh has an axis {axis!r}; axes are {', '.join(AXES)}")
        if not isinstance(size, int) or not (size > 0 or size == -1):
            raise InputError(
                f"the mesh has {size!r} devices along {axis!r}; give a positive number, or -1 for the rest"
            )
    if list(mesh.values()).count(-1) > 1:
        raise InputError(f"the mesh {dict(mesh)} leaves more than one axis open; give -1 once")


def mesh_shape(mesh: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """Devices along each axis of :data:`AXES`, for that many devices.

    Raises:
        InputError: the axes do not multiply to the number of devices.
    """
    check_mesh_axes(mesh)
    sizes = {axis: mesh.get(axis, 1) for axis in AXES}
    fixed = 1
    for size in sizes.values():
        fixed *= max(size, 1)
    rest, left = divmod(devices, fixed)
    if -1 in sizes.values() and not left and rest:
        sizes = {axis: rest if size == -1 else size for axis, size in sizes.items()}
    elif -1 in sizes.values() or fixed != devices:
        wanted = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise InputError(
            f"a mesh of {wanted} does not fit {devices} devices; its sizes must multiply to {devices} "
            "(-1 takes all that are left)"
        )
    return tuple(sizes[axis] for axis in AXES)
