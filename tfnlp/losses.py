"""Losses that a model computes when it is given labels: means over the labeled positions, as in Transformers.

``sample_weight`` [B], or of the labels' shape, multiplies each term. The mean divides by the number of terms,
not by the sum of the weights, like Keras' own losses.

``label_smoothing`` moves this fraction of the probability mass from the label to all C classes evenly (Szegedy
et al. 2016, https://arxiv.org/abs/1512.00567), like torch.nn.CrossEntropyLoss; 0.0 is plain cross-entropy.
"""

from typing import Any, cast

import keras
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.heads import IGNORED
from duonlp.labels import class_ids
from tfnlp import ops


def cross_entropy(
    logits: tf.Tensor, labels: tf.Tensor, sample_weight: tf.Tensor | None = None, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Return the mean negative log-likelihood.

    Args:
        logits: [..., C].
        labels: int [...], IGNORED at unlabeled positions.
        sample_weight: [B], or of the labels' shape.
        label_smoothing: Number in [0, 1).
    """
    return mean(*cross_entropy_sum(logits, labels, sample_weight, label_smoothing))


def mean(total: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Divide total by count.

    On one of several replicas, divide by the mean count of the replicas, so that the mean of their losses is
    the mean over all labels, however these are distributed.
    """
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return total / count
    return total / tf.maximum(replica.all_reduce(tf.distribute.ReduceOp.MEAN, count), 1e-9)


def cross_entropy_sum(
    logits: tf.Tensor, labels: tf.Tensor, sample_weight: tf.Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the sum of negative log-likelihoods and their count, which add up over batches, hosts and devices.

    Args:
        logits: [..., C], of any float dtype; computed in float32.
        labels: int [...], IGNORED at unlabeled positions.
        sample_weight: [B], or of the labels' shape.
        label_smoothing: Number in [0, 1).

    Returns:
        Sum over labeled positions in nats, float32; number of labeled positions, float32.

    Raises:
        InputError: The labels are not integers.
    """
    labels = class_ids(ops, labels)
    is_labeled = tf.not_equal(labels, IGNORED)
    losses = _negative_log_likelihood(logits, tf.where(is_labeled, labels, tf.zeros_like(labels)), label_smoothing)
    mask = tf.cast(is_labeled, tf.float32)
    return tf.reduce_sum(_apply_weights(losses * mask, sample_weight)), tf.reduce_sum(mask)


def _negative_log_likelihood(logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """Map logits [..., C] and labels int [...], none of them IGNORED, to losses float32 [...]."""
    logits = tf.cast(logits, tf.float32)
    if not label_smoothing:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    classes = cast(int, logits.shape[-1])
    per_class = label_smoothing / classes
    targets = tf.one_hot(labels, classes, on_value=1 - label_smoothing + per_class, off_value=per_class)
    return tf.nn.softmax_cross_entropy_with_logits(labels=tf.stop_gradient(targets), logits=logits)


@keras.saving.register_keras_serializable(package="tfnlp")
class SmoothedCrossEntropy(keras.losses.Loss):
    """Cross-entropy with label smoothing of class ids and logits, for ``compile(loss=SmoothedCrossEntropy(0.1))``.

    keras.losses.SparseCategoricalCrossentropy has no smoothing, and CategoricalCrossentropy needs one-hot
    targets [..., C]. Under compile, labels of -100 are masked, also in the mean.

    Args:
        label_smoothing: Fraction of the probability mass spread over all classes, in [0, 1).
        name: Name of the loss.
        options: Arguments of keras.losses.Loss.

    Raises:
        InputError: label_smoothing is out of range.
    """

    def __init__(self, label_smoothing: float = 0.1, name: str = "smoothed_cross_entropy", **options: Any):
        super().__init__(name=name, **options)
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 1, such as 0.1")
        self.label_smoothing = float(label_smoothing)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        labels = tf.cast(y_true, tf.int32)
        is_labeled = tf.not_equal(labels, IGNORED)
        losses = _negative_log_likelihood(y_pred, tf.where(is_labeled, labels, 0), self.label_smoothing)
        return tf.where(is_labeled, losses, 0.0)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"label_smoothing": self.label_smoothing}


def binary_cross_entropy_sum(
    logits: tf.Tensor, labels: tf.Tensor, mask: tf.Tensor | None = None, sample_weight: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the sum of binary cross-entropies with logits, and their count.

    Args:
        logits: [...].
        labels: Values in [0, 1], of the same shape.
        mask: Broadcastable to that shape: 0 for terms to leave out; None for all terms.
        sample_weight: [B], or of the labels' shape.
    """
    logits, labels = tf.cast(logits, tf.float32), tf.cast(labels, tf.float32)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
    return _masked_sum(losses, mask, sample_weight)


def squared_error_sum(
    logits: tf.Tensor, labels: tf.Tensor, mask: tf.Tensor | None = None, sample_weight: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the sum of squared differences and their count; labels and mask may lack the logits' last axis, of size 1."""
    if mask is not None:
        mask = tf.reshape(tf.broadcast_to(mask, tf.shape(labels)), tf.shape(logits))
    labels = tf.reshape(tf.cast(labels, tf.float32), tf.shape(logits))
    return _masked_sum(tf.square(tf.cast(logits, tf.float32) - labels), mask, sample_weight)


def _masked_sum(
    losses: tf.Tensor, mask: tf.Tensor | None, sample_weight: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    mask = tf.ones_like(losses) if mask is None else tf.broadcast_to(tf.cast(mask, tf.float32), tf.shape(losses))
    return tf.reduce_sum(_apply_weights(losses * mask, sample_weight)), tf.reduce_sum(mask)


def _apply_weights(losses: tf.Tensor, sample_weight: tf.Tensor | None) -> tf.Tensor:
    """Multiply losses [B, ...] by weights that have the same leading axes."""
    if sample_weight is None:
        return losses
    weights = tf.cast(sample_weight, tf.float32)
    weights = tf.reshape(
        weights, tf.concat([tf.shape(weights), tf.ones(losses.shape.rank - weights.shape.rank, tf.int32)], 0)
    )
    return losses * weights
