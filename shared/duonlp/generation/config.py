"""GenerationConfig: one definition of every decoding option, checked once, for both engines."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.generation.validation import as_ids, check_config

DEFAULT_NEW_TOKENS = 20
"""Tokens to add where nothing says how many, as in Transformers 5."""

UNSUPPORTED = {
    "constraints": "constrained beam search is not here; use bad_words_ids, sequence_bias or a logits processor",
    "force_words_ids": "constrained beam search is not here; use sequence_bias, or a logits processor",
    "dola_layers": "DoLa decoding is not here",
    "watermarking_config": "watermarking is not here; a logits processor can do it",
    "max_time": "there is no clock inside a compiled loop; use max_new_tokens, or stream and stop reading",
    "prefix_allowed_tokens_fn": "write it as a logits processor, (ids, logits, step) -> logits",
    "stopping_criteria": "use eos_token_id or stop_strings, or stream and stop reading",
    "assistant_early_exit": "give a draft model as assistant_model, or prompt_lookup_num_tokens",
}
"""Options of Transformers that would change the text and are not here, with what to do instead."""

NEUTRAL = (None, False, 0, 0.0, 1.0, [], {})
"""Values with which an option of UNSUPPORTED changes nothing."""

IGNORED = (
    "use_cache", "cache_implementation", "cache_config", "return_legacy_cache", "transformers_version",
    "_from_model_config", "synced_gpus", "disable_compile", "compile_config", "low_memory", "token_type_ids",
)  # fmt: skip
"""Options of Transformers that do not change the text; accepted, so that a call moves over as it is."""


@dataclass(frozen=True)
class GenerationConfig:
    """How a prompt is continued. Names, meanings and defaults are those of Transformers 5.

    ``extra`` keeps keys of generation_config.json that nothing here reads, so that saving writes them back.

    Raises:
        InputError: a value that is not allowed, or options that cannot go together.
    """

    # How long
    max_new_tokens: int | None = None  # tokens to add; beats max_length
    max_length: int | None = None  # prompt (padding included) and new tokens together; None adds 20
    min_new_tokens: int | None = None  # no end before so many new tokens
    min_length: int = 0  # no end before so many tokens, prompt included
    stop_strings: tuple[str, ...] = ()  # a text ends with the token that completes one of these; needs the tokenizer

    # Which strategy
    do_sample: bool = False  # draw tokens at random
    seed: int | None = None  # of the random numbers; None draws one
    num_return_sequences: int = 1  # texts for each prompt
    num_beams: int = 1  # beam search, from 2 on
    early_stopping: bool | str = False  # of beam search: True stops at num_beams ends, "never" when none can get better
    length_penalty: float = 1.0  # beam scores are divided by length ** length_penalty
    num_beam_groups: int = 1  # diverse beam search, from 2 on (Vijayakumar et al. 2016)
    diversity_penalty: float = 0.0  # subtracted for each earlier group that chose the token at this step
    penalty_alpha: float | None = None  # contrastive search with top_k candidates (Su et al. 2022)
    prompt_lookup_num_tokens: int | None = None  # speculative decoding: tokens copied from where the text was alike
    max_matching_ngram_size: int = 2  # how many last tokens must be alike for that
    num_assistant_tokens: int = 5  # speculative decoding: tokens a draft model proposes at a time

    # What changes the logits
    guidance_scale: float = 1.0  # classifier-free guidance (Sanchez et al. 2023), above 1
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()  # ((ids, bias), ...): added to what completes ids
    repetition_penalty: float = 1.0  # of tokens that are already there; above 1 discourages (Keskar et al. 2019)
    encoder_repetition_penalty: float = 1.0  # of tokens that are not in the source; above 1 discourages
    no_repeat_ngram_size: int = 0  # n-grams of this size appear once
    encoder_no_repeat_ngram_size: int = 0  # n-grams of this size that the source has do not appear
    bad_words_ids: tuple[tuple[int, ...], ...] = ()  # sequences of ids that may not appear
    forced_bos_token_id: int | None = None  # the first token after a prompt of one
    forced_eos_token_id: int | tuple[int, ...] | None = None  # the token at max_length
    remove_invalid_values: bool = False  # nan and infinities become numbers
    exponential_decay_length_penalty: tuple[int, float] | None = None  # (start, factor): raises the end's logit
    suppress_tokens: tuple[int, ...] = ()  # ids that never appear
    begin_suppress_tokens: tuple[int, ...] = ()  # ids that are not the first new token
    temperature: float = 1.0  # the logits are divided by it
    top_h: float | None = None  # bounded entropy (Potraghloo et al. 2025)
    top_k: int = 50  # the most likely so many; 0 for all
    top_p: float = 1.0  # the most likely that together have this probability (Holtzman et al. 2019)
    min_p: float | None = None  # at least this share of the most likely token's probability (Nguyen et al. 2024)
    typical_p: float = 1.0  # the most typical that together have this probability (Meister et al. 2022)
    epsilon_cutoff: float = 0.0  # at least this probability (Hewitt et al. 2022)
    eta_cutoff: float = 0.0  # the same, less where the entropy is high (Hewitt et al. 2022)
    renormalize_logits: bool = False  # log softmax at the end

    # Special tokens
    eos_token_id: int | tuple[int, ...] | None = None  # a sequence ends with any of these
    pad_token_id: int | None = None  # what stands after the end; the first eos where none is given
    bos_token_id: int | None = None
    decoder_start_token_id: int | None = None

    # What is returned
    return_dict_in_generate: bool = False  # a GenerationOutput instead of ids alone
    output_scores: bool = False  # with the processed logits of every step; implies the dict
    output_logits: bool = False  # with the logits as the model gave them; implies the dict

    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False, repr=False)

    def __post_init__(self):
        for f in fields(self):
            if f.name == "sequence_bias":
                value = _bias(self.sequence_bias)
            elif f.name == "stop_strings":
                value = (self.stop_strings,) if isinstance(self.stop_strings, str) else tuple(self.stop_strings or ())
            else:
                value = getattr(self, f.name)
                value = _frozen(value) if f.name != "extra" else value
            object.__setattr__(self, f.name, value)
        check_config(self)

    @classmethod
    def for_model(cls, cfg: TransformerConfig, stored: Mapping[str, Any] | None = None) -> "GenerationConfig":
        """The model's own special ids, and over them what its generation_config.json says; without that file, what old
        checkpoints say of generation in config.json.

        Raises:
            InputError: the file has a value that is not allowed.
        """
        own = {"eos_token_id": cfg.eos_token_id, "pad_token_id": cfg.pad_token_id, "bos_token_id": cfg.bos_token_id}
        if cfg.decoder is not None:
            own["decoder_start_token_id"] = cfg.decoder.start_token_id
        stored = stored or {name: value for name, value in cfg.extra.items() if name in OPTIONS}
        stored = {name: value for name, value in stored.items() if value is not None}
        left_out = [f"{name}={stored[name]!r}" for name in UNSUPPORTED if stored.get(name) not in NEUTRAL]
        if left_out:
            warnings.warn(f"generation_config.json asks for {', '.join(left_out)}, which is left out", stacklevel=4)
        known = {name: stored.pop(name) for name in OPTIONS & set(stored)}
        return cls(**own | known, extra=stored)

    def for_ids_of(self, other: "GenerationConfig") -> "GenerationConfig":
        """A copy whose special ids, where it has none, are another's."""
        missing = {name: getattr(other, name) for name in SPECIAL_IDS if getattr(self, name) is None}
        return replace(self, **missing)

    def with_options(self, **options) -> "GenerationConfig":
        """A copy with options changed; None stands for an option's default, but for top_k, which it turns off, as in
        Transformers. The default of special ids is to have none.

        Raises:
            InputError: an unknown option, a value that is not allowed, options that cannot go together.
        """
        changes = {}
        for name, value in options.items():
            if name in UNSUPPORTED and value not in NEUTRAL:
                raise InputError(f"{name}={value!r} is not available: {UNSUPPORTED[name]}")
            if name in OPTIONS:
                off = 0 if name == "top_k" else DEFAULTS[name]
                changes[name] = off if value is None else value
            elif name not in IGNORED and name not in UNSUPPORTED:
                raise InputError(f"unknown generation option {name!r}; options are {', '.join(sorted(OPTIONS))}")
        if changes.get("max_length") is not None and "max_new_tokens" not in changes:
            changes["max_new_tokens"] = None  # a length that is asked for now beats one that was stored
        if changes.get("num_beams") == 1:
            changes.setdefault("num_beam_groups", 1)
            changes.setdefault("diversity_penalty", 0.0)
        changed = replace(self, **changes)
        for name, needs in (*((n, "do_sample=True") for n in SAMPLING), *((n, "num_beams=2 or more") for n in BEAMS)):
            unused = not changed.do_sample if name in SAMPLING else changed.num_beams == 1
            contrastive = name == "top_k" and changed.penalty_alpha is not None
            asked = options.get(name) not in (None, DEFAULTS[name])
            if asked and unused and not contrastive:
                warnings.warn(f"{name}={changes[name]!r} changes nothing without {needs}", stacklevel=7)
        return changed

    @property
    def strategy(self) -> str:
        """One of "greedy", "sample", "beam", "contrastive"; speculative decoding is a way to do the first two."""
        if self.num_beams > 1:
            return "beam"
        if self.penalty_alpha and not self.do_sample and self.top_k > 1:
            return "contrastive"
        return "sample" if self.do_sample else "greedy"

    @property
    def returns_dict(self) -> bool:
        """Whether more than ids is wanted."""
        return self.return_dict_in_generate or self.output_scores or self.output_logits

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a sequence."""
        return as_ids(self.eos_token_id)

    @property
    def padding(self) -> int:
        """The id that stands after the end of a sequence."""
        return self.pad_token_id if self.pad_token_id is not None else (self.eos_ids or (0,))[0]

    def new_tokens(self, prompt_length: int, max_positions: int) -> int:
        """How many tokens may be added to a prompt.

        Raises:
            InputError: the prompt is empty or already too long.
        """
        if prompt_length < 1:
            raise InputError("the prompt is empty; give at least one token, such as the bos_token_id")
        if prompt_length >= max_positions:
            raise InputError(
                f"the prompt has {prompt_length} tokens and the model {max_positions} positions: there is no room for "
                "another token; shorten the prompt"
            )
        if self.max_new_tokens is None and self.max_length is None:
            return min(DEFAULT_NEW_TOKENS, max_positions - prompt_length)
        wanted = self.max_new_tokens if self.max_new_tokens is not None else self.max_length - prompt_length
        if wanted < 1:
            raise InputError(
                f"the prompt has {prompt_length} tokens and max_length is {self.max_length}; raise it, or pass max_new_tokens"
            )
        if prompt_length + wanted > max_positions:
            shorten = "" if prompt_length == 1 else "shorten the prompt, or "
            raise InputError(
                f"{prompt_length} prompt tokens and {wanted} new ones exceed the {max_positions} positions of the model; "
                f"{shorten}pass max_new_tokens={max_positions - prompt_length} or less"
            )
        return wanted

    def to_dict(self) -> dict[str, Any]:
        """generation_config.json: what differs from the defaults."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        values = {name: _thawed(value) for name, value in values.items() if value != DEFAULTS[name]}
        return dict(self.extra) | values


DEFAULTS = {f.name: f.default for f in fields(GenerationConfig) if f.name != "extra"}
"""Every option and its default."""

OPTIONS = set(DEFAULTS)

SPECIAL_IDS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")

SAMPLING = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Options that change nothing unless tokens are drawn."""

BEAMS = ("early_stopping", "length_penalty")
"""Options that change nothing without beams."""

Processor = Callable[[Any, Any, Any], Any]
"""(ids [rows, columns], logits [rows, V], step) -> logits; see duonlp.generation.processors."""


def _frozen(value):
    """Lists as tuples, all the way down; NumPy's numbers as Python's."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(_frozen(part) for part in value)
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _thawed(value):
    return [_thawed(part) for part in value] if isinstance(value, tuple) else value


def _bias(value) -> tuple:
    """Transformers' two ways to write it, {(ids): bias} and [[ids, bias]], as the second."""
    pairs = value.items() if isinstance(value, Mapping) else value or ()
    try:
        return tuple((tuple(int(i) for i in ids), float(bias)) for ids, bias in pairs)
    except (TypeError, ValueError):
        raise InputError(f"sequence_bias={value!r} must be [[ids, bias], ...], such as [[[12, 7], -2.0]]") from None
