"""Evaluate generated code by running its tests, and compute baselines for summarization."""

from duonlp.evaluation.baselines import lead, tldr
from duonlp.evaluation.human_eval import Problem, cut_at_first_block, evaluate_problems, read_problems, summarize
from duonlp.evaluation.pass_rate import pass_at_k
from duonlp.evaluation.sandbox import Result, check_program

__all__ = [
    "Problem",
    "Result",
    "check_program",
    "cut_at_first_block",
    "evaluate_problems",
    "lead",
    "pass_at_k",
    "read_problems",
    "summarize",
    "tldr",
]
