"""Batches of questions and passages: numbers of passages, known positives, filling, hosts."""

import numpy as np
import pytest

from duonlp.data.questions import Questions, RetrievalBatches, RetrievalExample, retrieval_examples
from duonlp.errors import InputError
from tests.reference import record_pipelines as reference

EXAMPLES = [
    RetrievalExample("Who wrote?", "Ada wrote", ["The loom weaves", "a"]),
    RetrievalExample("What weaves?", "The loom weaves"),
    RetrievalExample("Who wrote?", "Lovelace wrote the program", ["The loom weaves flowers and leaves"]),
]


def batches(examples=EXAMPLES, size=2, **options):
    return RetrievalBatches(examples, reference.load_tokenizer("wordpiece"), size, **{"shuffle": False, **options})


def test_a_batch_has_questions_and_all_their_passages():
    made = batches(num_negatives=2, question_prefix="a ", passage_prefix="The ")
    first, last = made.epoch(0)
    tokenizer = made._questions.tokenizer
    assert first["input_ids"].shape[0] == 2 and first["passage_input_ids"].shape[:2] == (2, 3)
    ids = first["input_ids"][0][first["attention_mask"][0] == 1]
    assert ids.tolist() == tokenizer("a Who wrote?")["input_ids"]
    ids = first["passage_input_ids"][1, 0][first["passage_attention_mask"][1, 0] == 1]
    assert ids.tolist() == tokenizer("The The loom weaves")["input_ids"]
    # The positive of the second row is a negative of the first, and both rows with one question share their positives.
    assert first["candidates"].tolist() == [[0, 1, 2], [1, -1, -1]]
    assert first["positives"].tolist() == [[0, 3], [1, -1]]
    assert last["candidates"].tolist() == [[3, 4, -1], [3, 4, -1]] and last["positives"][0].tolist() == [0, 3]
    assert first["row_mask"].tolist() == [1, 1] and last["row_mask"].tolist() == [1, 0]
    assert last["sample_weight"].tolist() == [1, 0]
    assert {values.dtype for name, values in last.items() if name != "sample_weight"} == {np.dtype("int32")}


def test_titles_are_paired_with_passages():
    made = batches([RetrievalExample("Who?", ("Ada", "wrote")), RetrievalExample("What?", ("loom", "weaves"))])
    (batch,) = made.epoch(0)
    ids, mask = batch["passage_input_ids"][0, 0], batch["passage_attention_mask"][0, 0]
    assert ids[mask == 1].tolist() == made._passages.tokenizer("Ada", "wrote")["input_ids"]
    assert batch["passage_token_type_ids"].max() == 1
    (batch,) = batches(made.examples, join_titles=True).epoch(0)  # as SentenceEncoder reads them
    ids, mask = batch["passage_input_ids"][0, 0], batch["passage_attention_mask"][0, 0]
    assert ids[mask == 1].tolist() == made._passages.tokenizer("Ada wrote")["input_ids"]


def test_hosts_get_their_rows_of_the_same_batches():
    whole = list(batches(num_negatives=1, shuffle=True).epoch(3))
    shares = [list(batches(num_negatives=1, shuffle=True, host_index=i, host_count=2).epoch(3)) for i in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for name, values in batch.items():
            assert np.array_equal(np.concatenate([part[name] for part in parts]), values), name


def test_questions_without_an_answer_are_left_out():
    row = {
        "id": "1",
        "title": "T",
        "question": "Who?",
        "context": "Ada",
        "answers": {"text": ["Ada"], "answer_start": [0]},
    }
    questions = Questions([row, row | {"id": "2", "answers": {"text": [], "answer_start": []}}])
    assert retrieval_examples(questions) == [RetrievalExample("Who?", "Ada")]
    assert retrieval_examples(questions, titles=True) == [RetrievalExample("Who?", ("T", "Ada"))]
    assert len(batches(questions)) == 1
    with pytest.raises(InputError, match="none of the 1 questions has an answer"):
        retrieval_examples(questions[1:])


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        ([], {}, "there are no examples"),
        (EXAMPLES[1:2], {"num_negatives": 1}, "num_negatives is 1, but no example has negatives"),
        (EXAMPLES, {"num_negatives": -1}, "num_negatives is -1"),
        (
            [RetrievalExample("Who?", "Ada", [("T", "b")])],
            {"num_negatives": 1},
            "only some of the passages have titles",
        ),
        ([RetrievalExample("Who?", " ")], {}, "a question or passage is ' '; expected a text that is not empty"),
        ([RetrievalExample("Who?", ("a", "b", "c"))], {}, "expected a text, or a pair of title and text"),
        ([RetrievalExample("Who?", ("", "b"))], {}, "the passage 'b' has an empty title; give all passages titles"),
        ([("Who?", "Ada")], {}, "an example is a tuple; expected a RetrievalExample"),
        (EXAMPLES, {"max_passage_length": 2}, "max_length is 2"),
    ],
)
def test_bad_examples_are_refused(examples, options, message):
    with pytest.raises(InputError, match=message):
        batches(examples, **options)
