"""Haystack components that search duonlp's document stores."""

from typing import Any

from haystack import Document, component
from haystack.document_stores.types import FilterPolicy, apply_filter_policy

from duonlp.errors import InputError
from duonlp.haystack.components import Serializable
from duonlp.haystack.stores import MemoryDocumentStore, filter_errors
from duonlp.retrieval.filters import Filter
from duonlp.retrieval.haystack_store import to_haystack
from duonlp.tasks.base import check_int


class StoreRetriever(Serializable):
    """Searches a :class:`MemoryDocumentStore`; see :class:`MemoryBM25Retriever` for the arguments."""

    def __init__(
        self, document_store: MemoryDocumentStore, filters: dict[str, Any] | None, top_k: int, filter_policy: Any
    ) -> None:
        if not isinstance(document_store, MemoryDocumentStore):
            raise InputError(
                f"document_store is a {type(document_store).__name__}; expected a MemoryDocumentStore or FaissDocumentStore"
            )
        check_int("top_k", top_k, minimum=1)
        Filter(filters)  # raises
        self.document_store, self.filters, self.top_k = document_store, filters, top_k
        self.filter_policy = str(filter_policy)
        FilterPolicy.from_str(self.filter_policy)  # raises

    def to_dict(self) -> dict[str, Any]:
        """Return the component's class and arguments, the store's among them, as Haystack stores them in YAML."""
        data = super().to_dict()
        data["init_parameters"]["document_store"] = self.document_store.to_dict()
        return data

    def search(self, method: str, query: Any, filters: dict[str, Any] | None, top_k: int | None) -> list[Document]:
        """Return the documents that a method of the store finds; [] in an empty store, as in Haystack."""
        check_int("top_k", top_k, minimum=1, optional=True)
        condition = apply_filter_policy(FilterPolicy.from_str(self.filter_policy), self.filters, filters)
        if not self.document_store.count_documents():
            return []
        with filter_errors():
            Filter(condition)
        store = self.document_store.store
        (found,) = getattr(store, method)([query], top_k=top_k or self.top_k, filters=condition or None)
        return [to_haystack(document) for document in found]


@component
class MemoryBM25Retriever(StoreRetriever):
    """Find documents of a :class:`MemoryDocumentStore` or :class:`FaissDocumentStore` by BM25.

    Args:
        document_store: The store.
        filters: Filter of the queries that come without one.
        top_k: Maximum number of documents.
        filter_policy: "replace" uses the filter of a query instead of the component's, "merge" both.

    Raises:
        InputError: An argument is invalid.
    """

    def __init__(
        self,
        document_store: MemoryDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        StoreRetriever.__init__(self, document_store, filters, top_k, filter_policy)

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Return {"documents": those that share words with the query, best first, with their scores}.

        Args:
            query: The query.
            filters: A filter; see the class.
            top_k: Maximum number of documents; None for the component's own.

        Raises:
            FilterError: The filter is malformed.
            InputError: An argument is invalid.
        """
        return {"documents": self.search("search_keywords", query, filters, top_k)}


@component
class MemoryEmbeddingRetriever(StoreRetriever):
    """Find documents of a :class:`MemoryDocumentStore` or :class:`FaissDocumentStore` by the inner product of embeddings.

    Args:
        document_store: The store.
        filters: Filter of the queries that come without one.
        top_k: Maximum number of documents.
        filter_policy: "replace" uses the filter of a query instead of the component's, "merge" both.

    Raises:
        InputError: An argument is invalid.
    """

    def __init__(
        self,
        document_store: MemoryDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        StoreRetriever.__init__(self, document_store, filters, top_k, filter_policy)

    @component.output_types(documents=list[Document])
    def run(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Return {"documents": those with the largest inner products, best first, with these as scores}.

        Args:
            query_embedding: Vector of the query, such as TextEmbedder computes.
            filters: A filter; see the class.
            top_k: Maximum number of documents; None for the component's own.

        Raises:
            FilterError: The filter is malformed.
            InputError: The store has no embeddings, or those of another length, or an argument is invalid.
        """
        return {"documents": self.search("search_embeddings", query_embedding, filters, top_k)}
