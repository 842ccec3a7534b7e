"""The logits processors of duonlp.generation.processors, bound to this engine's array operations.

``top_k(20)`` is a function (ids, logits, step) -> logits for ``generate(..., logits_processor=[...])``.
"""

from functools import partial

from duonlp.generation import processors as neutral
from jaxnlp import ops

temperature = partial(neutral.temperature, ops)
repetition_penalty = partial(neutral.repetition_penalty, ops)
encoder_repetition_penalty = partial(neutral.encoder_repetition_penalty, ops)
no_repeat_ngram = partial(neutral.no_repeat_ngram, ops)
encoder_no_repeat_ngram = partial(neutral.encoder_no_repeat_ngram, ops)
sequence_bias = partial(neutral.sequence_bias, ops)
no_end_before = partial(neutral.no_end_before, ops)
forced_tokens = partial(neutral.forced_tokens, ops)
remove_invalid_values = partial(neutral.remove_invalid_values, ops)
exponential_decay_length_penalty = partial(neutral.exponential_decay_length_penalty, ops)
suppress_tokens = partial(neutral.suppress_tokens, ops)
suppress_tokens_at = partial(neutral.suppress_tokens_at, ops)
top_h = partial(neutral.top_h, ops)
top_k = partial(neutral.top_k, ops)
top_p = partial(neutral.top_p, ops)
min_p = partial(neutral.min_p, ops)
typical_p = partial(neutral.typical_p, ops)
epsilon_cutoff = partial(neutral.epsilon_cutoff, ops)
eta_cutoff = partial(neutral.eta_cutoff, ops)
renormalize = partial(neutral.renormalize, ops)
