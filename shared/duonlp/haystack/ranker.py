"""A Haystack component that sorts documents with a cross-encoder."""

import math
import os
from dataclasses import replace
from typing import Any

from haystack import Document, component

from duonlp.errors import InputError
from duonlp.haystack.components import ModelComponent, check_documents, check_names, check_number, text_of
from duonlp.retrieval import CrossEncoderRanker
from duonlp.retrieval import Document as Passage
from duonlp.tasks.base import check_bool, check_int, check_string


@component
class Ranker(ModelComponent):
    """Sort documents by their relevance to a query with a cross-encoder in Keras or Flax.

    Args:
        model: A sequence classifier that reads query and document together: a folder or a Hub id.
        framework: "tf" or "jax"; "" for the installed one, jax if both are.
        top_k: Maximum number of documents.
        label: Name of the class of relevant documents; None for the only one, or the second of two.
        max_length: Number of tokens that query and document are truncated to; None for the model's positions.
        query_prefix: Text before the query.
        document_prefix: Text before each document.
        meta_fields_to_embed: Meta fields whose values precede the content of a document.
        embedding_separator: Text between these values and the content.
        scale_score: Whether scores are probabilities; otherwise they are logits.
        score_threshold: Return only documents with at least this score.
        batch_size: Maximum number of documents in a batch.
        model_kwargs: Further arguments of ``pipeline``, such as revision, local_files_only and dtype.

    Raises:
        InputError: An argument is invalid.
    """

    task = "text-classification"

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        framework: str = "",
        top_k: int = 10,
        label: str | None = None,
        max_length: int | None = None,
        query_prefix: str = "",
        document_prefix: str = "",
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        scale_score: bool = True,
        score_threshold: float | None = None,
        batch_size: int = 32,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        ModelComponent.__init__(self, model, framework, model_kwargs)
        check_int("top_k", top_k, minimum=1)
        check_int("max_length", max_length, minimum=1, optional=True)
        check_int("batch_size", batch_size, minimum=1)
        check_string("label", label, optional=True)
        for name, value in (("query_prefix", query_prefix), ("document_prefix", document_prefix)):
            check_string(name, value)
        check_string("embedding_separator", embedding_separator)
        check_bool("scale_score", scale_score)
        check_number("score_threshold", score_threshold, optional=True)
        self.top_k, self.label, self.max_length, self.batch_size = top_k, label, max_length, batch_size
        self.query_prefix, self.document_prefix = query_prefix, document_prefix
        self.meta_fields_to_embed = check_names("meta_fields_to_embed", meta_fields_to_embed)
        self.embedding_separator = embedding_separator
        self.scale_score, self.score_threshold = scale_score, score_threshold

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None, score_threshold: float | None = None
    ) -> dict[str, list[Document]]:
        """Return {"documents": copies of the best documents, most relevant first, with their scores}.

        Args:
            query: The query.
            documents: The documents; those without a text are left out, and each id is ranked once.
            top_k: Maximum number of documents; None for the component's own.
            score_threshold: Minimum score; None for the component's own.

        Raises:
            InputError: The query is not a text or empty, or an argument is invalid.
        """
        if not isinstance(query, str) or not query.strip():
            raise InputError(f"query is {query!r}; expected a text")
        check_int("top_k", top_k, minimum=1, optional=True)
        check_number("score_threshold", score_threshold, optional=True)
        by_id = {document.id: document for document in check_documents(documents) if (document.content or "").strip()}
        if not by_id:
            return {"documents": []}
        ranker = CrossEncoderRanker(
            self.pipeline(), label=self.label, max_length=self.max_length, batch_size=self.batch_size
        )
        fields, separator = self.meta_fields_to_embed, self.embedding_separator
        passages = [Passage(self.document_prefix + text_of(d, fields, separator), id=d.id) for d in by_id.values()]
        least = self.score_threshold if score_threshold is None else score_threshold
        ranked = []
        for passage in ranker.rank(self.query_prefix + query, passages, top_k=top_k or self.top_k):
            logit = float(passage.score or 0.0)
            score = 1 / (1 + math.exp(min(-logit, 700.0))) if self.scale_score else logit
            if least is None or score >= least:
                ranked.append(replace(by_id[passage.id], score=score))
        return {"documents": ranked}
