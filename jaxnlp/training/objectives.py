"""What training minimizes: an objective gives the terms of the loss of a batch. A new one is a class like these.

All objectives are frozen dataclasses, hashable by what their programs depend on; arrays that are not trained, such as a
teacher's parameters, come in ``frozen``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import jax

from duonlp import heads
from duonlp.config import TransformerConfig
from duonlp.heads import ROW_MASK
from duonlp.inputs import check_inputs, check_weights, model_inputs
from duonlp.labels import IGNORED, WEIGHTS
from duonlp.typing import Batch
from jaxnlp import losses, ops
from jaxnlp.pretrained import Params
from jaxnlp.training.model import Trainable

Terms: TypeAlias = tuple[tuple[jax.Array, jax.Array], ...]
"""(sum, count) of each term of a loss, which is the sum of sum / count. Counts depend on the labels only."""

NamedTerms: TypeAlias = dict[str, tuple[jax.Array, jax.Array, float]]
"""(sum, count, factor) of each term of a loss, which is the sum of factor * sum / count; 0 for a count of 0."""

LossFunction: TypeAlias = Callable[[Mapping[str, Any], Batch], Terms]
"""``(outputs of the model, batch) -> Terms``."""


def loss_terms(
    head: str, config: TransformerConfig, outputs: Mapping[str, Any], batch: Batch, label_smoothing: float = 0.0
) -> Terms:
    """Return the terms of a head's own loss before division, so that they add up over the microbatches of a batch.

    Args:
        head: Head of the model.
        config: Configuration of the model.
        outputs: Outputs of the model for the inputs in `batch`.
        batch: The head's labels and what else :func:`duonlp.heads.loss_terms` reads.
        label_smoothing: Label smoothing of every cross-entropy over classes.

    Raises:
        InputError: `label_smoothing` is not 0 and the head's loss is not a cross-entropy over classes.
    """
    return tuple(heads.loss_terms(ops, losses, head, config, outputs, batch, label_smoothing).values())


@dataclass(frozen=True)
class Objective:
    """Base of the objectives. Most define :meth:`loss`; one that needs more than the model's outputs overrides :meth:`terms`.

    Attributes:
        masks_rows: Whether rows can be left out with :data:`duonlp.heads.ROW_MASK`, so that batches may be padded.
        gives_labels: Whether the model gets the labels too, so that its outputs have its own "loss".
    """

    masks_rows: ClassVar[bool] = True
    gives_labels: bool = field(default=False, kw_only=True)

    def loss(self, model: Trainable, outputs: Mapping[str, Any], batch: Batch) -> NamedTerms:
        """Return the terms of the loss of a batch.

        Args:
            model: The prepared model.
            outputs: Its outputs.
            batch: Arrays [B, ...].
        """
        raise NotImplementedError

    def terms(
        self, model: Trainable, params: Params, frozen: Params, batch: Batch, key: jax.Array | None = None
    ) -> NamedTerms:
        """Return the terms of the loss of a batch.

        Args:
            model: The prepared model.
            params: Trained parameters.
            frozen: Arrays that the loss reads and that are not trained.
            batch: Arrays [B, ...].
            key: PRNG key of dropout; None for no dropout.
        """
        labels = {name: batch[name] for name in model.labels if self.gives_labels and name in batch}
        return self.loss(model, model.outputs(params, batch, key, **labels), batch)

    def metrics(self, terms: Mapping[str, tuple[Any, Any, float]]) -> dict[str, Any]:
        """Return what to log beside the loss, linear in means and counts since it is summed over parts of a batch.

        Args:
            terms: (mean, count, factor) of each of :meth:`terms`.
        """
        return {}

    def check(self, model: Trainable, batch: Batch) -> None:
        """Raise InputError if the model does not take its inputs and labels in a batch of NumPy arrays."""
        labels = {name: batch[name] for name in model.labels if name in batch}
        check_inputs(model.config, model.head, model_inputs(model.config, batch) | labels)
        check_weights(model.config, model.head, batch)

    def counts(self, model: Trainable, batch: Batch) -> bool:
        """Return whether the loss of a batch of NumPy arrays counts anything; True where only computing it tells."""
        return True

    def describe(self) -> dict[str, Any]:
        """Return entries of run.json that must be the same to resume a run."""
        return {}


@dataclass(frozen=True)
class HeadLoss(Objective):
    """The loss of the model's own head on its labels, one term per output.

    Attributes:
        label_smoothing: Label smoothing of every cross-entropy over classes.
    """

    label_smoothing: float = 0.0

    def loss(self, model: Trainable, outputs: Mapping[str, Any], batch: Batch) -> NamedTerms:
        """Return the head's terms."""
        terms = heads.loss_terms(ops, losses, model.head, model.config, outputs, batch, self.label_smoothing)
        return {name: (*term, 1.0) for name, term in terms.items()}

    def check(self, model: Trainable, batch: Batch) -> None:
        """Raise InputError unless the batch is the model's inputs and labels, and perhaps weights and a mask of rows."""
        inputs = {name: value for name, value in batch.items() if name not in (WEIGHTS, ROW_MASK)}
        check_inputs(model.config, model.head, inputs)
        check_weights(model.config, model.head, batch)

    def counts(self, model: Trainable, batch: Batch) -> bool:
        """Return whether a label counts."""
        return heads.counts_labels(model.head, model.config, batch)


@dataclass(frozen=True)
class CustomLoss(Objective):
    """A user's loss.

    Attributes:
        function: ``(outputs, batch) -> Terms``. Passing the same function object again shares the compiled programs.
    """

    function: LossFunction
    masks_rows: ClassVar[bool] = False

    def loss(self, model: Trainable, outputs: Mapping[str, Any], batch: Batch) -> NamedTerms:
        """Return the function's terms."""
        return {str(number): (*term, 1.0) for number, term in enumerate(self.function(outputs, batch))}


@dataclass(frozen=True)
class LanguageModeling(Objective):
    """Cross-entropy of logits with labels at the same positions, in nats, as the objectives on blocks make them."""

    def loss(self, model: Trainable, outputs: Mapping[str, Any], batch: Batch) -> NamedTerms:
        """Return a single term, over the labeled tokens."""
        return {"loss": (*losses.cross_entropy_sum(outputs["logits"], batch["labels"]), 1.0)}

    def counts(self, model: Trainable, batch: Batch) -> bool:
        """Return whether a token is labeled."""
        return bool((batch["labels"] != IGNORED).any())

    def metrics(self, terms: Mapping[str, tuple[Any, Any, float]]) -> dict[str, Any]:
        """Return the number of labeled tokens."""
        return {"tokens": terms["loss"][1]}
