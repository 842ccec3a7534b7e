"""Batch questions with passages that answer them and passages that do not, to train a bi-encoder with in-batch negatives."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from duonlp.data.labelled.batches import TextInputs
from duonlp.data.questions.questions import Questions
from duonlp.data.rows.length_batches import LengthBatches
from duonlp.errors import InputError
from duonlp.heads import ROW_MASK
from duonlp.labels import WEIGHTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PASSAGE = "passage_"
"""Prefix of the passage encoder's inputs in a batch, [B, P, ...], each row's positive passage first."""

CANDIDATES, POSITIVES = "candidates", "positives"
"""Entries of a batch: the number of each of its passages, int32 [B, P], and those of all passages that answer each question,
int32 [B, K]."""

EMPTY = -1
"""Number of a passage that is none, where a row has fewer than others."""

Passage = str | tuple[str, str]
"""A text, or its title and text."""


@dataclass(frozen=True)
class RetrievalExample:
    """A question with a passage that answers it.

    Attributes:
        question: The question.
        positive: A passage that answers it: a text, or (title, text).
        negatives: Passages that do not, such as those of :func:`duonlp.retrieval.hard_negatives`, the hardest first.
    """

    question: str
    positive: Passage
    negatives: Sequence[Passage] = ()


def retrieval_examples(questions: Questions, *, titles: bool = False) -> list[RetrievalExample]:
    """Return the questions that their contexts answer, with these as positive passages.

    Args:
        questions: The questions.
        titles: Whether passages are pairs of title and text.

    Raises:
        InputError: No question has an answer.
    """
    rows = [row for row in questions if row["answers"]["text"]]
    if not rows:
        raise InputError(f"none of the {len(questions)} {questions.name} has an answer; give questions with answers")
    return [
        RetrievalExample(row["question"], (row["title"], row["context"]) if titles else row["context"]) for row in rows
    ]


class RetrievalBatches(LengthBatches):
    """Batches of questions and passages, epoch by epoch, with random access by seed, epoch and batch number.

    Each epoch has every example once, in its own order, those of similar passages' lengths together. Every batch has `batch_size`
    rows; the last one is filled up with rows that count for nothing, neither as questions nor as negatives of others.

    A batch is a dict of arrays, where B is batch_size / host_count and P is 1 + num_negatives:

    - the question encoder's inputs, int32 [B, T]: input_ids, attention_mask, and token_type_ids if the tokenizer has them;
    - the passage encoder's inputs, int32 [B, P, S], with the prefix "passage_", each row's positive first;
    - "candidates", int32 [B, P]: number of each passage, the same for equal passages; -1 where a row has fewer negatives;
    - "positives", int32 [B, K]: numbers of all passages that answer the question in any example, which never count as its
      negatives;
    - "row_mask" and "sample_weight" [B]: 0 for rows that fill up the batch.

    Attributes:
        examples: The examples.
    """

    row_noun = "examples"

    def __init__(
        self,
        examples: Questions | Iterable[RetrievalExample],
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int,
        *,
        num_negatives: int = 0,
        max_question_length: int = 64,
        max_passage_length: int = 256,
        question_prefix: str = "",
        passage_prefix: str = "",
        join_titles: bool = False,
        passage_tokenizer: "PreTrainedTokenizerBase | None" = None,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        host_index: int = 0,
        host_count: int = 1,
    ):
        """Tokenize all questions and passages.

        Args:
            examples: Examples, or questions, those without an answer left out.
            tokenizer: Tokenizer of the question encoder.
            batch_size: Global batch size, over all hosts: each question has those of batch_size - 1 others as negatives.
            num_negatives: Number of negatives of its own that each row has, the first ones of the example.
            max_question_length: Number of tokens that questions are truncated to.
            max_passage_length: Number of tokens that passages are truncated to, with their titles.
            question_prefix: Text before each question, such as "query: " for E5.
            passage_prefix: Text before each passage or title, such as "passage: ".
            join_titles: Whether a title and its text are one text, as SentenceEncoder reads them, instead of the pair that DPR
                reads.
            passage_tokenizer: Tokenizer of the passage encoder; None if it is the same.
            seed: Seed of the order, in [0, 2**64).
            shuffle: Whether each epoch has an order of its own.
            drop_last: Whether to drop the incomplete last batch instead of filling it up.
            host_index: Index of this host, which gets its share of each batch's rows.
            host_count: Number of hosts.

        Raises:
            InputError: There are no examples, one is not a RetrievalExample, only some passages have titles, a text is empty or
                not a text, no example has negatives though `num_negatives` asks for them, or a number is out of range.
        """
        super().__init__(batch_size, seed, shuffle, drop_last, host_index, host_count)
        self.examples = retrieval_examples(examples) if isinstance(examples, Questions) else list(examples)
        self.check_count()
        for example in self.examples:
            if not isinstance(example, RetrievalExample):
                raise InputError(f"an example is a {type(example).__name__}; expected a RetrievalExample")
        if isinstance(num_negatives, bool) or not isinstance(num_negatives, int) or num_negatives < 0:
            raise InputError(f"num_negatives is {num_negatives!r}; it must be an integer of 0 or more")
        if num_negatives and not any(example.negatives for example in self.examples):
            raise InputError(
                f"num_negatives is {num_negatives}, but no example has negatives; find some with "
                "duonlp.retrieval.hard_negatives, or set it to 0"
            )
        numbers: dict[Passage, int] = {}
        slots = [(example.positive, *example.negatives[:num_negatives]) for example in self.examples]
        self._candidates = np.full((len(slots), 1 + num_negatives), EMPTY, np.int32)
        for row, passages in enumerate(slots):
            self._candidates[row, : len(passages)] = [
                numbers.setdefault(p, len(numbers)) for p in map(_passage, passages)
            ]
        self._positives = _all_positives([example.question for example in self.examples], self._candidates[:, 0])
        questions = [question_prefix + _text(example.question) for example in self.examples]
        if len({type(passage) for passage in numbers}) > 1:
            raise InputError("only some of the passages have titles; give all of them titles, or none")
        passages = [" ".join(p) if join_titles and isinstance(p, tuple) else p for p in numbers]
        texts = [passage_prefix + p if isinstance(p, str) else (passage_prefix + p[0], p[1]) for p in passages]
        self._questions = TextInputs("", tokenizer, questions, max_question_length, None, None)
        self._passages = TextInputs("", passage_tokenizer or tokenizer, texts, max_passage_length, None, None)

    @property
    def _count(self) -> int:
        return len(self.examples)

    def _sort_by_length(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.lexsort((self._questions.ids.lengths[rows], self._longest(rows)))]

    def _longest(self, rows: np.ndarray) -> np.ndarray:
        """Return the length of the longest passage of each row."""
        candidates = self._candidates[rows]
        return np.where(candidates >= 0, self._passages.ids.lengths[candidates], 0).max(axis=1)

    def _collate(self, rows: np.ndarray, batch: np.ndarray) -> dict[str, np.ndarray]:
        filling = rows < 0
        rows = np.where(filling, rows[0], rows)
        candidates = self._candidates[rows]  # [B, P]
        arrays = self._questions.arrays(rows, batch)
        # An empty place has the row's positive passage, and counts for nothing.
        numbers = np.where(candidates == EMPTY, candidates[:, :1], candidates)
        whole = self._candidates[batch]
        for name, values in self._passages.arrays(numbers.ravel(), whole[whole >= 0]).items():
            arrays[PASSAGE + name] = values.reshape(*numbers.shape, -1)
        real = ~filling
        return arrays | {
            CANDIDATES: candidates, POSITIVES: self._positives[rows], ROW_MASK: real.astype(np.int32),
            WEIGHTS: real.astype(np.float32),
        }  # fmt: skip


def _all_positives(questions: Sequence[str], positives: np.ndarray) -> np.ndarray:
    """Return the numbers of all positive passages of each row's question, int32 [rows, K], filled up with -1."""
    known: dict[str, dict[int, None]] = {}
    for question, number in zip(questions, positives.tolist()):
        known.setdefault(question, {})[number] = None
    out = np.full((len(questions), max(map(len, known.values()))), EMPTY, np.int32)
    for row, question in enumerate(questions):
        out[row, : len(known[question])] = list(known[question])
    return out


def _passage(passage: Passage) -> Passage:
    if isinstance(passage, str):
        return _text(passage)
    if not isinstance(passage, (tuple, list)) or len(passage) != 2:
        raise InputError(f"a passage is {passage!r}; expected a text, or a pair of title and text")
    if not passage[0]:
        raise InputError(f"the passage {passage[1]!r:.80} has an empty title; give all passages titles, or none")
    return _text(passage[0]), _text(passage[1])


def _text(text: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"a question or passage is {text!r}; expected a text that is not empty")
    return text
