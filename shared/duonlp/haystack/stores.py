"""duonlp's document stores as stores of Haystack."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from haystack import Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError

from duonlp.errors import InputError
from duonlp.haystack.components import Serializable
from duonlp.retrieval import BM25Options, FaissStore, MemoryStore
from duonlp.retrieval import DuplicatePolicy as Policy
from duonlp.retrieval.haystack_store import from_haystack, to_haystack


class MemoryDocumentStore(Serializable):
    """:class:`duonlp.retrieval.MemoryStore` as a document store of Haystack: BM25 and exact search of embeddings in memory.

    A store that a pipeline loads from YAML is empty, unless it has a folder that documents were saved to.

    Args:
        folder: Folder of the documents and indexes: read if it exists, written by :meth:`save`.
        bm25: Options of :class:`duonlp.retrieval.BM25Options`, for a new store.
        normalize: Whether to scale embeddings to unit length, for a new store.

    Raises:
        InputError: An option is invalid or differs from that of the store in the folder, or the folder holds something else.

    Attributes:
        store: The store itself.
    """

    kind: type[MemoryStore] = MemoryStore

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        bm25: Mapping[str, Any] | None = None,
        normalize: bool = False,
    ) -> None:
        self._create(folder, bm25, normalize)

    def _create(
        self,
        folder: str | os.PathLike[str] | None,
        bm25: Mapping[str, Any] | None,
        normalize: bool,
        **options: Any,
    ) -> None:
        self.folder = None if folder is None else str(folder)
        if not isinstance(bm25, Mapping | None):
            raise InputError(f"bm25 is {bm25!r}; expected a dict of options of BM25Options")
        self.bm25, self.normalize = None if bm25 is None else dict(bm25), normalize
        try:
            words = BM25Options(**(self.bm25 or {}))
        except TypeError as error:  # an unknown name
            raise InputError(f"bm25 is {bm25!r}; expected a dict of options of BM25Options ({error})") from None
        self.store = self.kind(bm25=words, normalize=normalize, **options)
        if self.folder is not None and Path(self.folder).exists():
            asked, default, self.store = self.store, self.kind(), self.kind.open(self.folder)
            for name in ("bm25", "normalize", *options):
                value, stored = getattr(asked, name), getattr(self.store, name)
                if value not in (getattr(default, name), stored):
                    raise InputError(
                        f"{name} is {value!r}, but that of the store in {self.folder!r} is {stored!r}; leave it out, or give "
                        "another folder"
                    )

    def save(self) -> None:
        """Save the documents and indexes to the folder, atomically.

        Raises:
            InputError: The store has no folder.
            StorageError: The folder cannot be written.
        """
        if self.folder is None:
            raise InputError(f"this {type(self).__name__} has no folder; create it with folder=")
        self.store.save(self.folder)

    def count_documents(self) -> int:
        """Return the number of documents."""
        return self.store.count_documents()

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """Return the documents that match a filter; all of them without one.

        Raises:
            FilterError: The filter is malformed, or a value cannot be compared.
        """
        with filter_errors():
            return [to_haystack(document) for document in self.store.filter_documents(filters)]

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Add documents and return how many were written.

        Args:
            documents: Documents with a text. Scores, sparse embeddings and blobs are not stored.
            policy: What to do about ids that are repeated or stored already; NONE is FAIL.

        Raises:
            DuplicateDocumentError: The policy is FAIL and an id is repeated or stored already; nothing is written.
            InputError: They are not documents, one has no text, or embeddings differ in length.
        """
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            raise InputError(f"documents is {documents!r:.60}; expected a list of haystack.Document")
        for document in documents:
            if document.content is None:
                raise InputError(f"document {document.id!r} has no text; {type(self).__name__} stores texts only")
        try:
            return self.store.write_documents([from_haystack(d) for d in documents], Policy[policy.name])
        except InputError as error:
            ids = [document.id for document in documents]
            known = self.store.filter_documents({"field": "id", "operator": "in", "value": ids})
            if policy in (DuplicatePolicy.NONE, DuplicatePolicy.FAIL) and (known or len(set(ids)) < len(ids)):
                raise DuplicateDocumentError(str(error)) from error
            raise

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete the documents with these ids; unknown ids are ignored."""
        self.store.delete_documents(document_ids)

    def delete_all_documents(self) -> None:
        """Delete all documents."""
        self.store.delete_documents([document.id for document in self.store.filter_documents()])

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Delete the documents that match a filter, and return how many.

        Raises:
            FilterError: The filter is malformed, or a value cannot be compared.
        """
        with filter_errors():
            ids = [document.id for document in self.store.filter_documents(filters)]
        self.store.delete_documents(ids)
        return len(ids)

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Add values to the meta of the documents that match a filter, and return how many do.

        Raises:
            FilterError: The filter is malformed, or a value cannot be compared.
        """
        with filter_errors():
            documents = self.store.filter_documents(filters)
        for document in documents:
            document.meta |= meta
        return self.store.write_documents(documents, Policy.OVERWRITE)


class FaissDocumentStore(MemoryDocumentStore):
    """:class:`duonlp.retrieval.FaissStore` as a document store of Haystack: BM25, and embeddings in a FAISS index.

    Args:
        folder: Folder of the documents and indexes: read if it exists, written by :meth:`save`.
        factory: FAISS's description of the index, such as "Flat" or "HNSW32", for a new store.
        parameters: FAISS's parameters of the search, such as "efSearch=64", for a new store.
        bm25: See :class:`MemoryDocumentStore`.
        normalize: See :class:`MemoryDocumentStore`.

    Raises:
        MissingExtraError: faiss-cpu is not installed.
        InputError: An option is invalid, or the folder holds something else.
    """

    kind = FaissStore

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        factory: str = "Flat",
        parameters: str = "",
        bm25: Mapping[str, Any] | None = None,
        normalize: bool = False,
    ) -> None:
        self.factory, self.parameters = factory, parameters
        self._create(folder, bm25, normalize, factory=factory, parameters=parameters)


@contextmanager
def filter_errors() -> Generator[None, None, None]:
    """Raise an InputError about a filter as Haystack's FilterError."""
    try:
        yield
    except InputError as error:
        raise FilterError(str(error)) from error
