"""Distillation losses in NumPy and float64, written from their definitions as the test reference for both frameworks.

``jaxnlp/distillation/losses.py`` and ``tfnlp/distillation/losses.py`` have the same functions. Each returns (sum, count): the sum
of the loss over the compared items, and their number. ``mask`` is 0 for items that do not count and ``sample_weight``
multiplies those that do; both are [B], or have more of the compared axes.
"""

import numpy as np
from numpy.typing import ArrayLike

PROBABILITY_FLOOR = 1e-8
"""Lower bound of attention probabilities in logarithms; they are exactly 0 at masked keys."""

SQUARED_NORM_FLOOR = 1e-16
"""Lower bound of squared norms in a cosine, as in torch.nn.functional.cosine_similarity."""


def softmax(x: ArrayLike) -> np.ndarray:
    """Return the softmax over the last axis, in float64."""
    x = np.asarray(x, np.float64)
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def kl_divergence_sum(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> tuple[float, float]:
    """Sum KL(teacher || student) of softmaxes of logits / temperature, in nats, without the factor T^2.

    From Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2.

    Args:
        student_logits: [..., C].
        teacher_logits: [..., C].
        temperature: T, the divisor of the logits.
        mask: [...].
        sample_weight: [...].

    Returns:
        (sum, number of distributions).
    """
    student, teacher = (np.asarray(x, np.float64) / temperature for x in (student_logits, teacher_logits))
    divergence = np.sum(softmax(teacher) * (_log_softmax(teacher) - _log_softmax(student)), axis=-1)
    return _masked_sum(divergence, mask, sample_weight)


def bernoulli_kl_divergence_sum(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> tuple[float, float]:
    """Sum p log(p / q) + (1 - p) log((1 - p) / (1 - q)) over all classes.

    Here p = sigmoid(teacher_logits / temperature), and q is the same for the student.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        temperature: Divisor of the logits.
        mask: [B].
        sample_weight: [B].

    Returns:
        (sum, number of classes over all rows).
    """
    student, teacher = (np.asarray(x, np.float64) / temperature for x in (student_logits, teacher_logits))
    total = np.zeros(np.shape(student))
    for sign in (1, -1):  # the label applies, or does not
        log_p, log_q = -np.logaddexp(0, -sign * teacher), -np.logaddexp(0, -sign * student)
        total = total + np.exp(log_p) * (log_p - log_q)
    return _masked_sum(total, mask, sample_weight)


def squared_error_sum(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    mask: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> tuple[float, float]:
    """Sum (student - teacher)^2 over values [B, C], with a mask [B].

    Returns:
        (sum, number of values).
    """
    difference = np.asarray(student_logits, np.float64) - np.asarray(teacher_logits, np.float64)
    return _masked_sum(difference**2, mask, sample_weight)


def hidden_mse_sum(
    student: ArrayLike, teacher: ArrayLike, mask: ArrayLike | None = None, sample_weight: ArrayLike | None = None
) -> tuple[float, float]:
    """Sum the mean over D of (student - teacher)^2 over hidden states [B, T, D], with a mask [B, T].

    Returns:
        (sum, number of tokens).
    """
    difference = np.asarray(student, np.float64) - np.asarray(teacher, np.float64)
    return _masked_sum(np.mean(difference**2, axis=-1), mask, sample_weight)


def hidden_cosine_sum(
    student: ArrayLike, teacher: ArrayLike, mask: ArrayLike | None = None, sample_weight: ArrayLike | None = None
) -> tuple[float, float]:
    """Sum 1 - student . teacher / (|student| |teacher|) over hidden states [B, T, D], with a mask [B, T].

    Returns:
        (sum, number of tokens).
    """
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    norms = [np.maximum(np.linalg.norm(x, axis=-1), SQUARED_NORM_FLOOR**0.5) for x in (student, teacher)]
    return _masked_sum(1 - np.sum(student * teacher, axis=-1) / (norms[0] * norms[1]), mask, sample_weight)


def attention_kl_sum(
    student: ArrayLike, teacher: ArrayLike, mask: ArrayLike | None = None, sample_weight: ArrayLike | None = None
) -> tuple[float, float]:
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
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    log_student, log_teacher = (np.log(np.maximum(x, PROBABILITY_FLOOR)) for x in (student, teacher))
    divergence = np.sum(teacher * (log_teacher - log_student), axis=-1)  # [B, N, T]
    return _masked_sum(np.mean(divergence, axis=1), mask, sample_weight)


def attention_mse_sum(
    student: ArrayLike, teacher: ArrayLike, mask: ArrayLike | None = None, sample_weight: ArrayLike | None = None
) -> tuple[float, float]:
    """Sum the mean over heads and attended keys of (student - teacher)^2 of attention probabilities.

    Args:
        student: Probabilities [B, N, T, T].
        teacher: Probabilities [B, N, T, T].
        mask: [B, T], of keys and of queries.
        sample_weight: [B] or [B, T].

    Returns:
        (sum, number of queries).
    """
    squares = (np.asarray(student, np.float64) - np.asarray(teacher, np.float64)) ** 2
    rows, _, length, _ = squares.shape
    means = np.zeros((rows, length))
    for row, keys in enumerate(_real_items(mask, means)):
        if keys.any():
            means[row] = squares[row][:, :, keys].mean(axis=(0, 2))
    return _masked_sum(means, mask, sample_weight)


def relation_kl_sum(
    student: ArrayLike,
    teacher: ArrayLike,
    heads: int,
    mask: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> tuple[float, float]:
    """Sum the mean over relation heads of KL(teacher || student) of self-attention relations.

    A relation is softmax(A A^T / sqrt(width of A)), where A is a head of queries, keys or values. From Wang et al. 2021,
    https://arxiv.org/abs/2012.15828, equations 4 to 6.

    Args:
        student: [B, T, D].
        teacher: [B, T, D'].
        heads: Number of relation heads, which divides both widths.
        mask: [B, T]. Tokens are related only to tokens that count.
        sample_weight: [B] or [B, T].

    Returns:
        (sum, number of tokens).
    """
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    rows, length, _ = student.shape
    divergence = np.zeros((rows, length))
    for row, real in enumerate(_real_items(mask, divergence)):
        if not real.any():
            continue
        parts = zip(np.split(student[row, real], heads, axis=-1), np.split(teacher[row, real], heads, axis=-1))
        for part in parts:  # [tokens, width of a head] of the student and of the teacher
            log_student, log_teacher = (_log_softmax(a @ a.T / np.sqrt(a.shape[-1])) for a in part)
            divergence[row, real] += np.sum(np.exp(log_teacher) * (log_teacher - log_student), axis=-1) / heads
    return _masked_sum(divergence, mask, sample_weight)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


def _real_items(mask: ArrayLike | None, values: np.ndarray) -> np.ndarray:
    """Return the mask broadcast to the shape of the values, as booleans."""
    if mask is None:
        return np.ones(values.shape, bool)
    return np.broadcast_to(_with_trailing_axes(np.asarray(mask) != 0, values), values.shape)


def _with_trailing_axes(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape + (1,) * (values.ndim - x.ndim))


def _masked_sum(values: np.ndarray, mask: ArrayLike | None, sample_weight: ArrayLike | None) -> tuple[float, float]:
    real = _real_items(mask, values)
    weights = (
        np.ones(1) if sample_weight is None else _with_trailing_axes(np.asarray(sample_weight, np.float64), values)
    )
    return float(np.sum(np.where(real, values * weights, 0.0))), float(real.sum())
