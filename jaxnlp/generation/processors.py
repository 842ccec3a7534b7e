"""The logits processors of duonlp.generation.processors, ready for this engine: ``top_k(20)`` is a function
(ids, logits, step) -> logits for ``generate(..., logits_processor=[...])``."""

from functools import partial

from duonlp.generation import processors as written_once
from jaxnlp import ops

temperature = partial(written_once.temperature, ops)
repetition_penalty = partial(written_once.repetition_penalty, ops)
encoder_repetition_penalty = partial(written_once.encoder_repetition_penalty, ops)
no_repeat_ngram = partial(written_once.no_repeat_ngram, ops)
encoder_no_repeat_ngram = partial(written_once.encoder_no_repeat_ngram, ops)
sequence_bias = partial(written_once.sequence_bias, ops)
no_end_before = partial(written_once.no_end_before, ops)
forced_tokens = partial(written_once.forced_tokens, ops)
remove_invalid_values = partial(written_once.remove_invalid_values, ops)
exponential_decay_length_penalty = partial(written_once.exponential_decay_length_penalty, ops)
suppress_tokens = partial(written_once.suppress_tokens, ops)
suppress_tokens_at = partial(written_once.suppress_tokens_at, ops)
top_h = partial(written_once.top_h, ops)
top_k = partial(written_once.top_k, ops)
top_p = partial(written_once.top_p, ops)
min_p = partial(written_once.min_p, ops)
typical_p = partial(written_once.typical_p, ops)
epsilon_cutoff = partial(written_once.epsilon_cutoff, ops)
eta_cutoff = partial(written_once.eta_cutoff, ops)
renormalize = partial(written_once.renormalize, ops)
