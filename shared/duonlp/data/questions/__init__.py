"""Questions on contexts, with answers: read, explore, and batch for training."""

from duonlp.data.questions.questions import Questions
from duonlp.data.questions.retrieval_batches import RetrievalBatches, RetrievalExample, retrieval_examples

__all__ = ["Questions", "RetrievalBatches", "RetrievalExample", "retrieval_examples"]
