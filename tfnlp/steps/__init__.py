"""The training step of all models, over sums and counts of loss terms."""

from tfnlp.steps.step import TrainStep
from tfnlp.steps.terms import Terms, total_loss

__all__ = ["Terms", "TrainStep", "total_loss"]
