"""The losses a model computes when it is given labels: means over what is labelled, as Transformers has them.

``sample_weight`` [B], or of the labels' shape, multiplies each term; the mean divides by the number of terms, not by
the sum of the weights, as Keras' own losses do.

``label_smoothing`` e takes the share e of the weight from the label and spreads it evenly over all C classes (Szegedy et
al. 2016, https://arxiv.org/abs/1512.00567), as torch.nn.CrossEntropyLoss does; 0.0 is the plain cross-entropy.
"""

import keras
import tensorflow as tf

from duonlp.errors import InputError

IGNORED = -100
"""A label that does not count."""


def cross_entropy(logits, labels, sample_weight=None, label_smoothing=0.0):
    """Mean negative log-likelihood. logits: [..., C]; labels: int [...], IGNORED where nothing is labelled."""
    return _mean(*cross_entropy_sum(logits, labels, sample_weight, label_smoothing))


def _mean(total, count):
    """total / count; on one of several replicas, over the mean of their counts: so the replicas' mean is that of all labels,
    however they are spread."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return total / count
    return total / tf.maximum(replica.all_reduce(tf.distribute.ReduceOp.MEAN, count), 1e-9)


def cross_entropy_sum(logits, labels, sample_weight=None, label_smoothing=0.0):
    """The sum of negative log-likelihoods, and how many there are: sums add up over batches, hosts and devices.

    Args:
        logits: [..., C]; the arithmetic is in float32 whatever they are.
        labels: int [...], IGNORED where nothing is labelled.
        label_smoothing: a number from 0 to below 1.

    Returns:
        the sum over labelled positions in nats, float32; their count, float32.
    """
    counted = tf.not_equal(labels, IGNORED)
    each = _negative_log_likelihood(logits, tf.where(counted, labels, tf.zeros_like(labels)), label_smoothing)
    counted = tf.cast(counted, tf.float32)
    return tf.reduce_sum(_weighted(each * counted, sample_weight)), tf.reduce_sum(counted)


def _negative_log_likelihood(logits, labels, label_smoothing):
    """logits [..., C], labels int [...], none of them IGNORED -> float32 [...]."""
    logits = tf.cast(logits, tf.float32)
    if not label_smoothing:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    classes = logits.shape[-1]
    spread = label_smoothing / classes
    wanted = tf.one_hot(labels, classes, on_value=1 - label_smoothing + spread, off_value=spread)
    return tf.nn.softmax_cross_entropy_with_logits(labels=tf.stop_gradient(wanted), logits=logits)


@keras.saving.register_keras_serializable(package="tfnlp")
class SmoothedCrossEntropy(keras.losses.Loss):
    """Cross-entropy with label smoothing over class ids and logits, for ``compile(loss=SmoothedCrossEntropy(0.1))``.

    keras.losses.SparseCategoricalCrossentropy has no smoothing, and CategoricalCrossentropy wants the targets written out,
    [..., C]. Under compile, labels of -100 are left out, of the mean as well.

    Args:
        label_smoothing: the share of the weight that is spread over all classes, from 0 to below 1.

    Raises:
        InputError: it is out of that range.
    """

    def __init__(self, label_smoothing=0.1, name="smoothed_cross_entropy", **options):
        super().__init__(name=name, **options)
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing is {label_smoothing}; it must be a share from 0 to below 1")
        self.label_smoothing = float(label_smoothing)

    def __call__(self, y_true, y_pred, sample_weight=None):
        mask = getattr(y_pred, "_keras_mask", None)
        if mask is None or self.reduction != "sum_over_batch_size":
            return super().__call__(y_true, y_pred, sample_weight)
        # over replicas, too, the mean of all that is labelled
        return cross_entropy(
            y_pred, tf.where(mask, tf.cast(y_true, tf.int32), IGNORED), sample_weight, self.label_smoothing
        )

    def call(self, y_true, y_pred):
        labels = tf.cast(y_true, tf.int32)
        counted = tf.not_equal(labels, IGNORED)
        each = _negative_log_likelihood(y_pred, tf.where(counted, labels, 0), self.label_smoothing)
        return tf.where(counted, each, 0.0)

    def get_config(self):
        return super().get_config() | {"label_smoothing": self.label_smoothing}


def binary_cross_entropy(logits, labels, weights=None, sample_weight=None):
    """Mean binary cross-entropy with logits. All of one shape: logits, labels in [0, 1], weights 0 or 1 (None: all 1)."""
    logits, labels = tf.cast(logits, tf.float32), tf.cast(labels, tf.float32)
    each = _weighted(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits), sample_weight)
    if weights is None:
        return tf.reduce_mean(each)
    weights = tf.cast(weights, tf.float32)
    return tf.reduce_sum(each * weights) / tf.maximum(tf.reduce_sum(weights), 1.0)


def mean_squared_error(logits, labels, sample_weight=None):
    """Mean squared difference. logits, labels: as many values."""
    labels = tf.reshape(tf.cast(labels, tf.float32), tf.shape(logits))
    return tf.reduce_mean(_weighted(tf.square(tf.cast(logits, tf.float32) - labels), sample_weight))


def classification_loss(logits, labels, problem_type: str | None, sample_weight=None):
    """The loss of a sequence classifier, by problem_type or, when that is None, by the labels as Transformers does.

    logits: [B, C]; labels: int [B] (one class), float [B, C] (several), or float [B] with C = 1 (regression).
    Of the first two, those of IGNORED do not count.
    """
    if problem_type is None:
        kinds = "single_label_classification", "multi_label_classification"
        problem_type = "regression" if logits.shape[-1] == 1 else kinds[0] if labels.dtype.is_integer else kinds[1]
    if problem_type == "regression":
        return mean_squared_error(logits, labels, sample_weight)
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels, sample_weight)
    return binary_cross_entropy(logits, labels, tf.not_equal(labels, IGNORED), sample_weight)


def span_loss(start_logits, end_logits, start_positions, end_positions, sample_weight=None):
    """Mean of the cross-entropies of start and end; positions beyond the sequence do not count. int [B] each."""

    def one(logits, positions):
        length = tf.cast(tf.shape(logits)[1], positions.dtype)
        positions = tf.where(positions >= length, tf.cast(IGNORED, positions.dtype), tf.maximum(positions, 0))
        return cross_entropy(logits, positions, sample_weight)

    return (one(start_logits, start_positions) + one(end_logits, end_positions)) / 2.0


def _weighted(each, sample_weight):
    if sample_weight is None:
        return each
    weights = tf.cast(sample_weight, tf.float32)
    weights = tf.reshape(
        weights, tf.concat([tf.shape(weights), tf.ones(each.shape.rank - weights.shape.rank, tf.int32)], 0)
    )
    return each * weights
