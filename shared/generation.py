"""GenerationConfig: one definition of every decoding option, checked once, for both engines."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from shared.buckets import bucket
from shared.config import TransformerConfig
from shared.errors import InputError
from shared.inputs import check_inputs
from shared.positions import generation_position_ids

GREEDY_DEFAULTS = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
"""Options of other strategies, with the value that means greedy decoding."""


OTHER_STRATEGIES = GREEDY_DEFAULTS | {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "forced_bos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": None,
}
"""What else in a generation_config.json would change the ids, with the value that would not."""


@dataclass(frozen=True)
class GenerationConfig:
    """How a prompt is continued.

    ``extra`` keeps keys of generation_config.json that no strategy here reads, so that saving writes them back.
    """

    max_new_tokens: int | None = None  # tokens to add; beats max_length
    max_length: int = 20  # prompt and new tokens together, Transformers' default
    eos_token_id: int | tuple[int, ...] | None = None  # a sequence ends with any of these
    pad_token_id: int | None = None  # what stands after the end; the first eos where none is given
    bos_token_id: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False, repr=False)

    def __post_init__(self):
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        for name in ("max_new_tokens", "max_length"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"{name}={value!r} must be a positive whole number")

    @classmethod
    def for_model(cls, cfg: TransformerConfig, stored: Mapping[str, Any] | None = None) -> "GenerationConfig":
        """The model's own special ids, and over them what its generation_config.json says."""
        own = {"eos_token_id": cfg.eos_token_id, "pad_token_id": cfg.pad_token_id, "bos_token_id": cfg.bos_token_id}
        stored = dict(stored or {})
        ignored = {
            name: stored[name] for name in OTHER_STRATEGIES if stored.get(name) not in (None, OTHER_STRATEGIES[name])
        }
        if ignored:
            told = ", ".join(f"{name}={value!r}" for name, value in ignored.items())
            warnings.warn(
                f"generation_config.json asks for {told}; decoding here is greedy and leaves it out", stacklevel=4
            )
        known = {name: stored.pop(name) for name in _OPTIONS & set(stored)}
        return cls(**_hashable(own | {k: v for k, v in known.items() if v is not None}), extra=stored)

    def with_options(self, **options) -> "GenerationConfig":
        """A copy with options changed.

        Raises:
            InputError: an unknown option, a value that is not allowed, or a strategy that is not there.
        """
        for name, value in list(options.items()):
            if name in GREEDY_DEFAULTS:
                if value not in (None, GREEDY_DEFAULTS[name]):
                    raise InputError(
                        f"{name}={value!r} is not available: decoding here is greedy ({name}={GREEDY_DEFAULTS[name]!r})"
                    )
                del options[name]
            elif name not in _OPTIONS:
                raise InputError(f"unknown generation option {name!r}; options are {', '.join(sorted(_OPTIONS))}")
        return replace(self, **_hashable({k: v for k, v in options.items() if v is not None}))

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a sequence."""
        eos = self.eos_token_id
        return () if eos is None else eos if isinstance(eos, tuple) else (eos,)

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
        wanted = self.max_new_tokens if self.max_new_tokens is not None else self.max_length - prompt_length
        if wanted < 1:
            raise InputError(
                f"the prompt has {prompt_length} tokens and max_length is {self.max_length}; raise it, or pass max_new_tokens"
            )
        if prompt_length + wanted > max_positions:
            raise InputError(
                f"{prompt_length} prompt tokens and {wanted} new ones exceed the {max_positions} positions of the model; "
                f"shorten the prompt, or pass max_new_tokens={max(max_positions - prompt_length, 0)} or less"
            )
        return wanted

    def to_dict(self) -> dict[str, Any]:
        """generation_config.json."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return dict(self.extra) | {k: v for k, v in values.items() if v is not None}


_OPTIONS = {f.name for f in fields(GenerationConfig)} - {"extra"}


def _hashable(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


@dataclass(frozen=True)
class Prompt:
    """Prompts made ready for a compiled loop: rows and columns padded to buckets, columns on the left."""

    input_ids: np.ndarray  # int32 [rows, columns]
    attention_mask: np.ndarray  # int32 [rows, columns], 0 on padding
    position_ids: np.ndarray  # int32 [rows, columns]
    next_position: np.ndarray  # int32 [rows], of the first new token
    done: np.ndarray  # bool [rows], True on rows that only fill a bucket
    eos_ids: np.ndarray  # int32 [4, 8, ...], filled up with -1, which is no token
    padding: int
    new_tokens: int  # how many to add at most
    room: int  # new_tokens up to a bucket: what is compiled for
    original: np.ndarray  # the input_ids of the caller

    def finish(self, new_ids: np.ndarray, steps: int) -> np.ndarray:
        """The caller's prompts with the ``steps`` ids that were added: int [B, T + steps]."""
        rows = self.original.shape[0]
        return np.concatenate([self.original, np.asarray(new_ids)[:rows, :steps]], axis=1).astype(np.int32)


def prepare_prompt(cfg, generation_config, input_ids, attention_mask=None, options=None) -> Prompt:
    """Check prompts and pad them.

    Args:
        cfg: the model's TransformerConfig.
        input_ids: int [B, T], padded on the left where prompts differ in length.
        attention_mask: [B, T] or None.
        options: changes to generation_config for this call.

    Raises:
        InputError: an empty or too long prompt, a prompt of padding alone, ids beyond the vocabulary, unknown options.
    """
    if not isinstance(generation_config, GenerationConfig):
        stored = generation_config.to_dict() if hasattr(generation_config, "to_dict") else generation_config
        if not isinstance(stored, Mapping):
            raise InputError(f"generation_config is a {type(stored).__name__}; give a GenerationConfig or a dict")
        generation_config = GenerationConfig.for_model(cfg, stored)
    # a tokenizer gives token types, too; a model that generates has none to tell apart
    options = {name: value for name, value in (options or {}).items() if name != "token_type_ids"}
    generation_config = generation_config.with_options(**options)
    original = np.asarray(input_ids)
    if original.ndim == 1:
        raise InputError(
            f"input_ids has shape {original.shape}; prompts are [batch, length], wrap a single one in a list"
        )
    mask = (
        np.ones(original.shape, np.int32)
        if attention_mask is None
        else (np.asarray(attention_mask) != 0).astype(np.int32)
    )
    if mask.shape != original.shape:
        raise InputError(f"attention_mask has shape {mask.shape}, input_ids {original.shape}; they must be alike")
    check_inputs(cfg, "causal-lm", {"input_ids": original}, cached=True)
    lengths = mask.sum(axis=1)
    new_tokens = generation_config.new_tokens(int(original.shape[1]), max(cfg.max_length, 0))
    if lengths.min(initial=1) < 1:
        raise InputError(f"prompt {int(lengths.argmin())} is padding alone; give at least one token")
    if original.shape[1] > 1 and (mask[:, -1] == 0).any():
        raise InputError("a prompt ends in padding; pad prompts on the left: tokenizer.padding_side = 'left'")
    rows, columns = bucket(original.shape[0]), bucket(original.shape[1])
    pad = ((0, rows - original.shape[0]), (columns - original.shape[1], 0))
    mask = np.pad(mask, pad)
    mask[original.shape[0] :, -1] = 1
    return Prompt(
        input_ids=np.pad(original, pad).astype(np.int32),
        attention_mask=mask.astype(np.int32),
        # Counted from 0 in every family, as GenerationMixin of Transformers 5 counts them, RoBERTa included.
        position_ids=generation_position_ids(mask),
        next_position=mask.sum(axis=1).astype(np.int32),
        done=np.arange(rows) >= original.shape[0],
        eos_ids=_in_fours(generation_config.eos_ids),
        padding=generation_config.padding,
        new_tokens=new_tokens,
        room=bucket(new_tokens),
        original=original,
    )


def _in_fours(ids: tuple[int, ...]) -> np.ndarray:
    """A vector of one of a few lengths, so that one more id that ends a sequence does not compile again."""
    return np.asarray(ids + (-1,) * (-len(ids) % 4 or 4 * (not ids)), np.int32)
