"""Find the vectors that have the largest inner products with a query's: exactly, or with a FAISS index."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.retrieval.indexes.ranking import best, import_faiss

BLOCK = 64
"""Queries whose products are computed together: at 100,000 vectors they take 26 MB."""

FAISS_BLOCK = 4096
"""Queries that FAISS gets together. It computes their products in blocks of its own, and searches 2,048 queries in 100,000
vectors 8 times as fast as in calls of 64."""

FEW = 10
"""A filter that leaves one vector in this many, or fewer, is searched exactly, without the FAISS index."""


class VectorIndex:
    """Vectors of one length, numbered from 0 in the order in which they were added.

    Attributes:
        matrix: float32 [n, size], the vectors; replaced, never changed in place.
        block: Queries that are searched together.

    Args:
        size: Length of a vector.
    """

    block = BLOCK

    def __init__(self, size: int):
        self.matrix = np.zeros((0, size), np.float32)

    def __len__(self) -> int:
        return len(self.matrix)

    def update(self, kept: np.ndarray, added: Sequence[np.ndarray]) -> None:
        """Delete vectors, then add others at the end.

        Args:
            kept: bool [n], which of the present vectors stay; they are numbered anew.
            added: The vectors to add, each float32 [size].
        """
        matrix = self.matrix if kept.all() else self.matrix[kept]
        if len(added):
            matrix = np.concatenate([matrix, np.stack(added)]) if len(matrix) else np.stack(added)
        self.matrix = matrix

    def search(
        self, queries: np.ndarray, k: int, allowed: Sequence[np.ndarray | None]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the vectors with the largest inner products.

        Args:
            queries: float32 [queries, size].
            k: Maximum number of vectors per query.
            allowed: For each query, the ascending numbers of the vectors to consider; None for all.

        Returns:
            For each query, numbers int64 [k] and products float32 [k], best first.
        """
        results: list[Any] = [None] * len(queries)
        unfiltered = [i for i, numbers in enumerate(allowed) if numbers is None]
        for start in range(0, len(unfiltered), self.block):
            block = unfiltered[start : start + self.block]
            for i, result in zip(block, self._search_all(queries[block], k), strict=True):
                results[i] = result
        for i, numbers in enumerate(allowed):
            if numbers is not None:
                results[i] = self._search_some(queries[i], k, numbers)
        return results

    def _search_all(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        results = []
        for scores in queries @ self.matrix.T:
            chosen = best(scores, k)
            results.append((chosen, scores[chosen]))
        return results

    def _search_some(self, query: np.ndarray, k: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(numbers) * 4 < len(self.matrix):
            scores = self.matrix[numbers] @ query
        else:
            scores = (self.matrix @ query)[numbers]
        chosen = best(scores, k)
        return numbers[chosen], scores[chosen]


class FaissIndex(VectorIndex):
    """Vectors in a FAISS index. Their numbers there are those here.

    Args:
        size: Length of a vector.
        factory: FAISS's description of the index, such as "Flat", "HNSW32" or "IVF256,Flat".
        parameters: FAISS's parameters of the search, such as "nprobe=16".

    Raises:
        InputError: FAISS cannot make the index.
    """

    block = FAISS_BLOCK

    def __init__(self, size: int, factory: str, parameters: str = ""):
        super().__init__(size)
        faiss = import_faiss()
        self.factory, self.parameters = factory, parameters
        if "l2norm" in factory.lower():
            raise InputError(f"the FAISS index {factory!r} scales vectors; leave L2norm out, and pass normalize=True")
        try:
            self.faiss = faiss.index_factory(size, factory, faiss.METRIC_INNER_PRODUCT)
            if parameters:
                faiss.ParameterSpace().set_index_parameters(self.faiss, parameters)
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"FAISS cannot make the index {factory!r} with the parameters {parameters!r} for vectors of length {size}: "
                f"{_reason(error)}; see FAISS's guide to index_factory"
            ) from None
        if self.faiss.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise InputError(f"the FAISS index {factory!r} has no inner product; use 'Flat', 'HNSW32' or 'IVF256,Flat'")

    def update(self, kept: np.ndarray, added: Sequence[np.ndarray]) -> None:
        """Delete vectors, then add others at the end; deleting from another index than "Flat" fills it anew.

        Raises:
            InputError: The index must be trained, and there are too few vectors for that.
        """
        faiss = import_faiss()
        super().update(kept, added)
        new = self.matrix[len(self.matrix) - len(added) :]
        if not kept.all():
            if isinstance(self.faiss, faiss.IndexFlat):
                self.faiss.remove_ids(np.flatnonzero(~kept))
            else:
                self.faiss.reset()
                new = self.matrix
        if not len(new):
            return
        try:
            if not self.faiss.is_trained:
                self.faiss.train(self.matrix)
                new = self.matrix
            self.faiss.add(new)
        except RuntimeError as error:
            raise InputError(
                f"FAISS cannot train or fill the index {self.factory!r} with {len(self.matrix)} vectors: {_reason(error)}; write "
                "more documents first, or use 'Flat'"
            ) from None

    def _search_all(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        scores, numbers = self.faiss.search(np.ascontiguousarray(queries), min(k, len(self.matrix)))
        return [(row[row >= 0], values[row >= 0]) for row, values in zip(numbers, scores, strict=True)]

    def _search_some(self, query: np.ndarray, k: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, len(numbers))
        if len(numbers) * FEW <= len(self.matrix):
            return super()._search_some(query, k, numbers)
        faiss = import_faiss()
        bits = np.zeros(len(self.matrix), bool)
        bits[numbers] = True
        bitmap = np.packbits(bits, bitorder="little")
        selector = faiss.IDSelectorBitmap(bitmap)
        if isinstance(self.faiss, faiss.IndexIVF):
            options = faiss.SearchParametersIVF(sel=selector, nprobe=self.faiss.nprobe)
        elif isinstance(self.faiss, faiss.IndexHNSW):
            options = faiss.SearchParametersHNSW(sel=selector, efSearch=self.faiss.hnsw.efSearch)
        else:
            options = faiss.SearchParameters(sel=selector)
        try:
            scores, found = self.faiss.search(query[None], k, params=options)
        except RuntimeError:  # an index without filters
            return super()._search_some(query, k, numbers)
        if (found[0] < 0).any():  # an approximate index that gave up
            return super()._search_some(query, k, numbers)
        return found[0], scores[0]


def _reason(error: Exception) -> str:
    """Return FAISS's message without its C++ function, file and condition."""
    return (
        re.sub(r"^Error in .*? at \S+:\d+: (Error: '.*?' failed: ?)?", "", str(error).strip())[:200] or str(error)[:200]
    )
