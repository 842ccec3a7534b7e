"""Find passages that answer a question: document stores, retrievers, encoders, rankers, readers and generators."""

from duonlp.retrieval.answer import Answer
from duonlp.retrieval.document import Document, DocumentStore, DuplicatePolicy, Encoder, Filters, Ranker, Retriever
from duonlp.retrieval.encoders import DPREncoder, SentenceEncoder
from duonlp.retrieval.evaluation import (
    AnswerScores,
    Collection,
    PipelineScores,
    RetrieverScores,
    documents_of,
    evaluate_pipeline,
    evaluate_reader,
    evaluate_retrievers,
    item_filters,
)
from duonlp.retrieval.faiss_store import FaissStore
from duonlp.retrieval.filters import UnknownFieldWarning, matches
from duonlp.retrieval.fusion import HybridRetriever, RerankingRetriever
from duonlp.retrieval.haystack_store import HaystackStore
from duonlp.retrieval.indexes import BM25Options
from duonlp.retrieval.memory_store import MemoryStore
from duonlp.retrieval.negatives import hard_negatives, labelled_pairs, write_pairs
from duonlp.retrieval.prompting import GeneratedAnswer, PromptGenerator, parse_citations
from duonlp.retrieval.question_answering import ExtractiveQA
from duonlp.retrieval.ranker import CrossEncoderRanker
from duonlp.retrieval.reader import Reader, load_reader
from duonlp.retrieval.retrievers import BM25Retriever, EmbeddingRetriever

__all__ = [
    "Answer",
    "AnswerScores",
    "BM25Options",
    "BM25Retriever",
    "Collection",
    "CrossEncoderRanker",
    "DPREncoder",
    "Document",
    "DocumentStore",
    "DuplicatePolicy",
    "EmbeddingRetriever",
    "Encoder",
    "ExtractiveQA",
    "FaissStore",
    "Filters",
    "GeneratedAnswer",
    "HaystackStore",
    "HybridRetriever",
    "MemoryStore",
    "PipelineScores",
    "PromptGenerator",
    "Ranker",
    "Reader",
    "RerankingRetriever",
    "Retriever",
    "RetrieverScores",
    "SentenceEncoder",
    "UnknownFieldWarning",
    "documents_of",
    "evaluate_pipeline",
    "evaluate_reader",
    "evaluate_retrievers",
    "hard_negatives",
    "item_filters",
    "labelled_pairs",
    "load_reader",
    "matches",
    "parse_citations",
    "write_pairs",
]
