"""Questions on contexts, with answers: read, explore, and batch for training."""

from duonlp.data.questions.batches import MissingAnswer, QuestionBatches
from duonlp.data.questions.exploration import Exploration, explore
from duonlp.data.questions.folds import folds
from duonlp.data.questions.leakage import Leakage, leakage
from duonlp.data.questions.questions import Questions
from duonlp.data.questions.reading import read_questions
from duonlp.data.questions.squad import write_squad

__all__ = [
    "Exploration",
    "Leakage",
    "MissingAnswer",
    "QuestionBatches",
    "Questions",
    "explore",
    "folds",
    "leakage",
    "read_questions",
    "write_squad",
]
