"""Losses that a model computes when it is given labels: means over the labeled positions, as in Transformers.

``sample_weight`` [B], or of the labels' shape, multiplies each term. The mean divides by the number of terms,
not by the sum of the weights, like Keras' own losses.

``label_smoothing`` moves this fraction of the probability mass from the label to all C classes evenly (Szegedy
et al. 2016, https://arxiv.org/abs/1512.00567), like torch.nn.CrossEntropyLoss; 0.0 is plain cross-entropy.
"""

from functools import partial

import jax
import jax.numpy as jnp

IGNORED = -100
"""Label of positions left out of the loss."""


def cross_entropy(
    logits: jax.Array, labels: jax.Array, sample_weight: jax.Array | None = None, label_smoothing: float = 0.0
) -> jax.Array:
    """Return the mean negative log-likelihood.

    Args:
        logits: [..., C].
        labels: int [...], IGNORED at unlabeled positions.
        sample_weight: [B], or of the labels' shape.
        label_smoothing: Static number in [0, 1).
    """
    total, count = cross_entropy_sum(logits, labels, sample_weight, label_smoothing)
    return total / count


def cross_entropy_sum(
    logits: jax.Array, labels: jax.Array, sample_weight: jax.Array | None = None, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Return the sum of negative log-likelihoods and their count, which add up over batches, hosts and devices.

    Args:
        logits: [..., C], of any float dtype; computed in float32.
        labels: int [...], IGNORED at unlabeled positions.
        sample_weight: [B], or of the labels' shape.
        label_smoothing: Static number in [0, 1).

    Returns:
        Sum over labeled positions in nats, float32; number of labeled positions, float32.
    """
    losses = _negative_log_likelihood(logits, labels, label_smoothing)
    return jnp.sum(_apply_weights(losses, sample_weight)), jnp.sum(labels != IGNORED, dtype=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _negative_log_likelihood(logits: jax.Array, labels: jax.Array, label_smoothing: float) -> jax.Array:
    """Map logits [..., C] and labels [...] to losses float32 [...], 0 where the label is IGNORED.

    The custom gradient saves the logits in their own dtype, and no other array of that size.
    """
    return _negative_log_likelihood_forward(logits, labels, label_smoothing)[0]


def _negative_log_likelihood_forward(logits, labels, label_smoothing):
    x = logits.astype(jnp.float32)
    maximum = x.max(axis=-1)
    log_total = maximum + jnp.log(jnp.sum(jnp.exp(x - maximum[..., None]), axis=-1))
    is_labeled = labels != IGNORED
    safe_labels = jnp.where(is_labeled, labels, 0)[..., None]
    label_logits = jnp.take_along_axis(logits, safe_labels, axis=-1)[..., 0].astype(jnp.float32)
    if label_smoothing:
        label_logits = (1 - label_smoothing) * label_logits + label_smoothing * x.mean(axis=-1)
    return jnp.where(is_labeled, log_total - label_logits, 0.0), (logits, labels, log_total)


def _negative_log_likelihood_backward(label_smoothing, residuals, cotangent):
    logits, labels, log_total = residuals
    is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    if label_smoothing:
        targets = (1 - label_smoothing) * is_label + label_smoothing / logits.shape[-1]
    else:
        targets = is_label
    probabilities = jnp.exp(logits.astype(jnp.float32) - log_total[..., None])
    gradient = (probabilities - targets) * jnp.where(labels != IGNORED, cotangent, 0.0)[..., None]
    return gradient.astype(logits.dtype), None


_negative_log_likelihood.defvjp(_negative_log_likelihood_forward, _negative_log_likelihood_backward)


def binary_cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Return the mean binary cross-entropy with logits.

    Args:
        logits: [...].
        labels: Values in [0, 1], of the same shape.
        weights: 0 or 1, of the same shape: the terms to average over; None for all.
        sample_weight: [B], or of the labels' shape.
    """
    logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
    losses = jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    losses = _apply_weights(losses, sample_weight)
    return jnp.mean(losses) if weights is None else jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1)


def mean_squared_error(logits: jax.Array, labels: jax.Array, sample_weight: jax.Array | None = None) -> jax.Array:
    """Return the mean squared difference of logits and labels, which are reshaped to the logits' shape."""
    losses = jnp.square(logits.astype(jnp.float32) - labels.reshape(logits.shape))
    return jnp.mean(_apply_weights(losses, sample_weight))


def classification_loss(
    logits: jax.Array, labels: jax.Array, problem_type: str | None, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Return the loss of a sequence classifier.

    Args:
        logits: [B, C].
        labels: int [B] for one class per sequence, float [B, C] for several, or float [B] with C = 1 for
            regression. Class labels equal to IGNORED are left out.
        problem_type: One of duonlp.config.PROBLEM_TYPES; None infers it from the labels, as Transformers does.
        sample_weight: [B], or of the labels' shape.
    """
    if problem_type is None:
        is_integer = jnp.issubdtype(labels.dtype, jnp.integer)
        kinds = "single_label_classification", "multi_label_classification"
        problem_type = "regression" if logits.shape[-1] == 1 else kinds[0] if is_integer else kinds[1]
    if problem_type == "regression":
        return mean_squared_error(logits, labels, sample_weight)
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels, sample_weight)
    return binary_cross_entropy(logits, labels, labels != IGNORED, sample_weight)


def span_loss(
    start_logits: jax.Array, end_logits: jax.Array, start_positions: jax.Array, end_positions: jax.Array,
    sample_weight: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """Return the mean of the start and end cross-entropies; positions beyond the sequence are left out.

    Args:
        start_logits, end_logits: [B, T].
        start_positions, end_positions: int [B].
        sample_weight: [B].
    """

    def position_loss(logits, positions):
        length = logits.shape[1]
        positions = jnp.where(positions >= length, IGNORED, jnp.maximum(positions, 0))
        return cross_entropy(logits, positions, sample_weight)

    return (position_loss(start_logits, start_positions) + position_loss(end_logits, end_positions)) / 2


def _apply_weights(losses: jax.Array, sample_weight: jax.Array | None) -> jax.Array:
    """Multiply losses [B, ...] by weights that have the same leading axes."""
    if sample_weight is None:
        return losses
    weights = jnp.asarray(sample_weight, jnp.float32)
    return losses * weights.reshape(weights.shape + (1,) * (losses.ndim - weights.ndim))
