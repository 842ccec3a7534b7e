"""Haystack components that score predicted answers as SQuAD 2.0 does, which Haystack's own evaluators do not."""

from collections.abc import Callable, Sequence
from typing import Any

from haystack import component

from duonlp.errors import InputError
from duonlp.haystack.components import Serializable
from duonlp.metrics import exact_match, token_f1


@component
class AnswerF1Evaluator(Serializable):
    """Score answers by the F1 of the words that they share with the best reference, after SQuAD's normalization."""

    def __init__(self) -> None:
        pass

    @component.output_types(
        score=float, individual_scores=list[float], has_answer_score=float | None, no_answer_score=float | None
    )
    def run(self, ground_truth_answers: list[list[str]], predicted_answers: list[str | None]) -> dict[str, Any]:
        """Score the answers to several questions.

        Args:
            ground_truth_answers: The references of each question; [] for a question without an answer.
            predicted_answers: A predicted answer per question; "" or None for no answer.

        Returns:
            A dict with the keys "score", the mean over the questions, from 0 to 1; "individual_scores", a float per question;
            "has_answer_score" and "no_answer_score", the means over the questions with and without an answer, None if there are
            none.

        Raises:
            InputError: There are no questions, the numbers differ, or an answer is of another type.
        """
        return score_answers(token_f1, ground_truth_answers, predicted_answers)


@component
class AnswerExactMatchEvaluator(Serializable):
    """Score answers by whether they equal a reference after SQuAD's normalization; Haystack's evaluator compares raw texts."""

    def __init__(self) -> None:
        pass

    @component.output_types(
        score=float, individual_scores=list[float], has_answer_score=float | None, no_answer_score=float | None
    )
    def run(self, ground_truth_answers: list[list[str]], predicted_answers: list[str | None]) -> dict[str, Any]:
        """Score the answers to several questions; see :meth:`AnswerF1Evaluator.run`, whose keys the result has.

        Args:
            ground_truth_answers: The references of each question; [] for a question without an answer.
            predicted_answers: A predicted answer per question; "" or None for no answer.

        Raises:
            InputError: There are no questions, the numbers differ, or an answer is of another type.
        """
        return score_answers(exact_match, ground_truth_answers, predicted_answers)


def score_answers(
    metric: Callable[[str, Sequence[str]], float], references: list[list[str]], predictions: list[str | None]
) -> dict[str, Any]:
    """Return the outputs of an evaluator; see :meth:`AnswerF1Evaluator.run`.

    Args:
        metric: Function of a prediction and its references.
        references: The references of each question.
        predictions: The predicted answer to each question.
    """
    if not references or len(references) != len(predictions):
        raise InputError(
            f"there are {len(references)} lists of ground_truth_answers and {len(predictions)} predicted_answers; give at least "
            "one question, with a list of references and one prediction for each"
        )
    for number, (texts, prediction) in enumerate(zip(references, predictions, strict=True)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"the references of question {number} are {texts!r:.60}; expected a list of texts")
        if not isinstance(prediction, str | None):
            raise InputError(f"the prediction for question {number} is {prediction!r:.60}; expected a text or None")
    scores = [metric(p or "", texts) for p, texts in zip(predictions, references, strict=True)]

    def mean(has_answer: bool | None) -> float | None:
        chosen = [s for s, texts in zip(scores, references, strict=True) if has_answer in (None, bool(texts))]
        return sum(chosen) / len(chosen) if chosen else None

    return {
        "score": mean(None),
        "individual_scores": scores,
        "has_answer_score": mean(True),
        "no_answer_score": mean(False),
    }
