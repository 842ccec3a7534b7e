"""Continuing prompts."""

from tfnlp.generation.search import generate, stream

__all__ = ["generate", "stream"]
