"""Documents combined with their question, as the generator reads them."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.rag.config import RagConfig
from duonlp.retrieval.document import Document
from duonlp.retrieval.prompting import largest
from duonlp.tasks.base import check_text
from duonlp.typing import Tokenizer
from duonlp.util.buckets import bucket
from duonlp.util.tokenization import tokenize


class RagContexts:
    """Turns documents and their questions into the generator's input: ``title / text // question``.

    This is what Transformers' RagRetriever makes, apart from what is too long: it truncates the end, which is the question, and
    this shortens the document's text.

    Args:
        tokenizer: The generator's tokenizer.
        config: Configuration of the model.
        prefix: Text before each document; None for the generator's own prefix, if it has one.
    """

    def __init__(self, tokenizer: Tokenizer, config: RagConfig, prefix: str | None = None):
        own = config.generator.extra.get("prefix")
        self.tokenizer, self.config = tokenizer, config
        self.prefix = prefix if prefix is not None else own if isinstance(own, str) else ""
        self.limit = min(config.max_combined_length, config.generator.max_length)

    def combine(self, question: str, document: Document, text: str | None = None) -> str:
        """Return one document with its question; ``text`` replaces the document's."""
        title = str(document.meta.get("title") or "").removeprefix('"').removesuffix('"')
        text = document.content if text is None else text
        combined = self.prefix + title + self.config.title_sep + text + self.config.doc_sep + question
        return combined.replace("  ", " ")

    def encode(self, questions: Sequence[str], documents: Sequence[Sequence[Document]]) -> dict[str, np.ndarray]:
        """Return context_input_ids and context_attention_mask, int32 [B, K, S].

        Args:
            questions: B questions.
            documents: K documents of each.

        Raises:
            InputError: A question is empty or too long for the generator, or the numbers of documents differ.
        """
        counts = {len(found) for found in documents}
        if len(documents) != len(questions) or len(counts) != 1 or counts == {0}:
            raise InputError(
                f"there are {len(questions)} questions, and {', '.join(map(str, sorted(counts))) or 'no'} documents for each; "
                "pass the same number of documents, at least one, with every question"
            )
        rows = [
            self._ids(check_text(question, f"question {number}"), document)
            for number, (question, found) in enumerate(zip(questions, documents))
            for document in found
        ]
        width = bucket(max(map(len, rows)), self.limit)
        ids = np.full((len(rows), width), self.config.padding, np.int32)
        mask = np.zeros((len(rows), width), np.int32)
        for row, values in enumerate(rows):
            ids[row, : len(values)], mask[row, : len(values)] = values, 1
        shape = len(questions), counts.pop(), width
        return {"context_input_ids": ids.reshape(shape), "context_attention_mask": mask.reshape(shape)}

    def _ids(self, question: str, document: Document) -> list[int]:
        """Return the ids of a document with its question, the document's text shortened if it is too long."""

        def ids(text: str | None = None) -> list[int]:
            return tokenize(self.tokenizer, self.combine(question, document, text), verbose=False)["input_ids"]

        whole = ids()
        if len(whole) <= self.limit:
            return whole
        ends = [match.end() for match in re.finditer(r"\S+", document.content)][: self.limit]
        count = largest(len(ends), lambda n: len(ids(document.content[: ends[n - 1]])) <= self.limit)
        shortened = ids(document.content[: ends[count - 1]] if count else "")
        if len(shortened) > self.limit:
            raise InputError(
                f"the question {question[:60]!r} and the title of a document take {len(shortened)} tokens, but the generator "
                f"reads {self.limit}; shorten the question, or raise max_combined_length"
            )
        return shortened


def encode_questions(tokenizer: Tokenizer, questions: Sequence[str], max_length: int) -> dict[str, np.ndarray]:
    """Return the question encoder's inputs, int32 [B, T], truncated to the number of its positions.

    Args:
        tokenizer: The question encoder's tokenizer.
        questions: The questions.
        max_length: The positions.
    """
    limit = min(max_length, getattr(tokenizer, "model_max_length", max_length))
    encoded: Any = tokenize(tokenizer, list(questions), truncation=True, max_length=limit, verbose=False)
    width = bucket(max(map(len, encoded["input_ids"])), limit)
    ids = np.full((len(questions), width), getattr(tokenizer, "pad_token_id", None) or 0, np.int32)
    mask = np.zeros((len(questions), width), np.int32)
    for row, values in enumerate(encoded["input_ids"]):
        ids[row, : len(values)], mask[row, : len(values)] = values, 1
    return {"input_ids": ids, "attention_mask": mask}


def stack_embeddings(documents: Sequence[Sequence[Document]], size: int) -> np.ndarray | None:
    """Return the vectors of documents, float32 [B, K, size]; None unless all documents have one."""
    vectors = [[document.embedding for document in found] for found in documents]
    lengths = {None if vector is None else len(vector) for row in vectors for vector in row}
    return np.array(vectors, np.float32) if lengths == {size} else None
