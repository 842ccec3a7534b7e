"""Questions on contexts, with answers: read, explore, and batch for training."""

from duonlp.data.questions.batches import MissingAnswer, QuestionBatches
from duonlp.data.questions.questions import Questions

__all__ = ["MissingAnswer", "QuestionBatches", "Questions"]
