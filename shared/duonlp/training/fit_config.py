"""How a model is fine-tuned: every setting of ``fit``, checked once."""

from dataclasses import dataclass
from typing import ClassVar

from duonlp.errors import InputError
from duonlp.training.config import OPTIMIZERS
from duonlp.training.schedules import SCHEDULES, due
from duonlp.training.settings import Settings

EPOCH = "epoch"
"""In place of a number of steps: once at the end of each epoch."""

CURVE = (
    "epochs", "steps", "accumulation", "seed", "optimizer", "learning_rate", "schedule", "warmup_share", "final_share",
    "weight_decay", "beta1", "beta2", "clip_norm", "label_smoothing", "layer_decay", "best_metric", "greater_is_better",
)  # fmt: skip
"""Settings that a run is resumed with unchanged; the others may change on the way."""


@dataclass(frozen=True)
class FitConfig(Settings):
    """How a model is fine-tuned.

    epochs: times that all batches are seen.
    steps: optimizer steps to stop after, however many epochs that is; None for all epochs.
    accumulation: pieces that a batch is computed in, one after the other: memory for time, the same result.
    seed: of dropout. (The order of the batches has its own.)
    optimizer: "adamw" (Loshchilov & Hutter 2019), "adafactor" (Shazeer & Stern 2018) or "lion" (Chen et al. 2023).
    learning_rate: its peak; it ends at `final_share` of it, by `schedule`: "cosine", "linear", "inverse_sqrt", "constant".
        Adafactor's is relative to the size of each parameter: 1e-3 is usual for it (Raffel et al. 2020).
    warmup_share: share of the run in which the learning rate rises from 0.
    weight_decay: decoupled, on matrices and embeddings, never on biases and norms.
    beta1, beta2: decay of the moments, for adamw and lion.
    clip_norm: largest global norm of the gradients; None for no limit.
    label_smoothing: share of the weight that cross-entropy takes from the label and spreads over all classes (Szegedy et
        al. 2016), in training and in the validation loss.
    layer_decay: each layer's learning rate is this share of the one's above it, the embeddings' the least (Clark et al.
        2020; duonlp.training.layer_decay); weight decay with it. 1.0: the same for all.
    log_every: steps between two records; 0 for none.
    evaluate_every, save_every: steps between two evaluations, or checkpoints to resume from; "epoch"; or 0 for never.
    best_metric: what the best model is told by, and what early stopping looks at: "loss" (of the validation batches), or a
        name among the results of the evaluation, such as "rougeL".
    greater_is_better: of that; None: not for names that have "loss", "error" or "perplexity" in them, but for all others.
    patience: evaluations without a better value after which the training stops; None for never.
    min_delta: how much better counts as better.
    keep_last: checkpoints that are kept to resume from.
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

    of_what: ClassVar[str] = "fit"
    curve: ClassVar[tuple[str, ...]] = CURVE
    # What checkpoints ask of a configuration besides: the best model is kept elsewhere, in Hugging Face layout.
    keep_every: ClassVar[int] = 0
    keep_best: ClassVar[int] = 0

    def __post_init__(self):
        for name in ("epochs", "steps", "accumulation", "learning_rate", "clip_norm", "patience", "keep_last"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; it must be positive")
        for name in ("warmup_share", "final_share", "beta1", "beta2", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1 and (name, getattr(self, name)) != ("final_share", 1):
                raise InputError(f"{name} is {getattr(self, name)}; it must be a share from 0 to below 1")
        if not 0 < self.layer_decay <= 1:
            raise InputError(
                f"layer_decay is {self.layer_decay}; it must be a share above 0, and at most 1 (the same for all)"
            )
        for name in ("weight_decay", "log_every", "min_delta"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed!r}; it must be a whole number from 0 to 2**32 - 1")
        for name in ("evaluate_every", "save_every"):
            check_every(name, getattr(self, name))
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        self.learning_rate_at(0.0)  # raises for what does not go together


def check_every(name: str, every: int | str) -> None:
    """Raises InputError unless `every` is :data:`EPOCH`, or a number of steps, 0 or more."""
    if every != EPOCH and (not isinstance(every, int) or isinstance(every, bool) or every < 0):
        raise InputError(f"{name} is {every!r}; give a number of steps, {EPOCH!r}, or 0 for never")


def is_time(every: int | str, step: int, ends_epoch: bool, last: bool) -> bool:
    """Whether something that is done every so many steps, or :data:`EPOCH`, is to be done after this one.

    Args:
        step: how many are done.
        ends_epoch: whether it was the last of an epoch.
        last: whether it was the last of all.
    """
    if every == EPOCH:
        return ends_epoch or last
    return due(step, every, step if last else None)
