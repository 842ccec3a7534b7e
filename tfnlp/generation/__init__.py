"""Continuing prompts."""

from tfnlp.generation.search import generate

__all__ = ["generate"]
