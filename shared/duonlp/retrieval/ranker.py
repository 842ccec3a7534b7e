"""Rank documents by a cross-encoder: a sequence classifier that reads a question and a passage together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.pipelines.pipeline import Pipeline
from duonlp.retrieval.document import Document
from duonlp.tasks.base import check_int
from duonlp.tasks.text_classification import TextClassificationTask


class CrossEncoderRanker:
    """Orders documents by the score of a sequence classifier for the pair of question and passage (Nogueira and Cho 2019).

    The score of a model with one label is its logit. With several it is the log-odds of one of them, the logit minus the
    logarithm of the sum of the exponentials of the others.

    Args:
        pipe: Pipeline "text-classification" of either engine.
        label: Name of the class of relevant passages; None for the only one, or the second of two.
        max_length: Number of tokens that a pair is truncated to, the longer text first; None for the model's positions.
        title: Name of the meta entry that goes before a document's text; None for none.
        batch_size: Rows of a batch; None for the pipeline's.

    Raises:
        InputError: The pipeline has another task, or the model has no such class.
    """

    def __init__(
        self,
        pipe: Pipeline,
        *,
        label: str | None = None,
        max_length: int | None = None,
        title: str | None = None,
        batch_size: int | None = None,
    ):
        if not isinstance(pipe, Pipeline) or not isinstance(pipe.task, TextClassificationTask):
            raise InputError(
                f"CrossEncoderRanker got {pipe!r}; pass a pipeline of an engine, such as "
                'jaxnlp.pipeline("text-classification", folder)'
            )
        labels = pipe.config.labels
        if label is None and len(labels) > 2:
            raise InputError(f"the model has {len(labels)} classes; pass label=, one of {', '.join(map(repr, labels))}")
        if label is not None and label not in labels:
            raise InputError(f"label is {label!r}; the model's classes are {', '.join(map(repr, labels))}")
        self.pipe, self.label, self.title, self.batch_size = (
            pipe,
            labels[-1] if label is None else label,
            title,
            batch_size,
        )
        self._options: dict[str, Any] = {"truncation": True, "function_to_apply": "none", "top_k": None}
        self._options |= {} if max_length is None else {"max_length": max_length}

    def rank(self, query: str, documents: Sequence[Document], top_k: int | None = None) -> list[Document]:
        """Return copies of the best documents for a query, best first, with their scores.

        Args:
            query: The question.
            documents: Documents in any order; those of one score keep it.
            top_k: Maximum number of documents to return; None for all.

        Raises:
            InputError: The query or a document is empty, or ``top_k`` is out of range.
        """
        return self.rank_all([query], [documents], top_k)[0]

    def rank_all(
        self, queries: Sequence[str], documents: Sequence[Sequence[Document]], top_k: int | None = None
    ) -> list[list[Document]]:
        """Return :meth:`rank` of each query and its documents, all pairs batched together.

        Args:
            queries: Questions.
            documents: Documents of each.
            top_k: Maximum number of documents per query; None for all.

        Raises:
            InputError: As :meth:`rank`, or there is another number of lists of documents.
        """
        check_int("top_k", top_k, minimum=1, optional=True)
        if len(queries) != len(documents):
            raise InputError(
                f"there are {len(documents)} lists of documents for {len(queries)} queries; give one for each"
            )
        pairs = [(query, document) for query, found in zip(queries, documents) for document in found]
        scores = iter(self.scores([query for query, _ in pairs], [self._text(document) for _, document in pairs]))
        ranked = []
        for found in documents:
            scored = [replace(document, score=float(next(scores))) for document in found]
            ranked.append(sorted(scored, key=_score, reverse=True)[:top_k])
        return ranked

    def scores(self, queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
        """Return the score of each pair of a question and a passage, float32 [n]."""
        pairs = [{"text": query, "text_pair": passage} for query, passage in zip(queries, passages, strict=True)]
        if not pairs:
            return np.zeros(0, np.float32)
        return np.array(
            [self._score_of(classes) for classes in self.pipe(pairs, batch_size=self.batch_size, **self._options)]
        )

    def _score_of(self, classes: Sequence[dict]) -> np.float32:
        logits = {entry["label"]: entry["score"] for entry in classes}
        relevant = logits.pop(self.label)
        if not logits:
            return np.float32(relevant)
        return np.float32(relevant - np.logaddexp.reduce(list(logits.values())))

    def _text(self, document: Document) -> str:
        title = None if self.title is None else document.meta.get(self.title)
        return f"{title} {document.content}" if title else document.content


def _score(document: Document) -> float:
    return document.score or 0.0
