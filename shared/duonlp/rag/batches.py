"""Training batches of RAG models: questions, the documents found for them, and answers."""

from collections.abc import Sequence

import numpy as np

from duonlp.data.rows.length_batches import LengthBatches
from duonlp.errors import InputError
from duonlp.heads import ROW_MASK
from duonlp.rag.checkpoint import RagTokenizers
from duonlp.rag.config import RagConfig
from duonlp.rag.contexts import RagContexts, encode_questions, stack_embeddings
from duonlp.retrieval.document import Document
from duonlp.tasks.base import check_int, check_text
from duonlp.util.buckets import bucket
from duonlp.util.tokenization import tokenize


class RagBatches(LengthBatches):
    """Batches of questions, documents and answers, epoch by epoch, for ``fit``.

    The documents' vectors are those of the index, whose context encoder is not trained; the question encoder is, since the score
    of a document is the product of both vectors. Which documents are found changes as the question encoder does: retrieve
    again and make new batches to train on.

    A batch is a dict of arrays: input_ids and attention_mask int32 [B, T], context_input_ids and context_attention_mask int32
    [B, K, S], doc_embeddings float32 [B, K, d], labels int32 [B, U], and row_mask int32 [B], 0 for rows that fill up the batch.

    Args:
        questions: The questions.
        answers: The answer to each.
        documents: K documents for each, with embeddings, such as ``EmbeddingRetriever.retrieve`` returns.
        tokenizers: Tokenizers of the model.
        config: Configuration of the model.
        batch_size: Rows of a batch over all hosts.
        max_answer_length: Number of tokens that answers are truncated to.
        seed: Seed of the order, in [0, 2**64).
        shuffle: Whether each epoch has an order of its own.
        drop_last: Whether to drop the incomplete last batch instead of filling it up.
        host_index: Index of this host, which gets its share of each batch's rows.
        host_count: Number of hosts.

    Raises:
        InputError: There are no questions, a text is empty, numbers of questions, answers or documents differ, a document has no
            embedding of the question encoder's length, or a number is out of range.
    """

    row_noun = "questions"

    def __init__(
        self,
        questions: Sequence[str],
        answers: Sequence[str],
        documents: Sequence[Sequence[Document]],
        tokenizers: RagTokenizers,
        config: RagConfig,
        batch_size: int,
        *,
        max_answer_length: int = 64,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        host_index: int = 0,
        host_count: int = 1,
    ):
        super().__init__(batch_size, seed, shuffle, drop_last, host_index, host_count)
        if not len(questions) == len(answers) == len(documents):
            raise InputError(
                f"there are {len(questions)} questions, {len(answers)} answers and {len(documents)} lists of documents; pass one "
                "of each per row"
            )
        self._rows = len(questions)
        self.check_count()
        check_int("max_answer_length", max_answer_length, minimum=1)
        contexts = RagContexts(tokenizers.generator, config).encode(questions, documents)
        embeddings = stack_embeddings(documents, config.vector_size)
        if embeddings is None:
            raise InputError(
                f"a document has no embedding of {config.vector_size} values, as the question encoder's vectors have; retrieve "
                "documents from a store with embeddings of its context encoder"
            )
        positions = config.question_encoder.max_length
        self._arrays = {
            **encode_questions(tokenizers.question_encoder, questions, positions),
            **contexts,
            "doc_embeddings": embeddings,
            "labels": self._labels(answers, tokenizers, config, max_answer_length),
        }

    @staticmethod
    def _labels(answers: Sequence[str], tokenizers: RagTokenizers, config: RagConfig, max_length: int) -> np.ndarray:
        """Return the labels int32 [rows, U]: the decoder's start token and the answer, as ``generate`` returns them."""
        decoder = config.generator.as_decoder()
        start = config.generator.decoder.start_token_id if config.generator.decoder else None
        start = config.padding if start is None else start
        limit = min(max_length, decoder.max_length - 1)
        texts = [check_text(answer, f"answer {number}") for number, answer in enumerate(answers)]
        ids = tokenize(tokenizers.generator, text_target=texts, truncation=True, max_length=limit, verbose=False)
        rows = [[start, *row] for row in ids["input_ids"]]
        labels = np.full((len(rows), bucket(max(map(len, rows)), decoder.max_length)), config.padding, np.int32)
        for row, values in enumerate(rows):
            labels[row, : len(values)] = values
        return labels

    @property
    def _count(self) -> int:
        return self._rows

    def _sort_by_length(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(self._arrays["context_attention_mask"][rows].sum(axis=(1, 2)), kind="stable")]

    def _collate(self, rows: np.ndarray, batch: np.ndarray) -> dict[str, np.ndarray]:
        filling = rows < 0
        arrays = {name: values[np.where(filling, rows[0], rows)] for name, values in self._arrays.items()}
        return arrays | {ROW_MASK: (~filling).astype(np.int32)}
