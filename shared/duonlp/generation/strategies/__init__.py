"""Decoding strategies: each module has ``start``, ``step``, ``unfinished`` and ``result`` over a :class:`Search`."""

from duonlp.generation.strategies.search import DecoderModel, Search, State

__all__ = ["DecoderModel", "Search", "State"]
