"""Objectives of sentence encoders: the similarity of pairs, and labels on top of the embeddings (SetFit's two phases).

Tunstall et al. 2022, https://arxiv.org/abs/2209.11055; the losses are CosineSimilarityLoss and ContrastiveLoss of
sentence-transformers, and the classes of a linear head, as setfit's SetFitHead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.heads import IGNORED, ROW_MASK, outputs_of
from duonlp.training.in_batch_negatives import InBatchNegatives, pool, vector_size
from duonlp.training.objectives.objective import Group, Objective, Terms
from duonlp.typing import Array, Batch, Ops

SIMILARITY = "similarity"
"""Entry of a batch: the similarity that each pair should have, float32 [B]."""

LOSSES = ("cosine", "contrastive")


@dataclass(frozen=True)
class PairSimilarity(Objective):
    """The similarity of the two texts of each row: batches of the model's inputs [B, 2, T] with "similarity" [B].

    Attributes:
        pooling: Vector of a text: "mean" of its tokens, the first token's ("cls"), or "pooler"; see InBatchNegatives.
        loss: "cosine", the mean squared difference between the cosine and the similarity; or "contrastive" (Hadsell et al. 2006),
            half the squared cosine distance of pairs with a similarity of 1, and half the square of what is missing from that of
            pairs with 0 to the margin.
        margin: Cosine distance that dissimilar pairs should have for the "contrastive" loss.

    Raises:
        InputError: The pooling or the loss is unknown, or the margin is not positive.
    """

    pooling: str = "mean"
    loss: str = "cosine"
    margin: float = 0.5

    groups: ClassVar[tuple[Group, ...]] = (Group(several=True),)

    def __post_init__(self) -> None:
        InBatchNegatives(self.pooling)
        if self.loss not in LOSSES:
            raise InputError(f"loss is {self.loss!r}; it must be one of {', '.join(LOSSES)}")
        if not isinstance(self.margin, (int, float)) or not 0 < self.margin <= 2:
            raise InputError(f"margin is {self.margin!r}; it must be a number above 0, at most 2")

    def terms(
        self, ops: Ops, losses: ModuleType, head: str, config: TransformerConfig, outputs: Sequence[Mapping[str, Array]],
        batch: Batch, parameters: Mapping[str, Array],
    ) -> Terms:  # fmt: skip
        """Return the sum of the pairs' losses, and their number."""
        mask = self.groups[0].flat(ops, config, batch).get("attention_mask")
        vectors = pool(ops, InBatchNegatives(self.pooling, normalize=True), outputs[0], mask)  # [B x 2, D]
        pairs = ops.reshape(vectors, (-1, 2, vector_size(config, InBatchNegatives(self.pooling))))
        cosines = ops.sum(pairs[:, 0] * pairs[:, 1], axis=-1)  # [B]
        similarity = ops.cast(batch[SIMILARITY], "float32")
        if self.loss == "cosine":
            values = (cosines - similarity) * (cosines - similarity)
        else:
            distance = 1.0 - cosines
            missing = ops.maximum(self.margin - distance, 0.0)
            values = 0.5 * (similarity * distance * distance + (1.0 - similarity) * missing * missing)
        rows = ops.cast(batch[ROW_MASK], "float32")
        return {"loss": (ops.sum(values * rows, axis=0), ops.sum(rows, axis=0), 1.0)}

    def check_model(self, head: str, config: TransformerConfig) -> None:
        """Raise InputError unless the model is a sentence encoder."""
        check_encoder(head, config, InBatchNegatives(self.pooling))

    def check(self, head: str, config: TransformerConfig, batch: Batch) -> None:
        """Raise InputError unless a batch of NumPy arrays has two texts per row, and their similarities."""
        if missing := [name for name in (SIMILARITY, ROW_MASK) if name not in batch]:
            raise InputError(f"the batch has no {' and '.join(missing)}; pass ContrastiveBatches of duonlp.fewshot")
        super().check(head, config, batch)
        for name, value in self.groups[0].inputs(config, batch).items():
            if np.shape(value)[1] != 2:
                raise InputError(
                    f"{name} has shape {list(np.shape(value))}; the second axis must be the 2 texts of a pair"
                )
        if np.shape(batch[SIMILARITY]) != np.shape(batch[ROW_MASK]):
            raise InputError(f"{SIMILARITY} has shape {list(np.shape(batch[SIMILARITY]))}; it must be [B]")


@dataclass(frozen=True)
class EmbeddingLabels(Objective):
    """Labels by a linear layer on top of a text's embedding, which is trained together with the encoder.

    Batches are those of LabelledBatches. The loss is the cross-entropy over classes, or for multi-label texts the mean binary
    cross-entropy.

    Attributes:
        pooling: As for PairSimilarity.
        normalize: Whether embeddings are scaled to unit length.
        multi_label: Whether a text may have several labels, or none.
        temperature: Divisor of the logits.
        kernel: Initial weights, float32 [D, C].
        bias: Initial bias, float32 [C].
    """

    pooling: str
    normalize: bool
    multi_label: bool
    temperature: float
    kernel: np.ndarray = field(compare=False, repr=False)
    bias: np.ndarray = field(compare=False, repr=False)

    def terms(
        self, ops: Ops, losses: ModuleType, head: str, config: TransformerConfig, outputs: Sequence[Mapping[str, Array]],
        batch: Batch, parameters: Mapping[str, Array],
    ) -> Terms:  # fmt: skip
        """Return the sum of the cross-entropies, and their number."""
        vectors = pool(ops, self._encoder, outputs[0], batch.get("attention_mask"))  # [B, D]
        logits = (vectors @ parameters["kernel"] + parameters["bias"]) / self.temperature  # [B, C]
        labels, rows = batch["labels"], batch.get(ROW_MASK)
        if not self.multi_label:
            if rows is not None:
                labels = ops.where(ops.cast(rows, "bool"), labels, IGNORED)
            return {"loss": (*losses.cross_entropy_sum(logits, labels), 1.0)}
        real = ops.cast(labels != IGNORED, "float32")
        if rows is not None:
            real = real * ops.expand_dims(ops.cast(rows, "float32"), -1)
        return {"loss": (*losses.binary_cross_entropy_sum(logits, ops.maximum(labels, 0.0), real), 1.0)}

    def parameters(self, config: TransformerConfig, seed: int) -> dict[str, np.ndarray]:
        """Return the initial layer."""
        return {"kernel": np.asarray(self.kernel, np.float32), "bias": np.asarray(self.bias, np.float32)}

    def check_model(self, head: str, config: TransformerConfig) -> None:
        """Raise InputError unless the model is a sentence encoder with embeddings of the layer's size."""
        check_encoder(head, config, self._encoder)
        if self.kernel.shape[0] != vector_size(config, self._encoder):
            raise InputError(
                f"kernel has shape {list(self.kernel.shape)}; its first axis must be {vector_size(config, self._encoder)}"
            )

    def check(self, head: str, config: TransformerConfig, batch: Batch) -> None:
        """Raise InputError unless a batch of NumPy arrays has the model's inputs, and labels."""
        super().check(head, config, batch)
        rows = len(next(iter(self.groups[0].inputs(config, batch).values())))
        expected = (rows, len(self.bias)) if self.multi_label else (rows,)
        labels = np.asarray(batch["labels"]) if "labels" in batch else None
        if labels is None or labels.shape != expected:
            found = "are missing" if labels is None else f"have shape {list(labels.shape)}"
            raise InputError(f"labels {found}; they must be {list(expected)}")

    def describe(self) -> dict[str, Any]:
        """Return the name and the settings, without the initial layer."""
        names = ("pooling", "normalize", "multi_label", "temperature")
        return {"objective": {"name": type(self).__name__, **{name: getattr(self, name) for name in names}}}

    @property
    def _encoder(self) -> InBatchNegatives:
        return InBatchNegatives(self.pooling, normalize=self.normalize)


def check_encoder(head: str, config: TransformerConfig, encoder: InBatchNegatives) -> None:
    """Raise InputError unless a model is an encoder without a head, which can be pooled."""
    if outputs_of(head, config):
        raise InputError(f"a {head} model is no sentence encoder; load it with AutoModel, without a head")
    encoder.check(config)
