"""Settings of a fine-tuning run (``fit``), validated once and shared by both frameworks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from duonlp.errors import InputError
from duonlp.pruning.settings import Pruning
from duonlp.training.config import OPTIMIZERS, check_layout, default_mesh, unused_settings
from duonlp.training.schedules import SCHEDULES, due
from duonlp.training.settings import Settings

EPOCH = "epoch"
"""Interval value for "at the end of each epoch" in place of a number of steps."""

FIXED_ON_RESUME = (
    "epochs", "steps", "accumulation", "seed", "optimizer", "learning_rate", "schedule", "warmup_share", "final_share",
    "weight_decay", "beta1", "beta2", "clip_norm", "label_smoothing", "layer_decay", "best_metric", "greater_is_better",
    "scan", "pruning",
)  # fmt: skip
"""Settings that must not change on resume."""

LAYOUT = ("parallelism", "mesh", "scan", "remat")
"""Settings of how jaxnlp lays out a step over devices and memory; Keras leaves this to tf.distribute."""


@dataclass(frozen=True)
class FitConfig(Settings):
    """Settings of a fine-tuning run.

    Attributes:
        epochs: Passes over the training batches.
        steps: Optimizer steps to stop after, whatever `epochs` is. None runs all epochs.
        accumulation: Microbatches a batch is split into. They run one after the other, trading time for memory; the result is
            the same.
        seed: Seed for dropout. (The order of the batches has its own.)
        optimizer: "adamw" (Loshchilov & Hutter 2019), "adafactor" (Shazeer & Stern 2018) or "lion" (Chen et al. 2023).
        learning_rate: Peak learning rate. It decays to `final_share` of the peak by `schedule`. Adafactor's is relative to the
            scale of each parameter: 1e-3 is usual for it (Raffel et al. 2020).
        schedule: "cosine", "linear", "inverse_sqrt" or "constant".
        warmup_share: Share of the run in which the learning rate rises from 0.
        final_share: Final learning rate as a share of the peak.
        weight_decay: Decoupled weight decay on matrices and embeddings, never on biases and norms.
        beta1: Decay of the first moment (adamw and lion).
        beta2: Decay of the second moment (adamw and lion).
        clip_norm: Largest global norm of the gradients; None for no clipping.
        label_smoothing: Share of the target probability spread evenly over all classes (Szegedy et al. 2016), in the training
            and validation losses.
        layer_decay: Factor between the learning rates of neighboring layers; the embeddings get the smallest (Clark et al.
            2020; duonlp.training.layer_decay). Scales weight decay too. 1.0 disables it.
        log_every: Steps between two log records; 0 for never.
        evaluate_every: Steps between two evaluations, "epoch", or 0 for never.
        save_every: Steps between two checkpoints to resume from, "epoch", or 0 for never.
        best_metric: Metric that selects the best model and drives early stopping: "loss" (of the validation batches) or a
            result of `evaluate`, such as "rougeL".
        greater_is_better: Whether `best_metric` is maximized. None minimizes metrics with "loss", "error" or "perplexity" in
            their name and maximizes all others.
        patience: Stop after this many evaluations without improvement; None for never.
        min_delta: An improvement must exceed this.
        keep_last: Number of most recent checkpoints to keep for resuming.
        parallelism: "jit" over `mesh`, or "pmap", which replicates everything on every device. Of these four settings jaxnlp
            alone takes other values than the defaults.
        mesh: Devices along each axis, as in PretrainingConfig; with "fsdp" or "tensor" the model is sharded.
        scan: Run one compiled layer over stacked parameters, so that deep models compile fast.
        remat: What the backward pass recomputes, as in PretrainingConfig.
        pruning: Which weights become zero, and when (duonlp.pruning); None for none.

    Raises:
        InputError: A value is out of range, or two of them are incompatible.
    """

    epochs: int = 3
    steps: int | None = None
    accumulation: int = 1
    seed: int = 0
    optimizer: str = "adamw"
    learning_rate: float = 5e-5
    schedule: str = "linear"
    warmup_share: float = 0.05
    final_share: float = 0.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float | None = 1.0
    label_smoothing: float = 0.0
    layer_decay: float = 1.0
    log_every: int = 10
    evaluate_every: int | str = EPOCH
    save_every: int | str = EPOCH
    best_metric: str = "loss"
    greater_is_better: bool | None = None
    patience: int | None = None
    min_delta: float = 0.0
    keep_last: int = 1
    parallelism: str = "jit"
    mesh: Mapping[str, int] = field(default_factory=default_mesh, hash=False)
    scan: bool = False
    remat: str = "none"
    pruning: Pruning | None = None

    settings_for: ClassVar[str] = "fit"
    fixed_on_resume: ClassVar[tuple[str, ...]] = FIXED_ON_RESUME
    # Read by the checkpoint manager. The best model is kept apart from its checkpoints, in Hugging Face layout.
    keep_every: ClassVar[int] = 0
    keep_best: ClassVar[int] = 0
    seconds: ClassVar[None] = None

    def __post_init__(self) -> None:
        if isinstance(self.pruning, Mapping):  # as to_dict returns it
            object.__setattr__(self, "pruning", Pruning(**self.pruning))
        for name in ("epochs", "steps", "accumulation", "learning_rate", "clip_norm", "patience", "keep_last"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; it must be positive")
        for name in ("warmup_share", "final_share", "beta1", "beta2", "label_smoothing"):
            value = getattr(self, name)
            if not 0 <= value < 1 and (name, value) != ("final_share", 1):
                bounds = "[0, 1]" if name == "final_share" else "[0, 1)"
                raise InputError(f"{name} is {value}; it must be in {bounds}")
        if not 0 < self.layer_decay <= 1:
            raise InputError(
                f"layer_decay is {self.layer_decay}; it must be above 0 and at most 1 (one rate for all layers)"
            )
        for name in ("weight_decay", "log_every", "min_delta"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed!r}; it must be an integer from 0 to 2**32 - 1")
        for name in ("evaluate_every", "save_every"):
            check_every(name, getattr(self, name))
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        check_layout(self.parallelism, self.mesh, self.remat)
        self.check_effects(unused_settings(self.optimizer, self.schedule, self.save_every))
        self.learning_rate_at(0.0)  # raises for an invalid combination, such as inverse_sqrt without warmup

    def first_candidate(self, total: int) -> int:
        """Return the number of steps of a run of `total` steps from which evaluations may select the best model.

        With pruning, those before are of models that are not as sparse as they are to be.
        """
        end = None if self.pruning is None else self.pruning.resolved(total).end
        return 0 if end is None else end + 1

    def check_default_layout(self) -> None:
        """Raise InputError if a setting of :data:`LAYOUT` is not at its default, for an engine that cannot honor it."""
        default = FitConfig()
        for name in LAYOUT:
            value = getattr(self, name)
            if value != getattr(default, name):
                raise InputError(
                    f"{name} is {value!r}, which only jaxnlp can honor; leave it at {getattr(default, name)!r} (Keras takes "
                    "the devices from the tf.distribute strategy of the model), or train with jaxnlp"
                )


def check_every(name: str, every: int | str) -> None:
    """Raise InputError unless `every` is :data:`EPOCH` or a number of steps, 0 or more."""
    if every != EPOCH and (not isinstance(every, int) or isinstance(every, bool) or every < 0):
        raise InputError(f"{name} is {every!r}; it must be a number of steps, {EPOCH!r}, or 0 for never")


def fit_event_due(every: int | str, step: int, ends_epoch: bool, last: bool) -> bool:
    """Return whether a periodic action of ``fit`` is due after a step.

    Args:
        every: Interval in steps, or :data:`EPOCH`.
        step: Steps done.
        ends_epoch: Whether the step was the last of an epoch.
        last: Whether the step was the last of the run.
    """
    if isinstance(every, str):
        return ends_epoch or last
    return due(step, every, step if last else None)
