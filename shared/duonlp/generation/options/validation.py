"""Validation of GenerationConfig: value ranges, and combinations of options."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.schema import shorten
from duonlp.util.machine_info import physical_memory

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

SINGLE_IDS = ("pad_token_id", "forced_bos_token_id", "decoder_start_token_id")
"""Options that hold at most one token id."""

BOOLEANS = (
    "do_sample", "renormalize_logits", "remove_invalid_values", "return_dict_in_generate", "output_scores", "output_logits",
)  # fmt: skip
"""Options that are true or false."""

MOST = 1 << 31
"""Numbers of tokens, beams and texts, and token ids, are below this."""


@dataclass(frozen=True)
class Conflict:
    """Options that are invalid only together: what is wrong, and which of them to omit first."""

    message: str
    omit: tuple[str, ...]


def check_config(config: Any) -> None:
    """Raise InputError for invalid values or combinations of options of a GenerationConfig; every new one is checked."""
    for f in fields(config):
        if f.name != "extra":
            check_option(f.name, getattr(config, f.name))
    conflict = next(conflicts(config), None)
    if conflict is not None:
        raise InputError(conflict.message)


def check_option(name: str, value: Any) -> None:
    """Raise InputError if the value of an option, as freeze_option returns it, is invalid whatever the others are."""
    if value is not None and name in MIN_INTEGERS:
        minimum = MIN_INTEGERS[name]
        if not is_number(value, whole=True) or value < minimum:
            raise InputError(
                f"{name}={shorten(value)} must be {'a positive integer' if minimum else 'an integer, 0 or more'}"
            )
        if value >= (2**64 if name == "seed" else MOST):
            raise InputError(f"{name}={shorten(value)} is too large; use less than 2**{64 if name == 'seed' else 31}")
    elif name == "temperature" and not (is_number(value, whole=False) and value > 0):
        hint = "; for greedy decoding pass do_sample=False" if value == 0 else ""
        raise InputError(f"temperature={shorten(value)} must be above 0{hint}")
    elif value is not None and name in RANGES:
        allowed, is_allowed = RANGES[name]
        if not (is_number(value, whole=False) and is_allowed(value)):
            raise InputError(f"{name}={shorten(value)} must be {allowed}")
    elif name == "early_stopping" and not (isinstance(value, bool) or value == "never"):
        raise InputError(f"early_stopping={shorten(value)} must be True, False or 'never'")
    elif name in BOOLEANS and not isinstance(value, bool):
        raise InputError(f"{name}={shorten(value)} must be True or False")
    else:
        _check_ids(name, value)


def is_valid(name: str, value: Any) -> bool:
    """Return whether the value of an option is valid whatever the others are."""
    try:
        check_option(name, freeze_option(name, value))
    except InputError:
        return False
    return True


def _check_ids(name: str, value: Any) -> None:
    """Raise InputError for invalid token ids, lists of them, or stop strings."""
    if name in ID_OPTIONS:
        wrong_rank = isinstance(value, str) or (name.endswith("suppress_tokens") and isinstance(value, int))
        wrong_rank = wrong_rank or (name in SINGLE_IDS and isinstance(value, tuple))
        if wrong_rank or not all(is_number(token, whole=True) and -MOST <= token < MOST for token in as_ids(value)):
            expected = "a token id, that is, an integer" if name in SINGLE_IDS else "token ids, that is, integers"
            raise InputError(f"{name}={shorten(value)} must be {expected}")
    elif name in ("bad_words_ids", "sequence_bias"):
        sequences = tuple(ids for ids, _ in value) if name == "sequence_bias" else value
        if not isinstance(sequences, tuple) or not all(
            isinstance(ids, tuple) and ids and all(is_number(i, True) and 0 <= i < MOST for i in ids)
            for ids in sequences
        ):
            raise InputError(f"{name}={shorten(value)} must contain non-empty lists of token ids")
    elif name == "exponential_decay_length_penalty" and value is not None:
        if not (
            isinstance(value, tuple) and len(value) == 2 and is_number(value[0], True) and is_number(value[1], False)
        ):
            raise InputError(f"{name}={shorten(value)} must be (start, factor), such as (10, 1.05)")
    elif name == "stop_strings" and not (isinstance(value, tuple) and all(isinstance(t, str) and t for t in value)):
        raise InputError(f"stop_strings={shorten(value)} must be non-empty strings")


def conflicts(config: Any) -> Iterator[Conflict]:
    """Yield the conflicts between the options of a GenerationConfig whose values are valid each alone."""
    c = config
    if c.num_return_sequences > 1:
        if c.num_beams == 1 and not c.do_sample:
            yield Conflict(
                f"num_return_sequences={c.num_return_sequences} without sampling or beams would return identical texts; "
                "pass do_sample=True, or num_beams",
                ("num_return_sequences",),
            )
        if 1 < c.num_beams < c.num_return_sequences:
            yield Conflict(
                f"num_return_sequences={c.num_return_sequences} is more than num_beams={c.num_beams}; pass "
                f"num_beams={c.num_return_sequences} or more, or request fewer sequences",
                ("num_return_sequences",),
            )
    if c.num_beams % c.num_beam_groups:
        yield Conflict(
            f"num_beams={c.num_beams} is not divisible by num_beam_groups={c.num_beam_groups}; groups must be of equal size",
            ("num_beam_groups", "diversity_penalty"),
        )
    if c.num_beam_groups > 1 and c.do_sample:
        yield Conflict(
            f"num_beam_groups={c.num_beam_groups} is diverse beam search, which does not sample; pass do_sample=False",
            ("num_beam_groups", "diversity_penalty"),
        )
    if c.diversity_penalty and c.num_beam_groups == 1:
        yield Conflict(
            f"diversity_penalty={c.diversity_penalty} applies between groups of beams; pass num_beam_groups=2 or more",
            ("diversity_penalty",),
        )
    yield from _strategy_conflicts(c)
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = as_ids(getattr(c, name))
        if forced and set(forced) <= set(as_ids(c.suppress_tokens)):
            yield Conflict(
                f"{name}={shorten(getattr(c, name))} is also in suppress_tokens, which would leave no token; omit one of them",
                (name,),
            )


def _strategy_conflicts(c: Any) -> Iterator[Conflict]:
    """Yield the conflicts of contrastive search and prompt lookup with other strategies."""
    if c.penalty_alpha and (c.num_beams > 1 or c.do_sample):
        yield Conflict(
            f"penalty_alpha={c.penalty_alpha} is contrastive search, which supports neither beams nor sampling; pass "
            "num_beams=1 and do_sample=False, or omit it",
            ("penalty_alpha",),
        )
    if c.penalty_alpha and c.top_k < 2:
        yield Conflict(
            f"contrastive search needs several candidates, but top_k={c.top_k}; pass top_k=2 or more",
            ("penalty_alpha",),
        )
    lookup = c.prompt_lookup_num_tokens
    if lookup is not None and (c.num_beams > 1 or c.penalty_alpha or c.num_return_sequences > 1):
        yield Conflict(
            f"prompt_lookup_num_tokens={lookup} is speculative decoding, which supports only greedy "
            "decoding and sampling of one sequence; pass num_beams=1, num_return_sequences=1 and no penalty_alpha",
            ("prompt_lookup_num_tokens",),
        )
    if lookup is not None and c.guidance_scale != 1.0:
        yield Conflict(
            "guidance_scale and prompt_lookup_num_tokens cannot be combined; omit one of them",
            ("prompt_lookup_num_tokens",),
        )


def check_memory(config: Any, cfg: TransformerConfig, prompts: int, length: int, positions: int) -> None:
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


def check_vocabulary(config: Any, vocab_size: int) -> None:
    """Raise InputError if an option names a token outside the vocabulary.

    Special ids and suppressed tokens are exempt: some Transformers configurations have ids beyond the vocabulary, which
    are never generated.
    """
    for name in (*ID_OPTIONS, "bad_words_ids", "sequence_bias"):
        check_ids_exist(name, getattr(config, name), vocab_size)


def check_ids_exist(name: str, value: Any, vocab_size: int) -> None:
    """Raise InputError if an option's valid value names a token outside the vocabulary; see check_vocabulary."""
    if name == "bad_words_ids":
        _check_range(name, [i for ids in value for i in ids], vocab_size)
    elif name == "sequence_bias":
        _check_range(name, [i for ids, _ in value for i in ids], vocab_size)
    elif name in ("forced_bos_token_id", "forced_eos_token_id"):
        _check_range(name, as_ids(value), vocab_size)


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


def freeze_option(name: str, value: Any) -> Any:
    """Return the value of an option in the hashable form in which a GenerationConfig holds it.

    Raises:
        InputError: sequence_bias is in neither of its notations.
    """
    if name == "sequence_bias":
        return _normalize_bias(value)
    if name == "stop_strings":
        return (value,) if isinstance(value, str) else freeze(value or ())
    return freeze(value)


def freeze(value: Any) -> Any:
    """Convert lists and sets to tuples, recursively, and NumPy scalars to Python numbers."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(freeze(part) for part in value)
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _normalize_bias(value: Any) -> tuple:
    """Convert Transformers' two notations, {(ids): bias} and [[ids, bias]], to the second one, as tuples."""
    try:
        pairs = value.items() if isinstance(value, Mapping) else value or ()
        return tuple((tuple(int(i) for i in ids), float(bias)) for ids, bias in pairs)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"sequence_bias={shorten(value)} must be [[ids, bias], ...], such as [[[12, 7], -2.0]]"
        ) from None
