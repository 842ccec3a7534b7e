"""What a student is told by its teacher: sums over what is compared, and how many there are, as float32 scalars.

Sums and counts add up over pieces of a batch, devices and hosts; a count depends on masks alone. ``mask`` is 0 where nothing
counts, ``sample_weight`` multiplies what does; both are [B], or have more of the axes that are compared. Teachers' values
get no gradient, and the arithmetic is in float32 whatever the values are. ``duonlp.distillation.reference_losses`` has the same
in NumPy.
"""

import sys
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from duonlp.distillation.pair import Distillation
from duonlp.distillation.reference_losses import PROBABILITY_FLOOR, SQUARED_NORM_FLOOR
from duonlp.distillation.terms import MASKED_LOGIT, distillation_terms
from tfnlp import ops
from tfnlp.layers import flatten_tokens


def terms(
    distillation: Distillation, student, teacher, student_outputs: Mapping[str, Any], teacher_outputs: Mapping[str, Any],
    batch: Mapping[str, Any], *, projections: Mapping[str, Mapping[str, Any]] | None = None, label_order=None,
    sample_weight=None,
) -> dict[str, tuple]:  # fmt: skip
    """All that the teacher adds to the loss of a batch, in the order of duonlp.distillation.term_names.

    The student's own loss on the labels, times alpha, is not among it.

    Args:
        student, teacher: the models; of the teacher, what is inside is read only where ``distillation.losses`` has something,
            so that it may be None with logits that were computed before.
        student_outputs, teacher_outputs: what they gave, with ``hidden_states`` and ``attentions`` where ``distillation`` needs
            them (``needs_hidden_states``, ``needs_attentions``).
        batch: what the student reads, and labels: they say what counts.
        projections: of duonlp.distillation.init_projections, where the widths differ.
        label_order: what duonlp.distillation.check_pair gave.
        sample_weight: [B], or [B, T] where every token has outputs.

    Returns:
        {name: (sum, count, factor)}: the loss is the total of factor * sum / count. The sum of a loss over several layers is
        the mean of theirs, so that its factor is its weight.
    """
    return distillation_terms(
        ops, sys.modules[__name__], distillation, student, teacher, student_outputs, teacher_outputs, batch,
        projections=projections, label_order=label_order, sample_weight=sample_weight,
    )  # fmt: skip


def total(terms: Mapping[str, tuple]):
    """The loss that ``terms`` add up to, of a batch that is not in pieces: float32."""
    return sum((factor * each / tf.maximum(count, 1.0) for each, count, factor in terms.values()), tf.zeros(()))


def kl_divergence_sum(student_logits, teacher_logits, temperature=1.0, mask=None, sample_weight=None):
    """KL(teacher || student) of softmaxes of logits / temperature, in nats, without the factor T^2 (Hinton et al. 2015,
    https://arxiv.org/abs/1503.02531). logits: [..., C]; mask: [...]. Counts distributions."""
    log_student = tf.nn.log_softmax(tf.cast(student_logits, tf.float32) / temperature)
    log_teacher = tf.nn.log_softmax(_fixed(teacher_logits) / temperature)
    return _summed(_divergence(log_teacher, log_student), mask, sample_weight)


def bernoulli_kl_divergence_sum(student_logits, teacher_logits, temperature=1.0, mask=None, sample_weight=None):
    """KL(teacher || student) of each class by itself, with probabilities sigmoid(logits / temperature), without the factor
    T^2. logits: [B, C]; mask: [B]. Counts classes of all rows, as the mean of a binary cross-entropy does."""
    student, teacher = tf.cast(student_logits, tf.float32) / temperature, _fixed(teacher_logits) / temperature
    yes = _log_ratio(tf.math.log_sigmoid(teacher), tf.math.log_sigmoid(student))
    no = _log_ratio(tf.math.log_sigmoid(-teacher), tf.math.log_sigmoid(-student))
    return _summed(yes + no, mask, sample_weight)


def squared_error_sum(student_logits, teacher_logits, mask=None, sample_weight=None):
    """(student - teacher)^2. logits: [B, C]; mask: [B]. Counts values."""
    return _summed(tf.square(tf.cast(student_logits, tf.float32) - _fixed(teacher_logits)), mask, sample_weight)


def hidden_mse_sum(student, teacher, mask=None, sample_weight=None):
    """The mean over D of (student - teacher)^2. student, teacher: [B, T, D]; mask: [B, T]. Counts tokens."""
    each = tf.reduce_mean(tf.square(tf.cast(student, tf.float32) - _fixed(teacher)), axis=-1)
    return _summed(each, mask, sample_weight)


def hidden_cosine_sum(student, teacher, mask=None, sample_weight=None):
    """1 - the cosine of student and teacher, [B, T, D]; mask: [B, T]. Counts tokens."""
    products = _unit(tf.cast(student, tf.float32)) * _unit(_fixed(teacher))
    return _summed(1.0 - tf.reduce_sum(products, axis=-1), mask, sample_weight)


def attention_kl_sum(student, teacher, mask=None, sample_weight=None):
    """The mean over heads of KL(teacher || student). student, teacher: probabilities [B, N, T, S], of which those below
    PROBABILITY_FLOOR count as that; mask: [B, T]. Counts queries."""
    student, teacher = tf.cast(student, tf.float32), _fixed(teacher)
    log_student, log_teacher = (tf.math.log(tf.maximum(x, PROBABILITY_FLOOR)) for x in (student, teacher))
    each = tf.reduce_sum(teacher * (log_teacher - log_student), axis=-1)  # [B, N, T]
    return _summed(tf.reduce_mean(each, axis=1), mask, sample_weight)


def attention_mse_sum(student, teacher, mask=None, sample_weight=None):
    """The mean over heads and attended keys of (student - teacher)^2. student, teacher: probabilities [B, N, T, T]; mask:
    [B, T], of keys as of queries. Counts queries."""
    squares = tf.reduce_mean(tf.square(tf.cast(student, tf.float32) - _fixed(teacher)), axis=1)  # [B, T, S]
    keys = tf.cast(ops.expand_dims(_counted(mask, squares[:, 0]), 1), tf.float32)  # [B, 1, S]
    each = tf.reduce_sum(squares * keys, axis=-1) / tf.maximum(tf.reduce_sum(keys, axis=-1), 1.0)
    return _summed(each, mask, sample_weight)


def relation_kl_sum(student, teacher, heads, mask=None, sample_weight=None):
    """The mean over relation heads of KL(teacher || student), of how each token relates to all attended ones: the softmax of
    the products of their vectors, over the root of a head's width (Wang et al. 2021, https://arxiv.org/abs/2012.15828).

    Args:
        student, teacher: queries, keys or values: [B, T, D] and [B, T, D'], both widths divisible by heads.
        mask: [B, T]. Counts tokens.
    """
    log_student, log_teacher = (_log_relations(x, heads, mask) for x in (tf.cast(student, tf.float32), _fixed(teacher)))
    return _summed(tf.reduce_mean(_divergence(log_teacher, log_student), axis=1), mask, sample_weight)


def queries_keys_values(model, hidden_states, layer: int) -> dict:
    """What layer ``layer``, from 0 on, makes of the states that it reads: {"query", "key", "value"}, [B, T, N * H] each.

    hidden_states: all of a model's, as it gives them.
    """
    part = getattr(getattr(model, model.config.stack), f"layer_{model.config.layer_order[layer]}")
    x = hidden_states[:-1][layer]
    x = part.attention_norm(x) if part.pre_norm else x
    tokens, shape = flatten_tokens(x), tf.shape(x)
    width = part.attention.inner_size
    return {
        name: tf.reshape(getattr(part.attention, name)(tokens), [shape[0], shape[1], width])
        for name in ("query", "key", "value")
    }


def projected(hidden_states, kernel):
    """[B, T, D] times a kernel [D, D']: [B, T, D'], in the dtype of the states."""
    tokens, kernel = flatten_tokens(hidden_states), tf.cast(kernel, hidden_states.dtype)
    return tf.reshape(tokens @ kernel, [*tf.unstack(tf.shape(hidden_states)[:-1]), kernel.shape[-1]])


def in_order(logits, label_order):
    """Logits [..., C] with their classes in another order, int [C]."""
    return tf.gather(logits, label_order, axis=-1)


def _fixed(x):
    return tf.stop_gradient(tf.cast(x, tf.float32))


def _divergence(log_teacher, log_student):
    """[..., C], logarithms of probabilities -> [...]; what has no probability adds nothing."""
    return tf.reduce_sum(_log_ratio(log_teacher, log_student), axis=-1)


def _log_ratio(log_teacher, log_student):
    probability = tf.exp(log_teacher)
    return tf.where(probability > 0, probability * (log_teacher - log_student), 0.0)


def _unit(x):
    return x * tf.math.rsqrt(tf.maximum(tf.reduce_sum(x * x, axis=-1, keepdims=True), SQUARED_NORM_FLOOR))


def _log_relations(x, heads: int, mask):
    """[B, T, D] -> logarithms of relations [B, heads, T, T]."""
    shape, width = tf.shape(x), x.shape[-1] // heads
    parts = tf.transpose(tf.reshape(x, [shape[0], shape[1], heads, width]), [0, 2, 1, 3])  # [B, heads, T, D / heads]
    scores = tf.matmul(parts, parts, transpose_b=True) * width**-0.5
    keys = ops.expand_dims(_counted(mask, x[..., 0]), (1, 2))  # [B, 1, 1, T]
    return tf.nn.log_softmax(tf.where(keys, scores, MASKED_LOGIT))


def _counted(mask, each):
    """Whether each counts: bool, the shape of ``each``."""
    if mask is None:
        return tf.ones_like(each, tf.bool)
    return tf.broadcast_to(_widened(tf.cast(mask, tf.bool), each), tf.shape(each))


def _widened(x, each):
    """With as many axes as ``each``, ones behind."""
    return tf.reshape(x, tf.concat([tf.shape(x), tf.ones(each.shape.rank - x.shape.rank, tf.int32)], 0))


def _summed(each, mask, sample_weight):
    """each: float32 [B, ...] -> sum, count."""
    counted = _counted(mask, each)
    each = tf.where(counted, each, 0.0)
    if sample_weight is not None:
        each = each * _widened(tf.cast(sample_weight, tf.float32), each)
    return tf.reduce_sum(each), tf.reduce_sum(tf.cast(counted, tf.float32))
