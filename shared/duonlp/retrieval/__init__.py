"""Find passages that answer a question: document stores, retrievers, encoders and rankers."""

from duonlp.retrieval.document import Document, DocumentStore, DuplicatePolicy, Encoder, Filters, Retriever
from duonlp.retrieval.encoders import DPREncoder, SentenceEncoder
from duonlp.retrieval.fusion import HybridRetriever, RerankingRetriever
from duonlp.retrieval.ranker import CrossEncoderRanker

__all__ = [
    "CrossEncoderRanker", "DPREncoder", "Document", "DocumentStore", "DuplicatePolicy", "Encoder", "Filters",
    "HybridRetriever", "RerankingRetriever", "Retriever", "SentenceEncoder",
]  # fmt: skip
