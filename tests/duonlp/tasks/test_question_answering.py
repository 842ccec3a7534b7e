"""Question answering: scores, logits and gaps by hand, different answers, the null answer, other columns, long contexts."""

import math
import time

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.errors import InputError
from duonlp.pipelines import make_pipeline
from tests.duonlp.data.test_question_batches import WORDS, word_tokenizer, words

SIZES = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
}
SIZES |= {"intermediate_size": 8, "max_position_embeddings": 512}
CLS = WORDS.index("[CLS]")


def reader(start: dict, end: dict | None = None, tokenizer=None, **options):
    """Return a pipeline whose logits are given by word, 0 for other words."""
    tables = [np.zeros(len(WORDS), np.float32) for _ in range(2)]
    for table, logits in zip(tables, (start, start if end is None else end), strict=True):
        for word, value in logits.items():
            table[WORDS.index(word)] = value

    def forward(batch):
        return {
            f"{name}_logits": table[batch["input_ids"]] for name, table in zip(("start", "end"), tables, strict=True)
        }

    return make_pipeline("question-answering", forward, tokenizer or word_tokenizer(), config_from_hf(SIZES), **options)


def test_logits_and_gap_by_hand():
    pipe = reader({"w2": 5, "[CLS]": 1, "w0": 4}, {"w3": 6, "[CLS]": 2})
    answer = pipe(question="how long ?", context="w0 w1 w2 w3")
    starts, ends = (sum(map(math.exp, row)) for row in ([1, 4, 0, 5, 0], [2, 0, 0, 0, 6]))
    assert answer == {
        "score": pytest.approx(math.exp(11) / starts / ends), "start": 6, "end": 11, "answer": "w2 w3", "logit": 11.0,
        "null_gap": -8.0,
    }  # fmt: skip
    several = pipe(question="how long ?", context="w0 w1 w2 w3", top_k=3)
    assert [(a["answer"], a["logit"], a["null_gap"]) for a in several[:2]] == [
        ("w2 w3", 11, -8),
        ("w0 w1 w2 w3", 10, -8),
    ]


def test_the_lowest_null_logit_of_the_windows_counts():
    """The first window's highest logits are those of CLS; in the last, which has the answer, so are they, but lower."""
    question = {"question": "how long ?", "context": words(0, 40)}
    options = {"max_seq_len": 26, "doc_stride": 4}
    pipe = reader({"w35": 3, "[CLS]": 2})
    answer = pipe(question, **options)
    assert (answer["answer"], answer["logit"], answer["null_gap"]) == ("w35", 6, -2)
    assert pipe(question, handle_impossible_answer=True, **options)["answer"] == "w35"


def test_scores_of_overlapping_windows_are_at_most_one():
    question = {"question": "how long ?", "context": words(0, 22)}
    pipe = reader({"w12": 20}, max_seq_len=26, doc_stride=16)
    answer = pipe(question)
    assert (answer["answer"], answer["score"], answer["logit"]) == ("w12", 1.0, 40), "both windows give it nearly 1"
    two = pipe(question, top_k=2)
    assert two[0] == answer and two[1]["score"] < 1e-6


@pytest.mark.parametrize("align", [True, False])
def test_top_k_different_answers(align):
    """The best candidates are all the same answer: one word, many times."""
    context = " ".join(["w1"] * 40 + ["w2", "w3", "w4"])
    pipe = reader({"w1": 9}, align_to_words=align, max_answer_len=1)
    for k in (2, 3, 4):
        answers = pipe(question="how long ?", context=context, top_k=k)
        assert len({answer["answer"] for answer in answers}) == len(answers) == k
    assert len(pipe(question="how long ?", context=context, top_k=9)) == 4, "there are no more"
    scores = [answer["score"] for answer in pipe(question="how long ?", context=context, top_k=9)]
    assert scores == sorted(scores, reverse=True) and scores[0] <= 1


def test_the_null_answer_when_it_wins():
    question = {"question": "how long ?", "context": "w0 w1 w2"}
    pipe = reader({"[CLS]": 5, "w1": 2})
    null, first = pipe(question, top_k=2, handle_impossible_answer=True)
    assert null == pipe(question, handle_impossible_answer=True)
    assert (null["answer"], null["start"], null["end"], null["logit"]) == ("", 0, 0, 10) and null["score"] > 0.8
    assert first["answer"] == "w1" and first["null_gap"] == null["null_gap"] == 6
    assert pipe(question)["answer"] == "w1", "not without handle_impossible_answer"
    everything = pipe(question, top_k=99, handle_impossible_answer=True)
    assert len(everything) == 7 and [answer["answer"] for answer in everything].count("") == 1
    low = reader({"w1": 9})(question, top_k=3, handle_impossible_answer=True)
    assert len({answer["answer"] for answer in low}) == 3


def test_a_model_without_a_cls_token():
    """Its softmax has no null, so only the gap says that there may be no answer: position 0, or that of the BOS token."""
    pipe = reader({"how": 4, "w1": 3}, tokenizer=word_tokenizer(special=False))
    answer = pipe(question="how long ?", context="w0 w1 w2", handle_impossible_answer=True)
    assert answer["answer"] == "w1" and answer["null_gap"] == 2


def test_padding_on_the_left_puts_the_context_first():
    tokenizer, seen = word_tokenizer(padding_side="left"), []
    pipe = reader({"w0": 3}, tokenizer=tokenizer)
    forward = pipe.forward
    pipe.forward = lambda batch: seen.append(batch["input_ids"][0]) or forward(batch)
    answer = pipe(question="how long ?", context="w0 w1")
    assert (answer["start"], answer["end"]) == (0, 2)
    assert [WORDS[i] for i in seen[0][:8]] == ["[CLS]", "w0", "w1", "[SEP]", "how", "long", "?", "[SEP]"]


def test_other_columns_are_ignored():
    pipe, question = reader({"w1": 3}), {"question": "how long ?", "context": "w0 w1"}
    more = question | {"id": 7, "title": "t", "answers": {"text": ["w0"], "answer_start": [0]}}
    assert pipe(more) == pipe(question) and list(pipe(iter([more, question]))) == [pipe(question)] * 2
    with pytest.raises(InputError, match="'id', 'question'; expected"):
        pipe({"id": 7, "question": "how long ?"})


def test_a_context_of_100_000_words():
    context = " ".join(f"w{i % 190}" for i in range(100_000)) + " w199"
    pipe = reader({"w199": 9})
    start = time.process_time()
    answer = pipe(question="how long ?", context=context, max_seq_len=384)
    assert answer["answer"] == "w199" and answer["end"] == len(context)
    assert time.process_time() - start < 20, "a quadratic step would take minutes"


def test_batches_of_at_most_so_many_tokens():
    questions = [{"question": "how long ?", "context": words(i, 25)} for i in range(7)]
    pipe = reader({"w12": 9}, max_tokens=111, batch_size=8)
    assert pipe(questions) == reader({"w12": 9}, batch_size=8)(questions) and pipe.shapes == {(2, 32), (1, 32)}
    single = reader({"w12": 9}, max_tokens=1)
    assert single(questions) == pipe(questions) and single.shapes == {(1, 32)}, "a row is never cut"
    with pytest.raises(InputError, match="max_tokens is 0"):
        reader({}, max_tokens=0)
