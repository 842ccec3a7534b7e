"""Train tokenizers from text, and measure how well they fit it."""

from duonlp.tokenizers.report import TokenizerComparison, TokenizerReport, compare_tokenizers, tokenizer_report
from duonlp.tokenizers.train import train_new_from, train_tokenizer

__all__ = [
    "TokenizerComparison",
    "TokenizerReport",
    "compare_tokenizers",
    "tokenizer_report",
    "train_new_from",
    "train_tokenizer",
]
