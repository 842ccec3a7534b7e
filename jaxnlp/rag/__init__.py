"""RAG models: generate answers from several documents, marginalized over them."""

from jaxnlp.rag.model import Rag, RagSequence, RagToken

__all__ = ["Rag", "RagSequence", "RagToken"]
