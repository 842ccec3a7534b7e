"""Find passages that answer a question: document stores, retrievers, encoders and rankers."""

from duonlp.retrieval.document import Document, DocumentStore, DuplicatePolicy, Encoder, Filters, Retriever
from duonlp.retrieval.prompting import GeneratedAnswer, PromptGenerator, parse_citations

__all__ = [
    "Document",
    "DocumentStore",
    "DuplicatePolicy",
    "Encoder",
    "Filters",
    "GeneratedAnswer",
    "PromptGenerator",
    "Retriever",
    "parse_citations",
]
