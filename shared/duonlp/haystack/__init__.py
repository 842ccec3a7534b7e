"""Components for Haystack pipelines that compute in tfnlp or jaxnlp, without torch.

Importing this package turns Haystack's telemetry off, unless HAYSTACK_TELEMETRY_ENABLED is set. To load a pipeline from YAML,
allow its components: ``Pipeline.loads(text, allowed_modules=["duonlp.haystack"])``.
"""

from duonlp.retrieval.haystack_store import import_haystack

import_haystack()  # first of all, with telemetry off

from duonlp.haystack.embedders import DocumentEmbedder, TextEmbedder  # noqa: E402
from duonlp.haystack.evaluators import AnswerExactMatchEvaluator, AnswerF1Evaluator  # noqa: E402
from duonlp.haystack.ranker import Ranker  # noqa: E402
from duonlp.haystack.reader import ExtractiveReader  # noqa: E402
from duonlp.haystack.retrievers import MemoryBM25Retriever, MemoryEmbeddingRetriever  # noqa: E402
from duonlp.haystack.stores import FaissDocumentStore, MemoryDocumentStore  # noqa: E402

__all__ = [
    "AnswerExactMatchEvaluator",
    "AnswerF1Evaluator",
    "DocumentEmbedder",
    "ExtractiveReader",
    "FaissDocumentStore",
    "MemoryBM25Retriever",
    "MemoryDocumentStore",
    "MemoryEmbeddingRetriever",
    "Ranker",
    "TextEmbedder",
]
