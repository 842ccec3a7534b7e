"""What a user says about pruning during training, and its schedule."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from duonlp.errors import InputError
from duonlp.util.suggestions import check_patterns, choice

METHODS = "magnitude", "movement", "soft-movement"
"""What decides which weights stay: their magnitude (Zhu & Gupta 2017, https://arxiv.org/abs/1710.01878), or trained scores
(movement pruning, Sanh et al. 2020, https://arxiv.org/abs/2005.07683)."""

STRUCTURES = "weights", "blocks", "units"
"""What is pruned as a whole, besides N:M: single weights, blocks of a kernel, or attention heads and feed-forward rows."""

SCOPES = "global", "layer"
"""What competes for a place: the weights of all chosen layers, or those of each kernel by itself."""

END_SHARE = 0.7
"""Share of the run at which the schedule ends by default."""


@dataclass(frozen=True)
class Pruning:
    """Pruning during training: which weights become zero, and when.

    Attributes:
        sparsity: Share of the weights (or blocks, or heads and rows) that become zero, in [0, 1). None for N:M, which fixes it,
            and for soft movement, where `penalty` and `threshold` decide.
        method: One of METHODS.
        structure: One of STRUCTURES, or N:M such as "2:4", which keeps N of M consecutive inputs of each output. "units" are
            attention heads and feed-forward rows, which :func:`shrink` then removes.
        scope: One of SCOPES. Heads compete with heads, and rows with rows.
        layers: Patterns of paths of linear layers, as of fnmatch, such as ``*/feed_forward/*``; by default all inside the stacks.
        skip: Patterns of paths to leave dense.
        initial_sparsity: Sparsity at `begin`.
        begin: Optimizer steps before the first mask.
        end: Step at which the sparsity is reached; None for 70% of the run.
        every: Steps between two masks.
        block: Inputs and outputs of a block.
        score_rate: Learning rate of the trained scores, as a multiple of the run's.
        threshold: Soft movement keeps weights whose sigmoid(score) is above this, which is reached at `end`.
        penalty: Weight of soft movement's penalty, the mean of sigmoid(score), which is reached at `end`.

    Raises:
        InputError: A value is out of range, or two of them are incompatible.
    """

    sparsity: float | None = None
    method: str = "magnitude"
    structure: str = "weights"
    scope: str = "global"
    layers: Sequence[str] = ("*/layer_*",)
    skip: Sequence[str] = ()
    initial_sparsity: float = 0.0
    begin: int = 0
    end: int | None = None
    every: int = 10
    block: tuple[int, int] = (32, 32)
    score_rate: float = 100.0
    threshold: float = 0.1
    penalty: float = 1.0

    def __post_init__(self) -> None:
        choice("pruning method", self.method, METHODS)
        choice("pruning scope", self.scope, SCOPES)
        if self.n_of_m is None:
            choice("pruning structure", self.structure, (*STRUCTURES, "2:4"))
        for name in ("layers", "skip"):
            object.__setattr__(self, name, check_patterns(name, getattr(self, name)))
        object.__setattr__(self, "block", tuple(self.block))
        is_fixed = self.n_of_m is not None or self.method == "soft-movement"
        if is_fixed != (self.sparsity is None):
            reason = f"{self.structure!r} fixes" if self.n_of_m else "the penalty decides"
            raise InputError(
                f"sparsity is {self.sparsity}, but {reason} it; omit it"
                if is_fixed
                else "sparsity is missing; give the share of the weights to prune, such as 0.7"
            )
        if self.method == "soft-movement" and self.n_of_m is not None:
            raise InputError(f"soft movement has no fixed sparsity; use 'movement' with {self.structure!r}")
        for name in ("sparsity", "initial_sparsity", "threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise InputError(f"{name} is {value}; it must be in [0, 1)")
        if self.initial_sparsity > self.target:
            raise InputError(f"initial_sparsity is {self.initial_sparsity}, above the final {self.target}; lower it")
        if self.begin < 0 or self.every < 1 or min(self.block) < 1:
            raise InputError(
                f"begin is {self.begin}, every {self.every} and block {self.block}; begin must be 0 or more and the others "
                "positive"
            )
        if self.end is not None and self.end < self.begin:
            raise InputError(f"pruning ends at step {self.end}, before it begins at step {self.begin}")
        if not self.score_rate > 0 or not self.penalty >= 0:
            raise InputError(f"score_rate is {self.score_rate} and penalty {self.penalty}; they must be positive")

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(N, M) of N:M sparsity; None for another structure."""
        match = re.fullmatch(r"(\d+):(\d+)", self.structure)
        if match is None:
            return None
        n, m = int(match[1]), int(match[2])
        if not 1 <= n < m:
            raise InputError(f"structure is {self.structure!r}; N:M keeps N of M weights, with N from 1 to M - 1")
        return n, m

    @property
    def target(self) -> float:
        """Final sparsity; of soft movement, the final threshold."""
        if self.n_of_m is not None:
            return 1 - self.n_of_m[0] / self.n_of_m[1]
        return self.threshold if self.sparsity is None else self.sparsity

    @property
    def trains_scores(self) -> bool:
        """Whether scores are trained beside the weights."""
        return self.method != "magnitude"

    def resolved(self, steps: int) -> Self:
        """Return the settings with the end of the schedule in a run of ``steps``.

        Raises:
            InputError: The run ends before the schedule does.
        """
        end = max(self.begin, math.floor(END_SHARE * steps)) if self.end is None else self.end
        if end >= steps:
            raise InputError(
                f"pruning reaches its sparsity at step {end}, but the run has {steps} steps, the last of which must train the "
                "pruned model; lower begin or end, or train longer"
            )
        return replace(self, end=end)

    def due(self, step: int) -> bool:
        """Return whether masks are computed after ``step`` steps; the settings are :meth:`resolved`."""
        assert self.end is not None
        return self.begin <= step <= self.end and ((step - self.begin) % self.every == 0 or step == self.end)

    def sparsity_at(self, step: int) -> float:
        """Return the sparsity (of soft movement, the threshold) after ``step`` steps: s_f + (s_i - s_f)(1 - progress)^3."""
        assert self.end is not None
        if step < self.begin:
            return 0.0
        progress = 1.0 if step >= self.end else (step - self.begin) / (self.end - self.begin)
        return self.target + (self.initial_sparsity - self.target) * (1 - progress) ** 3

    def penalty_at(self, step: int) -> float:
        """Return the weight of soft movement's penalty after ``step`` steps, which rises with the threshold."""
        if self.method != "soft-movement" or not self.threshold:
            return 0.0
        return self.penalty * self.sparsity_at(step) / self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON-compatible values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        }
