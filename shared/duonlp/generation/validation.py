"""Validation of GenerationConfig: value ranges, and combinations of options."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.schema import shorten
from duonlp.util.machine_info import physical_memory

if TYPE_CHECKING:
    from duonlp.generation.config import GenerationConfig

MIN_INTEGERS = {
    "max_new_tokens": 1, "max_length": 1, "min_new_tokens": 0, "min_length": 0, "num_return_sequences": 1,
    "num_beams": 1, "num_beam_groups": 1, "prompt_lookup_num_tokens": 1, "max_matching_ngram_size": 1,
    "num_assistant_tokens": 1, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "top_k": 0, "seed": 0,
}  # fmt: skip
"""Integer options and their minimum."""

RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
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
    "max_time": ("0 or more", lambda x: x >= 0),
    "length_penalty": ("a finite number", math.isfinite),
}
"""Number options with their range, in words and as a predicate."""

ID_OPTIONS = (
    "eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip
"""Options that hold one or several token ids."""


BOOLEANS = (
    "do_sample", "renormalize_logits", "remove_invalid_values", "return_dict_in_generate", "output_scores", "output_logits",
)  # fmt: skip
"""Options that are true or false."""

MOST = 1 << 31
"""Numbers of tokens, beams and texts, and token ids, are below this."""


def check_config(config: "GenerationConfig") -> None:
    """Raise InputError for invalid values or combinations of options; every new GenerationConfig is checked."""
    for name, minimum in MIN_INTEGERS.items():
        value = getattr(config, name)
        if value is not None and (not is_number(value, whole=True) or value < minimum):
            kind = "a positive integer" if minimum else "an integer, 0 or more"
            raise InputError(f"{name}={shorten(value)} must be {kind}")
        if value is not None and value >= (2**64 if name == "seed" else MOST):
            raise InputError(f"{name}={shorten(value)} is too large; use less than 2**{64 if name == 'seed' else 31}")
    if not is_number(config.temperature, whole=False) or config.temperature <= 0:
        hint = "; for greedy decoding pass do_sample=False" if config.temperature == 0 else ""
        raise InputError(f"temperature={shorten(config.temperature)} must be above 0{hint}")
    for name, (allowed, is_allowed) in RANGES.items():
        value = getattr(config, name)
        if value is not None and not (is_number(value, whole=False) and is_allowed(value)):
            raise InputError(f"{name}={shorten(value)} must be {allowed}")
    if not (isinstance(config.early_stopping, bool) or config.early_stopping == "never"):
        raise InputError(f"early_stopping={shorten(config.early_stopping)} must be True, False or 'never'")
    for name in BOOLEANS:
        if not isinstance(getattr(config, name), bool):
            raise InputError(f"{name}={shorten(getattr(config, name))} must be True or False")
    _check_ids(config)
    _check_combinations(config)


def _check_ids(config: "GenerationConfig") -> None:
    for name in ID_OPTIONS:
        value = getattr(config, name)
        is_single = isinstance(value, str) or (name.endswith("suppress_tokens") and isinstance(value, int))
        if is_single or not all(is_number(token, whole=True) and -MOST <= token < MOST for token in as_ids(value)):
            raise InputError(f"{name}={shorten(value)} must be token ids, that is, integers")
    biased = tuple(ids for ids, _ in config.sequence_bias)
    for name, sequences in (("bad_words_ids", config.bad_words_ids), ("sequence_bias", biased)):
        if not isinstance(sequences, tuple) or not all(
            isinstance(ids, tuple) and ids and all(is_number(i, True) and 0 <= i < MOST for i in ids)
            for ids in sequences
        ):
            raise InputError(f"{name}={shorten(getattr(config, name))} must contain non-empty lists of token ids")
    decay: Any = config.exponential_decay_length_penalty
    if decay is not None and not (
        isinstance(decay, tuple) and len(decay) == 2 and is_number(decay[0], True) and is_number(decay[1], False)
    ):
        raise InputError(
            f"exponential_decay_length_penalty={shorten(decay)} must be (start, factor), such as (10, 1.05)"
        )
    if not isinstance(config.stop_strings, tuple) or not all(isinstance(t, str) and t for t in config.stop_strings):
        raise InputError(f"stop_strings={shorten(config.stop_strings)} must be non-empty strings")


def _check_combinations(config: "GenerationConfig") -> None:
    c = config
    if c.num_return_sequences > 1:
        if c.num_beams == 1 and not c.do_sample:
            raise InputError(
                f"num_return_sequences={c.num_return_sequences} without sampling or beams would return identical texts; "
                "pass do_sample=True, or num_beams"
            )
        if 1 < c.num_beams < c.num_return_sequences:
            raise InputError(
                f"num_return_sequences={c.num_return_sequences} is more than num_beams={c.num_beams}; pass "
                f"num_beams={c.num_return_sequences} or more, or request fewer sequences"
            )
    if c.num_beams % c.num_beam_groups:
        raise InputError(
            f"num_beams={c.num_beams} is not divisible by num_beam_groups={c.num_beam_groups}; groups must be of equal size"
        )
    if c.num_beam_groups > 1 and c.do_sample:
        raise InputError(
            f"num_beam_groups={c.num_beam_groups} is diverse beam search, which does not sample; pass do_sample=False"
        )
    if c.diversity_penalty and c.num_beam_groups == 1:
        raise InputError(
            f"diversity_penalty={c.diversity_penalty} applies between groups of beams; pass num_beam_groups=2 or more"
        )
    if c.penalty_alpha and (c.num_beams > 1 or c.do_sample):
        raise InputError(
            f"penalty_alpha={c.penalty_alpha} is contrastive search, which supports neither beams nor sampling; pass "
            "num_beams=1 and do_sample=False, or omit it"
        )
    if c.penalty_alpha and c.top_k < 2:
        raise InputError(f"contrastive search needs several candidates, but top_k={c.top_k}; pass top_k=2 or more")
    lookup = c.prompt_lookup_num_tokens is not None
    if lookup and (c.num_beams > 1 or c.penalty_alpha or c.num_return_sequences > 1):
        raise InputError(
            f"prompt_lookup_num_tokens={c.prompt_lookup_num_tokens} is speculative decoding, which supports only greedy "
            "decoding and sampling of one sequence; pass num_beams=1, num_return_sequences=1 and no penalty_alpha"
        )
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = as_ids(getattr(c, name))
        if forced and set(forced) <= set(as_ids(c.suppress_tokens)):
            raise InputError(
                f"{name}={shorten(getattr(c, name))} is also in suppress_tokens, which would leave no token; omit one of them"
            )


def check_memory(config: "GenerationConfig", cfg: TransformerConfig, prompts: int, length: int, positions: int) -> None:
    """Raise InputError if the cache of keys and values of a call cannot fit into any memory here.

    Args:
        config: The options.
        cfg: The model, or an encoder-decoder's decoder.
        prompts: Number of prompts, those that pad the batch and negative ones included.
        length: Tokens of a prompt.
        positions: Number of positions of the model.
    """
    rows = prompts * max(config.num_beams, config.num_return_sequences)
    columns = length + config.new_tokens(length, positions)
    needed = rows * columns * sum(8 * layer.attention.kv_size for layer in cfg.layers)  # keys and values in float32
    memory = physical_memory()
    if memory is not None and needed > 2 * memory:
        raise InputError(
            f"{rows:,} texts of up to {columns:,} tokens would take {needed / 2**30:,.1f} GiB for the cache of this model alone, "
            f"and this machine has {memory / 2**30:,.1f} GiB of memory; reduce max_new_tokens, the beams or the batch"
        )


def check_vocabulary(config: "GenerationConfig", vocab_size: int) -> None:
    """Raise InputError if an option names a token outside the vocabulary.

    Special ids are exempt: some Transformers configurations have ids beyond the vocabulary, which are never
    generated.
    """
    for name in ID_OPTIONS:
        if name in ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id"):
            continue
        _check_range(name, as_ids(getattr(config, name)), vocab_size)
    _check_range("bad_words_ids", [i for ids in config.bad_words_ids for i in ids], vocab_size)
    _check_range("sequence_bias", [i for ids, _ in config.sequence_bias for i in ids], vocab_size)


def _check_range(name: str, ids: Iterable[int], vocab_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise InputError(f"{name} contains {token}, but this model's token ids are 0 to {vocab_size - 1}")


def as_ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return an id, several ids, or None as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Sequence) else (value,)


def is_number(value: Any, whole: bool) -> bool:
    """Return whether a value is a finite number (not a bool), and an integer if ``whole``."""
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)
