"""The result of a fine-tuning run, shared by both frameworks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FitResult:
    """Result of a fine-tuning run.

    Attributes:
        model: Model with the parameters of the last step.
        steps: Optimizer steps done, including those before a resume.
        examples: Training examples seen, including those before a resume.
        seconds: Training time without evaluations.
        loss: Loss of the last step.
        history: Scores of each evaluation since the last resume, each with its "step".
        best: {"value", "step"} of the best evaluation by ``config.best_metric``; None if nothing was evaluated.
        best_folder: Folder of the best model, in Hugging Face layout; None without a run folder or an evaluation.
        stopped_early: Whether patience ran out.
        preempted: Whether the process was asked to stop; the run can be resumed.
        learning_curve: Training loss ("train_loss") beside the results of the evaluations, a record at each evaluation and at the
            end of each epoch, see duonlp.training.log.LearningCurve. Includes the records before a resume, unlike `history`.
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
    learning_curve: list[dict[str, Any]] = field(default_factory=list)
