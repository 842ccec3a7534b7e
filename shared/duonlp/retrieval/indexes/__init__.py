"""What the document stores search with: postings, vectors, and the files of both."""

from duonlp.retrieval.indexes.bm25 import BM25Index, BM25Options
from duonlp.retrieval.indexes.vectors import VectorIndex

__all__ = ["BM25Index", "BM25Options", "VectorIndex"]
