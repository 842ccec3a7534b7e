"""Continuing prompts."""

from jaxnlp.generation.search import generate, stream

__all__ = ["generate", "stream"]
