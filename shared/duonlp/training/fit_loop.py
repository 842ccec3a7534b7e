"""What the fits of both packages do alike: how many steps there are, which batch is the next, and what is said of a run."""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.inputs import IGNORED
from duonlp.training.best import Best
from duonlp.training.fit_config import FitConfig
from duonlp.training.generated import one_pass
from duonlp.training.log.metrics_log import MetricsLog, NullLog

BEST = "best"
"""The folder of the best model, below the run's."""


def evaluates(config: FitConfig, validation, evaluate) -> bool:
    """Whether anything is evaluated in the course of the run."""
    return bool(config.evaluate_every) and (validation is not None or evaluate is not None)


def total_steps(batches, config: FitConfig, validation, evaluate) -> int:
    """The number of steps, once batches, settings and evaluation have been found to go together.

    Raises:
        InputError: they do not.
    """
    evaluated = evaluates(config, validation, evaluate)
    if evaluated and config.best_metric == "loss" and validation is None:
        raise InputError("best_metric is 'loss' and there are no validation batches; give some, or name another metric")
    if evaluated and config.best_metric != "loss" and evaluate is None:
        raise InputError(
            f"best_metric is {config.best_metric!r} and nothing computes it; pass evaluate, or take 'loss'"
        )
    if config.patience is not None and not evaluated:
        raise InputError(
            f"patience is {config.patience} and nothing is evaluated; give validation batches and evaluate_every"
        )
    if config.steps is not None:
        return config.steps
    if not hasattr(batches, "__len__"):
        raise InputError("how many batches an epoch has is not known; set steps in the FitConfig")
    if not len(batches):
        raise InputError("there are no batches to train on; give at least one")
    return config.epochs * len(batches)


def stream(batches, epoch: int = 0, first: int = 0) -> Iterator[tuple[int, int, Mapping, bool]]:
    """(epoch, index in it, batch, whether it is the epoch's last), without end, from a position on.

    Raises:
        InputError: an epoch has no batches.
    """
    while True:
        ahead = enumerate(_pass(batches, epoch, first), first)
        held = next(ahead, None)
        if held is None and not first:
            raise InputError(
                f"there are no batches in epoch {epoch}; give what can be iterated over again, such as a list"
            )
        if held is not None:
            for following in ahead:
                yield epoch, *held, False
                held = following
            yield epoch, *held, True
        epoch, first = epoch + 1, 0


def _pass(batches, epoch: int, first: int):
    """The batches of an epoch from one on, which are not read to be thrown away where they need not be."""
    if first and "first" in inspect.signature(getattr(batches, "epoch", one_pass)).parameters:
        return batches.epoch(epoch, first)
    return itertools.islice(one_pass(batches, epoch), first, None)


def examples(batch: Mapping) -> int:
    """Rows of a batch, but for those that only fill it up: whose labels are all -100, or whose weight is 0."""
    rows = len(next(iter(batch.values())))
    labels, counted = np.asarray(batch.get("labels", 0)), np.ones(rows, bool)
    if labels.ndim and (labels.ndim > 1 or labels.dtype.kind in "iu"):
        counted &= (labels != IGNORED).reshape(rows, -1).any(axis=1)
    if "sample_weight" in batch:
        counted &= (np.asarray(batch["sample_weight"]) != 0).reshape(rows, -1).any(axis=1)
    return int(counted.sum())


def data_of(batches) -> dict[str, Any]:
    """What run.json says of data that nobody has described."""
    return {"batches": len(batches) if hasattr(batches, "__len__") else None}


def try_out(evaluate: Callable, model, best: Best, has_loss: bool) -> None:
    """Evaluates a little before the first step, rather than finding out after an epoch that it fails.

    Raises:
        InputError: the best model's metric is not among what the evaluation gives, or what the evaluation raises.
    """
    found = {**({"loss": 0.0} if has_loss else {}), **evaluate.try_out(model)}
    if best.name not in found:
        raise InputError(
            f"best_metric is {best.name!r}, and the evaluation gives {', '.join(found)}; name one of these"
        )


def fit_log(folder, total: int, resumed: int | None, options: Mapping[str, Any] | None):
    """The log of a fine-tuning, which counts examples; one that does nothing where there is no folder."""
    if folder is None:
        return NullLog()
    defaults = {"description": "fine-tuning", "unit": "examples"}
    return MetricsLog(folder, total_steps=total, resumed_from=resumed, **{**defaults, **(options or {})})
