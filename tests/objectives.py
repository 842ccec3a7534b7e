"""An objective over two forward passes, with a parameter of its own, and its batches, for the tests of both engines."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from duonlp.errors import InputError
from duonlp.heads import IGNORED, ROW_MASK
from duonlp.training.objectives import Group, Objective

BERT = {
    "model_type": "bert", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2, "num_labels": 3,
}  # fmt: skip
OTHERS = "other_"


@dataclass(frozen=True)
class Agreement(Objective):
    """Cross-entropy of scaled logits, and the squared distance between a text's logits and those of R others."""

    groups = (Group(dropout=False), Group(OTHERS, several=True, gradient=False))
    factor: float = 0.5
    names: tuple[str, ...] = ("classes", "distance")  # a tuple, which is a list in run.json

    def terms(self, ops, losses, head, config, outputs, batch, parameters):
        logits, others = outputs[0]["logits"], outputs[1]["logits"]
        rows = ops.cast(batch.get(ROW_MASK, batch["labels"] >= -1), "bool")  # [B]
        labels = ops.where(rows, batch["labels"], IGNORED)
        total, count = losses.cross_entropy_sum(logits * parameters["scale"], labels)
        several = ops.reshape(others, (-1, ops.size(batch[OTHERS + "input_ids"], 1), 3))  # [B, R, C]
        distances = ops.sum(ops.sum((ops.expand_dims(logits, 1) - several) ** 2, axis=2), axis=1)
        counted = ops.cast(rows, "float32")
        return {
            self.names[0]: (total, count, 1.0),
            self.names[1]: (ops.sum(distances * counted), ops.sum(counted), self.factor),
        }

    def parameters(self, config, seed):
        return {"scale": np.linspace(1, 1.5, config.num_labels, dtype=np.float32) + np.float32(seed)}

    def check_model(self, head, config):
        if config.num_labels != 3:
            raise InputError(f"the model has {config.num_labels} labels")

    def save(self, folder, parameters):
        np.savez(Path(folder) / "scale.npz", **parameters)


def batch(seed: int, rows: int = 8, padding: int = 0, others: int = 2) -> dict[str, np.ndarray]:
    """Return a batch whose labels are those of the first id, the last rows of which fill it up."""
    rng = np.random.default_rng(seed)
    ids, several = rng.integers(5, 32, (rows, 6)), rng.integers(5, 32, (rows, others, 4))
    return {
        "input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids[:, 0] % 3, OTHERS + "input_ids": several,
        OTHERS + "attention_mask": np.ones_like(several), ROW_MASK: (np.arange(rows) < rows - padding).astype(np.int32),
    }  # fmt: skip


BATCHES = [batch(0), batch(1), batch(2, padding=3)]


def expected_parts(classes: np.ndarray, others: list[np.ndarray], scale: np.ndarray, arrays) -> dict[str, float]:
    """Return the loss and its parts in NumPy from the logits of a batch's texts, [B, C] each."""
    real = arrays[ROW_MASK] == 1
    scaled = classes * scale
    log_p = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
    losses = -log_p[np.arange(len(log_p)), arrays["labels"]]
    distances = sum(((classes - other) ** 2).sum(1) for other in others)
    parts = {"classes": losses[real].mean(), "distance": distances[real].mean()}
    return {"loss": parts["classes"] + 0.5 * parts["distance"], **parts}
