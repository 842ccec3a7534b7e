"""What a student is told by its teacher: sums over what is compared, and how many there are, as float32 scalars.

Sums and counts add up over pieces of a batch, devices and hosts; a count depends on masks alone. ``mask`` is 0 where nothing
counts, ``sample_weight`` multiplies what does; both are [B], or have more of the axes that are compared. Teachers' values
get no gradient, and the arithmetic is in float32 whatever the values are. ``duonlp.distillation.reference_losses`` has the same
in NumPy.
"""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from duonlp.distillation.pair import Distillation
from duonlp.distillation.reference_losses import PROBABILITY_FLOOR, SQUARED_NORM_FLOOR
from duonlp.distillation.terms import MASKED_LOGIT, distillation_terms
from jaxnlp import ops


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
    return sum((factor * each / jnp.maximum(count, 1.0) for each, count, factor in terms.values()), jnp.zeros(()))


def kl_divergence_sum(student_logits, teacher_logits, temperature=1.0, mask=None, sample_weight=None):
    """KL(teacher || student) of softmaxes of logits / temperature, in nats, without the factor T^2 (Hinton et al. 2015,
    https://arxiv.org/abs/1503.02531). logits: [..., C]; mask: [...]. Counts distributions."""
    log_student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    log_teacher = jax.nn.log_softmax(_fixed(teacher_logits) / temperature)
    return _summed(_divergence(log_teacher, log_student), mask, sample_weight)


def bernoulli_kl_divergence_sum(student_logits, teacher_logits, temperature=1.0, mask=None, sample_weight=None):
    """KL(teacher || student) of each class by itself, with probabilities sigmoid(logits / temperature), without the factor
    T^2. logits: [B, C]; mask: [B]. Counts classes of all rows, as the mean of a binary cross-entropy does."""
    student, teacher = student_logits.astype(jnp.float32) / temperature, _fixed(teacher_logits) / temperature
    yes = _log_ratio(jax.nn.log_sigmoid(teacher), jax.nn.log_sigmoid(student))
    no = _log_ratio(jax.nn.log_sigmoid(-teacher), jax.nn.log_sigmoid(-student))
    return _summed(yes + no, mask, sample_weight)


def squared_error_sum(student_logits, teacher_logits, mask=None, sample_weight=None):
    """(student - teacher)^2. logits: [B, C]; mask: [B]. Counts values."""
    return _summed(jnp.square(student_logits.astype(jnp.float32) - _fixed(teacher_logits)), mask, sample_weight)


def hidden_mse_sum(student, teacher, mask=None, sample_weight=None):
    """The mean over D of (student - teacher)^2. student, teacher: [B, T, D]; mask: [B, T]. Counts tokens."""
    each = jnp.mean(jnp.square(student.astype(jnp.float32) - _fixed(teacher)), axis=-1)
    return _summed(each, mask, sample_weight)


def hidden_cosine_sum(student, teacher, mask=None, sample_weight=None):
    """1 - the cosine of student and teacher, [B, T, D]; mask: [B, T]. Counts tokens."""
    return _summed(1 - jnp.sum(_unit(student.astype(jnp.float32)) * _unit(_fixed(teacher)), -1), mask, sample_weight)


def attention_kl_sum(student, teacher, mask=None, sample_weight=None):
    """The mean over heads of KL(teacher || student). student, teacher: probabilities [B, N, T, S], of which those below
    PROBABILITY_FLOOR count as that; mask: [B, T]. Counts queries."""
    student, teacher = student.astype(jnp.float32), _fixed(teacher)
    log_student, log_teacher = (jnp.log(jnp.maximum(x, PROBABILITY_FLOOR)) for x in (student, teacher))
    each = jnp.sum(teacher * (log_teacher - log_student), axis=-1)  # [B, N, T]
    return _summed(each.mean(axis=1), mask, sample_weight)


def attention_mse_sum(student, teacher, mask=None, sample_weight=None):
    """The mean over heads and attended keys of (student - teacher)^2. student, teacher: probabilities [B, N, T, T]; mask:
    [B, T], of keys as of queries. Counts queries."""
    squares = jnp.mean(jnp.square(student.astype(jnp.float32) - _fixed(teacher)), axis=1)  # [B, T, S]
    keys = jnp.expand_dims(_counted(mask, squares[:, 0]), 1).astype(jnp.float32)  # [B, 1, S]
    each = jnp.sum(squares * keys, axis=-1) / jnp.maximum(jnp.sum(keys, axis=-1), 1.0)
    return _summed(each, mask, sample_weight)


def relation_kl_sum(student, teacher, heads, mask=None, sample_weight=None):
    """The mean over relation heads of KL(teacher || student), of how each token relates to all attended ones: the softmax of
    the products of their vectors, over the root of a head's width (Wang et al. 2021, https://arxiv.org/abs/2012.15828).

    Args:
        student, teacher: queries, keys or values: [B, T, D] and [B, T, D'], both widths divisible by heads.
        mask: [B, T]. Counts tokens.
    """
    log_student, log_teacher = (_log_relations(x, heads, mask) for x in (student.astype(jnp.float32), _fixed(teacher)))
    return _summed(_divergence(log_teacher, log_student).mean(axis=1), mask, sample_weight)


def queries_keys_values(model, hidden_states, layer: int) -> dict:
    """What layer ``layer``, from 0 on, makes of the states that it reads: {"query", "key", "value"}, [B, T, N * H] each.

    hidden_states: all of a model's, as it gives them.
    """
    part = getattr(getattr(model, model.config.stack), f"layer_{model.config.layer_order[layer]}")
    x = hidden_states[:-1][layer]
    projected = part.attention._project(part.attention_norm(x) if part.pre_norm else x)
    return dict(zip(("query", "key", "value"), projected))


def projected(hidden_states, kernel):
    """[B, T, D] times a kernel [D, D']: [B, T, D'], in the dtype of the states."""
    return hidden_states @ kernel.astype(hidden_states.dtype)


def in_order(logits, label_order):
    """Logits [..., C] with their classes in another order, int [C]."""
    return jnp.take(logits, jnp.asarray(label_order), axis=-1)


def _fixed(x):
    return jax.lax.stop_gradient(x.astype(jnp.float32))


def _divergence(log_teacher, log_student):
    """[..., C], logarithms of probabilities -> [...]; what has no probability adds nothing."""
    return jnp.sum(_log_ratio(log_teacher, log_student), axis=-1)


def _log_ratio(log_teacher, log_student):
    probability = jnp.exp(log_teacher)
    return jnp.where(probability > 0, probability * (log_teacher - log_student), 0.0)


def _unit(x):
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), SQUARED_NORM_FLOOR))


def _log_relations(x, heads: int, mask):
    """[B, T, D] -> logarithms of relations [B, heads, T, T]."""
    parts = x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)  # [B, heads, T, D / heads]
    scores = jnp.matmul(parts, parts.mT) * parts.shape[-1] ** -0.5
    keys = jnp.expand_dims(_counted(mask, x[..., 0]), (1, 2))  # [B, 1, 1, T]
    return jax.nn.log_softmax(jnp.where(keys, scores, MASKED_LOGIT))


def _counted(mask, each):
    """Whether each counts: bool, the shape of ``each``."""
    return jnp.ones(each.shape, bool) if mask is None else jnp.broadcast_to(_widened(mask != 0, each), each.shape)


def _widened(x, each):
    """With as many axes as ``each``, ones behind."""
    return x.reshape(x.shape + (1,) * (each.ndim - x.ndim))


def _summed(each, mask, sample_weight):
    """each: float32 [B, ...] -> sum, count."""
    counted = _counted(mask, each)
    each = jnp.where(counted, each, 0.0)
    if sample_weight is not None:
        each = each * _widened(jnp.asarray(sample_weight, jnp.float32), each)
    return jnp.sum(each), jnp.sum(counted, dtype=jnp.float32)
