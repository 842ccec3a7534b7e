"""Logits processors: pure functions ``(ids, logits, step) -> logits`` that every strategy uses.

    ids: int32 [rows, columns], the texts so far: ``ids[:, :step]``. Padding, and what is not decided yet, is -1.
    logits: float32 [rows, V], of the token at column ``step``; log probabilities in beam search.
    step: int32 scalar, the column that is being decided. ``columns_of_prompt`` below is where the new tokens begin.

Each function here makes one. Its first argument is an ops module: jaxnlp.generation.processors and
tfnlp.generation.processors have them with their own filled in. Values may be Python numbers or traced arrays (another
value then needs no compilation), except sizes, which decide shapes. They do what the classes of the same meaning in
Transformers' ``generation/logits_process.py`` do, where the papers are named.
"""

NEVER = float("-inf")
ANY = -2
"""In a table of token sequences: whatever stands here matches. (-1 is padding, in ids.)"""


def temperature(ops, temperature):
    """Divide by the temperature: below 1 sharpens the distribution, above 1 flattens it."""
    return lambda ids, logits, step: logits / temperature


def repetition_penalty(ops, penalty):
    """Make tokens of the text less likely: positive logits are divided by the penalty, negative multiplied
    (Keskar et al. 2019, https://arxiv.org/abs/1909.05858)."""

    def process(ids, logits, step):
        penalised = ops.where(logits < 0, logits * penalty, logits / penalty)
        return ops.where(ops.marked(ids, ids >= 0, logits.shape[-1]), penalised, logits)

    return process


def encoder_repetition_penalty(ops, penalty, source_ids):
    """Make tokens of the source likelier, above 1: the inverse of :func:`repetition_penalty`, against hallucination.

    source_ids: int32 [prompts, S], -1 on padding.
    """

    def process(ids, logits, step):
        source = ops.repeat(source_ids, logits.shape[0] // source_ids.shape[0], 0)
        raised = ops.where(logits < 0, logits / penalty, logits * penalty)
        return ops.where(ops.marked(source, source >= 0, logits.shape[-1]), raised, logits)

    return process


def no_repeat_ngram(ops, size):
    """Forbid what would complete an n-gram of ``size`` tokens that the text already has."""
    return lambda ids, logits, step: _forbid_ngrams(ops, size, ids, ids, logits, step)


def encoder_no_repeat_ngram(ops, size, source_ids):
    """Forbid what would complete an n-gram of ``size`` tokens that the source has. source_ids: int32 [prompts, S]."""

    def process(ids, logits, step):
        source = ops.repeat(source_ids, logits.shape[0] // source_ids.shape[0], 0)
        return _forbid_ngrams(ops, size, source, ids, logits, step)

    return process


def _forbid_ngrams(ops, size, where, ids, logits, step):
    """Forbid what would complete an n-gram that ``where`` has. where: int32 [rows, n], -1 where there is nothing."""
    windows = where.shape[1] - size + 1
    if windows < 1:
        return logits
    same = where[:, size - 1 :] >= 0
    for i in range(size - 1):
        last = column(ops, ids, step - (size - 1) + i)  # [rows, 1]
        same = same & (where[:, i : i + windows] == last) & (last >= 0)
    return ops.where(ops.marked(where[:, size - 1 :], same, logits.shape[-1]), NEVER, logits)


def sequence_bias(ops, prefixes, last, bias):
    """Add a bias to the token that would complete a sequence; -inf forbids the sequence.

    Args:
        prefixes: int32 [n, m]: the sequences without their last token, aligned right, filled up with ANY.
        last: int32 [n]: their last tokens.
        bias: float32 [n].
    """

    def process(ids, logits, step):
        m = prefixes.shape[1]
        matches = ops.full((ids.shape[0], prefixes.shape[0]), True, "bool")
        for i in range(m):
            wanted = ops.expand_dims(prefixes[:, i], 0)  # [1, n]
            matches = matches & ((wanted == ANY) | (wanted == column(ops, ids, step - m + i)))
        added = ops.where(matches, ops.broadcast_to(ops.expand_dims(bias, 0), matches.shape), 0.0)
        return logits + ops.add_at(added, last, logits.shape[-1])

    return process


def no_end_before(ops, eos_ids, column):
    """Forbid the end of the text in columns before ``column``. eos_ids: int32 [n], filled up with -1."""

    def process(ids, logits, step):
        ends = tokens_mask(ops, eos_ids, logits.shape[-1])
        return ops.where(ends & (step < column), NEVER, logits)

    return process


def forced_tokens(ops, tokens, column):
    """Allow nothing but ``tokens`` (int32 [n], filled up with -1) in one column."""

    def process(ids, logits, step):
        forced = ops.where(tokens_mask(ops, tokens, logits.shape[-1]), ops.full((1, 1), 0.0, "float32"), NEVER)
        return ops.where(ops.cast(step == column, "bool"), ops.broadcast_to(forced, logits.shape), logits)

    return process


def remove_invalid_values(ops):
    """nan becomes 0, infinities the largest and smallest numbers."""

    def process(ids, logits, step):
        most = 3.4028235e38
        logits = ops.where(logits == logits, logits, 0.0)
        return ops.minimum(ops.maximum(logits, -most), most)

    return process


def exponential_decay_length_penalty(ops, eos_ids, start, growth):
    """Raise the logits of ending, ever more, in columns after ``start``.

    Args:
        growth: float32 [columns]: factor ** i - 1, how much is added to a logit of size 1 after i columns.
    """

    def process(ids, logits, step):
        ends = tokens_mask(ops, eos_ids, logits.shape[-1])
        added = ops.where(ops.isfinite(logits), ops.abs(logits), 0.0) * ops.take(growth, ops.maximum(step - start, 0))
        return ops.where(ends & (step > start), logits + added, logits)

    return process


def suppress_tokens(ops, tokens):
    """Forbid tokens. tokens: int32 [n], filled up with -1."""
    return lambda ids, logits, step: ops.where(tokens_mask(ops, tokens, logits.shape[-1]), NEVER, logits)


def suppress_tokens_at(ops, tokens, column):
    """Forbid tokens in one column."""

    def process(ids, logits, step):
        return ops.where(tokens_mask(ops, tokens, logits.shape[-1]) & (step == column), NEVER, logits)

    return process


def top_h(ops, h, most=100):
    """Keep the most likely tokens as long as their entropy together is at most ``h`` times that of the ``most`` likeliest
    (Potraghloo et al. 2025, https://arxiv.org/abs/2509.02510)."""

    def process(ids, logits, step):
        best, order = ops.top_k(logits, min(most, logits.shape[-1]))
        log_probabilities = ops.log_softmax(best)
        terms = ops.where(log_probabilities > NEVER, -ops.exp(log_probabilities) * log_probabilities, 0.0)
        kept = ops.cumsum(terms) <= h * ops.sum(terms, -1, keepdims=True)
        kept = kept | ops.expand_dims(ops.arange(best.shape[-1]) == 0, 0)
        return ops.where(ops.marked(order, kept, logits.shape[-1]), logits, NEVER)

    return process


def top_k(ops, k, min_tokens_to_keep=1):
    """Keep the k most likely tokens, and those as likely as the last of them (Fan et al. 2018,
    https://arxiv.org/abs/1805.04833). A vocabulary smaller than k is kept whole."""
    return lambda ids, logits, step: ops.where(logits < kth(ops, logits, max(k, min_tokens_to_keep)), NEVER, logits)


def top_p(ops, p, min_tokens_to_keep=1):
    """Keep the fewest tokens that together have probability p (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751)."""

    def process(ids, logits, step):
        order = ops.argsort(logits)
        cumulative = ops.cumsum(ops.exp(ops.log_softmax(ops.take_along(logits, order, -1))))
        last = ops.arange(logits.shape[-1]) >= logits.shape[-1] - min_tokens_to_keep
        kept = (cumulative > 1 - p) | ops.expand_dims(last, 0)
        return ops.where(ops.put_along(ops.cast(kept, "int32"), order) > 0, logits, NEVER)

    return process


def min_p(ops, p, min_tokens_to_keep=1):
    """Keep tokens at least p times as likely as the most likely one (Nguyen et al. 2024,
    https://arxiv.org/abs/2407.01082)."""

    def process(ids, logits, step):
        probabilities = ops.exp(ops.log_softmax(logits))
        unlikely = probabilities < p * ops.max(probabilities, -1, keepdims=True)
        _, best = ops.top_k(probabilities, min(min_tokens_to_keep, logits.shape[-1]))
        kept = ops.marked(best, best >= 0, logits.shape[-1])
        return ops.where(unlikely & ~kept, NEVER, logits)

    return process


def typical_p(ops, p, min_tokens_to_keep=1):
    """Keep the tokens whose surprise is nearest to the entropy, that together have probability p (Meister et al. 2022,
    https://arxiv.org/abs/2202.00666)."""

    def process(ids, logits, step):
        size = logits.shape[-1]
        log_probabilities = ops.log_softmax(logits)
        terms = ops.where(log_probabilities > NEVER, log_probabilities * ops.exp(log_probabilities), 0.0)
        shifted = ops.abs(-log_probabilities + ops.sum(terms, -1, keepdims=True))
        order = ops.argsort(shifted)
        distance = ops.take_along(shifted, order, -1)
        cumulative = ops.cumsum(ops.exp(ops.log_softmax(ops.take_along(logits, order, -1))))
        last = ops.sum(ops.cast(cumulative < p, "int32"), -1, keepdims=True)
        last = ops.minimum(last, size - 1)
        kept = distance <= ops.take_along(distance, last, -1)
        kept = kept | ops.expand_dims(ops.arange(size) < min_tokens_to_keep, 0)
        return ops.where(ops.put_along(ops.cast(kept, "int32"), order) > 0, logits, NEVER)

    return process


def epsilon_cutoff(ops, epsilon, min_tokens_to_keep=1):
    """Keep tokens with at least this probability (Hewitt et al. 2022, https://arxiv.org/abs/2210.15191)."""

    def process(ids, logits, step):
        unlikely = ops.exp(ops.log_softmax(logits)) < epsilon
        return ops.where(unlikely & (logits < kth(ops, logits, min_tokens_to_keep)), NEVER, logits)

    return process


def eta_cutoff(ops, epsilon, min_tokens_to_keep=1):
    """Keep tokens with at least min(epsilon, sqrt(epsilon) exp(-entropy)) (Hewitt et al. 2022)."""

    def process(ids, logits, step):
        log_probabilities = ops.log_softmax(logits)
        probabilities = ops.exp(log_probabilities)
        # -inf counts as the smallest float, as in torch.distributions.Categorical, so that its term is 0
        entropy = -ops.sum(probabilities * ops.maximum(log_probabilities, -3.4028235e38), -1, keepdims=True)
        eta = ops.minimum(ops.cast(epsilon, "float32"), ops.sqrt(ops.cast(epsilon, "float32")) * ops.exp(-entropy))
        return ops.where((probabilities < eta) & (logits < kth(ops, logits, min_tokens_to_keep)), NEVER, logits)

    return process


def renormalize(ops):
    """Log softmax: the probabilities add up to 1 again."""
    return lambda ids, logits, step: ops.log_softmax(logits)


def kth(ops, logits, k):
    """[rows, 1]: the k-th largest logit."""
    return ops.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]


def column(ops, ids, index):
    """ids [rows, 1] of one column; -1 where there is none."""
    found = ops.take_along(ids, ops.full((ids.shape[0], 1), ops.maximum(index, 0), "int32"), 1)
    return ops.where(ops.cast(index >= 0, "bool"), found, -1)


def tokens_mask(ops, tokens, size):
    """bool [1, size]: which tokens of the vocabulary are among ``tokens`` [n]."""
    tokens = ops.expand_dims(tokens, 0)
    return ops.marked(tokens, (tokens >= 0) & (tokens < size), size)
