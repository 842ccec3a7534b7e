"""Continuing prompts."""

from jaxnlp.generation.search import generate

__all__ = ["generate"]
