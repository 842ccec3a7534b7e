"""Prompts for masked language models: patterns, the words that stand for labels, and batches to train with."""

from duonlp.prompts.batches import PromptBatches
from duonlp.prompts.patterns import DEFAULT_PATTERN, Pattern, Prompt, Verbalizer, as_patterns

__all__ = ["DEFAULT_PATTERN", "Pattern", "Prompt", "PromptBatches", "Verbalizer", "as_patterns"]
