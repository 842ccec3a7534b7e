"""Distillation losses: each returns (sum, count), the sum of a loss over the compared items and their number.

Both are float32 scalars that add up over microbatches, devices and hosts; a count depends on masks alone. ``mask`` is 0
for items that do not count and ``sample_weight`` multiplies those that do; both are [B], or have more of the compared
axes. No gradient flows into the teacher's values, and all arithmetic is in float32. The NumPy reference is
``duonlp.distillation.reference_losses``.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import tensorflow as tf

from duonlp.distillation.pair import Distillation
from duonlp.distillation.reference_losses import PROBABILITY_FLOOR, SQUARED_NORM_FLOOR
from duonlp.distillation.terms import MASKED_LOGIT, distillation_terms
from duonlp.typing import Batch
from tfnlp import ops
from tfnlp.layers import flatten_tokens

Terms: TypeAlias = dict[str, tuple[tf.Tensor, tf.Tensor, float]]
"""(sum, count, factor) of each term of a loss, which is the total of factor * sum / count."""

LossSum: TypeAlias = tuple[tf.Tensor, tf.Tensor]
"""(sum, count), float32 [] each."""


def teacher_terms(
    distillation: Distillation,
    student: Any,
    teacher: Any,
    student_outputs: Mapping[str, Any],
    teacher_outputs: Mapping[str, Any],
    batch: Batch,
    *,
    projections: Mapping[str, Mapping[str, Any]] | None = None,
    label_order: Any = None,
    sample_weight: tf.Tensor | None = None,
) -> Terms:
    """Return the terms that the teacher adds to the loss of a batch, in the order of duonlp.distillation.term_names.

    The student's own loss on the labels, times alpha, is not among them.

    Args:
        distillation: Settings of the distillation.
        student: The student model.
        teacher: The teacher model. It is only read for ``distillation.losses``, so it may be None with precomputed logits.
        student_outputs: Outputs of the student, with ``hidden_states`` and ``attentions`` if the settings need them
            (``needs_hidden_states``, ``needs_attentions``).
        teacher_outputs: Outputs of the teacher, likewise.
        batch: Inputs of the student and labels, which determine the tokens and rows that count.
        projections: From duonlp.distillation.init_projections, if the widths differ.
        label_order: From duonlp.distillation.check_pair.
        sample_weight: [B], or [B, T] where every token has an output.

    Returns:
        {name: (sum, count, factor)}; the loss is the total of factor * sum / count. A loss over several pairs of layers
        sums to the mean over the pairs, so its factor is its weight.

    Raises:
        InputError: An output, a projection or labels that the settings need are missing.
    """
    return distillation_terms(
        ops, sys.modules[__name__], distillation, student, teacher, student_outputs, teacher_outputs, batch,
        projections=projections, label_order=label_order, sample_weight=sample_weight,
    )  # fmt: skip


def total_loss(terms: Terms) -> tf.Tensor:
    """Return the loss of a batch that is not split: the total of factor * sum / count, float32 []."""
    return sum((factor * total / tf.maximum(count, 1.0) for total, count, factor in terms.values()), tf.zeros(()))


def kl_divergence_sum(
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    temperature: float = 1.0,
    mask: tf.Tensor | None = None,
    sample_weight: tf.Tensor | None = None,
) -> LossSum:
    """Sum KL(teacher || student) of softmaxes of logits / temperature, in nats, without the factor T^2.

    From Hinton et al. 2015, https://arxiv.org/abs/1503.02531.

    Args:
        student_logits: [..., C].
        teacher_logits: [..., C].
        temperature: T, the divisor of the logits.
        mask: [...].
        sample_weight: [...].

    Returns:
        (sum, number of distributions).
    """
    log_student = tf.nn.log_softmax(tf.cast(student_logits, tf.float32) / temperature)
    log_teacher = tf.nn.log_softmax(_target(teacher_logits) / temperature)
    return _masked_sum(_divergence(log_teacher, log_student), mask, sample_weight)


def bernoulli_kl_divergence_sum(
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    temperature: float = 1.0,
    mask: tf.Tensor | None = None,
    sample_weight: tf.Tensor | None = None,
) -> LossSum:
    """Sum KL(teacher || student) of each class on its own, in nats, without the factor T^2.

    The probability of a class is sigmoid(logits / temperature). Counting classes makes the mean that of a binary
    cross-entropy.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        temperature: T, the divisor of the logits.
        mask: [B].
        sample_weight: [B].

    Returns:
        (sum, number of classes over all rows).
    """
    student, teacher = tf.cast(student_logits, tf.float32) / temperature, _target(teacher_logits) / temperature
    yes = _weighted_log_ratio(tf.math.log_sigmoid(teacher), tf.math.log_sigmoid(student))
    no = _weighted_log_ratio(tf.math.log_sigmoid(-teacher), tf.math.log_sigmoid(-student))
    return _masked_sum(yes + no, mask, sample_weight)


def squared_error_sum(
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    mask: tf.Tensor | None = None,
    sample_weight: tf.Tensor | None = None,
) -> LossSum:
    """Sum (student - teacher)^2 over values [B, C], with a mask [B].

    Returns:
        (sum, number of values).
    """
    return _masked_sum(tf.square(tf.cast(student_logits, tf.float32) - _target(teacher_logits)), mask, sample_weight)


def hidden_mse_sum(
    student: tf.Tensor,
    teacher: tf.Tensor,
    mask: tf.Tensor | None = None,
    sample_weight: tf.Tensor | None = None,
) -> LossSum:
    """Sum the mean over D of (student - teacher)^2 over hidden states [B, T, D], with a mask [B, T].

    Returns:
        (sum, number of tokens).
    """
    squares = tf.reduce_mean(tf.square(tf.cast(student, tf.float32) - _target(teacher)), axis=-1)
    return _masked_sum(squares, mask, sample_weight)


def hidden_cosine_sum(
    student: tf.Tensor,
    teacher: tf.Tensor,
    mask: tf.Tensor | None = None,
    sample_weight: tf.Tensor | None = None,
) -> LossSum:
    """Sum 1 - cosine(student, teacher) over hidden states [B, T, D], with a mask [B, T].

    Returns:
        (sum, number of tokens).
    """
    products = _normalize(tf.cast(student, tf.float32)) * _normalize(_target(teacher))
    return _masked_sum(1.0 - tf.reduce_sum(products, axis=-1), mask, sample_weight)


def attention_kl_sum(
    student: tf.Tensor,
    teacher: tf.Tensor,
    mask: tf.Tensor | None = None,
    sample_weight: tf.Tensor | None = None,
) -> LossSum:
    """Sum the mean over heads of KL(teacher || student) of attention probabilities.

    From Wang et al. 2020, https://arxiv.org/abs/2002.10957, equation 5.

    Args:
        student: Probabilities [B, N, T, S]. Those below PROBABILITY_FLOOR are raised to it in the logarithm.
        teacher: Probabilities [B, N, T, S], likewise.
        mask: [B, T].
        sample_weight: [B] or [B, T].

    Returns:
        (sum, number of queries).
    """
    student, teacher = tf.cast(student, tf.float32), _target(teacher)
    log_student, log_teacher = (tf.math.log(tf.maximum(x, PROBABILITY_FLOOR)) for x in (student, teacher))
    divergence = tf.reduce_sum(teacher * (log_teacher - log_student), axis=-1)  # [B, N, T]
    return _masked_sum(tf.reduce_mean(divergence, axis=1), mask, sample_weight)


def attention_mse_sum(
    student: tf.Tensor,
    teacher: tf.Tensor,
    mask: tf.Tensor | None = None,
    sample_weight: tf.Tensor | None = None,
) -> LossSum:
    """Sum the mean over heads and attended keys of (student - teacher)^2 of attention probabilities.

    Args:
        student: Probabilities [B, N, T, T].
        teacher: Probabilities [B, N, T, T].
        mask: [B, T], of keys and of queries.
        sample_weight: [B] or [B, T].

    Returns:
        (sum, number of queries).
    """
    squares = tf.reduce_mean(tf.square(tf.cast(student, tf.float32) - _target(teacher)), axis=1)  # [B, T, S]
    keys = tf.cast(ops.expand_dims(_broadcast_mask(mask, squares[:, 0]), 1), tf.float32)  # [B, 1, S]
    means = tf.reduce_sum(squares * keys, axis=-1) / tf.maximum(tf.reduce_sum(keys, axis=-1), 1.0)
    return _masked_sum(means, mask, sample_weight)


def relation_kl_sum(
    student: tf.Tensor,
    teacher: tf.Tensor,
    heads: int,
    mask: tf.Tensor | None = None,
    sample_weight: tf.Tensor | None = None,
) -> LossSum:
    """Sum the mean over relation heads of KL(teacher || student) of self-attention relations.

    A relation is softmax(A A^T / sqrt(width of A)), where A is a head of queries, keys or values. From Wang et al. 2021,
    https://arxiv.org/abs/2012.15828.

    Args:
        student: [B, T, D].
        teacher: [B, T, D'].
        heads: Number of relation heads, which divides both widths.
        mask: [B, T]. Tokens are related only to tokens that count.
        sample_weight: [B] or [B, T].

    Returns:
        (sum, number of tokens).
    """
    log_student, log_teacher = (
        _log_relations(x, heads, mask) for x in (tf.cast(student, tf.float32), _target(teacher))
    )
    return _masked_sum(tf.reduce_mean(_divergence(log_teacher, log_student), axis=1), mask, sample_weight)


def queries_keys_values(model: Any, hidden_states: Sequence[tf.Tensor], layer: int) -> dict[str, tf.Tensor]:
    """Return the queries, keys and values of a layer: {"query", "key", "value"}, each [B, T, heads * H].

    Args:
        model: The model.
        hidden_states: All hidden states of the model, as it outputs them.
        layer: Index of the layer, counted from 0.
    """
    block = getattr(getattr(model, model.config.stack), f"layer_{model.config.layer_order[layer]}")
    x = block.block_input(hidden_states[:-1][layer], "attention")
    tokens, shape = flatten_tokens(x), tf.shape(x)
    vectors = {name: getattr(block.attention, name)(tokens) for name in ("query", "key", "value")}
    return {name: tf.reshape(y, [shape[0], shape[1], y.shape[-1]]) for name, y in vectors.items()}


def project(hidden_states: tf.Tensor, kernel: Any) -> tf.Tensor:
    """Multiply hidden states [B, T, D] by a kernel [D, D'], in the dtype of the states; return [B, T, D']."""
    tokens, kernel = flatten_tokens(hidden_states), tf.cast(kernel, hidden_states.dtype)
    return tf.reshape(tokens @ kernel, [*tf.unstack(tf.shape(hidden_states)[:-1]), kernel.shape[-1]])


def reorder_labels(logits: tf.Tensor, label_order: Any) -> tf.Tensor:
    """Return logits [..., C] with their classes in another order, int [C]."""
    return tf.gather(logits, label_order, axis=-1)


def _target(x: tf.Tensor) -> tf.Tensor:
    """Return a teacher's values in float32, without a gradient."""
    return tf.stop_gradient(tf.cast(x, tf.float32))


def _divergence(log_teacher: tf.Tensor, log_student: tf.Tensor) -> tf.Tensor:
    """Return the KL divergence over the last axis of log probabilities [..., C]; a teacher's probability of 0 adds 0."""
    return tf.reduce_sum(_weighted_log_ratio(log_teacher, log_student), axis=-1)


def _weighted_log_ratio(log_teacher: tf.Tensor, log_student: tf.Tensor) -> tf.Tensor:
    """Return p log(p / q) for log probabilities log p and log q; 0 if p is 0."""
    probability = tf.exp(log_teacher)
    return tf.where(probability > 0, probability * (log_teacher - log_student), 0.0)


def _normalize(x: tf.Tensor) -> tf.Tensor:
    """Scale vectors along the last axis to length 1."""
    return x * tf.math.rsqrt(tf.maximum(tf.reduce_sum(x * x, axis=-1, keepdims=True), SQUARED_NORM_FLOOR))


def _log_relations(x: tf.Tensor, heads: int, mask: tf.Tensor | None) -> tf.Tensor:
    """Return the log relations [B, heads, T, T] of vectors [B, T, D]."""
    shape, width = tf.shape(x), cast(int, x.shape[-1]) // heads
    parts = tf.transpose(tf.reshape(x, [shape[0], shape[1], heads, width]), [0, 2, 1, 3])  # [B, heads, T, D / heads]
    scores = tf.matmul(parts, parts, transpose_b=True) * width**-0.5
    keys = ops.expand_dims(_broadcast_mask(mask, x[..., 0]), (1, 2))  # [B, 1, 1, T]
    return tf.nn.log_softmax(tf.where(keys, scores, MASKED_LOGIT))


def _broadcast_mask(mask: tf.Tensor | None, values: tf.Tensor) -> tf.Tensor:
    """Return the mask as booleans of the shape of the values; None is all True."""
    if mask is None:
        return tf.ones_like(values, tf.bool)
    return tf.broadcast_to(_with_trailing_axes(tf.cast(mask, tf.bool), values), tf.shape(values))


def _with_trailing_axes(x: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Append axes of size 1 up to the rank of the values."""
    return tf.reshape(x, tf.concat([tf.shape(x), tf.ones(values.shape.rank - x.shape.rank, tf.int32)], 0))


def _masked_sum(values: tf.Tensor, mask: tf.Tensor | None, sample_weight: tf.Tensor | None) -> LossSum:
    """Return the weighted sum and the count of values, float32 [B, ...], that are not masked."""
    is_counted = _broadcast_mask(mask, values)
    values = tf.where(is_counted, values, 0.0)
    if sample_weight is not None:
        values = values * _with_trailing_axes(tf.cast(sample_weight, tf.float32), values)
    return tf.reduce_sum(values), tf.reduce_sum(tf.cast(is_counted, tf.float32))
