"""Evaluate generated code by running its tests, and readers; compute baselines for summarization."""

from duonlp.evaluation.baselines import lead, tldr
from duonlp.evaluation.human_eval import (
    Problem,
    check_problem,
    cut_at_first_block,
    evaluate_problems,
    read_problems,
    summarize,
)
from duonlp.evaluation.pass_rate import pass_at_k
from duonlp.evaluation.reader import ReaderScorer, predict_answers
from duonlp.evaluation.sandbox import IsolationError, Result, check_program, check_solution, isolation_error

__all__ = [
    "IsolationError",
    "Problem",
    "ReaderScorer",
    "Result",
    "check_problem",
    "check_program",
    "check_solution",
    "cut_at_first_block",
    "evaluate_problems",
    "isolation_error",
    "lead",
    "pass_at_k",
    "predict_answers",
    "read_problems",
    "summarize",
    "tldr",
]
