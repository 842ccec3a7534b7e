"""ReaderScorer and predict_answers with a pipeline that answers by rule."""

import math
from types import SimpleNamespace

import pytest

from duonlp.errors import InputError
from duonlp.evaluation import ReaderScorer, predict_answers
from tests.readers import reader_tokenizer

TOKENIZER = reader_tokenizer()
WORDS = ("rain", "sun", "snow", "")  # every fourth question has no answer
ROWS = [
    {
        "id": f"q{number}", "title": "", "question": "what ?", "context": f"today {word} {number}",
        "answers": {"text": [word], "answer_start": [6]} if word else {"text": [], "answer_start": []},
    }
    for number, word in enumerate(WORDS * 2)
]  # fmt: skip


def pipeline(task, model, *, tokenizer, **options):
    """Answer with the first word; the null gap is the model plus 1 if there is no answer, else minus 1."""
    assert task == "question-answering" and options["max_seq_len"] == 16 and tokenizer is TOKENIZER
    true = {row["context"]: row["answers"]["text"] for row in ROWS}

    def pipe(items, *, top_k, handle_impossible_answer):
        assert top_k == 1 and not handle_impossible_answer
        results = [
            {"answer": (true[item["context"]] or ["today"])[0], "null_gap": model - 1 + 2 * (not true[item["context"]])}
            for item in items
        ]
        return results[0] if len(results) == 1 else results

    pipe.task, pipe.options = SimpleNamespace(lengths=lambda options: (16, 4)), None
    return pipe


@pytest.fixture
def scorer():
    return ReaderScorer(pipeline, ROWS, TOKENIZER, max_seq_len=16)


def test_scores_at_zero_and_at_the_best_threshold(scorer):
    names = scorer.dry_run(0)
    scores = scorer(0)
    assert set(names) == set(scores) and set(names.values()) == {0.0}
    assert scores["f1"] == scores["exact"] == scores["best_f1"] == 100
    assert scorer(5)["f1"] == 25 and scorer.at_threshold() == {
        "threshold": 4.0, "exact": 100, "f1": 100, "HasAns_exact": 100, "HasAns_f1": 100, "NoAns_exact": 100, "NoAns_f1": 100,
    }  # fmt: skip
    assert scorer.null_gaps[ROWS[0]["id"]] == 4.0


def test_a_dry_run_without_an_engine():
    assert "best_f1" in ReaderScorer(None, ROWS, "tokenizer").dry_run(None)


def test_a_dry_run_checks_all_questions(scorer):
    scorer.questions = [*ROWS, ROWS[0] | {"id": "long", "question": "what " * 13}]
    with pytest.raises(InputError, match=r"question 'long': a question of 13 tokens .* leave no room"):
        scorer.dry_run(0)


def test_a_context_without_an_answer():
    assert predict_answers(lambda items, **options: [], ROWS[:1]) == ({"q0": ""}, {"q0": math.inf})


def test_one_question():
    answers, gaps = predict_answers(pipeline("question-answering", 0, tokenizer=TOKENIZER, max_seq_len=16), ROWS[:1])
    assert answers == {ROWS[0]["id"]: ROWS[0]["answers"]["text"][0]} and gaps == {ROWS[0]["id"]: -1.0}
