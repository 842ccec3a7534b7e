"""A document store in memory: BM25, exact search of embeddings, filters, and a folder to save it to."""

import copy
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import compress
from typing import Any, Self

import numpy as np

from duonlp.errors import InputError
from duonlp.retrieval.document import Document, DuplicatePolicy, Encoder, Filters
from duonlp.retrieval.filters import BASIC, Columns, Filter
from duonlp.retrieval.indexes.arguments import (
    allowed_numbers,
    check_embedding,
    check_ids,
    check_queries,
    check_top_k,
    check_vectors,
    filters_per_query,
)
from duonlp.retrieval.indexes.bm25 import BM25Index, BM25Options, Tokenize
from duonlp.retrieval.indexes.files import ADVICE, StoreFiles, read_store, write_store
from duonlp.retrieval.indexes.vectors import VectorIndex
from duonlp.tasks.base import check_bool, check_int, check_string


class _Indexed:
    """An index and the documents that are in it, in its order."""

    def __init__(self, index: Any, documents: Sequence[Document] = (), version: int = -1):
        self.index, self.version = index, version
        self.documents = list(documents)
        self.columns = Columns(self.documents)

    def update(self, version: int, kept: list[bool], added: list[Document], value: Callable[[Document], Any]) -> None:
        """Delete documents and add others."""
        self.index.update(np.array(kept, bool), [value(document) for document in added])
        self.documents = [*compress(self.documents, kept), *added]
        self.columns, self.version = Columns(self.documents), version


class MemoryStore:
    """Documents in memory, found by words (BM25) or by embeddings (inner product).

    Both indexes are brought up to date by the next search: they take in what was written and deleted since, and give what an
    index built at once gives. Several threads may use a store at the same time.

    Args:
        bm25: How words are found and scored.
        tokenize: Function that splits a text into words, in place of ``bm25.pattern``. It is not saved: pass it to ``open``, too.
        normalize: Scale embeddings, of documents and queries, to length 1, so that scores are cosines.
        encoder: Name of the encoder that made the embeddings of the documents to be written, if that is known.

    Raises:
        InputError: An option is invalid.
    """

    def __init__(
        self,
        *,
        bm25: BM25Options | None = None,
        tokenize: Tokenize | None = None,
        normalize: bool = False,
        encoder: str | None = None,
    ):
        if bm25 is not None and not isinstance(bm25, BM25Options):
            raise InputError(f"bm25 is {bm25!r}; expected BM25Options, such as BM25Options(k1=1.5)")
        if tokenize is not None and not callable(tokenize):
            raise InputError(f"tokenize is {tokenize!r}; expected a function from a text to its words")
        check_bool("normalize", normalize)
        check_string("encoder", encoder, optional=True)
        self.bm25, self.tokenize, self.normalize, self.encoder = bm25 or BM25Options(), tokenize, normalize, encoder
        self._lock = threading.RLock()
        self._documents: dict[str, Document] = {}
        self._version = 0
        self._embedding_size: int | None = None
        self._keywords: _Indexed | None = None
        self._vectors: _Indexed | None = None
        self._all: _Indexed | None = None

    @property
    def embedding_size(self) -> int | None:
        """Length of the embeddings; None while there are none."""
        return self._embedding_size

    # -- the protocol of document stores ---------------------------------------------------------------------------------

    def count_documents(self) -> int:
        """Return the number of documents."""
        return len(self._documents)

    def filter_documents(self, filters: Filters | None = None) -> list[Document]:
        """Return copies of the documents that match a filter, in the order in which they were written; all without a filter.

        Raises:
            InputError: The filter is malformed, or a document's value cannot be compared.
        """
        condition = Filter(filters)
        with self._lock:
            if self._all is None or self._all.version != self._version:
                self._all = _Indexed(None, list(self._documents.values()), self._version)
            mask = condition.mask(self._all.columns)
            documents = self._all.documents if mask is None else compress(self._all.documents, mask)
            return [_copied(document) for document in documents]

    def write_documents(self, documents: Sequence[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Add copies of documents and return how many were written. An overwritten document moves to the end.

        Raises:
            InputError: The policy is FAIL (or NONE) and an id is repeated or stored already, something is not a document, or an
                embedding is not finite or has another length than those stored. Nothing is written.
        """
        if not isinstance(policy, DuplicatePolicy):
            raise InputError(f"the policy is {policy!r}; expected a DuplicatePolicy, such as DuplicatePolicy.SKIP")
        if isinstance(documents, (str, Mapping, Document)) or not isinstance(documents, Sequence):
            raise InputError(f"the documents are a {type(documents).__name__}; expected a list of Document")
        with self._lock:
            batch: dict[str, Document] = {}
            written, size = 0, self._embedding_size
            for document in documents:
                if not isinstance(document, Document):
                    raise InputError(f"one of the documents is a {type(document).__name__}; expected a Document")
                if document.id in self._documents or document.id in batch:
                    if policy is DuplicatePolicy.SKIP:
                        continue
                    if policy is not DuplicatePolicy.OVERWRITE:
                        where = "repeated in the documents to write" if document.id in batch else "in the store already"
                        raise InputError(
                            f"the document id {document.id!r} is {where}; nothing was written: pass DuplicatePolicy.SKIP or "
                            "DuplicatePolicy.OVERWRITE"
                        )
                embedding = check_embedding(document, size)
                if embedding is not None:
                    size, embedding = embedding.size, self._normalized(embedding)
                batch.pop(document.id, None)
                batch[document.id] = _copied(document, embedding)
                written += 1
            self._set_embedding_size(size)
            for name in batch:
                self._documents.pop(name, None)
            self._documents |= batch
            self._changed()
            return written

    def delete_documents(self, document_ids: Sequence[str]) -> None:
        """Delete the documents with these ids; unknown ids are ignored.

        Raises:
            InputError: The ids are not a list of texts.
        """
        ids = check_ids(document_ids)
        with self._lock:
            for name in ids:
                self._documents.pop(name, None)
            self._changed()

    def _changed(self) -> None:
        """Note that the indexes are out of date; a store without embeddings takes those of any encoder."""
        self._version += 1
        if self._embedding_size is not None and all(
            document.embedding is None for document in self._documents.values()
        ):
            self._embedding_size = self._vectors = None

    # -- embeddings ------------------------------------------------------------------------------------------------------

    def update_embeddings(
        self, encoder: Encoder, *, batch_size: int = 256, title_field: str | None = None, overwrite: bool = False
    ) -> int:
        """Compute the embeddings of the documents that have none, and return how many.

        Args:
            encoder: The encoder, whose name the store keeps.
            batch_size: Number of documents per call of the encoder.
            title_field: Key in meta of the title that is passed to the encoder with the text.
            overwrite: Compute all embeddings, which the encoder of those that are there need not have made.

        Raises:
            InputError: Other embeddings are of another encoder or length, the encoder returns invalid ones, or batch_size is not
                positive.
        """
        check_int("batch_size", batch_size, minimum=1)
        with self._lock:
            documents = [d for d in self._documents.values() if overwrite or d.embedding is None]
            if not overwrite:
                self.check_encoder(encoder.name, encoder.size)
        vectors: list[np.ndarray] = []
        for start in range(0, len(documents), batch_size):
            batch = documents[start : start + batch_size]
            titles = None if title_field is None else [str(d.meta.get(title_field) or "") for d in batch]
            encoded = encoder.encode_documents([d.content for d in batch], titles)
            vectors += list(check_vectors(encoded, len(batch), encoder.size, f"the encoder {encoder.name!r}"))
        with self._lock:
            if overwrite:
                self._vectors = None
                for document in self._documents.values():
                    document.embedding = None
            else:
                self.check_encoder(encoder.name, encoder.size)
            if documents:
                self._set_embedding_size(encoder.size)
            for document, vector in zip(documents, vectors, strict=True):
                document.embedding = self._normalized(vector)
            self.encoder = encoder.name
            self._changed()  # the documents may have been deleted meanwhile
        return len(documents)

    def check_encoder(self, name: str | None, size: int) -> None:
        """Check that vectors of an encoder can be compared with those of the store.

        Args:
            name: Name of the encoder; None if it is unknown.
            size: Length of its vectors.

        Raises:
            InputError: The store's are of another encoder or length.
        """
        if self._embedding_size is None:
            return
        if None not in (name, self.encoder) and name != self.encoder:
            raise InputError(
                f"the store's embeddings are of the encoder {self.encoder!r}, not {name!r}; use that one, or compute them anew "
                "with update_embeddings(encoder, overwrite=True)"
            )
        if size != self._embedding_size:
            raise InputError(
                f"the store's embeddings{f' of {self.encoder!r}' if self.encoder else ''} have length {self._embedding_size}, "
                f"those {f'of {name!r}' if name else 'given'} have length {size}; use the encoder that made the store's"
            )

    def _normalized(self, vectors: np.ndarray) -> np.ndarray:
        if not self.normalize:
            return vectors
        norms = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
        return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)

    def _set_embedding_size(self, size: int | None) -> None:
        if size is not None and size != self._embedding_size:
            self._vectors = _Indexed(self._new_vectors(size))
            self._embedding_size = size

    def _new_vectors(self, size: int) -> VectorIndex:
        return VectorIndex(size)

    # -- search ----------------------------------------------------------------------------------------------------------

    def search_keywords(
        self,
        queries: Sequence[str],
        *,
        top_k: int = 10,
        filters: Filters | Sequence[Filters | None] | None = None,
        fill: bool = False,
    ) -> list[list[Document]]:
        """Return copies of the documents that share words with each query, best first, with their BM25 scores.

        Equal scores keep the order in which the documents were written.

        Args:
            queries: The queries.
            top_k: Maximum number of documents per query.
            filters: A filter for all queries, or a list with one per query. It does not change scores.
            fill: Where fewer than top_k documents have one of the words, add others, the shortest first. Otherwise, a query of
                only stop words finds nothing.

        Raises:
            InputError: The store is empty, or an argument is invalid.
        """
        check_queries(queries)
        top_k = check_top_k(top_k)
        conditions = filters_per_query(filters, len(queries))
        with self._lock:
            self._check_not_empty()
            keywords = self._synced_keywords()
            results = [
                keywords.index.search(query, top_k, allowed, fill=fill)
                for query, allowed in zip(queries, allowed_numbers(conditions, keywords.columns), strict=True)
            ]
            return [_found(keywords.documents, *result) for result in results]

    def search_embeddings(
        self,
        vectors: np.ndarray,
        *,
        top_k: int = 10,
        filters: Filters | Sequence[Filters | None] | None = None,
        encoder: str | None = None,
    ) -> list[list[Document]]:
        """Return copies of the documents whose embeddings have the largest inner products with each vector, best first.

        Documents without an embedding are not found.

        Args:
            vectors: [queries, size], the embeddings of the queries.
            top_k: Maximum number of documents per query.
            filters: A filter for all queries, or a list with one per query.
            encoder: Name of the encoder of the vectors, if it is known.

        Raises:
            InputError: The store has no embeddings, or those of another encoder or length, or an argument is invalid.
        """
        top_k = check_top_k(top_k)
        vectors = check_vectors(vectors, None, None, "the query")
        conditions = filters_per_query(filters, len(vectors))
        with self._lock:
            self._check_not_empty()
            if self._embedding_size is None:
                raise InputError(
                    f"none of the {len(self._documents)} documents has an embedding; call update_embeddings(encoder), or "
                    "write documents with embeddings"
                )
            self.check_encoder(encoder, vectors.shape[1])
            indexed = self._synced_vectors()
            allowed = allowed_numbers(conditions, indexed.columns)
            results = indexed.index.search(self._normalized(vectors), top_k, allowed)
            return [_found(indexed.documents, *result) for result in results]

    def _check_not_empty(self) -> None:
        if not self._documents:
            raise InputError("the document store is empty; write documents to it first")

    def _synced_keywords(self) -> _Indexed:
        keywords, self._keywords = self._keywords or _Indexed(BM25Index(self.bm25, self.tokenize)), None
        if keywords.version != self._version:
            kept = [self._documents.get(document.id) is document for document in keywords.documents]
            added = list(self._documents.values())[sum(kept) :]  # the order of both is that of writing
            keywords.update(self._version, kept, added, lambda document: document.content)
        self._keywords = keywords  # an index whose update failed is not used again
        return keywords

    def _synced_vectors(self) -> _Indexed:
        assert self._embedding_size is not None
        vectors, self._vectors = self._vectors or _Indexed(self._new_vectors(self._embedding_size)), None
        if vectors.version != self._version:
            kept = [self._documents.get(document.id) is document for document in vectors.documents]
            known = {id(document) for document in vectors.documents}
            added = [d for d in self._documents.values() if d.embedding is not None and id(d) not in known]
            vectors.update(self._version, kept, added, lambda document: document.embedding)
            for document, row in zip(vectors.documents, vectors.index.matrix, strict=True):
                document.embedding = row  # so that it is in memory once
        self._vectors = vectors
        return vectors

    # -- files -----------------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save the documents and indexes to a folder, atomically: if this is killed, the folder holds what it held before.

        Raises:
            InputError: A document's meta is not JSON-compatible, or ``folder`` is a file.
            StorageError: The folder cannot be written.
        """
        with self._lock:
            files = self._files()
        write_store(folder, files)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, tokenize: Tokenize | None = None) -> Self:
        """Return the store that was saved to a folder.

        Args:
            folder: The folder.
            tokenize: The function of a store that was made with one.

        Raises:
            InputError: The folder has no store, one of another class, or a damaged one.
        """
        files = read_store(folder, cls.__name__)
        settings: dict[str, Any] = {"has_tokenize": False, "bm25": {}, **files.settings}
        if settings.pop("has_tokenize") != (tokenize is not None):
            problem = "was made without one" if tokenize else "was made with a function of its own; pass it"
            raise InputError(f"the store {os.fspath(folder)!r} and tokenize do not fit: the store {problem}")
        try:
            store = cls(bm25=BM25Options(**settings.pop("bm25")), tokenize=tokenize, **settings)
            store._fill(files)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise InputError(f"the store {os.fspath(folder)!r} is damaged: {error!r}; {ADVICE}") from None
        return store

    def _settings(self) -> dict[str, Any]:
        return {
            "bm25": asdict(self.bm25),
            "has_tokenize": self.tokenize is not None,
            "normalize": self.normalize,
            "encoder": self.encoder,
        }

    def _files(self) -> StoreFiles:
        keywords: BM25Index = self._synced_keywords().index
        arrays = keywords.arrays()
        if self._embedding_size is not None:
            vectors = self._synced_vectors()
            number = {id(document): i for i, document in enumerate(self._documents.values())}
            numbers = [number[id(document)] for document in vectors.documents]
            arrays |= {"embeddings": vectors.index.matrix, "embedded": np.array(numbers, np.int64)}
        documents = ({"id": d.id, "content": d.content, "meta": d.meta} for d in list(self._documents.values()))
        return StoreFiles(type(self).__name__, self._settings(), documents, arrays, list(keywords.vocabulary))

    def _fill(self, files: StoreFiles) -> None:
        """Take over documents and indexes from files whose hashes are right."""
        documents = [Document(row["content"], row["meta"], row["id"]) for row in files.documents]
        self._documents = {document.id: document for document in documents}
        if len(self._documents) != len(documents) or not all(isinstance(name, str) for name in self._documents):
            raise InputError(f"the ids of the store's documents are not unique texts; {ADVICE}")
        keywords = BM25Index(self.bm25, self.tokenize)
        keywords.read(files, len(documents))
        self._keywords = _Indexed(keywords, documents, self._version)
        if "embeddings" in files.arrays:
            numbers = files.array("embedded", np.int64, (None,))
            matrix = files.array("embeddings", np.float32, (len(numbers), None))
            in_order = np.unique(numbers)
            if len(in_order) < len(numbers) or not matrix.size or not np.isfinite(matrix).all():
                raise InputError(f"the embeddings of the store are damaged; {ADVICE}")
            if in_order[0] < 0 or in_order[-1] >= len(documents):
                raise InputError(f"the store has embeddings of documents that are not in it; {ADVICE}")
            self._embedding_size = matrix.shape[1]
            vectors = self._new_vectors(matrix.shape[1])
            vectors.matrix = matrix
            self._vectors = _Indexed(vectors, [documents[i] for i in numbers], self._version)
            for document, row in zip(self._vectors.documents, matrix, strict=True):
                document.embedding = row


# -- copies ------------------------------------------------------------------------------------------------------------


def _copied(document: Document, embedding: np.ndarray | None = None) -> Document:
    """Return a copy of a document without score, with another embedding if one is given."""
    meta = dict(document.meta)
    if not all(type(value) in BASIC for value in meta.values()):
        meta = copy.deepcopy(meta)
    if embedding is None and document.embedding is not None:
        embedding = document.embedding.copy()
    return Document(document.content, meta, document.id, embedding)


def _found(documents: Sequence[Document], numbers: np.ndarray, scores: np.ndarray) -> list[Document]:
    found = [_copied(documents[number]) for number in numbers]
    for document, score in zip(found, scores.tolist(), strict=True):
        document.score = score
    return found
