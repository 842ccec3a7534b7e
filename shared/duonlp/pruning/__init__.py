"""Pruning of models: what both engines share, in NumPy."""

from duonlp.pruning.masks import Masks, compute_masks, expand, mask_shapes
from duonlp.pruning.settings import METHODS, SCOPES, STRUCTURES, Pruning

__all__ = [
    "METHODS",
    "SCOPES",
    "STRUCTURES",
    "Masks",
    "Pruning",
    "compute_masks",
    "expand",
    "mask_shapes",
]
