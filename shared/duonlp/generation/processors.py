"""Logits processors: pure functions ``(ids, logits, step) -> logits`` that every strategy uses.

    ids: int32 [rows, columns], the texts so far, ``ids[:, :step]``; -1 on padding and on columns not
        generated yet.
    logits: float32 [rows, V], of the token in column ``step``; log probabilities in beam search.
    step: int32 scalar, the column being decided. Counts prompt columns, padding included.

Each function below builds one. Its first argument is an ops module; jaxnlp.generation.processors and
tfnlp.generation.processors bind their own. Other arguments may be Python numbers or traced arrays, for
which new values do not recompile, except sizes, which determine shapes. Processors compute the same as the
corresponding classes in Transformers' ``generation/logits_process.py``.
"""

from duonlp.generation.config import Processor
from duonlp.typing import Array, Ops

NEVER = float("-inf")

FLOAT32_MAX = 3.4028235e38

ANY = -2
"""Wildcard in a table of token sequences: matches any id. (-1 is padding, in ids.)"""


def temperature(ops: Ops, temperature: Array) -> Processor:
    """Divide by the temperature: below 1 sharpens the distribution, above 1 flattens it."""
    return lambda ids, logits, step: logits / temperature


def repetition_penalty(ops: Ops, penalty: Array) -> Processor:
    """Penalize tokens of the text: divide positive logits by the penalty and multiply negative ones.

    Keskar et al. 2019, https://arxiv.org/abs/1909.05858.
    """

    def process(ids: Array, logits: Array, step: Array) -> Array:
        penalized = ops.where(logits < 0, logits * penalty, logits / penalty)
        return ops.where(ops.marked(ids, ids >= 0, logits.shape[-1]), penalized, logits)

    return process


def encoder_repetition_penalty(ops: Ops, penalty: Array, source_ids: Array) -> Processor:
    """Favor tokens of the source, against hallucination: the inverse of :func:`repetition_penalty`.

    Args:
        ops: Ops module.
        penalty: Above 1 favors tokens of the source.
        source_ids: int32 [prompts, S], -1 on padding.
    """

    def process(ids: Array, logits: Array, step: Array) -> Array:
        source = ops.repeat(source_ids, logits.shape[0] // source_ids.shape[0], 0)
        raised = ops.where(logits < 0, logits / penalty, logits * penalty)
        return ops.where(ops.marked(source, source >= 0, logits.shape[-1]), raised, logits)

    return process


def no_repeat_ngram(ops: Ops, size: int) -> Processor:
    """Forbid tokens that would repeat an n-gram of ``size`` tokens in the text."""
    return lambda ids, logits, step: _forbid_ngrams(ops, size, ids, ids, logits, step)


def encoder_no_repeat_ngram(ops: Ops, size: int, source_ids: Array) -> Processor:
    """Forbid tokens that would repeat an n-gram of ``size`` tokens in the source, int32 [prompts, S]."""

    def process(ids: Array, logits: Array, step: Array) -> Array:
        source = ops.repeat(source_ids, logits.shape[0] // source_ids.shape[0], 0)
        return _forbid_ngrams(ops, size, source, ids, logits, step)

    return process


def _forbid_ngrams(ops: Ops, size: int, reference: Array, ids: Array, logits: Array, step: Array) -> Array:
    """Forbid tokens that would repeat an n-gram in ``reference``, int32 [rows, n], -1 on padding."""
    windows = reference.shape[1] - size + 1
    if windows < 1:
        return logits
    matches = reference[:, size - 1 :] >= 0  # [rows, windows]
    for i in range(size - 1):
        previous = column_at(ops, ids, step - (size - 1) + i)  # [rows, 1]
        matches = matches & (reference[:, i : i + windows] == previous) & (previous >= 0)
    return ops.where(ops.marked(reference[:, size - 1 :], matches, logits.shape[-1]), NEVER, logits)


def sequence_bias(ops: Ops, prefixes: Array, last: Array, bias: Array) -> Processor:
    """Add a bias to the token that would complete a sequence; -inf forbids the sequence.

    Args:
        ops: Ops module.
        prefixes: int32 [n, m], the sequences without their last token, right-aligned and padded with ANY.
        last: int32 [n], their last tokens.
        bias: float32 [n].
    """

    def process(ids: Array, logits: Array, step: Array) -> Array:
        m = prefixes.shape[1]
        matches = ops.full((ids.shape[0], prefixes.shape[0]), True, "bool")
        for i in range(m):
            expected = ops.expand_dims(prefixes[:, i], 0)  # [1, n]
            matches = matches & ((expected == ANY) | (expected == column_at(ops, ids, step - m + i)))
        added = ops.where(matches, ops.broadcast_to(ops.expand_dims(bias, 0), matches.shape), 0.0)
        return logits + ops.add_at(added, last, logits.shape[-1])

    return process


def no_end_before(ops: Ops, eos_ids: Array, column: Array) -> Processor:
    """Forbid the end of the text in columns before ``column``; eos_ids: int32 [n], padded with -1."""

    def process(ids: Array, logits: Array, step: Array) -> Array:
        ends = token_mask(ops, eos_ids, logits.shape[-1])
        return ops.where(ends & (step < column), NEVER, logits)

    return process


def forced_tokens(ops: Ops, tokens: Array, column: Array) -> Processor:
    """Allow only ``tokens`` (int32 [n], padded with -1) in one column."""

    def process(ids: Array, logits: Array, step: Array) -> Array:
        forced = ops.where(token_mask(ops, tokens, logits.shape[-1]), ops.full((1, 1), 0.0, "float32"), NEVER)
        return ops.where(ops.cast(step == column, "bool"), ops.broadcast_to(forced, logits.shape), logits)

    return process


def remove_invalid_values(ops: Ops) -> Processor:
    """Replace NaN by 0, and infinities by the largest and smallest finite numbers."""

    def process(ids: Array, logits: Array, step: Array) -> Array:
        logits = ops.where(logits == logits, logits, 0.0)
        return ops.minimum(ops.maximum(logits, -FLOAT32_MAX), FLOAT32_MAX)

    return process


def exponential_decay_length_penalty(ops: Ops, eos_ids: Array, start: Array, growth: Array) -> Processor:
    """Raise the logits of the eos ids progressively in columns after ``start``.

    Args:
        ops: Ops module.
        eos_ids: int32 [n], padded with -1.
        start: Column after which the logits are raised.
        growth: float32 [columns], factor ** i - 1: what is added after i columns, relative to the logit's
            magnitude.
    """

    def process(ids: Array, logits: Array, step: Array) -> Array:
        ends = token_mask(ops, eos_ids, logits.shape[-1])
        added = ops.where(ops.isfinite(logits), ops.abs(logits), 0.0) * ops.take(growth, ops.maximum(step - start, 0))
        return ops.where(ends & (step > start), logits + added, logits)

    return process


def suppress_tokens(ops: Ops, tokens: Array) -> Processor:
    """Forbid tokens, int32 [n], padded with -1."""
    return lambda ids, logits, step: ops.where(token_mask(ops, tokens, logits.shape[-1]), NEVER, logits)


def suppress_tokens_at(ops: Ops, tokens: Array, column: Array) -> Processor:
    """Forbid tokens, int32 [n], padded with -1, in one column."""

    def process(ids: Array, logits: Array, step: Array) -> Array:
        return ops.where(token_mask(ops, tokens, logits.shape[-1]) & (step == column), NEVER, logits)

    return process


def top_h(ops: Ops, h: Array, most: int = 100) -> Processor:
    """Keep the most likely tokens whose total entropy is at most ``h`` times that of the ``most`` most
    likely ones.

    Potraghloo et al. 2025, https://arxiv.org/abs/2509.02510.
    """

    def process(ids: Array, logits: Array, step: Array) -> Array:
        best, order = ops.top_k(logits, min(most, logits.shape[-1]))
        log_probabilities = ops.log_softmax(best)
        terms = ops.where(log_probabilities > NEVER, -ops.exp(log_probabilities) * log_probabilities, 0.0)
        keep = ops.cumsum(terms) <= h * ops.sum(terms, -1, keepdims=True)
        keep = keep | ops.expand_dims(ops.arange(best.shape[-1]) == 0, 0)
        return ops.where(ops.marked(order, keep, logits.shape[-1]), logits, NEVER)

    return process


def top_k(ops: Ops, k: int, min_tokens_to_keep: int = 1) -> Processor:
    """Keep the k most likely tokens, and any tied with the last of them; keep all if the vocabulary is
    smaller than k.

    Fan et al. 2018, https://arxiv.org/abs/1805.04833.
    """
    return lambda ids, logits, step: ops.where(
        logits < kth_largest(ops, logits, max(k, min_tokens_to_keep)), NEVER, logits
    )


def top_p(ops: Ops, p: Array, min_tokens_to_keep: int = 1) -> Processor:
    """Keep the smallest set of tokens whose total probability is at least p.

    Holtzman et al. 2019, https://arxiv.org/abs/1904.09751.
    """

    def process(ids: Array, logits: Array, step: Array) -> Array:
        order = ops.argsort(logits)
        cumulative = ops.cumsum(ops.exp(ops.log_softmax(ops.take_along(logits, order, -1))))
        last = ops.arange(logits.shape[-1]) >= logits.shape[-1] - min_tokens_to_keep
        keep = (cumulative > 1 - p) | ops.expand_dims(last, 0)
        return ops.where(ops.put_along(ops.cast(keep, "int32"), order) > 0, logits, NEVER)

    return process


def min_p(ops: Ops, p: Array, min_tokens_to_keep: int = 1) -> Processor:
    """Keep tokens at least p times as likely as the most likely one.

    Nguyen et al. 2024, https://arxiv.org/abs/2407.01082.
    """

    def process(ids: Array, logits: Array, step: Array) -> Array:
        probabilities = ops.exp(ops.log_softmax(logits))
        unlikely = probabilities < p * ops.max(probabilities, -1, keepdims=True)
        _, best = ops.top_k(probabilities, min(min_tokens_to_keep, logits.shape[-1]))
        keep = ops.marked(best, best >= 0, logits.shape[-1])
        return ops.where(unlikely & ~keep, NEVER, logits)

    return process


def typical_p(ops: Ops, p: Array, min_tokens_to_keep: int = 1) -> Processor:
    """Keep the tokens whose surprisal is closest to the entropy, up to a total probability of p.

    Meister et al. 2022, https://arxiv.org/abs/2202.00666.
    """

    def process(ids: Array, logits: Array, step: Array) -> Array:
        size = logits.shape[-1]
        log_probabilities = ops.log_softmax(logits)
        terms = ops.where(log_probabilities > NEVER, log_probabilities * ops.exp(log_probabilities), 0.0)
        shifted = ops.abs(-log_probabilities + ops.sum(terms, -1, keepdims=True))
        order = ops.argsort(shifted)
        distance = ops.take_along(shifted, order, -1)
        cumulative = ops.cumsum(ops.exp(ops.log_softmax(ops.take_along(logits, order, -1))))
        last = ops.sum(ops.cast(cumulative < p, "int32"), -1, keepdims=True)
        last = ops.minimum(last, size - 1)
        keep = distance <= ops.take_along(distance, last, -1)
        keep = keep | ops.expand_dims(ops.arange(size) < min_tokens_to_keep, 0)
        return ops.where(ops.put_along(ops.cast(keep, "int32"), order) > 0, logits, NEVER)

    return process


def epsilon_cutoff(ops: Ops, epsilon: Array, min_tokens_to_keep: int = 1) -> Processor:
    """Keep tokens with a probability of at least epsilon (Hewitt et al. 2022, https://arxiv.org/abs/2210.15191)."""

    def process(ids: Array, logits: Array, step: Array) -> Array:
        unlikely = ops.exp(ops.log_softmax(logits)) < epsilon
        return ops.where(unlikely & (logits < kth_largest(ops, logits, min_tokens_to_keep)), NEVER, logits)

    return process


def eta_cutoff(ops: Ops, epsilon: Array, min_tokens_to_keep: int = 1) -> Processor:
    """Keep tokens with a probability of at least min(epsilon, sqrt(epsilon) * exp(-entropy)) (Hewitt et al. 2022)."""

    def process(ids: Array, logits: Array, step: Array) -> Array:
        log_probabilities = ops.log_softmax(logits)
        probabilities = ops.exp(log_probabilities)
        # Clip -inf to the smallest float, as torch.distributions.Categorical does, so that its term is 0.
        entropy = -ops.sum(probabilities * ops.maximum(log_probabilities, -FLOAT32_MAX), -1, keepdims=True)
        eta = ops.minimum(ops.cast(epsilon, "float32"), ops.sqrt(ops.cast(epsilon, "float32")) * ops.exp(-entropy))
        return ops.where((probabilities < eta) & (logits < kth_largest(ops, logits, min_tokens_to_keep)), NEVER, logits)

    return process


def renormalize(ops: Ops) -> Processor:
    """Apply log softmax, so that probabilities sum to 1 again."""
    return lambda ids, logits, step: ops.log_softmax(logits)


def kth_largest(ops: Ops, logits: Array, k: int) -> Array:
    """Return the k-th largest logit of each row, [rows, 1]."""
    return ops.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]


def column_at(ops: Ops, ids: Array, index: Array) -> Array:
    """Return the ids [rows, 1] of one column; -1 if the index is negative."""
    column = ops.take_along(ids, ops.full((ids.shape[0], 1), ops.maximum(index, 0), "int32"), 1)
    return ops.where(ops.cast(index >= 0, "bool"), column, -1)


def token_mask(ops: Ops, tokens: Array, size: int) -> Array:
    """Return bool [1, size]: whether each token of the vocabulary is among ``tokens`` [n]."""
    tokens = ops.expand_dims(tokens, 0)
    return ops.marked(tokens, (tokens >= 0) & (tokens < size), size)
