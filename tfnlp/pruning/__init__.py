"""Pruning of models; the settings are those of duonlp.pruning."""

from tfnlp.pruning.prune import prune, shrink

__all__ = ["prune", "shrink"]
