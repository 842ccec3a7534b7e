"""A tiny reader and questions whose answers it learns fast, in windows, shared by the tests of training readers."""

import numpy as np

from duonlp.data import QuestionBatches
from tests.duonlp.data.test_question_batches import WORDS, word_tokenizer

BERT = {
    "model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,
}  # fmt: skip
OPTIONS = {"max_seq_len": 20, "doc_stride": 4}


def questions(count: int = 18, seed: int = 0) -> list[dict]:
    """Return questions whose answers are "w7" or "w8 w9", both or, for every third question, neither."""
    random, rows = np.random.default_rng(seed), []
    for number in range(count):
        words = [f"w{i}" for i in random.integers(20, 60, random.integers(10, 24))]
        if number % 3:
            words[3], words[7:9] = "w7", ["w8", "w9"]
        context = " ".join(words)
        texts = [text for text in ("w8 w9", "w7") if text in words or (" " in text and number % 3)]
        answers = {"text": texts, "answer_start": [context.index(text) for text in texts]}
        rows.append({"id": f"q{number}", "title": "", "question": "how long ?", "context": context, "answers": answers})
    return rows


def question_batches(count: int = 18, size: int = 8, *, seed: int = 0, **options) -> QuestionBatches:
    """Return batches of one shape, the last of which has rows that do not count."""
    return QuestionBatches(questions(count, seed), word_tokenizer(), size, widths=(20,), **OPTIONS | options)
