"""Combine retrievers: reciprocal rank fusion, and re-ranking of what a retriever finds."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.retrieval.document import Document, Filters, Ranker, Retriever
from duonlp.tasks.base import check_int, describe

SMOOTHING = 60
"""The constant k of Cormack et al. 2009."""


class HybridRetriever:
    """Combines several retrievers by reciprocal rank fusion (Cormack et al. 2009, https://doi.org/10.1145/1571941.1572114).

    A document's score is the sum of weight / (k + rank) over the retrievers that find it, with ranks from 1. The retrievers'
    own scores do not matter, so keyword search and embeddings can be combined. Documents are the same if their ids are.

    Args:
        retrievers: The retrievers, such as one by keywords and one by embeddings.
        top_k: Number of documents to return.
        k: Smoothing constant: the larger it is, the less the first ranks stand out.
        weights: Weight of each retriever; None for 1 each.
        depth: Number of documents that are taken from each retriever, at least ``top_k``.

    Raises:
        InputError: There are no retrievers, an object is none, a number is out of range, or there is another number of weights.
    """

    def __init__(
        self, retrievers: Sequence[Retriever], top_k: int = 10, k: float = SMOOTHING,
        weights: Sequence[float] | None = None, *, depth: int = 100,
    ):  # fmt: skip
        check_int("top_k", top_k, minimum=1)
        check_int("depth", depth, minimum=1)
        if not isinstance(retrievers, Sequence) or not all(hasattr(entry, "retrieve") for entry in retrievers):
            raise InputError(f"retrievers is {retrievers!r:.80}; give a list of retrievers, such as BM25Retriever")
        if not retrievers:
            raise InputError("retrievers is empty; give at least one retriever")
        if not _is_weight(k):
            raise InputError(f"k is {k!r:.60}; it must be a number of 0 or more, usually {SMOOTHING}")
        self.retrievers = list(retrievers)
        weights = [1.0] * len(self.retrievers) if weights is None else weights
        values = list(weights) if isinstance(weights, Iterable) else []
        if len(values) != len(self.retrievers) or not all(map(_is_weight, values)):
            raise InputError(
                f"weights is {weights!r:.80} for {len(self.retrievers)} retrievers; give one of 0 or more for each"
            )
        self.weights = [float(value) for value in values]
        self.top_k, self.k, self.depth = top_k, k, depth

    def retrieve(
        self,
        queries: Sequence[str],
        *,
        top_k: int | None = None,
        filters: Filters | Sequence[Filters | None] | None = None,
    ) -> list[list[Document]]:
        """Return copies of the best documents of each query, best first, with their scores; see Retriever.retrieve."""
        top_k = self.top_k if top_k is None else top_k
        check_int("top_k", top_k, minimum=1)
        depth = max(top_k, self.depth)
        found = [retriever.retrieve(queries, top_k=depth, filters=filters) for retriever in self.retrievers]
        return [fuse(rankings, self.k, self.weights)[:top_k] for rankings in zip(*found, strict=True)]


def fuse(
    rankings: Sequence[Sequence[Document]], k: float = SMOOTHING, weights: Sequence[float] | None = None
) -> list[Document]:
    """Return copies of all documents of several rankings, ordered by reciprocal rank fusion, with its scores.

    Documents of one score keep the order in which they appear: those of the first ranking first.

    Args:
        rankings: Documents of each retriever, best first.
        k: Smoothing constant.
        weights: Weight of each ranking; None for 1 each.
    """
    scores: dict[str, float] = {}
    documents: dict[str, Document] = {}
    for ranking, weight in zip(rankings, [1.0] * len(rankings) if weights is None else weights, strict=True):
        for rank, document in enumerate(ranking, 1):
            documents.setdefault(document.id, document)
            scores[document.id] = scores.get(document.id, 0.0) + weight / (k + rank)
    order = sorted(scores, key=scores.__getitem__, reverse=True)  # stable
    return [replace(documents[name], score=scores[name]) for name in order]


class RerankingRetriever:
    """Orders the documents of a retriever by a ranker, such as a cross-encoder, which is too slow to read all documents.

    Args:
        retriever: Finds the candidates.
        ranker: Orders them.
        top_k: Number of documents to return.
        candidates: Number of documents that the ranker reads for a query, at least ``top_k``.

    Raises:
        InputError: A number is out of range, or an object is no retriever or no ranker.
    """

    def __init__(self, retriever: Retriever, ranker: Ranker, top_k: int = 10, *, candidates: int = 50):
        check_int("top_k", top_k, minimum=1)
        check_int("candidates", candidates, minimum=1)
        _check_method(retriever, "retriever", "retrieve")
        _check_method(ranker, "ranker", "rank_all")
        self.retriever, self.ranker, self.top_k, self.candidates = retriever, ranker, top_k, candidates

    def retrieve(
        self,
        queries: Sequence[str],
        *,
        top_k: int | None = None,
        filters: Filters | Sequence[Filters | None] | None = None,
    ) -> list[list[Document]]:
        """Return copies of the best documents of each query, best first, with the ranker's scores; see Retriever.retrieve."""
        top_k = self.top_k if top_k is None else top_k
        check_int("top_k", top_k, minimum=1)
        found = self.retriever.retrieve(queries, top_k=max(top_k, self.candidates), filters=filters)
        return self.ranker.rank_all(queries, found, top_k)


def _check_method(value: Any, role: str, method: str) -> None:
    """Raise InputError unless an object has a method."""
    if not callable(getattr(value, method, None)):
        raise InputError(f"a {role} is {describe(value)}; expected an object with a method {method}")


def _is_weight(value: Any) -> bool:
    """Return whether a value is a finite number of 0 or more."""
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return is_number and bool(0 <= value < float("inf"))
