"""A document store whose embeddings are in a FAISS index."""

from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.retrieval.indexes.bm25 import BM25Options, Tokenize
from duonlp.retrieval.indexes.files import ADVICE, StoreFiles
from duonlp.retrieval.indexes.ranking import import_faiss
from duonlp.retrieval.indexes.vectors import FaissIndex
from duonlp.retrieval.memory_store import MemoryStore


class FaissStore(MemoryStore):
    """A :class:`MemoryStore` that searches embeddings with FAISS.

    With the default index, results are exact. Under a filter that few documents pass they are exact with every index.

    Args:
        factory: FAISS's description of the index, such as "Flat", "HNSW32" or "IVF256,Flat". An index that needs training is
            trained by the first search, on the documents written by then.
        parameters: FAISS's parameters of the search, such as "nprobe=16" or "efSearch=64".
        bm25: See :class:`MemoryStore`, as for the following.
        tokenize: Function that splits a text into words.
        normalize: Scale embeddings to length 1.
        encoder: Name of the encoder of the documents' embeddings.

    Raises:
        MissingExtraError: faiss-cpu is not installed.
    """

    def __init__(
        self,
        *,
        factory: str = "Flat",
        parameters: str = "",
        bm25: BM25Options | None = None,
        tokenize: Tokenize | None = None,
        normalize: bool = False,
        encoder: str | None = None,
    ):
        super().__init__(bm25=bm25, tokenize=tokenize, normalize=normalize, encoder=encoder)
        import_faiss()
        for name, value in (("factory", factory), ("parameters", parameters)):
            if not isinstance(value, str):
                raise InputError(f"{name} of FaissStore is {value!r}; expected a text such as 'HNSW32' or 'nprobe=16'")
        self.factory, self.parameters = factory, parameters

    def _new_vectors(self, size: int) -> FaissIndex:
        return FaissIndex(size, self.factory, self.parameters)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"factory": self.factory, "parameters": self.parameters}

    def _files(self) -> StoreFiles:
        files = super()._files()
        if self._vectors is not None:
            files.faiss = import_faiss().serialize_index(self._vectors.index.faiss)
        return files

    def _fill(self, files: StoreFiles) -> None:
        super()._fill(files)
        if self._vectors is None or files.faiss is None:
            return
        faiss = import_faiss()
        vectors = self._vectors.index
        try:
            vectors.faiss = faiss.deserialize_index(files.faiss)
        except RuntimeError as error:
            raise InputError(f"FAISS cannot read the store's index: {str(error)[:200]}; {ADVICE}") from None
        if (vectors.faiss.ntotal, vectors.faiss.d) != np.shape(vectors.matrix):
            raise InputError(
                f"the store's FAISS index has {vectors.faiss.ntotal} vectors of length {vectors.faiss.d}, not "
                f"{list(vectors.matrix.shape)}; {ADVICE}"
            )
