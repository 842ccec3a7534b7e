"""How a fine-tuning ended, in either package."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FitResult:
    """How a fine-tuning ended.

    model: with the parameters of the last step.
    steps, examples: done and seen, those of resumed parts included; seconds: of training, without evaluations.
    loss: of the last step.
    history: what each evaluation of this part found, and its "step".
    best: {"value", "step"} of the best evaluation, by ``config.best_metric``; None where nothing was evaluated.
    best_folder: where that model is, in Hugging Face layout; None without a folder or an evaluation.
    stopped_early: whether patience ran out. preempted: whether it was asked to stop; resuming goes on.
    """

    model: Any
    steps: int
    examples: int
    seconds: float
    loss: float
    history: list[dict[str, float]]
    best: dict[str, float] | None
    best_folder: Path | None
    stopped_early: bool
    preempted: bool
