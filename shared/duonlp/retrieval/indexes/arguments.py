"""Check the arguments of a search."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.retrieval.document import Document, Filters
from duonlp.retrieval.filters import Columns, Filter

LARGEST = 1e15
"""Largest value of an embedding: inner products of larger ones would overflow float32."""


def check_queries(queries: Sequence[str]) -> None:
    """Raise InputError unless these are texts in a list."""
    if isinstance(queries, (str, Mapping)) or not isinstance(queries, Sequence):
        raise InputError(f"the queries are {queries!r}; expected a list of texts")
    for query in queries:
        if not isinstance(query, str):
            raise InputError(f"a query is {query!r}; expected a text (str)")


def check_ids(ids: Iterable[str]) -> list[str]:
    """Return the ids of documents as a list; raise InputError unless they are texts."""
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise InputError(f"the ids to delete are {ids!r:.80}; expected a list of ids")
    ids = list(ids)
    if other := next((name for name in ids if not isinstance(name, str)), None):
        raise InputError(f"an id to delete is {other!r:.80} ({type(other).__name__}); expected a text (str)")
    return ids


def check_top_k(top_k: int) -> int:
    """Return top_k as int; raise InputError unless it is a positive integer."""
    if isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)) or top_k < 1:
        raise InputError(f"top_k is {top_k!r}; expected an integer of at least 1")
    return int(top_k)


def check_vectors(vectors: Any, count: int | None, size: int | None, source: str) -> np.ndarray:
    """Return vectors as float32 [count, size].

    Args:
        vectors: The vectors.
        count: Expected number; None for any.
        size: Expected length; None for any.
        source: What made them, for messages.

    Raises:
        InputError: They have another shape, or are not finite.
    """
    try:
        with np.errstate(over="ignore"):  # becomes infinite
            array = np.ascontiguousarray(vectors, np.float32)
    except (TypeError, ValueError):
        array = np.zeros(())
    if array.ndim != 2 or count not in (None, len(array)) or size not in (None, array.shape[1]):
        expected = [("queries" if count is None else count), ("size" if size is None else size)]
        raise InputError(f"{source} has embeddings of shape {list(array.shape)}; expected float32 {expected}")
    is_usable = (np.abs(array) <= LARGEST).all(axis=1)  # False for NaN
    if not is_usable.all():
        row = int(np.argmin(is_usable))
        raise InputError(f"embedding {row} of {source} is not finite (NaN, infinity or above 1e15); check the encoder")
    return array


def check_embedding(document: Document, size: int | None) -> np.ndarray | None:
    """Return a copy of a document's embedding as float32 [size], or None if it has none.

    Args:
        document: The document.
        size: Expected length; None for any.

    Raises:
        InputError: It has another shape, or is not finite.
    """
    if document.embedding is None:
        return None
    try:
        with np.errstate(over="ignore"):  # becomes infinite
            embedding = np.array(document.embedding, np.float32)
    except (TypeError, ValueError):
        embedding = np.zeros(0)
    if embedding.ndim != 1 or not embedding.size:
        raise InputError(f"the embedding of document {document.id!r} is not a vector of numbers; pass float32 [size]")
    if size is not None and embedding.size != size:
        raise InputError(
            f"the embedding of document {document.id!r} has length {embedding.size}, those of the store have length {size}; "
            "use one encoder for all documents"
        )
    if not (np.abs(embedding) <= LARGEST).all():  # also for NaN
        raise InputError(
            f"the embedding of document {document.id!r} is not finite (NaN, infinity or above 1e15); check its encoder"
        )
    return embedding


def filters_per_query(filters: Filters | Sequence[Filters | None] | None, count: int) -> list[Filter]:
    """Return one checked filter per query.

    Raises:
        InputError: A filter is malformed, or a list has another length than the queries.
    """
    if filters is None or isinstance(filters, Mapping):
        return [Filter(filters)] * count
    if isinstance(filters, str) or not isinstance(filters, Sequence):
        raise InputError(f"the filters are {filters!r}; expected a filter, or a list with one per query")
    if len(filters) != count:
        raise InputError(
            f"there are {len(filters)} filters for {count} queries; expected one for all, or one per query"
        )
    return [Filter(one) for one in filters]


def allowed_numbers(conditions: list[Filter], columns: Columns) -> list[np.ndarray | None]:
    """Return the numbers of the documents that each filter lets through; None for all."""
    results: dict[int, np.ndarray | None] = {}
    for condition in conditions:
        if id(condition) not in results:
            mask = condition.mask(columns)
            results[id(condition)] = None if mask is None else np.flatnonzero(mask)
    return [results[id(condition)] for condition in conditions]
