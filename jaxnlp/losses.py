"""The losses a model computes when it is given labels: means over what is labelled, as Transformers has them."""

import jax
import jax.numpy as jnp

IGNORED = -100
"""A label that does not count."""


def cross_entropy(logits, labels):
    """Mean negative log-likelihood. logits: [..., C]; labels: int [...], IGNORED where nothing is labelled."""
    logits = logits.astype(jnp.float32)
    counted = labels != IGNORED
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probabilities, jnp.where(counted, labels, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(counted, picked, 0.0)) / jnp.sum(counted)


def binary_cross_entropy(logits, labels, weights=None):
    """Mean binary cross-entropy with logits. All of one shape: logits, labels in [0, 1], weights (None: all 1)."""
    logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
    each = jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return jnp.mean(each) if weights is None else jnp.sum(each * weights) / jnp.sum(weights)


def mean_squared_error(logits, labels):
    """Mean squared difference. logits, labels: as many values."""
    return jnp.mean(jnp.square(logits.astype(jnp.float32) - labels.reshape(logits.shape)))


def classification_loss(logits, labels, problem_type: str | None):
    """The loss of a sequence classifier, by problem_type or, when that is None, by the labels as Transformers does.

    logits: [B, C]; labels: int [B] (one class), float [B, C] (several), or float [B] with C = 1 (regression).
    """
    if problem_type is None:
        integer = jnp.issubdtype(labels.dtype, jnp.integer)
        kinds = "single_label_classification", "multi_label_classification"
        problem_type = "regression" if logits.shape[-1] == 1 else kinds[0] if integer else kinds[1]
    if problem_type == "regression":
        return mean_squared_error(logits, labels)
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels)
    return binary_cross_entropy(logits, labels)


def span_loss(start_logits, end_logits, start_positions, end_positions):
    """Mean of the cross-entropies of start and end; positions beyond the sequence do not count. int [B] each."""

    def one(logits, positions):
        length = logits.shape[1]
        return cross_entropy(logits, jnp.where(positions >= length, IGNORED, jnp.maximum(positions, 0)))

    return (one(start_logits, start_positions) + one(end_logits, end_positions)) / 2
