"""Find passages that answer a question: document stores, retrievers, encoders, rankers and readers."""

from duonlp.retrieval.answer import Answer
from duonlp.retrieval.document import Document, DocumentStore, DuplicatePolicy, Encoder, Filters, Retriever
from duonlp.retrieval.question_answering import ExtractiveQA
from duonlp.retrieval.reader import Reader

__all__ = [
    "Answer",
    "Document",
    "DocumentStore",
    "DuplicatePolicy",
    "Encoder",
    "ExtractiveQA",
    "Filters",
    "Reader",
    "Retriever",
]
