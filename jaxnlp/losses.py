"""Losses that a model computes when it is given labels: means over the labeled positions, as in Transformers.

``sample_weight`` [B], or of the labels' shape, multiplies each term. The mean divides by the number of terms,
not by the sum of the weights, like Keras' own losses.

``label_smoothing`` moves this fraction of the probability mass from the label to all C classes evenly (Szegedy
et al. 2016, https://arxiv.org/abs/1512.00567), like torch.nn.CrossEntropyLoss; 0.0 is plain cross-entropy.
"""

from functools import partial

import jax
import jax.numpy as jnp

from duonlp.heads import IGNORED
from duonlp.labels import class_ids
from jaxnlp import ops


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
    return mean(*cross_entropy_sum(logits, labels, sample_weight, label_smoothing))


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """Divide total by count."""
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

    Raises:
        InputError: The labels are not integers.
    """
    labels = class_ids(ops, labels)
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


def binary_cross_entropy_sum(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None, sample_weight: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the sum of binary cross-entropies with logits, and their count.

    Args:
        logits: [...].
        labels: Values in [0, 1], of the same shape.
        mask: Broadcastable to that shape: 0 for terms to leave out; None for all terms.
        sample_weight: [B], or of the labels' shape.
    """
    logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
    losses = jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return _masked_sum(losses, mask, sample_weight)


def squared_error_sum(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None, sample_weight: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the sum of squared differences and their count; labels and mask may lack the logits' last axis, of size 1."""
    losses = jnp.square(logits.astype(jnp.float32) - labels.reshape(logits.shape))
    mask = None if mask is None else jnp.broadcast_to(mask, labels.shape).reshape(logits.shape)
    return _masked_sum(losses, mask, sample_weight)


def _masked_sum(
    losses: jax.Array, mask: jax.Array | None, sample_weight: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    mask = jnp.ones_like(losses) if mask is None else jnp.broadcast_to(mask, losses.shape).astype(jnp.float32)
    return jnp.sum(_apply_weights(losses * mask, sample_weight)), jnp.sum(mask)


def _apply_weights(losses: jax.Array, sample_weight: jax.Array | None) -> jax.Array:
    """Multiply losses [B, ...] by weights that have the same leading axes."""
    if sample_weight is None:
        return losses
    weights = jnp.asarray(sample_weight, jnp.float32)
    return losses * weights.reshape(weights.shape + (1,) * (losses.ndim - weights.ndim))
