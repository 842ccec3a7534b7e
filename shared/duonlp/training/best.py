"""The best of a run's evaluations, and when there has been none better for long enough."""

import math
from collections.abc import Mapping
from typing import Any

from duonlp.errors import InputError

SMALLER_IS_BETTER = ("loss", "error", "perplexity")


def greater_is_better(name: str) -> bool:
    """Whether a metric of this name is better when it is greater; the name decides."""
    return not any(word in name for word in SMALLER_IS_BETTER)


class Best:
    """Follows one metric over the evaluations of a run.

    A value that is not finite is never the best, and counts as an evaluation without a better one.

    Args:
        name: of the metric.
        greater: whether a greater value is better; None: its name decides.
        min_delta: a value is better by more than this, or it is not.
        patience: evaluations without a better value after which the run should stop; None for never.

    value, step: the best so far, and when it was; None before the first.
    since: evaluations since then.
    """

    def __init__(self, name: str, greater: bool | None = None, *, min_delta: float = 0.0, patience: int | None = None):
        if min_delta < 0 or (patience is not None and patience < 1):
            raise InputError(
                f"min_delta is {min_delta} and patience {patience}; give at least 0, and at least 1 or None"
            )
        self.name, self.greater = name, greater_is_better(name) if greater is None else greater
        self.min_delta, self.patience = min_delta, patience
        self.value: float | None = None
        self.step: int | None = None
        self.since = 0

    def update(self, step: int, results: Mapping[str, float]) -> bool:
        """Takes the results of an evaluation; whether they are the best so far.

        Raises:
            InputError: the metric is not among them.
        """
        if self.name not in results:
            raise InputError(f"there is no {self.name!r} among the results; there are {', '.join(results) or 'none'}")
        value = float(results[self.name])
        by = math.inf if self.value is None else (value - self.value) * (1 if self.greater else -1)
        if math.isfinite(value) and by > self.min_delta:
            self.value, self.step, self.since = value, step, 0
            return True
        self.since += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.since >= self.patience

    def to_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from, for JSON."""
        return {"value": self.value, "step": self.step, "since": self.since}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`to_dict` gave."""
        self.value, self.step, self.since = state["value"], state["step"], state["since"]
