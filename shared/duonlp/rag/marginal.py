"""Marginalization over documents: the two models of Lewis et al. 2020 (https://arxiv.org/abs/2005.11401, section 2.1).

    RAG-Sequence:  p(y|x) = sum over z of p(z|x) * product over i of p(y_i | x, z, y_1 ... y_i-1)
    RAG-Token:     p(y|x) = product over i of the sum over z of p(z|x) * p(y_i | x, z, y_1 ... y_i-1)

Written over ``ops`` for both engines. B: rows, K: documents per row, U: length of the labels, V: vocabulary. As in Transformers,
labels are what the decoder reads, and each of them is predicted from those before it; pad tokens do not count.
"""

from duonlp.generation.strategies.search import logsumexp
from duonlp.typing import Array, Ops


def token_logprobs(ops: Ops, logits: Array, doc_scores: Array) -> Array:
    """Return RAG-Token's log probabilities of the next tokens, float32 [B, U, V].

    Args:
        ops: Array operations of the framework.
        logits: [B * K, U, V], of each row and document.
        doc_scores: float [B, K].
    """
    prior = ops.expand_dims(ops.log_softmax(ops.cast(doc_scores, "float32")), (2, 3))
    return logsumexp(ops, _logprobs(ops, logits, doc_scores) + prior, 1)


def token_nll(
    ops: Ops, logits: Array, doc_scores: Array, labels: Array, *, padding: int, label_smoothing: float = 0.0
) -> Array:
    """Return RAG-Token's negative log-likelihood of each row's labels, float32 [B].

    Args:
        ops: Array operations of the framework.
        logits: [B * K, U, V].
        doc_scores: float [B, K].
        labels: int [B, U].
        padding: Id of padding among the labels.
        label_smoothing: Share of the labels' weight that all tokens get, in nats over the vocabulary.
    """
    logprobs, targets = token_logprobs(ops, logits, doc_scores), _targets(ops, labels, padding)
    counts = targets != padding
    total = ops.sum(ops.where(counts, _pick(ops, logprobs, targets), 0.0), axis=1)
    if not label_smoothing:
        return -total
    smooth = ops.sum(ops.where(counts, ops.sum(logprobs, axis=-1), 0.0), axis=1)
    return _smoothed(total, smooth, label_smoothing, logits.shape[-1])


def sequence_nll(
    ops: Ops, logits: Array, doc_scores: Array, labels: Array, *, padding: int, label_smoothing: float = 0.0,
    excluded_start: int | None = None,
) -> Array:  # fmt: skip
    """Return RAG-Sequence's negative log-likelihood of each row's labels, float32 [B].

    The arguments are those of :func:`token_nll`, and:

    Args:
        ops: Array operations of the framework.
        logits: [B * K, U, V].
        doc_scores: float [B, K].
        labels: int [B, U].
        padding: See token_nll.
        label_smoothing: See token_nll.
        excluded_start: Id whose score is left out if it is the first token predicted in every row; None for no such id.
    """
    logprobs, targets = _logprobs(ops, logits, doc_scores), _targets(ops, labels, padding)  # [B, K, U, V], [B, U]
    position = ops.expand_dims(ops.arange(ops.size(targets, 1)), 0)  # [1, U]
    counts = targets != padding
    # The probability of the document is counted once, with the second token; in Transformers, too.
    prior = ops.expand_dims(ops.log_softmax(ops.cast(doc_scores, "float32")), 2)  # [B, K, 1]
    prior = ops.where(ops.expand_dims(position == 1, 1), prior, 0.0)  # [B, K, U]
    scored = counts
    if excluded_start is not None:
        has_start = ops.all(targets[:, 0] == excluded_start, axis=0)
        scored = counts & ~(has_start & (position == 0))

    def total(values: Array, mask: Array) -> Array:
        return logsumexp(ops, ops.sum(ops.where(ops.expand_dims(mask, 1), values, 0.0), axis=2), 1)

    likelihood = total(_pick(ops, logprobs, ops.expand_dims(targets, 1)) + prior, scored)
    if not label_smoothing:
        return -likelihood
    vocabulary = logits.shape[-1]
    smooth = total(ops.sum(logprobs, axis=-1) + prior * vocabulary, counts)
    return _smoothed(likelihood, smooth, label_smoothing, vocabulary)


def _logprobs(ops: Ops, logits: Array, doc_scores: Array) -> Array:
    """Return log probabilities float32 [B, K, U, V] of logits [B * K, U, V]."""
    logprobs = ops.log_softmax(ops.cast(logits, "float32"))
    shape = ops.size(doc_scores, 0), ops.size(doc_scores, 1), ops.size(logits, 1), logits.shape[-1]
    return ops.reshape(logprobs, shape)


def _targets(ops: Ops, labels: Array, padding: int) -> Array:
    """Return what each position of the decoder predicts, int [B, U]: the next label, and padding after the last one."""
    return ops.concat([labels[:, 1:], labels[:, :1] * 0 + padding], 1)


def _pick(ops: Ops, logprobs: Array, targets: Array) -> Array:
    """Return the log probabilities [...] of targets int [...], which broadcasts to them, among [..., V]."""
    is_target = ops.arange(logprobs.shape[-1]) == ops.expand_dims(targets, -1)
    return ops.sum(ops.where(is_target, logprobs, 0.0), axis=-1)


def _smoothed(likelihood: Array, smooth: Array, label_smoothing: float, vocabulary: int) -> Array:
    return -(1.0 - label_smoothing) * likelihood - label_smoothing / vocabulary * smooth
