"""Options of a stored generation_config.json: each is judged alone, and what cannot be used is left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.generation.options.validation import (
    ID_OPTIONS,
    MIN_INTEGERS,
    check_ids_exist,
    check_option,
    conflicts,
    freeze_option,
)
from duonlp.schema import shorten

SAMPLING = ("seed", "temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Options that have an effect only when sampling."""

BEAMS = ("early_stopping", "length_penalty")
"""Options that have an effect only in beam search."""

GROUPS = ("num_beam_groups", "diversity_penalty")
"""Options that have an effect only in diverse beam search."""

OF_SOURCES = ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty")
"""Options that apply to the source of an encoder-decoder."""


@dataclass
class StoredOptions:
    """What can be used of the options of a file.

    Attributes:
        usable: Options by name, normalized; null and default values are left out.
        unusable: Why each other option that would have an effect is left out, by name.
    """

    usable: dict[str, Any] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)

    def leave_out(self, name: str, why: str) -> None:
        """Move an option from the usable to the unusable ones."""
        self.usable.pop(name, None)
        self.unusable[name] = why


def unused_options(config: Any) -> set[str]:
    """Return the options that have no effect together with the others of a GenerationConfig, whatever their values."""
    unused = {"num_assistant_tokens"}  # only assistant_model, an argument of the call, reads it
    one_beam = config.num_beams == 1
    unused |= {*BEAMS, *GROUPS} if one_beam else {"penalty_alpha"}
    unused |= {"penalty_alpha"} if config.do_sample else set(SAMPLING)
    if one_beam and not config.do_sample and config.penalty_alpha:
        unused.discard("top_k")  # the candidates of contrastive search
        unused |= {"penalty_alpha"} if config.top_k < 2 else set()
    unused |= {"diversity_penalty"} if config.num_beam_groups == 1 else set()
    unused |= {"max_matching_ngram_size"} if config.prompt_lookup_num_tokens is None else set()
    unused |= {"max_length"} if config.max_new_tokens is not None else set()
    return unused | ({"min_length"} if config.min_new_tokens is not None else set())


def read_options(
    stored: Mapping[str, Any], defaults: Mapping[str, Any], cfg: TransformerConfig | None = None
) -> StoredOptions:
    """Judge each stored option alone, then those that are invalid only together, then those that do not fit the model.

    An option that has no effect together with the others is left out without a reason if its value is invalid, as in files of
    Transformers with ``do_sample: false`` and ``temperature: 0``.

    Args:
        stored: Options by name; other names are ignored.
        defaults: Value of every option that is not stored.
        cfg: The model, or None to skip what depends on it.
    """
    options = StoredOptions()
    for name in [name for name in defaults if stored.get(name) is not None]:
        try:
            value = freeze_option(name, _whole(name, stored[name]))
            if value != defaults[name] or value is True:  # true is not 1
                check_option(name, value)
                options.usable[name] = value
        except InputError as error:
            options.unusable[name] = str(error)
    unused = unused_options(_view(options, defaults))
    options.unusable = {name: why for name, why in options.unusable.items() if name not in unused}
    for name in (*GROUPS, "penalty_alpha"):
        if name in unused:
            options.usable.pop(name, None)
    for _ in defaults:  # a conflict may hide another one
        conflict = next(conflicts(_view(options, defaults)), None)
        if conflict is None:
            break
        for name in conflict.omit:
            if name in options.usable:
                options.leave_out(name, conflict.message)
    if cfg is not None:
        _check_model(options, cfg)
    return options


def _view(options: StoredOptions, defaults: Mapping[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(**{**defaults, **options.usable})


def _whole(name: str, value: Any) -> Any:
    """Convert whole floats of integer options to integers: JSON writers other than Python's spell 20 as 20.0 or 2e1."""
    if isinstance(value, list):
        return [_whole(name, part) for part in value]
    integers = name in MIN_INTEGERS or name in ID_OPTIONS or name == "bad_words_ids"
    return int(value) if integers and isinstance(value, float) and value.is_integer() else value


def _check_model(options: StoredOptions, cfg: TransformerConfig) -> None:
    """Leave out options that do not fit the model."""
    if not options.usable:
        return
    vocab_size = cfg.as_decoder().embedding.vocab_size
    if cfg.decoder is None:
        for name in OF_SOURCES:
            if name in options.usable:
                options.leave_out(
                    name,
                    f"{name}={options.usable[name]} applies to the source of an encoder-decoder, which this model is not",
                )
    elif "guidance_scale" in options.usable:
        options.leave_out(
            "guidance_scale", f"guidance_scale={options.usable['guidance_scale']} needs a model without an encoder"
        )
    for name, value in list(options.usable.items()):
        try:
            check_ids_exist(name, value, vocab_size)
        except InputError as error:
            options.leave_out(name, str(error))


def describe_unusable(options: StoredOptions, unsupported: Mapping[str, Any], origin: str) -> str:
    """Return the text of a warning that names the options of a file that are left out, and says why.

    Args:
        options: Result of read_options.
        unsupported: Options that would change the text but are not implemented, with their values.
        origin: Name of the file.
    """
    reasons = dict.fromkeys(options.unusable.values())  # a conflict may leave out several options
    reasons |= dict.fromkeys(f"{name}={shorten(value)} is unsupported" for name, value in unsupported.items())
    which = "some" if options.usable else "all"
    return f"{which} generation settings of {origin} are ignored: {'; '.join(reasons)}"
