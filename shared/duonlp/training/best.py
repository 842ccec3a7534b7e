"""The best evaluation of a run, and early stopping."""

import math
from collections.abc import Mapping
from typing import Any

from duonlp.errors import InputError

SMALLER_IS_BETTER = ("loss", "error", "perplexity")
"""A metric whose name contains one of these is minimized."""

EVALUATE = "evaluate_"
"""Prefix of a result of `evaluate` whose name the run uses itself, see duonlp.training.fit_loop.evaluation_results."""


def greater_is_better(name: str) -> bool:
    """Return whether a metric is maximized, judging by its name (see :data:`SMALLER_IS_BETTER`)."""
    return not any(word in name for word in SMALLER_IS_BETTER)


class Best:
    """Track the best value of one metric over the evaluations of a run.

    A non-finite value is never the best and counts as an evaluation without improvement.

    Args:
        name: Name of the metric.
        greater: Whether greater values are better. None decides by the name (:func:`greater_is_better`).
        min_delta: An improvement must exceed this.
        patience: Evaluations without improvement after which the run should stop. None never stops it.

    Attributes:
        value: Best value so far; None before the first.
        step: Step of the best value; None before the first.
        since: Evaluations since the best one.

    Raises:
        InputError: `min_delta` is negative or `patience` is below 1.
    """

    def __init__(self, name: str, greater: bool | None = None, *, min_delta: float = 0.0, patience: int | None = None):
        if min_delta < 0:
            raise InputError(f"min_delta is {min_delta}; it must be 0 or more")
        if patience is not None and patience < 1:
            raise InputError(f"patience is {patience}; it must be at least 1, or None to never stop early")
        self.name, self.greater = name, greater_is_better(name) if greater is None else greater
        self.min_delta, self.patience = min_delta, patience
        self.value: float | None = None
        self.step: int | None = None
        self.since = 0

    def update(self, step: int, results: Mapping[str, float]) -> bool:
        """Record an evaluation and return whether it is the best so far.

        Args:
            step: Steps done at the evaluation.
            results: Scores by name.

        Raises:
            InputError: `results` lacks the metric.
        """
        name = self.find(results)
        if name is None:
            raise InputError(
                f"the evaluation has no metric {self.name!r}; choose one of {', '.join(results) or '(none)'}"
            )
        value = float(results[name])
        gain = math.inf if self.value is None else (value - self.value) * (1 if self.greater else -1)
        if math.isfinite(value) and gain > self.min_delta:
            self.value, self.step, self.since = value, step, 0
            return True
        self.since += 1
        return False

    def find(self, results: Mapping[str, float]) -> str | None:
        """Return the metric's name in an evaluation: its own, or with :data:`EVALUATE` if the run uses that itself; or None."""
        return next((name for name in (self.name, f"{EVALUATE}{self.name}") if name in results), None)

    @property
    def out_of_patience(self) -> bool:
        """Whether the run should stop early."""
        return self.patience is not None and self.since >= self.patience

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON-compatible values, for :meth:`restore`."""
        return {"value": self.value, "step": self.step, "since": self.since}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state that :meth:`to_dict` returned."""
        self.value, self.step, self.since = state["value"], state["step"], state["since"]
