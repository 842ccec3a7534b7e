"""Retrievers over a store that searches by itself."""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from duonlp.errors import InputError
from duonlp.retrieval.document import Document, Encoder, Filters
from duonlp.retrieval.indexes.arguments import check_queries, check_top_k, check_vectors


class KeywordStore(Protocol):
    """A store that finds documents by words, such as :class:`duonlp.retrieval.MemoryStore`."""

    def count_documents(self) -> int:
        """Return the number of documents."""
        ...

    def search_keywords(
        self,
        queries: Sequence[str],
        *,
        top_k: int = 10,
        filters: Filters | Sequence[Filters | None] | None = None,
    ) -> list[list[Document]]:
        """Return copies of the documents that share words with each query, best first."""
        ...


class EmbeddingStore(Protocol):
    """A store that finds documents by embeddings, such as :class:`duonlp.retrieval.FaissStore`."""

    def count_documents(self) -> int:
        """Return the number of documents."""
        ...

    def search_embeddings(
        self,
        vectors: np.ndarray,
        *,
        top_k: int = 10,
        filters: Filters | Sequence[Filters | None] | None = None,
        encoder: str | None = None,
    ) -> list[list[Document]]:
        """Return copies of the documents with the largest inner products, best first."""
        ...


class BM25Retriever:
    """Finds the documents that share words with a query.

    Args:
        store: The store, whose options set the method.
        top_k: Maximum number of documents per query.
        filters: Filter of the queries that come without one.
        fill: Add documents without any of a query's words where fewer than top_k have one; for stores that can.

    Raises:
        InputError: The store has no keyword search or cannot fill, or top_k is invalid.
    """

    def __init__(self, store: KeywordStore, top_k: int = 10, filters: Filters | None = None, *, fill: bool = False):
        _check(store, "search_keywords", "keyword", top_k)
        self.store, self.top_k, self.filters = store, top_k, filters
        self.options: dict[str, Any] = {"fill": True} if fill else {}
        if fill and "fill" not in inspect.signature(store.search_keywords).parameters:
            raise InputError(
                f"{type(store).__name__} returns only documents with a word of the query; leave out fill=True"
            )

    def retrieve(
        self,
        queries: Sequence[str],
        *,
        top_k: int | None = None,
        filters: Filters | Sequence[Filters | None] | None = None,
    ) -> list[list[Document]]:
        """Return the best documents of each query; see :class:`duonlp.retrieval.Retriever`."""
        top_k, filters = _given(self.top_k, top_k), _given(self.filters, filters)
        return self.store.search_keywords(queries, top_k=top_k, filters=filters, **self.options)


class EmbeddingRetriever:
    """Finds the documents whose embeddings are nearest to a query's.

    Args:
        store: The store, with embeddings of the same encoder.
        encoder: Encodes the queries.
        top_k: Maximum number of documents per query.
        filters: Filter of the queries that come without one.

    Raises:
        InputError: The store has no search by embeddings, or top_k is invalid.
    """

    def __init__(self, store: EmbeddingStore, encoder: Encoder, top_k: int = 10, filters: Filters | None = None):
        _check(store, "search_embeddings", "embedding", top_k)
        self.store, self.encoder, self.top_k, self.filters = store, encoder, top_k, filters

    def retrieve(
        self,
        queries: Sequence[str],
        *,
        top_k: int | None = None,
        filters: Filters | Sequence[Filters | None] | None = None,
    ) -> list[list[Document]]:
        """Return the best documents of each query; see :class:`duonlp.retrieval.Retriever`.

        Raises:
            InputError: The store's embeddings are of another encoder; both are named.
        """
        check_queries(queries)
        top_k, filters = _given(self.top_k, top_k), _given(self.filters, filters)
        check_top_k(top_k)
        if not self.store.count_documents():
            raise InputError("the document store is empty; write documents to it first")
        if not queries:
            return []
        name, size = self.encoder.name, self.encoder.size
        vectors = check_vectors(self.encoder.encode_queries(queries), len(queries), size, f"the encoder {name!r}")
        return self.store.search_embeddings(vectors, top_k=top_k, filters=filters, encoder=name)


def _check(store: object, method: str, kind: str, top_k: int) -> None:
    check_top_k(top_k)
    if not callable(getattr(store, method, None)):
        raise InputError(
            f"{type(store).__name__} has no {kind} search; use a MemoryStore, a FaissStore, or a store that has {method}"
        )


def _given(default: Any, value: Any) -> Any:
    return default if value is None else value
