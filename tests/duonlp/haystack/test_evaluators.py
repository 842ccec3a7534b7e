"""Haystack's evaluator components for answers."""

import pytest

pytest.importorskip("haystack", reason="the extra qa is not installed")

from haystack import Pipeline
from haystack.evaluation import EvaluationRunResult

from duonlp.errors import InputError
from duonlp.haystack import AnswerExactMatchEvaluator, AnswerF1Evaluator
from duonlp.metrics import squad_scores

TRUTHS = [["6000 hours"], ["6000 dollars", "about 6,000 dollars"], [], [], ["the cat", "a dog"]]
PREDICTIONS = ["about 6000 hours", "about 6000 dollars", "", "words", "Dog!"]


def test_scores_are_those_of_squad():
    rows = [{"id": str(n), "answers": {"text": texts}} for n, texts in enumerate(TRUTHS)]
    expected = squad_scores({str(n): p for n, p in enumerate(PREDICTIONS)}, rows, resamples=0)
    for evaluator, name in ((AnswerF1Evaluator(), "f1"), (AnswerExactMatchEvaluator(), "exact")):
        result = evaluator.run(TRUTHS, PREDICTIONS)
        assert 100 * result["score"] == pytest.approx(expected[name])
        assert 100 * result["has_answer_score"] == pytest.approx(expected[f"HasAns_{name}"])
        assert 100 * result["no_answer_score"] == pytest.approx(expected[f"NoAns_{name}"])
    assert AnswerF1Evaluator().run(TRUTHS, PREDICTIONS)["individual_scores"] == [0.8, 1, 1, 0, 1]
    assert AnswerExactMatchEvaluator().run(TRUTHS, PREDICTIONS)["individual_scores"] == [0, 1, 1, 0, 1]


def test_pipelines_and_haystacks_reports_take_them():
    pipeline = Pipeline()
    pipeline.add_component("f1", AnswerF1Evaluator())
    pipeline.add_component("em", AnswerExactMatchEvaluator())
    pipeline = Pipeline.loads(pipeline.dumps(), allowed_modules=["duonlp.haystack"])
    inputs = {"ground_truth_answers": TRUTHS[:1], "predicted_answers": PREDICTIONS[:1]}
    results = pipeline.run({"f1": inputs, "em": inputs})
    assert results["f1"]["no_answer_score"] is None and results["em"]["has_answer_score"] == 0
    report = EvaluationRunResult("run", inputs={"question": ["How long?"]}, results=results).aggregated_report()
    assert report["score"] == [0.8, 0.0] or 0.8 in report["score"]


@pytest.mark.parametrize(
    ("truths", "predictions", "message"),
    [
        ([], [], "0 lists"),
        ([["a"]], [], "1 lists of ground_truth_answers and 0 predicted_answers"),
        (["a"], ["a"], "references of question 0 are 'a'"),
        ([["a"]], [1], "prediction for question 0 is 1"),
    ],
)
def test_inputs_are_checked(truths, predictions, message):
    with pytest.raises(InputError, match=message):
        AnswerF1Evaluator().run(truths, predictions)
    assert AnswerF1Evaluator().run([[]], [None])["score"] == 1
