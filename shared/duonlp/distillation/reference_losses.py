"""The losses of a distillation in NumPy and float64, written down from their definitions: what both frameworks are tested by.

``jaxnlp/distillation/losses.py`` and ``tfnlp/distillation/losses.py`` have the same functions: sums over what is compared, and
how many there are. ``mask`` is 0 where nothing counts, ``sample_weight`` multiplies what does; both are [B], or have more of
the axes that are compared.
"""

import numpy as np

PROBABILITY_FLOOR = 1e-8
"""Attention probabilities below it are taken for it in a logarithm: they are 0 exactly where nothing is looked at."""

SQUARED_NORM_FLOOR = 1e-16
"""A squared length below it is taken for it in a cosine, as torch.nn.functional.cosine_similarity does."""


def softmax(x):
    """exp(x) over its sum along the last axis: float64."""
    x = np.asarray(x, np.float64)
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def kl_divergence_sum(student_logits, teacher_logits, temperature=1.0, mask=None, sample_weight=None):
    """KL(teacher || student) of softmaxes of logits / temperature, in nats, without the factor T^2 (Hinton et al. 2015,
    https://arxiv.org/abs/1503.02531, section 2). logits: [..., C]; mask: [...]. Counts distributions."""
    student, teacher = (np.asarray(x, np.float64) / temperature for x in (student_logits, teacher_logits))
    return _summed(np.sum(softmax(teacher) * (_log_softmax(teacher) - _log_softmax(student)), -1), mask, sample_weight)


def bernoulli_kl_divergence_sum(student_logits, teacher_logits, temperature=1.0, mask=None, sample_weight=None):
    """p log(p / q) + (1 - p) log((1 - p) / (1 - q)) of every class, p = sigmoid(teacher / temperature) and q the student's.
    logits: [B, C]; mask: [B]. Counts classes of all rows."""
    student, teacher = (np.asarray(x, np.float64) / temperature for x in (student_logits, teacher_logits))
    total = 0.0
    for sign in (1, -1):  # yes and no
        log_p, log_q = -np.logaddexp(0, -sign * teacher), -np.logaddexp(0, -sign * student)
        total = total + np.exp(log_p) * (log_p - log_q)
    return _summed(total, mask, sample_weight)


def squared_error_sum(student_logits, teacher_logits, mask=None, sample_weight=None):
    """(student - teacher)^2. logits: [B, C]; mask: [B]. Counts values."""
    difference = np.asarray(student_logits, np.float64) - np.asarray(teacher_logits, np.float64)
    return _summed(difference**2, mask, sample_weight)


def hidden_mse_sum(student, teacher, mask=None, sample_weight=None):
    """The mean over D of (student - teacher)^2. student, teacher: [B, T, D]; mask: [B, T]. Counts tokens."""
    difference = np.asarray(student, np.float64) - np.asarray(teacher, np.float64)
    return _summed(np.mean(difference**2, axis=-1), mask, sample_weight)


def hidden_cosine_sum(student, teacher, mask=None, sample_weight=None):
    """1 - student . teacher / (|student| |teacher|), [B, T, D]; mask: [B, T]. Counts tokens."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    lengths = [np.maximum(np.linalg.norm(x, axis=-1), SQUARED_NORM_FLOOR**0.5) for x in (student, teacher)]
    return _summed(1 - np.sum(student * teacher, axis=-1) / (lengths[0] * lengths[1]), mask, sample_weight)


def attention_kl_sum(student, teacher, mask=None, sample_weight=None):
    """Wang et al. 2020, https://arxiv.org/abs/2002.10957, equation 5: 1 / heads * sum over heads of KL(teacher || student).
    student, teacher: probabilities [B, N, T, S], of which those below PROBABILITY_FLOOR count as that; mask: [B, T]. Counts
    queries."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    log_student, log_teacher = (np.log(np.maximum(x, PROBABILITY_FLOOR)) for x in (student, teacher))
    each = np.sum(teacher * (log_teacher - log_student), axis=-1)  # [B, N, T]
    return _summed(np.mean(each, axis=1), mask, sample_weight)


def attention_mse_sum(student, teacher, mask=None, sample_weight=None):
    """The mean over heads and attended keys of (student - teacher)^2. student, teacher: probabilities [B, N, T, T]; mask:
    [B, T], of keys as of queries. Counts queries."""
    squares = (np.asarray(student, np.float64) - np.asarray(teacher, np.float64)) ** 2
    rows, _, length, _ = squares.shape
    each = np.zeros((rows, length))
    for row, keys in enumerate(_counted(mask, each)):
        if keys.any():
            each[row] = squares[row][:, :, keys].mean(axis=(0, 2))
    return _summed(each, mask, sample_weight)


def relation_kl_sum(student, teacher, heads, mask=None, sample_weight=None):
    """Wang et al. 2021, https://arxiv.org/abs/2012.15828, equations 4 to 6: 1 / heads * sum over relation heads of
    KL(teacher || student), where a relation is softmax(A A^T / sqrt(width of A)) and A a head of queries, keys or values.

    Args:
        student, teacher: [B, T, D] and [B, T, D'], both widths divisible by heads.
        mask: [B, T]: tokens are related to those it has alone. Counts tokens.
    """
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    rows, length, _ = student.shape
    each = np.zeros((rows, length))
    for row, real in enumerate(_counted(mask, each)):
        if not real.any():
            continue
        parts = zip(np.split(student[row, real], heads, axis=-1), np.split(teacher[row, real], heads, axis=-1))
        for mine, others in parts:  # [tokens, width of a head]
            log_student, log_teacher = (_log_softmax(a @ a.T / np.sqrt(a.shape[-1])) for a in (mine, others))
            each[row, real] += np.sum(np.exp(log_teacher) * (log_teacher - log_student), axis=-1) / heads
    return _summed(each, mask, sample_weight)


def _log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


def _counted(mask, each):
    if mask is None:
        return np.ones(each.shape, bool)
    return np.broadcast_to(_widened(np.asarray(mask) != 0, each), each.shape)


def _widened(x, each):
    return x.reshape(x.shape + (1,) * (each.ndim - x.ndim))


def _summed(each, mask, sample_weight):
    counted = _counted(mask, each)
    weights = np.ones(1) if sample_weight is None else _widened(np.asarray(sample_weight, np.float64), each)
    return float(np.sum(np.where(counted, each * weights, 0.0))), float(counted.sum())
