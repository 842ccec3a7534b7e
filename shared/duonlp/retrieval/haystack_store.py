"""Use Haystack's document stores, and their own retrievers, behind duonlp's interfaces."""

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from duonlp.errors import InputError, MissingExtraError
from duonlp.retrieval.document import Document, DuplicatePolicy, Encoder, Filters
from duonlp.retrieval.filters import Filter
from duonlp.retrieval.indexes.arguments import (
    check_ids,
    check_queries,
    check_top_k,
    check_vectors,
    filters_per_query,
)

RETRIEVERS = {
    "InMemoryDocumentStore": (
        "haystack.components.retrievers.in_memory", "InMemoryBM25Retriever", "InMemoryEmbeddingRetriever",
    ),
    "OpenSearchDocumentStore": (
        "haystack_integrations.components.retrievers.opensearch", "OpenSearchBM25Retriever", "OpenSearchEmbeddingRetriever",
    ),
    "ElasticsearchDocumentStore": (
        "haystack_integrations.components.retrievers.elasticsearch", "ElasticsearchBM25Retriever",
        "ElasticsearchEmbeddingRetriever",
    ),
    "PgvectorDocumentStore": (
        "haystack_integrations.components.retrievers.pgvector", "PgvectorKeywordRetriever", "PgvectorEmbeddingRetriever",
    ),
    "MilvusDocumentStore": ("milvus_haystack", "MilvusSparseEmbeddingRetriever", "MilvusEmbeddingRetriever"),
}  # fmt: skip
"""Class of a Haystack store -> module of its retrievers, keyword retriever, embedding retriever."""

ID_BATCH = 1000
"""Number of ids that are looked up at once before documents are written."""


def import_haystack() -> ModuleType:
    """Import haystack with its telemetry off, unless the user has set HAYSTACK_TELEMETRY_ENABLED.

    If haystack is imported already, its telemetry is turned off from now on.

    Raises:
        MissingExtraError: Haystack is not installed.
    """
    if "HAYSTACK_TELEMETRY_ENABLED" not in os.environ:
        os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported
        if (telemetry := sys.modules.get("haystack.telemetry._telemetry")) is not None:
            vars(telemetry)["telemetry"] = None
    if "haystack" not in sys.modules and importlib.util.find_spec("haystack") is None:
        raise MissingExtraError('this needs Haystack, which is not installed; pip install "duonlp[qa]"')
    return importlib.import_module("haystack")


def to_haystack(document: Document) -> Any:
    """Return a document as haystack.Document with the same id, content, meta, embedding and score."""
    embedding = None if document.embedding is None else np.asarray(document.embedding, np.float32).tolist()
    return import_haystack().Document(
        id=document.id,
        content=document.content,
        meta=dict(document.meta),
        embedding=embedding,
        score=None if document.score is None else float(document.score),
    )


def from_haystack(document: Any) -> Document:
    """Return a haystack.Document as a document; a missing content is "", and blobs and sparse embeddings are left out."""
    embedding = None if document.embedding is None else np.asarray(document.embedding, np.float32)
    return Document(document.content or "", dict(document.meta), document.id, embedding, document.score)


class HaystackStore:
    """A Haystack document store behind :class:`duonlp.retrieval.DocumentStore`, for BM25Retriever and EmbeddingRetriever.

    It searches with the retriever components that Haystack has for the store. Writing means the same for every store: it checks
    embeddings, repeated ids and, unless the policy is OVERWRITE, ids that are stored already, before it writes the first
    document. (Haystack's stores write a part, or, like Milvus, everything.)

    Args:
        store: A document store of Haystack, such as ``PgvectorDocumentStore(embedding_dimension=384)``. Create it with the
            inner product (or cosine similarity, if the encoder's vectors have unit length) as its similarity.
        encoder: Computes the embeddings of documents that are written without one.
        keyword_retriever: A component of Haystack with an input ``query``; None for the store's own, for which a
            MilvusDocumentStore needs ``builtin_function=[BM25BuiltInFunction()]``.
        embedding_retriever: A component of Haystack with an input ``query_embedding``; None for the store's own.

    Raises:
        MissingExtraError: Haystack is not installed.
        InputError: The object is not a document store.
    """

    def __init__(
        self,
        store: Any,
        encoder: Encoder | None = None,
        *,
        keyword_retriever: Any = None,
        embedding_retriever: Any = None,
    ) -> None:
        import_haystack()
        methods = ("count_documents", "filter_documents", "write_documents", "delete_documents")
        missing = [name for name in methods if not callable(getattr(store, name, None))]
        if missing:
            raise InputError(
                f"store is a {type(store).__name__} without {', '.join(missing)}; expected a Haystack document store"
            )
        self.store, self.encoder = store, encoder
        self._components = {"keyword": keyword_retriever, "embedding": embedding_retriever}

    def __repr__(self) -> str:
        return f"HaystackStore({type(self.store).__name__})"

    def count_documents(self) -> int:
        """Return the number of documents."""
        return self.store.count_documents()

    def filter_documents(self, filters: Filters | None = None) -> list[Document]:
        """Return the documents that match a filter; all of them without one.

        Raises:
            InputError: The filter is malformed, or the store does not support it.
        """
        Filter(filters)  # raises
        with input_errors(self.store):
            return [from_haystack(d) for d in self.store.filter_documents(dict(filters) if filters else None)]

    def write_documents(self, documents: Sequence[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Add documents and return how many were written.

        Args:
            documents: The documents. Those without an embedding get one from the encoder, if the store has one.
            policy: What to do about ids that are repeated or stored already; NONE is FAIL. Of documents with one id, OVERWRITE
                stores the last and counts all.

        Raises:
            InputError: The policy is FAIL and an id is repeated or stored already, or embeddings differ in width; nothing is
                written then.
        """
        if not isinstance(policy, DuplicatePolicy):
            raise InputError(f"the policy is {policy!r}; expected a DuplicatePolicy, such as DuplicatePolicy.SKIP")
        if isinstance(documents, (str, Mapping, Document)) or not isinstance(documents, Sequence):
            raise InputError(f"the documents are a {type(documents).__name__}; expected a list of Document")
        for document in documents:
            if not isinstance(document, Document):
                raise InputError(f"one of the documents is a {type(document).__name__}; expected a Document")
        chosen: dict[str, Document] = {}
        stored = set() if policy is DuplicatePolicy.OVERWRITE else self._stored(documents)
        for document in documents:
            if document.id in stored or document.id in chosen:
                if policy is DuplicatePolicy.SKIP:
                    continue
                if policy is not DuplicatePolicy.OVERWRITE:
                    where = "in the store already" if document.id in stored else "repeated in the documents to write"
                    raise InputError(
                        f"the document id {document.id!r} is {where}; nothing was written: pass DuplicatePolicy.SKIP or "
                        "DuplicatePolicy.OVERWRITE"
                    )
            chosen[document.id] = document
        batch = [to_haystack(document) for document in self._with_embeddings(list(chosen.values()))]
        if not batch:
            return 0
        from haystack.document_stores.types import DuplicatePolicy as HaystackPolicy

        # Milvus knows only inserting (NONE) and replacing; elsewhere a document that came in meanwhile is still noticed.
        milvus = type(self.store).__name__ == "MilvusDocumentStore"
        overwrite = policy is DuplicatePolicy.OVERWRITE
        name = "OVERWRITE" if overwrite else "NONE" if milvus else "FAIL"
        with input_errors(self.store):
            written = self.store.write_documents(batch, HaystackPolicy[name])
        return written + (len(documents) - len(batch)) * overwrite

    def delete_documents(self, document_ids: Sequence[str]) -> None:
        """Delete the documents with these ids; unknown ids are ignored.

        Raises:
            InputError: The ids are not a list of texts.
        """
        self.store.delete_documents(check_ids(document_ids))

    def search_keywords(
        self,
        queries: Sequence[str],
        *,
        top_k: int = 10,
        filters: Filters | Sequence[Filters | None] | None = None,
        fill: bool = False,
    ) -> list[list[Document]]:
        """Return the documents that share words with each query, best first, with the store's scores.

        Args:
            queries: The queries.
            top_k: Maximum number of documents per query.
            filters: A filter for all queries, or a list with one per query.
            fill: Must be False: Haystack's stores return only documents that they find.

        Raises:
            InputError: The store is empty or has no keyword search, or an argument is invalid.
        """
        check_queries(queries)
        if fill:
            raise InputError(f"{self!r} cannot fill results with documents that it does not find; pass fill=False")
        component, conditions = self._component("keyword"), self._conditions(len(queries), top_k, filters)
        name = "query_text" if "query_text" in inspect.signature(component.run).parameters else "query"
        # Some stores refuse a query without words, others find any documents.
        return [
            self._run(component, name, query, top_k, condition) if any(map(str.isalnum, query)) else []
            for query, condition in zip(queries, conditions, strict=True)
        ]

    def search_embeddings(
        self,
        vectors: np.ndarray,
        *,
        top_k: int = 10,
        filters: Filters | Sequence[Filters | None] | None = None,
        encoder: str | None = None,
    ) -> list[list[Document]]:
        """Return the documents whose embeddings are the most similar to each vector, best first, with the store's scores.

        Args:
            vectors: [queries, size], the embeddings of the queries.
            top_k: Maximum number of documents per query.
            filters: A filter for all queries, or a list with one per query.
            encoder: Name of the encoder of the vectors, if it is known.

        Raises:
            InputError: The store is empty, its embeddings are of another encoder or width, or an argument is invalid.
        """
        rows = check_vectors(vectors, None, None, "the query")
        if self.encoder is not None and encoder not in (None, self.encoder.name):
            raise InputError(
                f"the store's embeddings are of the encoder {self.encoder.name!r}, not {encoder!r}; use that one"
            )
        component, conditions = self._component("embedding"), self._conditions(len(rows), top_k, filters)
        try:
            return [
                self._run(component, "query_embedding", row, top_k, condition)
                for row, condition in zip(rows.tolist(), conditions, strict=True)
            ]
        except Exception as error:  # each store has its own about widths
            width = self._width()
            if width in (None, rows.shape[1]):
                raise
            raise InputError(
                f"the embeddings in {type(self.store).__name__} have length {width}, those of {encoder or 'the query'!r} have "
                f"length {rows.shape[1]}; use the encoder that made the store's"
            ) from error

    def _conditions(
        self, count: int, top_k: int, filters: Filters | Sequence[Filters | None] | None
    ) -> list[dict[str, Any] | None]:
        """Return a filter per query, after checking the arguments and that the store has documents."""
        check_top_k(top_k)
        filters_per_query(filters, count)  # raises
        each = [filters] * count if filters is None or isinstance(filters, Mapping) else filters
        if count and not self.count_documents():
            raise InputError("the document store is empty; write documents to it first")
        return [dict(condition) if condition else None for condition in each]

    def _run(self, component: Any, name: str, value: Any, top_k: int, condition: Any) -> list[Document]:
        """Run a retriever component for one value of its input."""
        with input_errors(self.store):
            found = component.run(**{name: value, "top_k": int(top_k), "filters": condition})
        return [from_haystack(document) for document in found["documents"]]

    def _component(self, kind: str) -> Any:
        """Return the "keyword" or "embedding" retriever component of the store."""
        if self._components[kind] is None:
            name = next((c.__name__ for c in type(self.store).__mro__ if c.__name__ in RETRIEVERS), None)
            if name is None or (kind == "keyword" and not getattr(self.store, "builtin_function", True)):
                raise InputError(
                    f"no {kind} retriever is known for this {type(self.store).__name__}; pass one of Haystack's as "
                    f"{kind}_retriever="
                )
            module, keyword, embedding = RETRIEVERS[name]
            component = getattr(importlib.import_module(module), keyword if kind == "keyword" else embedding)
            self._components[kind] = component(document_store=self.store)
        return self._components[kind]

    def _with_embeddings(self, documents: list[Document]) -> list[Document]:
        """Return the documents, those without an embedding with the encoder's, after checking the widths."""
        missing = [i for i, document in enumerate(documents) if document.embedding is None]
        if self.encoder is not None and missing:
            vectors = self.encoder.encode_documents([documents[i].content for i in missing])
            for i, vector in zip(missing, vectors, strict=True):
                documents[i] = replace(documents[i], embedding=vector)
        size, whose = (self.encoder.size, repr(self.encoder.name)) if self.encoder else (None, "other documents")
        for document in documents:
            if document.embedding is None:
                continue
            size = size or len(document.embedding)
            if len(document.embedding) != size:
                raise InputError(
                    f"the embedding of document {document.id!r} has length {len(document.embedding)}, those of {whose} have "
                    f"length {size}; use one encoder for all documents"
                )
        return documents

    def _stored(self, documents: Sequence[Document]) -> set[str]:
        """Return the ids of these documents that are stored."""
        ids, stored = [document.id for document in documents], set()
        for start in range(0, len(ids), ID_BATCH):
            batch = {"field": "id", "operator": "in", "value": ids[start : start + ID_BATCH]}
            stored |= {document.id for document in self.store.filter_documents(batch)}
        return stored

    def _width(self) -> int | None:
        """Return the length of the stored embeddings; None if it cannot be found out."""
        width = getattr(self.store, "embedding_dimension", None)  # pgvector
        with contextlib.suppress(Exception):  # such as a store that cannot be reached
            if width is None:
                width = next(len(d.embedding) for d in self.store.filter_documents() if d.embedding is not None)
        return width


@contextmanager
def input_errors(store: Any) -> Generator[None, None, None]:
    """Raise what a Haystack store raises about filters and documents as InputError, which names the store's class."""
    from haystack.document_stores.errors import DocumentStoreError
    from haystack.errors import FilterError

    try:
        yield
    except (FilterError, DocumentStoreError, ValueError) as error:
        raise InputError(f"{type(store).__name__}: {error}") from error
