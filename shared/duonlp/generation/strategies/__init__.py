"""Decoding strategies: each module has ``start``, ``step``, ``unfinished`` and ``result`` over a :class:`Search`."""

from duonlp.generation.strategies.search import Search, State

__all__ = ["Search", "State"]
