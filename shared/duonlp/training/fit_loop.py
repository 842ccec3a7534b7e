"""The framework-neutral parts of ``fit``: number of steps, order of the batches, checks and the log."""

import inspect
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from duonlp import architectures
from duonlp.checkpoints.atomic_folder import remove_leftovers
from duonlp.errors import InputError
from duonlp.heads import ROW_MASK
from duonlp.labels import IGNORED, WEIGHTS, array_of
from duonlp.schema import shorten
from duonlp.training.best import EVALUATE, Best
from duonlp.training.fit_config import FitConfig
from duonlp.training.generated import epoch_batches
from duonlp.training.log.metrics_log import MetricsLog, NullLog
from duonlp.typing import Batch

RESERVED = ("kind", "name", "step", "epoch", "learning_rate", "train_loss")
"""Entries of a run's records, which no result of an evaluation replaces."""

BEST = "best"
"""Subfolder of a run for its best model."""


MOST_UNLABELED = 16
"""Number of batches at the start of a run of which at least one must have a label that counts."""


class Scorer(Protocol):
    """An evaluation that can be checked before training, such as a ClassificationScorer or a GenerationScorer."""

    def __call__(self, model: Any) -> Mapping[str, float]:
        """Return scores of the model by name."""
        ...

    def dry_run(self, model: Any) -> Mapping[str, float]:
        """Return scores by name from as little work as finds errors; the values do not matter."""
        ...


def evaluates(config: FitConfig, validation: Any, evaluate: Any) -> bool:
    """Return whether the run evaluates during training."""
    return bool(config.evaluate_every) and (validation is not None or evaluate is not None)


def total_steps(batches: Any, config: FitConfig, validation: Any, evaluate: Any, *, any_layout: bool = False) -> int:
    """Return the number of optimizer steps, after checking that batches, settings and evaluation are compatible.

    Args:
        batches: Training batches.
        config: Settings of the run.
        validation: Batches for the validation loss, or None.
        evaluate: Function from a model to scores by name, or None.
        any_layout: Whether the engine honors the settings of duonlp.training.fit_config.LAYOUT.

    Raises:
        InputError: They are incompatible, or the number of batches is zero or unknown.
    """
    if not any_layout:
        config.check_default_layout()
    evaluated = evaluates(config, validation, evaluate)
    # An evaluation with a dry run shows before training whether it has a loss.
    if evaluated and config.best_metric == "loss" and validation is None and not hasattr(evaluate, "dry_run"):
        raise InputError("best_metric is 'loss' but there are no validation batches; pass some, or name another metric")
    if evaluated and config.best_metric != "loss" and evaluate is None:
        raise InputError(f"best_metric is {config.best_metric!r} but nothing computes it; pass evaluate, or use 'loss'")
    if config.patience is not None and not evaluated:
        raise InputError(
            f"patience is {config.patience} but nothing is evaluated; pass validation batches and set evaluate_every"
        )
    if config.steps is None and not hasattr(batches, "__len__"):
        raise InputError("the number of batches per epoch is unknown; set steps in the FitConfig")
    if config.steps is None and not len(batches):
        raise InputError("there are no batches to train on; pass at least one")
    total = config.epochs * len(batches) if config.steps is None else config.steps
    if config.pruning is not None:
        config.pruning.resolved(total)  # raises if it never reaches its sparsity
    return total


def endless_batches(batches: Any, epoch: int = 0, first: int = 0) -> Iterator[tuple[int, int, Batch, bool]]:
    """Yield (epoch, index in the epoch, batch, whether it is the epoch's last) without end.

    Args:
        batches: An object with ``epoch(n)`` or ``epoch(n, first)``, or an iterable that can be iterated over again.
        epoch: Epoch to start in.
        first: Index of the first batch in that epoch.

    Raises:
        InputError: An epoch has no batches.
    """
    while True:
        remaining = enumerate(_batches_from(batches, epoch, first), first)
        current = next(remaining, None)
        if current is None and not first:
            raise InputError(f"there are no batches in epoch {epoch}; pass a list or another iterable that can restart")
        if current is not None:
            for following in remaining:
                yield epoch, *current, False
                current = following
            yield epoch, *current, True
        epoch, first = epoch + 1, 0


def _batches_from(batches: Any, epoch: int, first: int) -> Iterable[Batch]:
    """Return the batches of an epoch from index `first`, without reading the skipped ones where `batches` allows."""
    if first and "first" in inspect.signature(getattr(batches, "epoch", epoch_batches)).parameters:
        return batches.epoch(epoch, first)
    return itertools.islice(epoch_batches(batches, epoch), first, None)


def check_label_counts(batches: Iterable[Batch], counts: Callable[[Batch], bool]) -> None:
    """Raise InputError if no label of the first batches counts, so that a run would only decay its weights.

    Single batches without one are fine: masked language modeling may have selected no token of a short text.

    Args:
        batches: Batches in the order in which they are trained on, of which at most MOST_UNLABELED are read.
        counts: Returns whether a label of a batch counts in the loss, on any host.
    """
    read = 0
    for batch in itertools.islice(batches, MOST_UNLABELED):
        if counts(batch):
            return
        read += 1
    if read:
        name = "batch" if read == 1 else f"{read} batches"
        raise InputError(
            f"no label of the first {name} counts in the loss: all are {IGNORED}, beyond the sequence, or in masked rows; "
            "check how the labels are made"
        )


def count_examples(batch: Batch) -> int:
    """Return the number of rows of a batch except padding rows: masked, with labels that are all -100, or of weight 0."""
    rows = len(next(iter(batch.values())))
    labels, real = np.asarray(array_of("labels", batch.get("labels", 0))), np.ones(rows, bool)
    if labels.ndim and (labels.ndim > 1 or labels.dtype.kind in "iu"):
        real &= (labels != IGNORED).reshape(rows, -1).any(axis=1)
    if WEIGHTS in batch:
        real &= (np.asarray(array_of(WEIGHTS, batch[WEIGHTS])) != 0).reshape(rows, -1).any(axis=1)
    if ROW_MASK in batch:
        real &= np.asarray(batch[ROW_MASK]) != 0
    return int(real.sum())


def describe_batches(batches: Any) -> dict[str, Any]:
    """Return the default description of training data in run.json: the number of batches, None if unknown."""
    return {"batches": len(batches) if hasattr(batches, "__len__") else None}


def describe_model(model: Any) -> dict[str, Any]:
    """Return what identifies a model in run.json: its "model", which is its config.json, and its "head"."""
    if hasattr(model, "describe"):
        return model.describe()
    return {"model": architectures.hf_config(model.config, model.head), "head": model.head}


def check_evaluation(evaluate: Scorer, model: Any, best: Best, has_loss: bool) -> None:
    """Dry-run the evaluation before the first step, so that it cannot fail after an epoch.

    Args:
        evaluate: Evaluation of the run.
        model: Model to evaluate.
        best: Tracker of the best metric.
        has_loss: Whether there are validation batches, so that evaluations have a "loss".

    Raises:
        InputError: The evaluation does not compute the best metric. Errors of the evaluation itself pass through.
    """
    metrics = evaluation_results({"loss": 0.0} if has_loss else {}, evaluate.dry_run(model))
    if best.find(metrics) is None:
        raise InputError(
            f"best_metric is {best.name!r} but the evaluation computes only {', '.join(metrics)}; name one of these"
        )


def evaluation_results(
    own: Mapping[str, float], results: Mapping[str, Any], reserved: Sequence[str] = ("examples",)
) -> dict[str, float]:
    """Return the results of one evaluation: those of the validation batches, and those of `evaluate`.

    The two never replace each other. A result of `evaluate` keeps its name unless the run uses it itself: in `own`, such as
    "loss" with validation batches, or in the records of a run ("step", "epoch", "learning_rate", "train_loss", ...). It is
    then named "evaluate_loss", "evaluate_step", ...

    Args:
        own: Losses of the validation batches; {} without any.
        results: What `evaluate` returned.
        reserved: Further names that the run uses.

    Raises:
        InputError: `results` is not numbers by name, or has a name with and without "evaluate_".
    """
    if not isinstance(results, Mapping):
        raise InputError(
            f"evaluate returned {shorten(results)}; it must return numbers by name, such as {{'accuracy': 0.5}}"
        )
    taken = {*own, *RESERVED, *reserved}
    renamed: dict[str, float] = {}
    for name, value in results.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise InputError(f"evaluate returned {name}={shorten(value)}; it must return numbers by name") from None
        new = f"{EVALUATE}{name}" if name in taken else str(name)
        if new in renamed or new in own:
            old = new.removeprefix(EVALUATE)
            raise InputError(
                f"evaluate returned {old!r}, which the run uses itself, and also {new!r}; rename one of them"
            )
        renamed[new] = number
    return {**own, **renamed}


def fit_log(
    folder: str | os.PathLike | None, total: int, resumed: int | None, options: Mapping[str, Any] | None
) -> MetricsLog | NullLog:
    """Return the log of a fine-tuning run, which counts examples; remove what a killed save of the best model left.

    Args:
        folder: Folder of the run; None for a log that does nothing.
        total: Optimizer steps of the run.
        resumed: Step the run resumes from, or None.
        options: Options of MetricsLog that override the defaults.
    """
    if folder is None:
        return NullLog()
    remove_leftovers((Path(folder) / BEST).resolve())
    defaults: dict[str, Any] = {"description": "fine-tuning", "unit": "examples"}
    return MetricsLog(folder, total_steps=total, resumed_from=resumed, **{**defaults, **(options or {})})
