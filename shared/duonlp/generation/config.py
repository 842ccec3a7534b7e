"""GenerationConfig: every decoding option, defined and validated once for both engines."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.generation.options.stored import BEAMS, SAMPLING, describe_unusable, read_options, unused_options
from duonlp.generation.options.validation import as_ids, check_config, freeze_option, is_valid
from duonlp.schema import shorten
from duonlp.typing import Array

DEFAULT_NEW_TOKENS = 20
"""Number of new tokens if neither max_new_tokens nor max_length is set, as in Transformers 5."""

UNSUPPORTED = {
    "constraints": "use bad_words_ids, sequence_bias or a logits processor instead of constrained beam search",
    "force_words_ids": "use sequence_bias or a logits processor instead of constrained beam search",
    "dola_layers": "leave DoLa decoding out",
    "watermarking_config": "use a logits processor for watermarking",
    "prefix_allowed_tokens_fn": "write it as a logits processor, (ids, logits, step) -> logits",
    "stopping_criteria": "use eos_token_id or stop_strings, or stream and stop reading",
    "token_healing": "end the prompt before its last word",
    "assistant_ensemble_weight": "omit it: speculative decoding is exact here",
    "speculation_type": "pass a draft model as assistant_model, or set prompt_lookup_num_tokens",
    "cache_implementation": "omit it: keys and values are stored in the compute dtype",
    "assistant_early_exit": "pass a draft model as assistant_model, or set prompt_lookup_num_tokens",
}
"""Unsupported options of Transformers that would change the text, with alternatives."""

NEUTRAL = {
    "constraints": ([],), "force_words_ids": ([],), "stopping_criteria": ([],), "token_healing": (False,),
    "cache_implementation": (
        "dynamic", "dynamic_full", "static", "offloaded", "offloaded_static", "hybrid", "hybrid_chunked", "offloaded_hybrid",
        "offloaded_hybrid_chunked", "sliding_window", "paged",
    ),
}  # fmt: skip
"""Values besides None for which an unsupported option does not change the text."""

IGNORED = (
    "use_cache", "cache_config", "max_cache_len", "return_legacy_cache", "transformers_version", "_from_model_config",
    "_commit_hash", "synced_gpus", "disable_compile", "compile_config", "low_memory", "prefill_chunk_size", "is_assistant",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "continuous_batching_config", "use_mtp",
)  # fmt: skip
"""Options of Transformers that do not change the text, accepted and ignored for compatibility: how keys and values are
stored, how programs are compiled, and how many tokens speculative decoding proposes, since it is exact."""

MODEL_INPUTS = {
    "position_ids": "omit it: positions follow from attention_mask",
    "decoder_position_ids": "omit it: positions follow from decoder_attention_mask",
    "cache_position": "omit it",
    "inputs_embeds": "pass input_ids",
    "decoder_inputs_embeds": "pass decoder_input_ids",
    "inputs": "pass input_ids",
    "past_key_values": "omit it, and pass the whole text as input_ids",
    "encoder_outputs": "omit it, and pass the source as input_ids",
    "labels": "omit it: call the model for a loss",
    "head_mask": "omit it: all heads take part",
    "decoder_head_mask": "omit it: all heads take part",
    "cross_attn_head_mask": "omit it: all heads take part",
    "output_attentions": "call the model with the text that generate returned",
    "output_hidden_states": "call the model with the text that generate returned",
}
"""Inputs of models, and outputs, that ``generate`` refuses although Transformers' takes them, with alternatives."""


@dataclass(frozen=True)
class GenerationConfig:
    """Decoding options, with the names, meanings and defaults of Transformers 5.

    ``extra`` holds entries of generation_config.json that are not used (unknown, null, defaults, unusable), so that saving
    writes them back.

    Raises:
        InputError: A value is out of range, or options conflict.
    """

    # Length
    max_new_tokens: int | None = None  # number of new tokens; takes precedence over max_length
    max_length: int | None = None  # prompt (with padding) plus new tokens; None: 20 new tokens
    min_new_tokens: int | None = None  # suppress the end of text before this many new tokens
    max_time: float | None = None  # stop after this many seconds, measured between steps; compilation counts
    min_length: int = 0  # suppress the end of text before this total length, prompt included
    stop_strings: tuple[str, ...] = ()  # stop after the token that completes one of these; needs the tokenizer

    # Strategy
    do_sample: bool = False  # sample instead of choosing the most likely token
    seed: int | None = None  # random seed; None: a new one for each call
    num_return_sequences: int = 1  # texts per prompt
    num_beams: int = 1  # 2 or more: beam search
    early_stopping: bool | str = False  # beam search: True: stop at num_beams ends; "never": when none can improve
    length_penalty: float = 1.0  # divide beam scores by length ** length_penalty
    num_beam_groups: int = 1  # 2 or more: diverse beam search (Vijayakumar et al. 2016)
    diversity_penalty: float = 0.0  # subtracted per beam of an earlier group with the same token at this step
    penalty_alpha: float | None = None  # contrastive search with top_k candidates (Su et al. 2022)
    prompt_lookup_num_tokens: int | None = None  # speculative decoding: tokens copied after a matching n-gram
    max_matching_ngram_size: int = 2  # longest n-gram that prompt lookup matches
    num_assistant_tokens: int = 5  # speculative decoding: tokens a draft model proposes per step

    # Logits processors
    guidance_scale: float = 1.0  # above 1: classifier-free guidance (Sanchez et al. 2023)
    sequence_bias: tuple[
        tuple[tuple[int, ...], float], ...
    ] = ()  # ((ids, bias), ...): added to the token completing ids
    repetition_penalty: float = 1.0  # above 1 discourages tokens of the text so far (Keskar et al. 2019)
    encoder_repetition_penalty: float = 1.0  # above 1 discourages tokens that are not in the source
    no_repeat_ngram_size: int = 0  # each n-gram of this size appears at most once
    encoder_no_repeat_ngram_size: int = 0  # n-grams of this size in the source do not appear
    bad_words_ids: tuple[tuple[int, ...], ...] = ()  # sequences of ids that must not appear
    forced_bos_token_id: int | None = None  # first new token after a prompt of one token
    forced_eos_token_id: int | tuple[int, ...] | None = None  # token at max_length
    remove_invalid_values: bool = False  # replace NaN and infinities by finite numbers
    exponential_decay_length_penalty: tuple[int, float] | None = None  # (start, factor): raise the eos logit from start
    suppress_tokens: tuple[int, ...] = ()  # ids that never appear
    begin_suppress_tokens: tuple[int, ...] = ()  # ids that are not the first new token
    temperature: float = 1.0  # divide the logits by this
    top_h: float | None = None  # keep tokens of bounded entropy (Potraghloo et al. 2025)
    top_k: int = 50  # keep the k most likely tokens; 0: all
    top_p: float = 1.0  # keep the smallest set of likely tokens with this probability (Holtzman et al. 2019)
    min_p: float | None = None  # keep tokens with this share of the top probability (Nguyen et al. 2024)
    typical_p: float = 1.0  # keep the most typical tokens with this total probability (Meister et al. 2022)
    epsilon_cutoff: float = 0.0  # keep tokens with at least this probability (Hewitt et al. 2022)
    eta_cutoff: float = 0.0  # like epsilon_cutoff, but lower at high entropy (Hewitt et al. 2022)
    renormalize_logits: bool = False  # apply log softmax last

    # Special tokens
    eos_token_id: int | tuple[int, ...] | None = None  # any of these ends a text
    pad_token_id: int | None = None  # padding after the end; default: the first eos id
    bos_token_id: int | None = None
    decoder_start_token_id: int | None = None

    # Outputs
    return_dict_in_generate: bool = False  # return a GenerationOutput instead of ids
    output_scores: bool = False  # include processed logits of each step; implies a GenerationOutput
    output_logits: bool = False  # include raw logits of each step; implies a GenerationOutput

    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False, repr=False)

    def __post_init__(self):
        for f in fields(self):
            if f.name != "extra":
                object.__setattr__(self, f.name, freeze_option(f.name, getattr(self, f.name)))
        check_config(self)

    @classmethod
    def for_model(
        cls, cfg: TransformerConfig, stored: Mapping[str, Any] | None = None, origin: str | None = None
    ) -> "GenerationConfig":
        """Return a model's generation options: its special ids, overridden by its generation_config.json.

        Options that have no effect with the others may have any value. ``extra`` keeps what is not used.

        Args:
            cfg: Model configuration.
            stored: Contents of generation_config.json; without it, the generation options that old
                checkpoints store in config.json apply.
            origin: Name of the file, if unusable options are to be left out: one warning names them and says why, and null
                means that there is no such special id, as in Transformers.

        Raises:
            InputError: Without ``origin``, a stored value is invalid.
        """
        defaults: dict[str, Any] = {
            "eos_token_id": cfg.eos_token_id, "pad_token_id": cfg.pad_token_id, "bos_token_id": cfg.bos_token_id,
        }  # fmt: skip
        if cfg.decoder is not None:
            defaults["decoder_start_token_id"] = cfg.decoder.start_token_id
        if not stored:
            stored = {name: value for name, value in cfg.extra.items() if name in OPTIONS}
            if cfg.extra.get("force_bos_token_to_be_generated"):  # the first versions of BART's config.json
                stored["forced_bos_token_id"] = cfg.bos_token_id
        unsupported = {name: stored[name] for name in UNSUPPORTED if not is_neutral(name, stored.get(name))}
        options = read_options(stored, DEFAULTS, None if origin is None else cfg)
        if origin is None:
            if options.unusable:
                raise InputError(next(iter(options.unusable.values())))
            if unsupported:
                named = ", ".join(f"{name}={shorten(value)}" for name, value in unsupported.items())
                warnings.warn(f"generation_config.json sets {named}, which is unsupported and ignored", stacklevel=4)
        else:
            defaults |= {name: None for name in defaults if name in stored and stored[name] is None}
            if options.unusable or unsupported:
                warnings.warn(describe_unusable(options, unsupported, origin), stacklevel=5)
        extra = {name: value for name, value in stored.items() if name not in options.usable}
        return cls(**defaults | options.usable, extra=extra)

    def with_special_ids_from(self, other: "GenerationConfig") -> "GenerationConfig":
        """Return a copy whose missing special ids are taken from another config."""
        missing: dict[str, Any] = {name: getattr(other, name) for name in SPECIAL_IDS if getattr(self, name) is None}
        return replace(self, **missing)

    def with_options(self, **options: Any) -> "GenerationConfig":
        """Return a copy with options changed, and warn about options that have no effect.

        None resets an option to its default, except top_k, which it turns off, as in Transformers. Special
        ids default to None.

        Raises:
            InputError: An option is unknown or unsupported, a value is out of range, or options conflict.
        """
        changes = {}
        for name, value in options.items():
            if name in UNSUPPORTED and not is_neutral(name, value):
                raise InputError(f"{name}={value!r} is unsupported; {UNSUPPORTED[name]}")
            if name in OPTIONS:
                reset = 0 if name == "top_k" else DEFAULTS[name]
                changes[name] = reset if value is None else value
            elif name in MODEL_INPUTS and value is not None and value is not False:
                raise InputError(f"generate does not take {name}; {MODEL_INPUTS[name]}")
            elif name not in (*IGNORED, *UNSUPPORTED, *MODEL_INPUTS):
                raise InputError(f"unknown generation option {name!r}; options are {', '.join(sorted(OPTIONS))}")
        if changes.get("max_length") is not None and "max_new_tokens" not in changes:
            changes["max_new_tokens"] = None  # a length passed to this call overrides a stored one
        if changes.get("num_beams") == 1:
            changes.setdefault("num_beam_groups", 1)
            changes.setdefault("diversity_penalty", 0.0)
        beams = changes.get("num_beams", 1) != 1
        # A strategy of this call overrides a stored one.
        if (beams or changes.get("do_sample")) and self.penalty_alpha:
            changes.setdefault("penalty_alpha", None)
        if (beams or changes.get("penalty_alpha")) and self.prompt_lookup_num_tokens:
            changes.setdefault("prompt_lookup_num_tokens", None)
        if not changes.get("do_sample", self.do_sample) and not changes.get("penalty_alpha", self.penalty_alpha):
            # As in Transformers, temperature=0 is a way to say do_sample=False; it warns below like any other value.
            changes = {name: value for name, value in changes.items() if name not in SAMPLING or is_valid(name, value)}
        changed = replace(self, **changes)
        # Stored options that the others left without effect, whatever their values, may have one now.
        for _ in range(2):  # stored groups make a stored diversity count
            now_used = (unused_options(self) - unused_options(changed)) & set(self.extra) - set(options)
            stored = {name: self.extra[name] for name in now_used if self.extra[name] is not None}
            if not stored:
                break
            try:
                changed = replace(changed, **stored)
            except InputError as error:
                raise InputError(f"{error} (it is stored with the model: pass another value)") from None
        conditions = (*((n, "do_sample=True") for n in SAMPLING), *((n, "num_beams=2 or more") for n in BEAMS))
        for name, condition in conditions:
            unused = not changed.do_sample if name in SAMPLING else changed.num_beams == 1
            contrastive = name == "top_k" and changed.penalty_alpha is not None
            requested = options.get(name) not in (None, DEFAULTS[name])
            if requested and unused and not contrastive:
                warnings.warn(f"{name}={options[name]!r} has no effect without {condition}", stacklevel=7)
        return changed

    @property
    def strategy(self) -> str:
        """One of "greedy", "sample", "beam", "contrastive"; speculative decoding implements the first two."""
        if self.num_beams > 1:
            return "beam"
        if self.penalty_alpha and not self.do_sample and self.top_k > 1:
            return "contrastive"
        return "sample" if self.do_sample else "greedy"

    @property
    def returns_dict(self) -> bool:
        """Whether generate returns a GenerationOutput rather than ids."""
        return self.return_dict_in_generate or self.output_scores or self.output_logits

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All ids that end a text."""
        return as_ids(self.eos_token_id)

    @property
    def padding(self) -> int:
        """The id that follows the end of a text."""
        return self.pad_token_id if self.pad_token_id is not None else (self.eos_ids or (0,))[0]

    def new_tokens(self, prompt_length: int, max_positions: int) -> int:
        """Return the number of tokens to generate after a prompt.

        Raises:
            InputError: The prompt is empty or too long.
        """
        if prompt_length < 1:
            raise InputError("the prompt is empty; pass at least one token, such as the bos_token_id")
        if prompt_length >= max_positions:
            raise InputError(
                f"the prompt has {prompt_length} tokens and the model {max_positions} positions, which leaves no room for "
                "new tokens; shorten the prompt"
            )
        if self.max_new_tokens is not None:
            requested = self.max_new_tokens
        elif self.max_length is not None:
            requested = self.max_length - prompt_length
        else:
            return min(DEFAULT_NEW_TOKENS, max_positions - prompt_length)
        if requested < 1:
            raise InputError(
                f"the prompt has {prompt_length} tokens and max_length is {self.max_length}; raise it, or pass max_new_tokens"
            )
        if prompt_length + requested > max_positions:
            shorten = "" if prompt_length == 1 else "shorten the prompt, or "
            raise InputError(
                f"{prompt_length} prompt tokens and {requested} new ones exceed the {max_positions} positions of the model; "
                f"{shorten}pass max_new_tokens={max_positions - prompt_length} or less"
            )
        return requested

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of generation_config.json: the options that differ from their defaults, and ``extra``."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        values = {name: _thaw(value) for name, value in values.items() if value != DEFAULTS[name]}
        return dict(self.extra) | values


DEFAULTS = {f.name: f.default for f in fields(GenerationConfig) if f.name != "extra"}
"""Default value of each option."""

OPTIONS = set(DEFAULTS)

SPECIAL_IDS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")

Processor = Callable[[Array, Array, Array], Array]
"""(ids [rows, columns], logits [rows, V], step) -> logits; see duonlp.generation.processors."""


def is_neutral(name: str, value: Any) -> bool:
    """Return whether a value of an unsupported option has no effect."""
    value = list(value) if isinstance(value, tuple) else value
    return value is None or any(value == neutral for neutral in NEUTRAL.get(name, ()))


def _thaw(value: Any) -> Any:
    return [_thaw(part) for part in value] if isinstance(value, tuple) else value
