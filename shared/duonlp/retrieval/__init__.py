"""Find passages that answer a question: document stores, retrievers, encoders, rankers and readers."""

from duonlp.retrieval.answer import Answer
from duonlp.retrieval.document import Document, DocumentStore, DuplicatePolicy, Encoder, Filters, Retriever
from duonlp.retrieval.encoders import DPREncoder, SentenceEncoder
from duonlp.retrieval.fusion import HybridRetriever, RerankingRetriever
from duonlp.retrieval.haystack_store import HaystackStore
from duonlp.retrieval.question_answering import ExtractiveQA
from duonlp.retrieval.ranker import CrossEncoderRanker
from duonlp.retrieval.reader import Reader

__all__ = [
    "Answer",
    "CrossEncoderRanker",
    "DPREncoder",
    "Document",
    "DocumentStore",
    "DuplicatePolicy",
    "Encoder",
    "ExtractiveQA",
    "Filters",
    "HaystackStore",
    "HybridRetriever",
    "Reader",
    "RerankingRetriever",
    "Retriever",
    "SentenceEncoder",
]
