"""Answer questions from a store of documents: a retriever finds some, and a RAG model writes answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from duonlp.errors import InputError
from duonlp.numpy_ops import log_softmax
from duonlp.rag.checkpoint import RagTokenizers
from duonlp.rag.contexts import RagContexts, encode_questions, stack_embeddings
from duonlp.rag.model import RagBase
from duonlp.retrieval.document import Document, Filters, Retriever
from duonlp.retrieval.prompting import GeneratedAnswer
from duonlp.tasks.base import check_choice, check_int, check_text, describe

SCORES = ("question", "retriever")
"""Where the scores of documents come from."""


@dataclass(frozen=True)
class RagAnswer:
    """A generated answer.

    Attributes:
        answer: The text.
        score: Its log probability: of RAG-Sequence that of the whole answer over all documents; of RAG-Token the sum over its
            tokens, divided by length ** length_penalty with beams.
        documents: The documents that it was generated from, best first.
        probabilities: Probability of each document given the question; they sum to 1.
    """

    answer: str
    score: float
    documents: list[Document]
    probabilities: list[float]


class RagPipeline:
    """A retriever and a RAG model.

    Args:
        model: RagSequence or RagToken of either engine.
        retriever: Finds documents; None if :meth:`answer` and :meth:`generate` are given them.
        tokenizers: Tokenizers of the model; None for those in the folder that it was loaded from.
        top_k: Number of documents per question; None for the model's ``n_docs``.
        top_k_generator: Number of answers per question.
        doc_scores: "question": products of the vectors of the model's question encoder and the documents' embeddings;
            "retriever": the scores of the retriever, as for BM25 or a hybrid; None for the former if all documents have an
            embedding of the question encoder's length.
        batch_size: Questions per batch.
        options: Options of the model's ``generate``, such as num_beams, max_new_tokens or fast.

    Raises:
        InputError: An argument is invalid, or there are no tokenizers.
        CheckpointError: The tokenizers cannot be loaded.
    """

    def __init__(
        self,
        model: RagBase,
        retriever: Retriever | None,
        tokenizers: RagTokenizers | None = None,
        *,
        top_k: int | None = None,
        top_k_generator: int = 1,
        doc_scores: str | None = None,
        batch_size: int = 8,
        **options: Any,
    ):
        if not isinstance(model, RagBase):
            raise InputError(f"the model is a {type(model).__name__}; expected a RagSequence or a RagToken")
        if retriever is not None and not callable(getattr(retriever, "retrieve", None)):
            raise InputError(f"the retriever is {describe(retriever)}; expected an object with a method retrieve")
        if tokenizers is None:
            if model.folder is None:
                raise InputError("the model was not loaded from a folder; pass tokenizers=RagTokenizers(...)")
            tokenizers = RagTokenizers.from_pretrained(model.folder)
        check_int("top_k", top_k, minimum=1, optional=True)
        check_int("top_k_generator", top_k_generator, minimum=1)
        check_int("batch_size", batch_size, minimum=1)
        check_choice("doc_scores", doc_scores, (*SCORES, None))
        self.model, self.retriever, self.tokenizers = model, retriever, tokenizers
        self.top_k, self.top_k_generator = top_k or model.config.n_docs, top_k_generator
        self.doc_scores, self.batch_size, self.options = doc_scores, int(batch_size), options
        self.contexts = RagContexts(tokenizers.generator, model.config)

    @overload
    def __call__(self, query: str, **options: Any) -> list[RagAnswer]: ...
    @overload
    def __call__(self, query: Sequence[str], **options: Any) -> list[list[RagAnswer]]: ...
    def __call__(
        self, query: str | Sequence[str], *, top_k: int | None = None, top_k_generator: int | None = None,
        filters: Filters | None = None, **options: Any,
    ) -> list[RagAnswer] | list[list[RagAnswer]]:  # fmt: skip
        """Answer a question, or several.

        Args:
            query: A question, or a list of questions.
            top_k: Number of documents; None for the pipeline's.
            top_k_generator: Number of answers; None for the pipeline's.
            filters: Filter of the documents.
            options: Options of ``generate`` for this call.

        Returns:
            The answers, best first, an empty list where no document was found; for a list of questions, a list of these.

        Raises:
            InputError: A question is empty or too long, an option is invalid, or the store is empty.
        """
        if not isinstance(query, Sequence):
            raise InputError(f"the query is {describe(query)}; expected a question or a list of questions")
        questions = [query] if isinstance(query, str) else list(query)
        if self.retriever is None:
            raise InputError("the pipeline has no retriever; pass one, or give documents to `answer`")
        questions = _checked(questions)
        check_int("top_k", top_k, minimum=1, optional=True)
        found = self.retriever.retrieve(questions, top_k=top_k or self.top_k, filters=filters)
        answers = self.answer(questions, found, top_k_generator=top_k_generator, **options)
        return answers[0] if isinstance(query, str) else answers

    def answer(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[Document]],
        *,
        top_k_generator: int | None = None,
        **options: Any,
    ) -> list[list[RagAnswer]]:
        """Answer questions from given documents.

        Args:
            queries: The questions.
            documents: The documents of each question, with scores or with embeddings that fit the question encoder.
            top_k_generator: Number of answers; None for the pipeline's.
            options: Options of ``generate`` for this call.

        Returns:
            The answers to each question, best first; none to a question without documents.

        Raises:
            InputError: A question is empty or too long, an option is invalid, or the numbers of questions and lists differ.
        """
        questions = _checked(queries)
        if len(documents) != len(questions):
            raise InputError(
                f"there are {len(questions)} questions and {len(documents)} lists of documents; give one for each"
            )
        check_int("top_k_generator", top_k_generator, minimum=1, optional=True)
        answers: list[list[RagAnswer]] = [[] for _ in questions]
        by_count: dict[int, list[int]] = {}  # questions with equally many documents are answered together
        for number, found in enumerate(documents):
            by_count.setdefault(len(found), []).append(number)
        by_count.pop(0, None)
        options = {**self.options, **options}
        for numbers in by_count.values():
            for start in range(0, len(numbers), self.batch_size):
                batch = numbers[start : start + self.batch_size]
                rows = self._answer(
                    [questions[i] for i in batch],
                    [list(documents[i]) for i in batch],
                    top_k_generator or self.top_k_generator,
                    options,
                )
                for number, row in zip(batch, rows):
                    answers[number] = row
        return answers

    def generate(self, query: str, documents: Sequence[Document]) -> GeneratedAnswer:
        """Return the best answer from the first ``top_k`` documents, in the form of a PromptGenerator's.

        It cites all of these, the most probable first, since a RAG model marginalizes over them.

        Args:
            query: The question.
            documents: At least one document, the best first.

        Raises:
            InputError: As :meth:`answer`, or there are no documents.
        """
        if not documents:
            raise InputError("there are no documents to answer from; give at least one")
        used = list(documents)[: self.top_k]
        best = self.answer([query], [used], top_k_generator=1)[0][0]
        order = np.argsort(-np.array(best.probabilities), kind="stable") + 1
        dropped = tuple(document.id for document in documents[self.top_k :])
        return GeneratedAnswer(best.answer, used, tuple(order.tolist()), dropped=dropped)

    def run(self, query: str, params: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """Answer a question with parameters by component.

        Args:
            query: The question.
            params: ``{"Retriever": {"top_k": 10, "filters": ...}, "Generator": {"top_k": 3}}``; further entries of "Generator"
                are options of ``generate``.

        Returns:
            {"query": the question, "answers": list of RagAnswer, "documents": the documents found}.

        Raises:
            InputError: As for a call, or a component or parameter is unknown.
        """
        params = dict(params or {})
        retriever, generator = dict(params.pop("Retriever", {})), dict(params.pop("Generator", {}))
        own = {name: retriever.pop(name) for name in ("top_k", "filters") if name in retriever}
        if params or retriever:
            unknown = next(iter(params or retriever))
            raise InputError(
                f"unknown parameter {unknown!r}; params has Retriever, with top_k and filters, and Generator, with top_k "
                "and options of generate"
            )
        answers = self(query, **own, top_k_generator=generator.pop("top_k", None), **generator)
        return {"query": query, "answers": answers, "documents": answers[0].documents if answers else []}

    def _answer(
        self, questions: list[str], documents: list[list[Document]], count: int, options: Mapping[str, Any]
    ) -> list[list[RagAnswer]]:
        """Return the answers of questions with equally many documents."""
        scores = self._scores(questions, documents)
        beams = {"num_beams": max(count, options.get("num_beams") or self.model.generation_config.num_beams)}
        if options.get("do_sample"):
            beams = {}
        output: Any = self.model.generate(
            **self.contexts.encode(questions, documents), doc_scores=scores, num_return_sequences=count,
            return_dict_in_generate=True, **{**options, **beams},
        )  # fmt: skip
        found = output["sequences_scores"] if "sequences_scores" in output else output["logprobs"].sum(axis=1)
        texts = self.tokenizers.generator.batch_decode(output["sequences"], skip_special_tokens=True)
        probabilities = np.exp(log_softmax(scores.astype(np.float64)))
        return [
            [
                RagAnswer(texts[i].strip(), float(found[i]), documents[row], probabilities[row].tolist())
                for i in range(row * count, (row + 1) * count)
            ]
            for row in range(len(questions))
        ]

    def _scores(self, questions: list[str], documents: list[list[Document]]) -> np.ndarray:
        """Return the scores of documents, float32 [B, K]."""
        size = self.model.config.vector_size
        embeddings = None if self.doc_scores == "retriever" else stack_embeddings(documents, size)
        if embeddings is not None:
            positions = self.model.config.question_encoder.max_length
            inputs = encode_questions(self.tokenizers.question_encoder, questions, positions)
            return np.einsum("bd,bkd->bk", self.model.encode_questions(**inputs), embeddings)
        if self.doc_scores == "question":
            raise InputError(
                f"doc_scores is 'question', but not all documents have an embedding of {size} values, as the question encoder's "
                "vectors have; retrieve from a store with embeddings of its context encoder, or pass doc_scores='retriever'"
            )
        if any(document.score is None for found in documents for document in found):
            raise InputError("a document has neither a score nor an embedding that fits; use another retriever")
        return np.array([[document.score for document in found] for found in documents], np.float32)


def _checked(queries: Sequence[str]) -> list[str]:
    """Return the questions; raise InputError if one is not a text or is empty."""
    return [check_text(question, f"question {number}") for number, question in enumerate(queries)]
