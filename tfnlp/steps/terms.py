"""Loss terms: sums and counts that add up over microbatches, replicas and batches before they are divided."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from duonlp.errors import InputError

Terms: TypeAlias = dict[str, tuple[tf.Tensor, tf.Tensor]]
"""(sum, count) of each term of a loss, float32 [] each; the loss is the total of sum / count."""

MOST_TERMS = 32
"""Largest number of terms of a loss."""


class UncountedTermsError(Exception):
    """A part of a batch has more terms than were counted, since layers add losses only when they are called."""


def divide(total: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Return total / count; without any label, as in a batch of padding, the total, which is 0."""
    return total / tf.where(count > 0, count, tf.ones_like(count))


def total_loss(terms: Terms, counts: Mapping[str, tf.Tensor] | None = None) -> tf.Tensor:
    """Return the loss, float32 [].

    Args:
        terms: Terms of the batch, or of a part of it.
        counts: Counts of the whole batch; None if `terms` are those of the whole batch.
    """
    if not terms:
        raise InputError("there is no loss to compute; pass compile(loss=...) to a model without labels")
    return tf.add_n([divide(total, counts[name] if counts else count) for name, (total, count) in terms.items()])


class MeanOfTerms(keras.metrics.Metric):
    """The loss over all batches so far, in which every label of a term weighs the same, whatever batch it was in."""

    def __init__(self, name: str = "loss", **options: Any):
        super().__init__(name=name, **options)
        # In float32 whatever floatx is, since float16 cannot count beyond 2048.
        self.totals, self.counts = (
            self.add_variable((MOST_TERMS,), "zeros", dtype="float32", name=part) for part in ("totals", "counts")
        )

    def update_state(self, terms: Terms) -> None:
        """Add the terms of a batch, the same ones in the same order each time."""
        if len(terms) > MOST_TERMS:
            raise InputError(f"the loss has {len(terms)} terms; at most {MOST_TERMS} are supported")
        for variable, values in zip((self.totals, self.counts), zip(*terms.values())):
            values = tf.stack([tf.cast(value, tf.float32) for value in values])
            variable.assign_add(tf.pad(values, [[0, MOST_TERMS - len(terms)]]))

    def result(self) -> tf.Tensor:
        """Return the total of sum / count."""
        return tf.reduce_sum(divide(tf.convert_to_tensor(self.totals), tf.convert_to_tensor(self.counts)))


class PartsOfLoss(MeanOfTerms):
    """The terms of a loss by name, without their factors, over all batches so far; nothing for a single term.

    Attributes:
        factors: Name and factor of each term, which the first update sets.
    """

    factors: tuple[tuple[str, float], ...] = ()

    def result(self) -> Any:
        """Return sum / (factor x count) of each term."""
        means = divide(tf.convert_to_tensor(self.totals), tf.convert_to_tensor(self.counts))
        several = self.factors if len(self.factors) > 1 else ()
        return {name: means[number] / factor for number, (name, factor) in enumerate(several)}


def sum_over_workers(model: keras.Model, value: int) -> int:
    """Return the sum over the model's replicas of a number that each worker has; all workers must call this."""
    strategy = model.distribute_strategy
    if strategy.cluster_resolver is None:
        return value * strategy.num_replicas_in_sync
    return int(strategy.reduce("SUM", strategy.run(lambda: tf.constant(value, tf.int64)), axis=None))


def compiled_terms(compiled: Any, y_true: Any, y_pred: Any, sample_weight: Any, share: float = 1.0) -> Terms:
    """Return the terms of ``compile(loss=...)``, each times its ``loss_weights``.

    Args:
        compiled: Keras' CompileLoss.
        y_true: Labels: a tensor for one output, a dict for several.
        y_pred: Outputs, likewise, with Keras masks.
        sample_weight: Weights, likewise, or None.
        share: Count of a loss with ``reduction="sum"``, which is not divided: 1 over all parts of a batch.

    Returns:
        The terms, by the names of Keras' metrics of each loss if there are several.
    """
    if not compiled.built:
        compiled.build(y_true, y_pred)
    terms = {}
    for path, loss, weight, name in compiled._flat_losses:
        labels, logits = _at(path, y_true), _at(path, y_pred)
        total, count = _sum_and_count(loss, labels, logits, _at(path, sample_weight), share)
        terms[f"{name}_loss"] = total * (1.0 if weight is None else weight), count
    return terms


def _at(path: tuple[Any, ...], values: Any) -> Any:
    for key in path if isinstance(values, (Mapping, list, tuple)) else ():
        values = values[key]
    return values


def _sum_and_count(
    loss: keras.losses.Loss, labels: Any, logits: Any, weight: Any, share: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the sum of a Keras loss, and the number that Keras would divide it by."""
    undivided = object.__new__(type(loss))  # copy.copy would serialize it, which fails for a function of the user's
    vars(undivided).update(vars(loss))
    undivided.reduction = "none"
    values, mask = tf.cast(undivided(labels, logits, weight), tf.float32), getattr(logits, "_keras_mask", None)
    size = tf.cast(tf.size(values), tf.float32)
    if loss.reduction == "sum":
        return tf.reduce_sum(values), tf.constant(share)
    if mask is not None:
        # A replica without rows, in the last batch, has no mean.
        size *= tf.math.divide_no_nan(tf.reduce_sum(tf.cast(mask, tf.float32)), tf.cast(tf.size(mask), tf.float32))
    if values.shape.rank == 0:  # a mean of the loss's own over the rows; with a mask there is only one
        size = tf.cast(tf.shape(logits)[0], tf.float32) if mask is None else size
        values = tf.where(size > 0, values * size, 0.0)  # a replica without rows has no mean
    if loss.reduction == "mean_with_sample_weight" and weight is not None:
        size = tf.reduce_sum(tf.cast(weight, tf.float32) * (1.0 if mask is None else tf.cast(mask, tf.float32)))
    return tf.reduce_sum(values), size
