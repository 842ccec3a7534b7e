"""Find negative passages with a retriever, and label pairs of question and passage, to train bi-encoders and rankers."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from duonlp.data.labelled.texts import LabelledTexts
from duonlp.data.questions.questions import Questions
from duonlp.data.questions.retrieval_batches import Passage, RetrievalExample, retrieval_examples
from duonlp.errors import InputError
from duonlp.retrieval.document import Filters, Retriever
from duonlp.tasks.base import check_int

LABELS = ("irrelevant", "relevant")
"""Names of the classes of :func:`labelled_pairs`; CrossEncoderRanker ranks by the second."""


def hard_negatives(
    questions: Questions,
    retriever: Retriever,
    count: int = 4,
    *,
    filters: Filters | Sequence[Filters | None] | None = None,
    depth: int = 100,
    keep_answers: bool = False,
    title: str | None = None,
) -> list[RetrievalExample]:
    """Return the questions with an answer, each with its context and the documents that a retriever takes for it.

    Documents that are a context with an answer to the same question are left out, and, as in Karpukhin et al. 2020, those that
    contain one of the answers.

    Args:
        questions: The questions; those without an answer are left out.
        retriever: Finds the documents.
        count: Maximum number of negatives of a question, the best ones of the retriever.
        filters: As for Retriever.retrieve; a list has one for each of `questions`.
        depth: Number of documents to retrieve for a question.
        keep_answers: Whether documents that contain an answer are negatives too, as where answers are common words.
        title: Name of the documents' meta entry that is their title; the contexts' titles are those of the questions. None for
            passages without titles.

    Raises:
        InputError: No question has an answer, a number is out of range, or there is another number of filters.
    """
    check_int("count", count, minimum=1)
    check_int("depth", depth, minimum=1)
    if filters is not None and not hasattr(filters, "keys") and len(filters) != len(questions):
        raise InputError(
            f"there are {len(filters)} filters for {len(questions)} questions; give one for each, or one for all"
        )
    examples = retrieval_examples(questions, titles=title is not None)
    numbers = [i for i, row in enumerate(questions) if row["answers"]["text"]]
    if isinstance(filters, Sequence):
        filters = [filters[i] for i in numbers]
    positives: dict[str, set[str]] = {}
    for i in numbers:
        positives.setdefault(questions[i]["question"], set()).add(questions[i]["context"])
    found = retriever.retrieve([example.question for example in examples], top_k=depth, filters=filters)
    out = []
    for number, example, documents in zip(numbers, examples, found, strict=True):
        answers = [] if keep_answers else [text.casefold() for text in questions[number]["answers"]["text"]]
        negatives: list[Passage] = []
        for document in documents:
            text = document.content.casefold()
            if document.content in positives[example.question] or any(answer in text for answer in answers):
                continue
            negatives.append(
                document.content if title is None else (str(document.meta.get(title, "")), document.content)
            )
        out.append(replace(example, negatives=tuple(negatives[:count])))
    return out


def labelled_pairs(examples: Iterable[RetrievalExample], unanswered: Questions | None = None) -> LabelledTexts:
    """Return pairs of question and passage with the labels :data:`LABELS`, to train a sequence classifier as a ranker.

    ``LabelledBatches(pairs, tokenizer, ...)`` and ``fit`` train it, or, written to a file, ``duonlp finetune``.

    Args:
        examples: Questions with positive and negative passages, such as those of :func:`hard_negatives`. A title goes before its
            passage.
        unanswered: Questions, of which those without an answer make further irrelevant pairs with their contexts.

    Raises:
        InputError: There are no pairs.
    """
    pairs: dict[tuple[str, str], int] = {}
    for example in examples:
        for label, passage in [(1, example.positive), *((0, negative) for negative in example.negatives)]:
            pair = example.question, passage if isinstance(passage, str) else " ".join(filter(None, passage))
            pairs[pair] = max(label, pairs.get(pair, 0))
    for row in unanswered or ():
        if not row["answers"]["text"]:
            pairs.setdefault((row["question"], row["context"]), 0)
    if not pairs:
        raise InputError("there are no examples to make pairs of; give at least one")
    return LabelledTexts(list(pairs), np.array(list(pairs.values()), np.int32), LABELS)
