"""Pruning of models: what both engines share, in NumPy."""

from duonlp.pruning.masks import Masks, compute_masks, expand, mask_shapes, pruned_values
from duonlp.pruning.report import (
    KernelSparsity,
    plot_accuracy,
    plot_histograms,
    sparsity_report,
    sparsity_table,
    total_sparsity,
)
from duonlp.pruning.settings import METHODS, SCOPES, STRUCTURES, Pruning
from duonlp.pruning.shrink import shrunk_values
from duonlp.pruning.sparse_file import load_sparse, save_sparse, sparse_bytes

__all__ = [
    "METHODS",
    "SCOPES",
    "STRUCTURES",
    "KernelSparsity",
    "Masks",
    "Pruning",
    "compute_masks",
    "expand",
    "load_sparse",
    "mask_shapes",
    "plot_accuracy",
    "plot_histograms",
    "pruned_values",
    "save_sparse",
    "shrunk_values",
    "sparse_bytes",
    "sparsity_report",
    "sparsity_table",
    "total_sparsity",
]
