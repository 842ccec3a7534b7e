"""Answer questions with a reader, and score its answers during training."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from duonlp.metrics.question_answering import METRICS, best_threshold, squad_scores
from duonlp.tasks.question_answering import QuestionAnsweringOptions
from duonlp.tokenizers.windows import make_windows

Pipe = Callable[..., Any]
"""A question-answering pipeline."""

CHECKED_TOGETHER = 1024
"""Number of questions whose windows are in memory at a time when they are checked."""


def predict_answers(
    pipe: Pipe, questions: Sequence[Mapping[str, Any]], **options: Any
) -> tuple[dict[str, str], dict[str, float]]:
    """Return a pipeline's best nonempty answer to each question, and its null gap.

    A progress bar appears on a terminal if this takes long.

    Args:
        pipe: A question-answering pipeline of either engine.
        questions: Such as `read_questions` returns; "id", "question" and "context" are used.
        options: Further options of the call, such as progress=True or max_seq_len=384.

    Returns:
        ({id: answer}, {id: null gap}), as `squad_scores` takes them: the reader prefers no answer where the gap is above 0, or
        above a threshold tuned on other questions.

    Raises:
        InputError: A question or a context is invalid.
    """
    items = [{"question": row["question"], "context": row["context"]} for row in questions]
    results = pipe(items, **options, top_k=1, handle_impossible_answer=False)
    results = [results] if len(items) == 1 else results
    answers, gaps = {}, {}
    for row, result in zip(questions, results, strict=True):
        # A context whose tokens are all spaces has no nonempty answer, for which the result is [].
        answers[row["id"]], gaps[row["id"]] = (
            (result["answer"], float(result["null_gap"])) if result else ("", math.inf)
        )
    return answers, gaps


def check_windows(questions: Sequence[Mapping[str, Any]], tokenizer: Any, **lengths: int) -> None:
    """Raise InputError, with the id of the question, unless every question leaves room for its context.

    Args:
        questions: Such as `read_questions` returns.
        tokenizer: Tokenizer of the reader.
        lengths: "size", "stride" and "max_question_len", as `make_windows` takes them.
    """
    for begin in range(0, len(questions), CHECKED_TOGETHER):
        rows = [questions[number] for number in range(begin, min(begin + CHECKED_TOGETHER, len(questions)))]
        make_windows(
            tokenizer,
            [row["question"] for row in rows],
            [row["context"] for row in rows],
            where=lambda i, rows=rows: f"question {rows[i]['id']!r}",
            **lengths,
        )


class ReaderScorer:
    """Answers validation questions and scores the answers. ``scorer(model)`` returns floats by name, as ``fit`` expects.

    The scores are those of `squad_scores` at a null threshold of 0 ("exact", "f1", and with the prefixes "HasAns_" and
    "NoAns_"), and the best ones at any threshold: "best_exact", "best_exact_thresh", "best_f1" and "best_f1_thresh".

    Args:
        pipeline: tfnlp's or jaxnlp's ``pipeline``; None for a scorer that can only do a dry run without a model.
        questions: Validation questions, such as `read_questions` returns.
        tokenizer: Tokenizer of the model.
        batch_size: Windows that the model reads at once.
        options: Options of the question-answering pipeline, such as max_seq_len=384, doc_stride=128.

    Attributes:
        answers: {id: best nonempty answer} of the last call.
        null_gaps: {id: null gap} of the last call.
    """

    def __init__(
        self,
        pipeline: Pipe | None,
        questions: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        *,
        batch_size: int = 16,
        **options: Any,
    ):
        self.pipeline, self.questions, self.tokenizer = pipeline, questions, tokenizer
        self.options = {"batch_size": batch_size, "progress": False, **options}
        self.answers: dict[str, str] = {}
        self.null_gaps: dict[str, float] = {}

    def __call__(self, model: Any) -> dict[str, float]:
        """Return the scores of a model.

        Raises:
            InputError: The model has another head, or a question does not fit its windows.
        """
        self.answers, self.null_gaps = predict_answers(self._pipe(model), self.questions)
        return self._scores(self.answers, self.null_gaps)

    def dry_run(self, model: Any) -> dict[str, float]:
        """Check all questions and return the names of the scores, each with the value 0.

        Args:
            model: A model, which answers the first question; None checks the windows if the options say how long they are.

        Raises:
            InputError: As for a call.
        """
        size, stride = self.options.get("max_seq_len"), self.options.get("doc_stride")
        if model is not None:
            pipe = self._pipe(model)
            size, stride = pipe.task.lengths(pipe.options)
            predict_answers(pipe, self.questions[:1])
        if size is not None and stride is not None:
            most = self.options.get("max_question_len", QuestionAnsweringOptions.max_question_len)
            check_windows(self.questions, self.tokenizer, size=size, stride=stride, max_question_len=most)
        ids = [row["id"] for row in self.questions]
        return dict.fromkeys(self._scores(dict.fromkeys(ids, ""), dict.fromkeys(ids, 0.0)), 0.0)

    def at_threshold(self) -> dict[str, float]:
        """Return the scores of the last call's answers at the "threshold" with the best F1 (see `best_threshold`)."""
        threshold = best_threshold(self.answers, self.questions, self.null_gaps).threshold
        scores = squad_scores(self.answers, self.questions, null_gaps=self.null_gaps, threshold=threshold, resamples=0)
        names = [name for name in scores if name.endswith(METRICS) and not name.startswith("best")]
        return {"threshold": threshold, **{name: scores[name] for name in names}}

    def _pipe(self, model: Any) -> Any:
        assert self.pipeline is not None
        return self.pipeline("question-answering", model, tokenizer=self.tokenizer, **self.options)

    def _scores(self, answers: Mapping[str, str], gaps: Mapping[str, float]) -> dict[str, float]:
        scores = squad_scores(answers, self.questions, null_gaps=gaps, threshold=0.0, resamples=0)
        return {name: float(value) for name, value in scores.items() if not name.endswith("total")}
