"""Find passages that answer a question: document stores, retrievers, encoders and rankers."""

from duonlp.retrieval.document import Document, DocumentStore, DuplicatePolicy, Encoder, Filters, Retriever
from duonlp.retrieval.encoders import DPREncoder, SentenceEncoder
from duonlp.retrieval.faiss_store import FaissStore
from duonlp.retrieval.filters import UnknownFieldWarning, matches
from duonlp.retrieval.fusion import HybridRetriever, RerankingRetriever
from duonlp.retrieval.indexes import BM25Options
from duonlp.retrieval.memory_store import MemoryStore
from duonlp.retrieval.negatives import hard_negatives, labelled_pairs
from duonlp.retrieval.prompting import GeneratedAnswer, PromptGenerator, parse_citations
from duonlp.retrieval.ranker import CrossEncoderRanker
from duonlp.retrieval.retrievers import BM25Retriever, EmbeddingRetriever

__all__ = [
    "BM25Options", "BM25Retriever", "CrossEncoderRanker", "DPREncoder", "Document", "DocumentStore", "DuplicatePolicy",
    "EmbeddingRetriever", "Encoder", "FaissStore", "Filters", "GeneratedAnswer", "HybridRetriever", "MemoryStore",
    "PromptGenerator", "RerankingRetriever", "Retriever", "SentenceEncoder", "UnknownFieldWarning", "hard_negatives",
    "labelled_pairs", "matches", "parse_citations",
]  # fmt: skip
