"""A Haystack component that finds answers in documents."""

import math
import os
from typing import Any

from haystack import Document, ExtractedAnswer, component

from duonlp.haystack.components import ModelComponent, check_documents, check_number
from duonlp.pipelines import Pipeline
from duonlp.retrieval import Answer, Reader
from duonlp.retrieval import Document as Passage
from duonlp.retrieval.reader import load_reader
from duonlp.tasks.base import check_bool, check_int
from duonlp.util.frameworks import load_package


@component
class ExtractiveReader(ModelComponent):
    """Find the answers to a question in documents with a model in Keras or Flax.

    Arguments and results follow TransformersExtractiveReader of Haystack's integrations, with these differences: answers are
    whole words of at most ``max_answer_length`` tokens, never overlap, and have a ``context``. Each has in ``meta`` its logit
    (start + end), the null_gap of its document (above 0, the model prefers no answer there) and its probability within the
    document.

    Args:
        model: A question-answering checkpoint: a folder or a Hub id.
        framework: "tf" or "jax"; "" for the installed one, jax if both are.
        top_k: Number of answers, without the additional "no answer".
        score_threshold: Return only answers with at least this score.
        max_seq_length: Number of tokens in a window; None for 384, or the model's limit if that is less.
        stride: Number of tokens by which windows overlap; None for 128, or half a window if that is less.
        max_batch_size: Maximum number of windows in a batch.
        answers_per_document: Maximum number of answers from one document.
        no_answer: Whether to return an additional answer without a text, whose score is the probability that all others are
            wrong: the product of 1 - score.
        calibration_factor: A score is the sigmoid of the logit times this factor, and therefore comparable across documents.
        max_answer_length: Maximum number of tokens in an answer.
        context_size: Number of characters of the context around an answer.
        model_kwargs: Further arguments of ``pipeline``, such as revision, local_files_only and dtype.

    Raises:
        InputError: An argument is invalid.
    """

    task = "question-answering"

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        framework: str = "",
        top_k: int = 20,
        score_threshold: float | None = None,
        max_seq_length: int | None = None,
        stride: int | None = None,
        max_batch_size: int | None = None,
        answers_per_document: int = 3,
        no_answer: bool = True,
        calibration_factor: float = 0.1,
        max_answer_length: int = 15,
        context_size: int = 150,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        ModelComponent.__init__(self, model, framework, model_kwargs)
        self.top_k, self.score_threshold, self.no_answer = top_k, score_threshold, no_answer
        self.max_seq_length, self.stride, self.max_batch_size = max_seq_length, stride, max_batch_size
        self.answers_per_document, self.max_answer_length = answers_per_document, max_answer_length
        self.calibration_factor, self.context_size = calibration_factor, context_size
        check_number("calibration_factor", calibration_factor)
        check_int("context_size", context_size, minimum=0)
        self._settings({})  # raises

    def _load(self) -> Pipeline:
        package, _ = load_package(self.framework)
        return load_reader(package, self.model, options=self.model_kwargs).pipe

    def _settings(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Return the settings that ``run`` can change, checked."""
        names = ("top_k", "score_threshold", "max_seq_length", "stride", "max_batch_size", "answers_per_document")
        settings = {name: getattr(self, name) for name in (*names, "no_answer", "max_answer_length")}
        settings |= {name: value for name, value in changes.items() if value is not None}
        for name in ("top_k", "answers_per_document", "max_answer_length"):
            check_int(name, settings[name], minimum=1)
        for name in ("max_seq_length", "max_batch_size"):
            check_int(name, settings[name], minimum=1, optional=True)
        check_int("stride", settings["stride"], minimum=0, optional=True)
        check_number("score_threshold", settings["score_threshold"], optional=True)
        check_bool("no_answer", settings["no_answer"])
        return settings

    @component.output_types(answers=list[ExtractedAnswer])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
        max_seq_length: int | None = None,
        stride: int | None = None,
        max_batch_size: int | None = None,
        answers_per_document: int | None = None,
        no_answer: bool | None = None,
        max_answer_length: int | None = None,
    ) -> dict[str, list[ExtractedAnswer]]:
        """Return {"answers": the answers, highest score first}; [] without documents.

        Args:
            query: The question.
            documents: The documents; those without a text have no answers.
            top_k: See the class, as for the other arguments; None for the component's own.
            score_threshold: See the class.
            max_seq_length: See the class.
            stride: See the class.
            max_batch_size: See the class.
            answers_per_document: See the class.
            no_answer: See the class.
            max_answer_length: See the class.

        Raises:
            InputError: An argument is invalid, or windows do not fit the model.
        """
        settings = self._settings(
            {
                "top_k": top_k, "score_threshold": score_threshold, "max_seq_length": max_seq_length, "stride": stride,
                "max_batch_size": max_batch_size, "answers_per_document": answers_per_document, "no_answer": no_answer,
                "max_answer_length": max_answer_length,
            }
        )  # fmt: skip
        by_id = {document.id: document for document in check_documents(documents)}
        if not by_id:
            return {"answers": []}
        reader = Reader(
            self.pipeline(),
            settings["top_k"],
            answers_per_document=settings["answers_per_document"],
            max_seq_len=settings["max_seq_length"],
            doc_stride=settings["stride"],
            max_answer_len=settings["max_answer_length"],
            context_size=self.context_size,
        )
        if settings["max_batch_size"]:
            reader.options["batch_size"] = settings["max_batch_size"]
        found = reader.read(query, [Passage(d.content or "", id=d.id) for d in by_id.values()])
        answers = [self._extracted(query, answer, by_id[str(answer.document_id)]) for answer in found]
        if settings["no_answer"]:
            answers.append(ExtractedAnswer(query=query, score=math.prod(1 - answer.score for answer in answers)))
        answers.sort(key=lambda answer: -answer.score)  # stable: "no answer" comes after an equal one
        threshold = settings["score_threshold"]
        return {"answers": [answer for answer in answers if threshold is None or answer.score >= threshold]}

    def _extracted(self, query: str, answer: Answer, document: Document) -> ExtractedAnswer:
        """Return an answer as Haystack's, with its document."""
        exponent = -self.calibration_factor * answer.logit
        meta: dict[str, Any] = {"logit": answer.logit, "null_gap": answer.null_gap, "probability": answer.score}
        page = document.meta.get("page_number")
        if isinstance(page, int):  # pages of a document end with a form feed
            meta["answer_page_number"] = page + (document.content or "")[: answer.start].count("\f")
        span, shift = ExtractedAnswer.Span, answer.context_start
        return ExtractedAnswer(
            query=query,
            score=1 / (1 + math.exp(min(exponent, 700.0))),
            data=answer.answer,
            document=document,
            context=answer.context,
            document_offset=span(answer.start, answer.end),
            context_offset=span(answer.start - shift, answer.end - shift),
            meta=meta,
        )
