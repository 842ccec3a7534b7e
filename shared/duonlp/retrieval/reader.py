"""Read a question in several documents, and rank the answers across them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from duonlp.errors import InputError
from duonlp.pipelines import trained_pipeline
from duonlp.retrieval.answer import Answer, context_around
from duonlp.retrieval.document import Document
from duonlp.tasks.reader_config import ReaderConfig, read_reader_config

if TYPE_CHECKING:
    from duonlp.pipelines import Pipeline
    from duonlp.typing import Engine

CANDIDATES = 10
"""Spans considered for each answer of a document, because those that overlap a better one are dropped."""

OWN_OPTIONS = {
    "top_k": "give the number of answers as top_k of the reader, or --top-k",
    "handle_impossible_answer": "leave it out: a reader returns null gaps, and no_answer=True adds the null answer",
}
"""Options of the pipeline that a reader sets, and what to do instead."""


class Reader:
    """Finds the answers to a question in documents, with a question-answering pipeline.

    All documents are read in one call of the pipeline. Answers are ranked by their logits, which are comparable across documents;
    a document's probabilities are not, as those of each document sum to 1, whether or not it has an answer.

    Args:
        pipe: A "question-answering" pipeline of either engine.
        top_k: Number of answers to a question.
        answers_per_document: Number of answers from one document, at most. They do not overlap.
        no_answer: Whether "no answer" takes part. Its logit is that of the best answer plus the smallest null gap of the
            documents, so that it comes first if the model prefers no answer in every document.
        null_threshold: What is subtracted from that gap: the best threshold on labeled questions (see
            :func:`duonlp.metrics.best_threshold`).
        max_seq_len: Tokens per window; None for the pipeline's.
        doc_stride: Tokens by which windows overlap; None for the pipeline's.
        max_answer_len: Maximum length of an answer in tokens; None for the pipeline's.
        context_size: Characters of the context shown around an answer.

    Raises:
        InputError: The pipeline has another task, or an option is invalid.
    """

    def __init__(
        self,
        pipe: "Pipeline",
        top_k: int = 10,
        *,
        answers_per_document: int = 3,
        no_answer: bool = False,
        null_threshold: float = 0.0,
        max_seq_len: int | None = None,
        doc_stride: int | None = None,
        max_answer_len: int | None = None,
        context_size: int = 150,
    ) -> None:
        task = getattr(getattr(pipe, "task", None), "name", None)
        if task != "question-answering":
            found = f"a {task!r} pipeline" if task else f"a {type(pipe).__name__}"
            raise InputError(
                f'a reader needs a "question-answering" pipeline, but got {found}; create one with pipeline(...)'
            )
        check_count("top_k", top_k)
        check_count("answers_per_document", answers_per_document)
        check_count("context_size", context_size, minimum=0)
        if not isinstance(no_answer, bool):
            raise InputError(f"no_answer is {no_answer!r}; it must be True or False")
        if (
            isinstance(null_threshold, bool)
            or not isinstance(null_threshold, (int, float))
            or math.isnan(null_threshold)
        ):
            raise InputError(f"null_threshold is {null_threshold!r}; it must be a number")
        self.pipe, self.top_k, self.answers_per_document = pipe, top_k, answers_per_document
        self.no_answer, self.null_threshold, self.context_size = no_answer, null_threshold, context_size
        options = {"max_seq_len": max_seq_len, "doc_stride": doc_stride, "max_answer_len": max_answer_len}
        self.options = {name: value for name, value in options.items() if value is not None}
        pipe.task.options(pipe.options, **self.options)  # raises

    def read(self, query: str, documents: Sequence[Document], *, top_k: int | None = None) -> list[Answer]:
        """Return the best answers to a question, best first.

        Args:
            query: The question.
            documents: Documents to read. Repeated ids are read once; documents without a letter or digit have no answers.
            top_k: Number of answers; None for the reader's.

        Returns:
            At most `top_k` answers, fewer if the documents have fewer; [] without documents.

        Raises:
            InputError: The question or an option is invalid.
        """
        return self.read_batch([query], [documents], top_k=top_k)[0]

    def read_batch(
        self, queries: Sequence[str], documents: Sequence[Sequence[Document]], *, top_k: int | None = None
    ) -> list[list[Answer]]:
        """Return the best answers to each question in its own documents, all read in one call of the pipeline.

        Args:
            queries: The questions.
            documents: The documents of each question; see :meth:`read`.
            top_k: Number of answers to a question; None for the reader's.

        Raises:
            InputError: A question or an option is invalid, or the numbers of questions and lists differ.
        """
        return [answers for answers, _ in self.read_with_gaps(queries, documents, top_k=top_k)]

    def read_with_gaps(
        self, queries: Sequence[str], documents: Sequence[Sequence[Document]], *, top_k: int | None = None
    ) -> list[tuple[list[Answer], float | None]]:
        """Return, for each question, its answers and the smallest null gap of all its documents.

        Args:
            queries: See :meth:`read_batch`.
            documents: See :meth:`read_batch`.
            top_k: See :meth:`read_batch`.

        Returns:
            (answers, gap) of each question. If the gap is above 0, the model prefers no answer in each document; None without
            documents.

        Raises:
            InputError: See :meth:`read_batch`.
        """
        check_count("top_k", top_k, optional=True)
        queries = check_queries(queries)
        if len(queries) != len(documents):
            raise InputError(
                f"there are {len(queries)} questions and {len(documents)} lists of documents; give one for each"
            )
        kept = [_readable(entry) for entry in documents]
        pairs = [
            {"question": query, "context": document.content}
            for query, entry in zip(queries, kept, strict=True)
            for document in entry
        ]
        count = self.answers_per_document * CANDIDATES
        # An iterator gives one result per pair; of a list of one pair, the pipeline returns the result bare.
        results: Iterator[Any] = iter(())
        if pairs:
            options: dict[str, Any] = self.options | {"top_k": count, "handle_impossible_answer": False}
            results = self.pipe(iter(pairs), **options)
        ranked = []
        for entry in kept:
            found = [self._answers(document, next(results)) for document in entry]
            gap = min((answers[0].null_gap for answers in found if answers), default=None)
            ranked.append((self._ranked(found, gap)[: top_k or self.top_k], gap))
        return ranked

    def _answers(self, document: Document, result: Any) -> list[Answer]:
        """Return the answers of one document, best first, without those that overlap a better one."""
        rows = [result] if isinstance(result, Mapping) else list(result)
        answers: list[Answer] = []
        for row in sorted(rows, key=lambda row: -row["logit"]):
            start, end = row["start"], row["end"]
            if start == end or any(start < other.end and other.start < end for other in answers):
                continue
            if answers and not any(map(str.isalnum, document.content[start:end])):
                continue  # punctuation counts only where the model prefers it
            first, last = context_around(document.content, start, end, self.context_size)
            answers.append(
                Answer(
                    document.content[start:end], float(row["score"]), float(row["logit"]), float(row["null_gap"]), document.id,
                    start, end, document.content[first:last], first, dict(document.meta),
                )
            )  # fmt: skip
            if len(answers) == self.answers_per_document:
                break
        return answers

    def _ranked(self, found: Sequence[Sequence[Answer]], gap: float | None) -> list[Answer]:
        """Return the answers of all documents, best first, with "no answer" if it takes part."""
        answers = sorted((answer for entry in found for answer in entry), key=lambda answer: -answer.logit)
        if self.no_answer and gap is not None:
            margin = gap - self.null_threshold
            null = Answer(
                "", 1 / (1 + math.exp(-max(min(margin, 500.0), -500.0))), answers[0].logit + margin, gap, None
            )
            answers = sorted([*answers, null], key=lambda answer: -answer.logit)
        return answers


def load_reader(package: "Engine", model: str, *, options: Mapping[str, Any] | None = None, **settings: Any) -> Reader:
    """Load a question-answering checkpoint as a reader.

    Args:
        package: tfnlp or jaxnlp.
        model: A folder in Hugging Face layout, or a Hub id.
        options: Options of the pipeline.
        settings: Arguments of :class:`Reader`, in place of those that ``duonlp finetune`` stored in reader.json.

    Raises:
        InputError: The checkpoint has no question-answering head, so that its answers would be random; or an option is invalid,
            or one that the reader sets.
        CheckpointError: The checkpoint cannot be found or read.
    """
    for name, remedy in OWN_OPTIONS.items():
        if name in (options or {}):
            raise InputError(f"the option {name!r} has no effect in a reader, which sets it itself; {remedy}")
    pipe, trained = load_reader_pipeline(package, model, **(options or {}))
    stored: dict[str, Any] = {} if trained is None else asdict(trained)
    defaults = {name: value for name, value in stored.items() if value is not None and name not in (options or {})}
    return Reader(pipe, **defaults | settings)


def load_reader_pipeline(package: "Engine", model: str, **options: Any) -> "tuple[Pipeline, ReaderConfig | None]":
    """Load a question-answering checkpoint; return its pipeline, and its reader.json if it has one.

    Args:
        package: tfnlp or jaxnlp.
        model: A folder in Hugging Face layout, or a Hub id.
        options: Options of the pipeline.

    Raises:
        InputError: The checkpoint has no question-answering head, so that its answers would be random; or an option is invalid.
        CheckpointError: The checkpoint cannot be found or read.
    """
    pipe = trained_pipeline(package, "question-answering", model, **options)
    return pipe, None if pipe.task.folder is None else read_reader_config(pipe.task.folder)


def check_queries(queries: Sequence[str]) -> list[str]:
    """Return questions as a list.

    Raises:
        InputError: They are one text rather than a list, or one is not a text or has only spaces.
    """
    if isinstance(queries, str) or not isinstance(queries, Sequence):
        raise InputError(f"queries are {queries!r:.60}; give a list of questions")
    for number, query in enumerate(queries):
        if not isinstance(query, str):
            raise InputError(f"question {number} is {query!r:.60} ({type(query).__name__}); it must be a text")
        if not query.strip():
            raise InputError(f"question {number} is empty; give a question in words")
    return list(queries)


def check_count(name: str, value: Any, *, minimum: int = 1, optional: bool = False) -> None:
    """Raise InputError unless a value is an integer of at least `minimum`, or None if that is allowed."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InputError(f"{name} is {value!r}; it must be an integer of at least {minimum}")


def _readable(documents: Sequence[Document]) -> list[Document]:
    """Return the documents with a letter or digit, each id once."""
    if isinstance(documents, (str, Document)) or not isinstance(documents, Sequence):
        raise InputError(f"documents are {documents!r:.60}; give a list of Documents")
    kept: dict[str, Document] = {}
    for document in documents:
        if not isinstance(getattr(document, "content", None), str):
            raise InputError(f"documents contain {document!r:.60}; give Documents, which have a text as content")
        if any(map(str.isalnum, document.content)):
            kept.setdefault(document.id, document)
    return list(kept.values())
