"""The losses a model computes when it is given labels: means over what is labelled, as Transformers has them.

``sample_weight`` [B], or of the labels' shape, multiplies each term; the mean divides by the number of terms, not by
the sum of the weights, as Keras' own losses do.

``label_smoothing`` e takes the share e of the weight from the label and spreads it evenly over all C classes (Szegedy et
al. 2016, https://arxiv.org/abs/1512.00567), as torch.nn.CrossEntropyLoss does; 0.0 is the plain cross-entropy.
"""

from functools import partial

import jax
import jax.numpy as jnp

IGNORED = -100
"""A label that does not count."""


def cross_entropy(logits, labels, sample_weight=None, label_smoothing=0.0):
    """Mean negative log-likelihood. logits: [..., C]; labels: int [...], IGNORED where nothing is labelled."""
    total, count = cross_entropy_sum(logits, labels, sample_weight, label_smoothing)
    return total / count


def cross_entropy_sum(logits, labels, sample_weight=None, label_smoothing=0.0):
    """The sum of negative log-likelihoods, and how many there are: sums add up over batches, hosts and devices.

    Args:
        logits: [..., C]; the arithmetic is in float32 whatever they are.
        labels: int [...], IGNORED where nothing is labelled.
        label_smoothing: a number known when the program is traced, from 0 to below 1.

    Returns:
        the sum over labelled positions in nats, float32; their count, float32.
    """
    each = _negative_log_likelihood(logits, labels, label_smoothing)
    return jnp.sum(_weighted(each, sample_weight)), jnp.sum(labels != IGNORED, dtype=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _negative_log_likelihood(logits, labels, label_smoothing):
    """logits [..., C], labels [...] -> float32 [...], 0 where the label is IGNORED.

    With a gradient of its own: of all that has the size of the logits, the logits alone are kept for it, as they are.
    """
    return _negative_log_likelihood_forward(logits, labels, label_smoothing)[0]


def _negative_log_likelihood_forward(logits, labels, label_smoothing):
    x = logits.astype(jnp.float32)
    maximum = x.max(axis=-1)
    log_total = maximum + jnp.log(jnp.sum(jnp.exp(x - maximum[..., None]), axis=-1))
    counted = labels != IGNORED
    wanted = jnp.take_along_axis(logits, jnp.where(counted, labels, 0)[..., None], axis=-1)[..., 0].astype(jnp.float32)
    if label_smoothing:
        wanted = (1 - label_smoothing) * wanted + label_smoothing * x.mean(axis=-1)
    return jnp.where(counted, log_total - wanted, 0.0), (logits, labels, log_total)


def _negative_log_likelihood_backward(label_smoothing, residuals, cotangent):
    logits, labels, log_total = residuals
    is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    if label_smoothing:
        wanted = (1 - label_smoothing) * is_label + label_smoothing / logits.shape[-1]
    else:
        wanted = is_label
    probabilities = jnp.exp(logits.astype(jnp.float32) - log_total[..., None])
    gradient = (probabilities - wanted) * jnp.where(labels != IGNORED, cotangent, 0.0)[..., None]
    return gradient.astype(logits.dtype), None


_negative_log_likelihood.defvjp(_negative_log_likelihood_forward, _negative_log_likelihood_backward)


def binary_cross_entropy(logits, labels, weights=None, sample_weight=None):
    """Mean binary cross-entropy with logits. All of one shape: logits, labels in [0, 1], weights 0 or 1 (None: all 1)."""
    logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
    each = jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    each = _weighted(each, sample_weight)
    return jnp.mean(each) if weights is None else jnp.sum(each * weights) / jnp.maximum(jnp.sum(weights), 1)


def mean_squared_error(logits, labels, sample_weight=None):
    """Mean squared difference. logits, labels: as many values."""
    each = jnp.square(logits.astype(jnp.float32) - labels.reshape(logits.shape))
    return jnp.mean(_weighted(each, sample_weight))


def classification_loss(logits, labels, problem_type: str | None, sample_weight=None):
    """The loss of a sequence classifier, by problem_type or, when that is None, by the labels as Transformers does.

    logits: [B, C]; labels: int [B] (one class), float [B, C] (several), or float [B] with C = 1 (regression).
    Of the first two, those of IGNORED do not count.
    """
    if problem_type is None:
        integer = jnp.issubdtype(labels.dtype, jnp.integer)
        kinds = "single_label_classification", "multi_label_classification"
        problem_type = "regression" if logits.shape[-1] == 1 else kinds[0] if integer else kinds[1]
    if problem_type == "regression":
        return mean_squared_error(logits, labels, sample_weight)
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels, sample_weight)
    return binary_cross_entropy(logits, labels, labels != IGNORED, sample_weight)


def span_loss(start_logits, end_logits, start_positions, end_positions, sample_weight=None):
    """Mean of the cross-entropies of start and end; positions beyond the sequence do not count. int [B] each."""

    def one(logits, positions):
        length = logits.shape[1]
        positions = jnp.where(positions >= length, IGNORED, jnp.maximum(positions, 0))
        return cross_entropy(logits, positions, sample_weight)

    return (one(start_logits, start_positions) + one(end_logits, end_positions)) / 2


def _weighted(each, sample_weight):
    """each [B, ...], times weights that have as many axes as it, or fewer."""
    if sample_weight is None:
        return each
    weights = jnp.asarray(sample_weight, jnp.float32)
    return each * weights.reshape(weights.shape + (1,) * (each.ndim - weights.ndim))
