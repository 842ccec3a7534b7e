"""Retrieval-augmented generation: models that generate answers from several documents, marginalized over them."""

from duonlp.rag.checkpoint import RagTokenizers
from duonlp.rag.config import RagConfig
from duonlp.rag.forward import Marginal, SequenceMarginal, TokenMarginal
from duonlp.rag.model import RagBase, SequenceBase, TokenBase

__all__ = [
    "Marginal",
    "RagBase",
    "RagConfig",
    "RagTokenizers",
    "SequenceBase",
    "SequenceMarginal",
    "TokenBase",
    "TokenMarginal",
]
