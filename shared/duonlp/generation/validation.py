"""What a GenerationConfig refuses: values out of range, and options that cannot go together."""

import math
from collections.abc import Sequence

from duonlp.errors import InputError

WHOLE = {
    "max_new_tokens": 1, "max_length": 1, "min_new_tokens": 0, "min_length": 0, "num_return_sequences": 1,
    "num_beams": 1, "num_beam_groups": 1, "prompt_lookup_num_tokens": 1, "max_matching_ngram_size": 1,
    "num_assistant_tokens": 1, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "top_k": 0, "seed": 0,
}  # fmt: skip
"""Whole numbers, each with the least it can be."""

RANGES = {
    "top_p": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "typical_p": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "top_h": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "min_p": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "epsilon_cutoff": ("at least 0 and below 1", lambda x: 0 <= x < 1),
    "eta_cutoff": ("at least 0 and below 1", lambda x: 0 <= x < 1),
    "repetition_penalty": ("above 0", lambda x: x > 0),
    "encoder_repetition_penalty": ("above 0", lambda x: x > 0),
    "diversity_penalty": ("0 or more", lambda x: x >= 0),
    "penalty_alpha": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "guidance_scale": ("above 0", lambda x: x > 0),
    "length_penalty": ("a finite number", math.isfinite),
}
"""Numbers, each with what it must be."""

IDS = (
    "eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip


def check_config(config) -> None:
    """Raises InputError; called whenever a GenerationConfig is made."""
    for name, least in WHOLE.items():
        value = getattr(config, name)
        if value is not None and (not is_number(value, whole=True) or value < least):
            kind = "positive whole number" if least else "whole number, 0 or more"
            raise InputError(f"{name}={value!r} must be a {kind}")
    if not is_number(config.temperature, whole=False) or config.temperature <= 0:
        hint = "; for the most likely token pass do_sample=False" if config.temperature == 0 else ""
        raise InputError(f"temperature={config.temperature!r} must be above 0{hint}")
    for name, (allowed, holds) in RANGES.items():
        value = getattr(config, name)
        if value is not None and not (is_number(value, whole=False) and holds(value)):
            raise InputError(f"{name}={value!r} must be {allowed}")
    if config.early_stopping not in (True, False, "never"):
        raise InputError(f"early_stopping={config.early_stopping!r} must be True, False or 'never'")
    for name in ("do_sample", "renormalize_logits", "remove_invalid_values"):
        if not isinstance(getattr(config, name), bool):
            raise InputError(f"{name}={getattr(config, name)!r} must be True or False")
    _check_ids(config)
    _check_together(config)


def _check_ids(config) -> None:
    for name in IDS:
        for token in as_ids(getattr(config, name)):
            if not is_number(token, whole=True):
                raise InputError(f"{name}={getattr(config, name)!r} must be token ids, whole numbers")
    for name, rows in (("bad_words_ids", config.bad_words_ids), ("sequence_bias", config.sequence_bias)):
        sequences = [row[0] if name == "sequence_bias" else row for row in rows]
        if not all(
            isinstance(row, tuple) and row and all(is_number(i, True) and i >= 0 for i in row) for row in sequences
        ):
            raise InputError(f"{name} holds {rows!r}; give a list of non-empty lists of token ids")
    decay = config.exponential_decay_length_penalty
    if decay is not None and not (
        isinstance(decay, tuple) and len(decay) == 2 and is_number(decay[0], True) and is_number(decay[1], False)
    ):
        raise InputError(f"exponential_decay_length_penalty={decay!r} must be (start, factor), such as (10, 1.05)")
    if not all(isinstance(text, str) and text for text in config.stop_strings):
        raise InputError(f"stop_strings={config.stop_strings!r} must be texts that are not empty")


def _check_together(config) -> None:
    c = config
    assisted = c.prompt_lookup_num_tokens is not None
    if c.num_return_sequences > 1:
        if c.num_beams == 1 and not c.do_sample:
            raise InputError(
                f"num_return_sequences={c.num_return_sequences} without sampling or beams would give the same text again "
                "and again; pass do_sample=True, or num_beams"
            )
        if 1 < c.num_beams < c.num_return_sequences:
            raise InputError(
                f"num_return_sequences={c.num_return_sequences} is more than num_beams={c.num_beams}: a beam is one text; "
                f"pass num_beams={c.num_return_sequences}, or ask for fewer"
            )
    if c.num_beams % c.num_beam_groups:
        raise InputError(
            f"num_beams={c.num_beams} cannot be shared out evenly among num_beam_groups={c.num_beam_groups}"
        )
    if c.num_beam_groups > 1 and c.do_sample:
        raise InputError("num_beam_groups above 1 is diverse beam search, which does not sample; pass do_sample=False")
    if c.diversity_penalty and c.num_beam_groups == 1:
        raise InputError(
            f"diversity_penalty={c.diversity_penalty} acts between groups of beams; pass num_beam_groups=2 or more"
        )
    if c.penalty_alpha and (c.num_beams > 1 or c.do_sample):
        raise InputError(
            f"penalty_alpha={c.penalty_alpha} is contrastive search, which has neither beams nor samples; pass num_beams=1 "
            "and do_sample=False, or leave it out"
        )
    if c.penalty_alpha and c.top_k < 2:
        raise InputError(f"contrastive search chooses among top_k={c.top_k} candidates; pass top_k=2 or more")
    if assisted and (c.num_beams > 1 or c.penalty_alpha or c.num_return_sequences > 1):
        raise InputError(
            "prompt_lookup_num_tokens is speculative decoding, for greedy decoding and sampling of one text; pass num_beams=1 "
            "and num_return_sequences=1, and no penalty_alpha"
        )
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = as_ids(getattr(c, name))
        if forced and set(forced) <= set(c.suppress_tokens):
            raise InputError(
                f"{name}={getattr(c, name)!r} is also in suppress_tokens: no token would be left; drop one"
            )


def check_vocabulary(config, vocab_size: int) -> None:
    """Raises InputError where an option names a token the model does not have. An eos id alone may be any number: Transformers
    has configurations with ids beyond the vocabulary, which never come."""
    for name in IDS:
        if name in ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id"):
            continue
        _check_range(name, as_ids(getattr(config, name)), vocab_size)
    _check_range("bad_words_ids", [i for row in config.bad_words_ids for i in row], vocab_size)
    _check_range("sequence_bias", [i for ids, _ in config.sequence_bias for i in ids], vocab_size)


def _check_range(name: str, ids, vocab_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise InputError(f"{name} holds {token}, but the vocabulary of this model ends at {vocab_size - 1}")


def as_ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    """An id, several, or None as a tuple."""
    return () if value is None else tuple(value) if isinstance(value, Sequence) else (value,)


def is_number(value, whole: bool) -> bool:
    """Whether a value is a finite number (no bool), whole if asked."""
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and math.isfinite(value)
