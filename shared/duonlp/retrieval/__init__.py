"""Find passages that answer a question: document stores, retrievers, encoders and rankers."""

from duonlp.retrieval.document import Document, DocumentStore, DuplicatePolicy, Encoder, Filters, Retriever

__all__ = ["Document", "DocumentStore", "DuplicatePolicy", "Encoder", "Filters", "Retriever"]
