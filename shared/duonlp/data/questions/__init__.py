"""Questions on contexts, with answers: read, explore, and batch for training."""

from duonlp.data.questions.exploration import Exploration, explore
from duonlp.data.questions.folds import folds
from duonlp.data.questions.leakage import Leakage, leakage
from duonlp.data.questions.questions import Questions
from duonlp.data.questions.reading import read_questions
from duonlp.data.questions.retrieval_batches import RetrievalBatches, RetrievalExample, retrieval_examples
from duonlp.data.questions.squad import write_squad

__all__ = [
    "Exploration", "Leakage", "Questions", "RetrievalBatches", "RetrievalExample", "explore", "folds", "leakage",
    "read_questions", "retrieval_examples", "write_squad",
]  # fmt: skip
