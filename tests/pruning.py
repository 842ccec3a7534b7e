"""A small classifier and its batches for the tests of pruning."""

import numpy as np

from duonlp.pruning import Pruning
from duonlp.training import FitConfig

CONFIG = {
    "model_type": "bert", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 32, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}  # fmt: skip

SETTINGS = {
    "magnitude": Pruning(sparsity=0.5, every=2),
    "movement": Pruning(sparsity=0.5, method="movement", every=2),
    "soft-movement": Pruning(method="soft-movement", penalty=20.0, threshold=0.4, score_rate=500.0, every=2),
    "2:4": Pruning(structure="2:4", method="movement", every=2),
    "units": Pruning(sparsity=0.5, structure="units", method="movement", every=2),
    "blocks": Pruning(sparsity=0.5, structure="blocks", block=(8, 8), scope="layer", every=2),
}


def batches(number=4):
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, 50, (8, 6)).astype(np.int32) for _ in range(number)]
    return [{"input_ids": ids, "labels": (ids[:, 0] < 30).astype(np.int32)} for ids in rows]


def config(name, **changes):
    options = {"steps": 10, "learning_rate": 3e-3, "log_every": 1, "evaluate_every": 0, "save_every": 0} | changes
    return FitConfig(**options, pruning=SETTINGS[name])


def zeros(tree):
    """Return which values of the layers' kernels are zero, by path."""
    return {p: np.asarray(v) == 0 for p, v in tree.items() if "/layer_" in p and p.endswith("kernel")}
