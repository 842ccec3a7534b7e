"""Evaluate generated code by running its tests, and compute baselines for summarization."""

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
from duonlp.evaluation.sandbox import IsolationError, Result, check_program, check_solution, isolation_error

__all__ = [
    "IsolationError",
    "Problem",
    "Result",
    "check_problem",
    "check_program",
    "check_solution",
    "cut_at_first_block",
    "evaluate_problems",
    "isolation_error",
    "lead",
    "pass_at_k",
    "read_problems",
    "summarize",
    "tldr",
]
