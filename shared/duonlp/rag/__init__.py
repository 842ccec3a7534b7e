"""Retrieval-augmented generation: models that generate answers from several documents, marginalized over them."""

from duonlp.rag.batches import RagBatches
from duonlp.rag.checkpoint import RagTokenizers
from duonlp.rag.config import RagConfig
from duonlp.rag.contexts import RagContexts
from duonlp.rag.forward import Marginal, SequenceMarginal, TokenMarginal
from duonlp.rag.model import RagBase, SequenceBase, TokenBase
from duonlp.rag.pipeline import RagAnswer, RagPipeline

__all__ = [
    "Marginal", "RagAnswer", "RagBase", "RagBatches", "RagConfig", "RagContexts", "RagPipeline", "RagTokenizers", "SequenceBase",
    "SequenceMarginal", "TokenBase", "TokenMarginal",
]  # fmt: skip
