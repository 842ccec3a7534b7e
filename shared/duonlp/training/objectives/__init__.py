"""Losses over several forward passes of one model, such as those of pairs or of unlabeled texts; each is one file."""

from duonlp.training.objectives.consistency import ConsistencyLoss
from duonlp.training.objectives.objective import Group, Objective
from duonlp.training.objectives.prompt import DecoupledLoss, PromptAndTextLoss, PromptLoss

__all__ = [
    "ConsistencyLoss",
    "DecoupledLoss",
    "Group",
    "Objective",
    "PromptAndTextLoss",
    "PromptLoss",
]
