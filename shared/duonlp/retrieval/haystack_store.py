"""Use Haystack's document stores, and their own retrievers, behind duonlp's interfaces."""

import contextlib
import importlib
import importlib.util
import inspect
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from duonlp.errors import InputError, MissingExtraError
from duonlp.retrieval.document import Document, DuplicatePolicy, Encoder, Filters

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

    Raises:
        MissingExtraError: Haystack is not installed.
    """
    os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")  # read when haystack is imported
    if importlib.util.find_spec("haystack") is None:
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
    """A Haystack document store behind :class:`duonlp.retrieval.DocumentStore`, with the retrievers that Haystack has for it.

    Writing means the same for every store: it checks embeddings, repeated ids and, unless the policy is OVERWRITE, ids that
    are stored already, before it writes the first document. (Haystack's stores write a part, or, like Milvus, everything.)

    Args:
        store: A document store of Haystack, such as ``PgvectorDocumentStore(embedding_dimension=384)``. Create it with the
            inner product (or cosine similarity, if the encoder's vectors have unit length) as its similarity.
        encoder: Computes the embeddings of documents that are written without one, and of queries.

    Raises:
        MissingExtraError: Haystack is not installed.
        InputError: The object is not a document store.
    """

    def __init__(self, store: Any, encoder: Encoder | None = None) -> None:
        import_haystack()
        methods = ("count_documents", "filter_documents", "write_documents", "delete_documents")
        missing = [name for name in methods if not callable(getattr(store, name, None))]
        if missing:
            raise InputError(
                f"store is a {type(store).__name__} without {', '.join(missing)}; expected a Haystack document store"
            )
        self.store, self.encoder = store, encoder

    def __repr__(self) -> str:
        return f"HaystackStore({type(self.store).__name__})"

    def count_documents(self) -> int:
        """Return the number of documents."""
        return self.store.count_documents()

    def filter_documents(self, filters: Filters | None = None) -> list[Document]:
        """Return the documents that match a filter; all of them without one.

        Raises:
            InputError: The filter is invalid, or the store does not support it.
        """
        with input_errors(self.store):
            return [from_haystack(d) for d in self.store.filter_documents(dict(filters) if filters else None)]

    def write_documents(self, documents: Sequence[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Add documents and return how many were written.

        Args:
            documents: The documents. Those without an embedding get one from the encoder, if the store has one.
            policy: What to do about ids that are repeated or stored already; NONE is FAIL.

        Raises:
            InputError: The policy is FAIL and an id is repeated or stored already, or embeddings differ in width; nothing is
                written then.
        """
        documents = self._with_embeddings(documents)
        unique = {document.id: document for document in documents}  # the last one of an id
        if policy is DuplicatePolicy.SKIP:
            unique = {document.id: document for document in reversed(documents)}  # the first one
        if policy is not DuplicatePolicy.OVERWRITE:
            stored = self._stored(list(unique))
            if policy is DuplicatePolicy.SKIP:
                unique = {name: document for name, document in reversed(unique.items()) if name not in stored}
            elif stored or len(unique) < len(documents):
                ids = [document.id for document in documents]
                name = next(name for i, name in enumerate(ids) if name in stored or name in ids[:i])
                raise InputError(
                    f"the id {name!r} is {'stored already' if name in stored else 'repeated'}; give the document another id, "
                    "or pass policy=DuplicatePolicy.SKIP or OVERWRITE"
                )
        if not unique:
            return 0
        from haystack.document_stores.types import DuplicatePolicy as HaystackPolicy

        # Milvus knows only inserting (NONE) and replacing; elsewhere a document that came in meanwhile is still noticed.
        milvus = type(self.store).__name__ == "MilvusDocumentStore"
        name = policy.name if policy is DuplicatePolicy.OVERWRITE else "NONE" if milvus else "FAIL"
        with input_errors(self.store):
            return self.store.write_documents([to_haystack(d) for d in unique.values()], HaystackPolicy[name])

    def delete_documents(self, document_ids: Sequence[str]) -> None:
        """Delete the documents with these ids; unknown ids are ignored."""
        self.store.delete_documents(list(document_ids))

    def keyword_retriever(
        self, top_k: int = 10, filters: Filters | None = None, component: Any = None
    ) -> "HaystackRetriever":
        """Return a retriever that searches for the words of a query, as the store does it.

        A MilvusDocumentStore needs ``builtin_function=[BM25BuiltInFunction(...)]``.

        Args:
            top_k: Maximum number of documents per query.
            filters: A filter for all queries.
            component: A retriever component of Haystack with an input ``query``; default: the one for the store.

        Raises:
            InputError: No keyword retriever is known for the store, or an option is invalid.
        """
        return HaystackRetriever(component or self._component(1, "keyword"), None, top_k, filters, self)

    def embedding_retriever(
        self, top_k: int = 10, filters: Filters | None = None, component: Any = None
    ) -> "HaystackRetriever":
        """Return a retriever that compares the embedding of a query with those of the documents, as the store does it.

        Args:
            top_k: Maximum number of documents per query.
            filters: A filter for all queries.
            component: A retriever component of Haystack with an input ``query_embedding``; default: the one for the store.

        Raises:
            InputError: The store has no encoder, no embedding retriever is known for it, or an option is invalid.
        """
        if self.encoder is None:
            raise InputError(f"{self!r} has no encoder for queries; pass HaystackStore(store, encoder)")
        return HaystackRetriever(component or self._component(2, "embedding"), self.encoder, top_k, filters, self)

    def _component(self, index: int, kind: str) -> Any:
        """Create the store's own retriever component."""
        name = next((c.__name__ for c in type(self.store).__mro__ if c.__name__ in RETRIEVERS), None)
        if name is None or (index == 1 and not getattr(self.store, "builtin_function", True)):
            raise InputError(
                f"no {kind} retriever is known for this {type(self.store).__name__}; pass one of Haystack's as component="
            )
        entry = RETRIEVERS[name]
        return getattr(importlib.import_module(entry[0]), entry[index])(document_store=self.store)

    def _with_embeddings(self, documents: Sequence[Document]) -> list[Document]:
        """Return the documents, those without an embedding with the encoder's, after checking the widths."""
        if isinstance(documents, str) or not all(isinstance(document, Document) for document in documents):
            raise InputError(f"documents is {type(documents).__name__} of other objects; expected a list of Document")
        documents = list(documents)
        missing = [i for i, document in enumerate(documents) if document.embedding is None]
        if self.encoder is not None and missing:
            vectors = self.encoder.encode_documents([documents[i].content for i in missing])
            for i, vector in zip(missing, vectors, strict=True):
                documents[i] = replace(documents[i], embedding=vector)
        width, expected = (self.encoder.size, f"{self.encoder.name} has") if self.encoder else (None, "others have")
        for document in documents:
            if document.embedding is None:
                continue
            width = width or len(document.embedding)
            if len(document.embedding) != width:
                raise InputError(
                    f"the embedding of document {document.id!r} has {len(document.embedding)} values, but {expected} {width}; "
                    "embed all documents with one model"
                )
        return documents

    def _stored(self, ids: list[str]) -> set[str]:
        """Return which of these ids are stored."""
        stored: set[str] = set()
        for start in range(0, len(ids), ID_BATCH):
            batch = {"field": "id", "operator": "in", "value": ids[start : start + ID_BATCH]}
            stored |= {document.id for document in self.store.filter_documents(batch)}
        return stored


class HaystackRetriever:
    """A :class:`duonlp.retrieval.Retriever` that runs a retriever component of Haystack.

    Args:
        component: The component, with an input ``query``, or ``query_embedding`` if there is an encoder.
        encoder: Computes the embeddings of queries.
        top_k: Maximum number of documents per query.
        filters: A filter for all queries.
        store: The store, for error messages, and so that an empty one is noticed.

    Raises:
        InputError: ``top_k`` is not a positive integer.
    """

    def __init__(
        self, component: Any, encoder: Encoder | None, top_k: int, filters: Filters | None, store: HaystackStore
    ) -> None:
        self.component, self.encoder, self.store = component, encoder, store
        self.top_k, self.filters = check_top_k(top_k), filters

    def retrieve(
        self,
        queries: Sequence[str],
        *,
        top_k: int | None = None,
        filters: Filters | Sequence[Filters | None] | None = None,
    ) -> list[list[Document]]:
        """Return the best documents of each query, best first, with the store's scores.

        Args:
            queries: Questions.
            top_k: Maximum number of documents per query; None for the retriever's own.
            filters: A filter for all queries, or a list with one per query; None for the retriever's own.

        Raises:
            InputError: A query is not a text, an option or a filter is invalid, the store is empty, or its embeddings have
                another width than the encoder's.
        """
        if isinstance(queries, str) or not all(isinstance(query, str) for query in queries):
            raise InputError(f"queries is {queries!r}; expected a list of texts")
        count = self.top_k if top_k is None else check_top_k(top_k)
        each = [filters] * len(queries) if filters is None or isinstance(filters, Mapping) else list(filters)
        if len(each) != len(queries):
            raise InputError(
                f"filters is a list of {len(each)}, but there are {len(queries)} queries; pass one for each"
            )
        if queries and not self.store.count_documents():
            raise InputError(f"{self.store!r} is empty; write documents before searching")
        names = inspect.signature(self.component.run).parameters
        name, values = "query_text" if "query_text" in names else "query", list(queries)
        if self.encoder is not None:
            name, values = "query_embedding", self.encoder.encode_queries(queries).tolist() if queries else []
        results = []
        for value, condition in zip(values, each, strict=True):
            condition = self.filters if condition is None else condition
            inputs = {name: value, "top_k": count, "filters": dict(condition) if condition else None}
            try:
                with input_errors(self.store.store):
                    documents = self.component.run(**inputs)["documents"]
            except Exception as error:  # each store has its own about widths
                if self.encoder is not None:
                    self._check_width(len(value), error)
                raise
            results.append([from_haystack(document) for document in documents])
        return results

    def _check_width(self, width: int, error: Exception) -> None:
        """Raise InputError if the stored embeddings have another width than a query's, which failed."""
        store = self.store.store
        stored = getattr(store, "embedding_dimension", None)  # pgvector
        with contextlib.suppress(Exception):  # e.g. the store cannot be reached, which the caller reports
            if stored is None:
                stored = next(len(d.embedding) for d in store.filter_documents() if d.embedding is not None)
        if stored is not None and stored != width:
            raise InputError(
                f"{self.encoder and self.encoder.name} computes embeddings of {width} values, but those in "
                f"{type(store).__name__} have {stored}; search with the model that embedded the documents"
            ) from error


def check_top_k(value: Any) -> int:
    """Return a number of documents; raise InputError if it is not a positive integer."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"top_k is {value!r}; expected an integer of at least 1")
    return int(value)


@contextmanager
def input_errors(store: Any) -> Generator[None, None, None]:
    """Raise what a Haystack store raises about filters and documents as InputError, which names the store's class."""
    from haystack.document_stores.errors import DocumentStoreError
    from haystack.errors import FilterError

    try:
        yield
    except (FilterError, DocumentStoreError, ValueError) as error:
        raise InputError(f"{type(store).__name__}: {error}") from error
