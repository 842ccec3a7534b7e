"""Documents, and the interfaces of what stores, encodes and finds them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeAlias

import numpy as np

from duonlp.errors import InputError
from duonlp.util.json_text import to_json

Filters: TypeAlias = Mapping[str, Any]
"""A condition on documents in Haystack's filter language, such as
``{"field": "meta.item_id", "operator": "==", "value": "B00001P4ZH"}``; see :mod:`duonlp.retrieval.filters`."""


class DuplicatePolicy(Enum):
    """What writing a document does if the store has one of the same id. NONE is the store's default, FAIL."""

    NONE = "none"
    SKIP = "skip"
    OVERWRITE = "overwrite"
    FAIL = "fail"


@dataclass(eq=False)
class Document:
    """A passage of text that can be stored and found.

    Attributes:
        content: Its text.
        meta: Its JSON-compatible properties, on which filters decide.
        id: Its name, unique in a store; by default a hash of content and meta.
        embedding: float32 [d], its vector, or None.
        score: Its similarity to the query that found it, or None.

    Raises:
        InputError: The content or the id is not a text, a meta key is not a string, or a document without an id has meta that
            JSON cannot hold.
    """

    content: str
    meta: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    embedding: np.ndarray | None = None
    score: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.content, str):
            raise InputError(f"a document's content is a {type(self.content).__name__}; expected a text (str)")
        if not isinstance(self.meta, Mapping) or not all(isinstance(key, str) for key in self.meta):
            raise InputError(f"a document's meta is {self.meta!r}; expected a dict with names as keys")
        if not isinstance(self.id, str):
            raise InputError(
                f"a document's id is {self.id!r:.60} ({type(self.id).__name__}); expected a text, such as str(id)"
            )
        if not self.id:
            try:
                text = to_json([self.content, dict(self.meta)], sort_keys=True)
            except (TypeError, RecursionError) as error:
                raise InputError(
                    f"a document's meta is {self.meta!r:.200}, which JSON cannot hold ({error}); give texts, numbers, lists and "
                    "dicts, such as a date as its isoformat()"
                ) from None
            self.id = hashlib.sha256(text.encode()).hexdigest()


class DocumentStore(Protocol):
    """A store of documents. Its methods are those of Haystack's protocol, so that Haystack's stores have them too."""

    def count_documents(self) -> int:
        """Return the number of documents."""
        ...

    def filter_documents(self, filters: Filters | None = None) -> list[Document]:
        """Return the documents that match a filter; all of them without one."""
        ...

    def write_documents(self, documents: Sequence[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Add documents and return how many were written.

        Raises:
            InputError: The policy is FAIL and an id is repeated or stored already; nothing is written.
        """
        ...

    def delete_documents(self, document_ids: Sequence[str]) -> None:
        """Delete the documents with these ids; unknown ids are ignored."""
        ...


class Retriever(Protocol):
    """Finds the documents that are most similar to a query."""

    def retrieve(
        self,
        queries: Sequence[str],
        *,
        top_k: int | None = None,
        filters: Filters | Sequence[Filters | None] | None = None,
    ) -> list[list[Document]]:
        """Return copies of the best documents of each query, best first, with their scores.

        Args:
            queries: Questions.
            top_k: Maximum number of documents per query; None for the retriever's own.
            filters: A filter for all queries, or a list with one per query; None for the retriever's own.

        Raises:
            InputError: A query is not a text, an option is invalid, or the store is empty.
        """
        ...


class Ranker(Protocol):
    """Sorts documents by their relevance to a query, such as CrossEncoderRanker."""

    def rank(self, query: str, documents: Sequence[Document], top_k: int | None = None) -> list[Document]:
        """Return copies of the best documents, most relevant first, with their scores."""
        ...

    def rank_all(
        self, queries: Sequence[str], documents: Sequence[Sequence[Document]], top_k: int | None = None
    ) -> list[list[Document]]:
        """Return the same for each query and its documents."""
        ...


class Encoder(Protocol):
    """Turns texts into vectors whose inner product is their similarity.

    Attributes:
        name: Name of the model and its settings (prefixes, pooling ...): an index built with another one is refused.
        size: Length of a vector.
    """

    name: str
    size: int

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of questions, float32 [n, size]."""
        ...

    def encode_documents(self, texts: Sequence[str], titles: Sequence[str] | None = None) -> np.ndarray:
        """Return the vectors of passages, float32 [n, size]."""
        ...
