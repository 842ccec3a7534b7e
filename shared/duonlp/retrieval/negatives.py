"""Find negative passages with a retriever, and label pairs of question and passage, to train bi-encoders and rankers."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from duonlp.data.labelled.texts import LabelledTexts
from duonlp.data.questions.questions import Questions
from duonlp.data.questions.retrieval_batches import Passage, RetrievalExample, retrieval_examples
from duonlp.errors import InputError
from duonlp.retrieval.document import Filters, Retriever
from duonlp.tasks.base import check_int
from duonlp.util.files import write_text
from duonlp.util.json_text import to_json

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
        InputError: No question has an answer, a number is out of range, there is another number of filters, or a document has no
            title.
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
            if title is not None and not document.meta.get(title):
                raise InputError(
                    f"document {document.id!r} has no meta entry {title!r}; give all documents titles, or leave out title="
                )
            negatives.append(document.content if title is None else (str(document.meta[title]), document.content))
        out.append(replace(example, negatives=tuple(negatives[:count])))
    return out


def labelled_pairs(examples: Iterable[RetrievalExample], unanswered: Questions | None = None) -> LabelledTexts:
    """Return pairs of question and passage with the labels :data:`LABELS`, to train a sequence classifier as a ranker.

    ``LabelledBatches(pairs, tokenizer, ...)`` and ``fit`` train it, or, after :func:`write_pairs`, ``duonlp finetune``.

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


def write_pairs(pairs: LabelledTexts, path: str | Path) -> None:
    """Write pairs as JSON lines with the keys "question", "passage" and "label".

    ``duonlp finetune FILE --text-column question,passage`` trains a ranker on them.

    Args:
        pairs: Pairs from :func:`labelled_pairs`.
        path: File to write, ``.jsonl``.

    Raises:
        InputError: The texts are not pairs.
        StorageError: The file cannot be written.
    """
    lines = []
    for text, label in zip(pairs.texts, pairs.labels.tolist(), strict=True):
        if isinstance(text, str):
            raise InputError(f"{text!r} is one text; pass pairs from labelled_pairs")
        lines.append(to_json({"question": text[0], "passage": text[1], "label": pairs.label_names[label]}))
    write_text(path, "".join(f"{line}\n" for line in lines))
