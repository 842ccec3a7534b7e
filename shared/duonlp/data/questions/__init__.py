"""Questions on contexts, with answers: read, explore, and batch for training."""

from duonlp.data.questions.questions import Questions

__all__ = ["Questions"]
