"""Base of tasks that generate text: all options of GenerationConfig, and detection of the end of a text."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import CheckpointError, InputError
from duonlp.generation import GenerationConfig
from duonlp.generation.config import IGNORED, UNSUPPORTED
from duonlp.generation.prompt import resolve_config
from duonlp.tasks.base import Example, Options, ParsedInputs, check_bool, check_string, describe
from duonlp.tasks.text import TextTask
from duonlp.typing import Tokenizer

if TYPE_CHECKING:
    from duonlp.generation.stop_strings import StopStrings

DEFAULT_NEW_TOKENS = 256
"""Default number of new tokens, as in Transformers' pipelines; limited by the model's positions."""


class _Unset:
    """Marks an option that is not set, for which the model's default applies; None is a valid value of many options."""

    def __repr__(self) -> str:
        return "<model default>"


UNSET = _Unset()

GENERATION = tuple(f.name for f in fields(GenerationConfig) if f.name != "extra")
"""Names of the options of ``generate``."""

CALL_ARGUMENTS = {"max_new_tokens", "max_length", "eos_token_id", "pad_token_id"}
"""Options that are passed to every call of ``generate`` as separate arguments."""

_AllGenerationOptions = make_dataclass(
    "_AllGenerationOptions", [(name, Any, field(default=UNSET)) for name in GENERATION], bases=(Options,), frozen=True
)


@dataclass(frozen=True)
class GenerationOptions(_AllGenerationOptions):
    """All options of GenerationConfig, which default to the model's settings, and the attributes below.

    Attributes:
        generation_config: A GenerationConfig or dict that replaces the model's settings, and those passed to the constructor.
        logits_processor: Custom functions (ids, logits, step) -> logits; see ``generate``.
        assistant_model: A smaller model with the same tokenizer, for speculative decoding.
        return_tensors: Return ids instead of text.
        skip_special_tokens: See the tokenizer's ``decode``.
        clean_up_tokenization_spaces: See the tokenizer's ``decode``.
        prefix: Text prepended to every input and not returned.
        resolved: All settings of ``generate`` combined; set by the task when it checks the options.
    """

    generation_config: Any = None
    logits_processor: Sequence[Callable[..., Any]] | None = None
    assistant_model: Any = None
    return_tensors: bool = False
    skip_special_tokens: bool = True
    clean_up_tokenization_spaces: bool | None = None
    prefix: str | None = None

    resolved: ClassVar[GenerationConfig]

    def __post_init__(self) -> None:
        check_bool("return_tensors", self.return_tensors)
        check_bool("skip_special_tokens", self.skip_special_tokens)
        check_bool("clean_up_tokenization_spaces", self.clean_up_tokenization_spaces, optional=True)
        check_string("prefix", self.prefix, optional=True)
        if not isinstance(self.logits_processor, (list, tuple, type(None))):
            raise InputError(
                f"logits_processor is {describe(self.logits_processor)}; expected a list of functions "
                "(ids, logits, step) -> logits"
            )
        if self.assistant_model is not None and not hasattr(self.assistant_model, "config"):
            raise InputError(
                f"assistant_model is {describe(self.assistant_model)}; pass a loaded model of the same package, or pass a "
                "checkpoint when constructing the pipeline"
            )

    @property
    def explicit(self) -> dict[str, Any]:
        """Options of ``generate`` that were set explicitly."""
        return {name: getattr(self, name) for name in GENERATION if getattr(self, name) is not UNSET}


GenerationOptionsT = TypeVar("GenerationOptionsT", bound=GenerationOptions)


@dataclass(frozen=True)
class Group:
    """Properties that prompts in one batch share, so that each gives the same result as it would alone.

    Attributes:
        new_tokens: Maximum number of new tokens.
        min_new_tokens: Minimum number of new tokens that follows from ``min_length``, if any.
        single: Whether prompts have one token, in which case ``forced_bos_token_id`` applies.
        repetition: With a seed, the number of earlier equal prompts; equal prompts in one batch would draw different texts.
    """

    new_tokens: int
    min_new_tokens: int | None = None
    single: bool = False
    repetition: int = 0


class EndDetector:
    """Detects the end of a text: an end-of-sequence id, or the token that completes a stop string.

    Args:
        end_ids: Ids that end a text.
        stops: Stop strings, or None.
        prompt: int [length], the ids before the text.

    Attributes:
        ended: Whether the text has ended.
    """

    def __init__(self, end_ids: Sequence[int], stops: "StopStrings | None", prompt: np.ndarray) -> None:
        self.end_ids, self.stops, self.ended = frozenset(end_ids), stops, False
        self._state = 0 if stops is None else int(stops.start(prompt[None])[0])

    def trim(self, ids: np.ndarray) -> np.ndarray:
        """Return the next ids, int [n], without those after the end of the text."""
        if self.ended:
            return ids[:0]
        for count, token in enumerate(ids.tolist(), 1):
            if self.stops is not None:
                self._state = int(self.stops.transitions[self._state, token])
                self.ended = self._state == self.stops.accept
            if self.ended or token in self.end_ids:
                self.ended = True
                return ids[:count]
        return ids


class GenerationTask(TextTask[GenerationOptionsT]):
    """Base of tasks that generate text.

    Args:
        tokenizer: See :class:`Task`.
        config: See :class:`Task`.
        folder: See :class:`Task`.
        generation_config: Default settings of the model.
        task: Name by which the task was requested, if it is more specific than the class ("translation_en_to_fr").
    """

    Options = GenerationOptions
    outputs = ("sequences",)
    generates = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: TransformerConfig,
        folder: str | os.PathLike[str] | None = None,
        generation_config: GenerationConfig | None = None,
        task: str | None = None,
    ) -> None:
        super().__init__(tokenizer, config, folder)
        self.name = task or self.name
        self.generation_config = generation_config or GenerationConfig.for_model(config, origin="config.json")

    def parse_inputs(self, inputs: Any, keywords: dict[str, Any]) -> ParsedInputs:
        parsed = super().parse_inputs(inputs, keywords)
        if not isinstance(inputs, (str, list, tuple)) and parsed.kind == "one":
            raise InputError(f"{self.name} got {describe(inputs)}; pass {self.accepted_inputs}")
        return parsed

    def output_width(self) -> int:
        return 1

    @property
    def input_names(self) -> list[str]:
        return ["input_ids", "attention_mask"]

    # -- options ---------------------------------------------------------------------------------------------------

    def options(self, base: GenerationOptionsT | None = None, **changes: Any) -> GenerationOptionsT:
        if base is not None and changes.get("generation_config") is not None:
            base = replace(base, **dict.fromkeys(GENERATION, UNSET))  # it replaces all of them, as in Transformers
        return super().options(base, **changes)

    def rewrite_options(self, changes: dict[str, Any]) -> dict[str, Any]:
        changes = dict(changes)
        if "stop_sequence" in changes:  # its name in Transformers' pipelines
            if "stop_strings" in changes:
                raise InputError("stop_sequence and stop_strings are two names of one option; pass one of them")
            changes["stop_strings"] = changes.pop("stop_sequence")
        if changes.get("max_length") is not None:
            changes.setdefault("max_new_tokens", UNSET)  # a length of the call overrides one of the constructor
        for name in [name for name in changes if name in IGNORED or name in UNSUPPORTED]:
            GenerationConfig().with_options(**{name: changes.pop(name)})  # raises if it would change the text
        return changes

    def check_options(self, options: GenerationOptionsT) -> None:
        # Inlined so that the stack level of with_options' warnings refers to the caller of the pipeline.
        config = resolve_config(self.config, self.base_config(options), options.generation_config, options.explicit)
        if config.returns_dict and not self.generation_config.returns_dict:
            raise InputError(
                f"{self.name} returns texts; for scores, logits and log probabilities call model.generate(ids, "
                "return_dict_in_generate=True, output_scores=True)"
            )
        object.__setattr__(options, "resolved", self.finalize_config(config, options))

    def check_changes(self, options: GenerationOptionsT, changes: Mapping[str, Any], of_call: bool) -> None:
        for name, value in (("skip_special_tokens", False), ("clean_up_tokenization_spaces", True)):
            if options.return_tensors and name in changes and changes[name] is value:
                raise InputError(
                    f"{name}={value} has no effect with return_tensors=True, which returns ids; omit one of them"
                )

    def finalize_config(self, config: GenerationConfig, options: GenerationOptionsT) -> GenerationConfig:
        """Return the settings of ``generate``, adapted to other options of the task."""
        return config

    def prefix(self, options: GenerationOptionsT) -> str:
        """Return the text to prepend to every input, by default that of config.json.

        Raises:
            CheckpointError: the prefix in config.json is not a string.
        """
        prefix = self.stored_prefix(options) if options.prefix is None else options.prefix
        if not isinstance(prefix, (str, type(None))):
            raise CheckpointError(
                f"the prefix in config.json is {describe(prefix)}; expected a string: fix config.json"
            )
        return prefix or ""

    def stored_prefix(self, options: GenerationOptionsT) -> Any:
        """Return the prefix of config.json that applies; it may be anything."""
        return self.config.extra.get("prefix")

    def base_config(self, options: GenerationOptionsT) -> GenerationConfig:
        """Return the settings that apply to options that are not set."""
        return self.generation_config

    def arguments(self, group: Group, options: GenerationOptionsT) -> dict[str, Any]:
        """Return the keyword arguments of ``generate`` or ``stream`` for prompts of a group."""
        config = options.resolved
        arguments: dict[str, Any] = {
            "max_new_tokens": group.new_tokens,
            "eos_token_id": list(config.eos_ids) or None,
            "pad_token_id": self.pad_token_id if config.pad_token_id is None else config.pad_token_id,
        }
        if group.min_new_tokens is not None:
            arguments["min_new_tokens"] = group.min_new_tokens
        if self.needs_config(options):
            arguments["generation_config"] = config
        for name in ("logits_processor", "assistant_model"):
            if getattr(options, name) is not None:
                arguments[name] = getattr(options, name)
        return arguments | ({"tokenizer": self.tokenizer} if config.stop_strings else {})

    def needs_config(self, options: GenerationOptionsT) -> bool:
        """Return whether ``generate`` must be passed a config because it differs from the model's."""
        return bool(options.explicit.keys() - CALL_ARGUMENTS) or options.generation_config is not None

    # -- generated text --------------------------------------------------------------------------------------------

    def prompt_ids(self, example: Example, options: GenerationOptionsT) -> np.ndarray:
        """Return the ids that a row's text continues, int32 [length]."""
        return example.inputs["input_ids"]

    def end_detector(self, prompt: np.ndarray, options: GenerationOptionsT) -> EndDetector:
        """Return a detector of the end of the text after a prompt's ids, int [length]."""
        stops, config = None, options.resolved
        if config.stop_strings:
            from duonlp.generation.stop_strings import StopStrings

            vocab_size = self.config.as_decoder().embedding.vocab_size
            stops = StopStrings.build(self.tokenizer, config.stop_strings, vocab_size)
        return EndDetector(config.eos_ids, stops, prompt)

    def run(
        self, forward: Callable[..., Any], batch: dict[str, np.ndarray], group: Group, options: GenerationOptionsT
    ) -> dict[str, np.ndarray]:
        ids = batch["input_ids"]
        sequences = forward(ids, batch["attention_mask"], **self.arguments(group, options))
        if isinstance(sequences, Mapping):
            sequences = sequences["sequences"]
        new = np.asarray(sequences)[:, self.prompt_columns(ids) :]  # [batch * texts, n]
        return {"sequences": new.reshape(len(ids), len(new) // len(ids), new.shape[1])}  # [batch, texts, n]

    def prompt_columns(self, ids: np.ndarray) -> int:
        """Return how many leading columns of ``generate``'s output for ids [batch, length] are not new ids."""
        return ids.shape[1]

    def reduce(
        self, examples: Sequence[Example], outputs: Mapping[str, np.ndarray], options: GenerationOptionsT
    ) -> list[dict[str, Any]]:
        rows = []
        for example, texts in zip(examples, outputs["sequences"]):  # the last rows are padding
            prompt = self.prompt_ids(example, options)
            rows.append({"new": [self.end_detector(prompt, options).trim(new).copy() for new in texts]})
        return rows

    def decode(
        self, item: Any, examples: Sequence[Example], outputs: Sequence[dict[str, Any]], options: GenerationOptionsT
    ) -> list[dict[str, Any]]:
        return [self.result(examples[0], new.tolist(), options) for new in outputs[0]["new"]]

    def result(self, example: Example, new: list[int], options: GenerationOptionsT) -> dict[str, Any]:
        """Return the result for one text, given its new ids."""
        raise NotImplementedError

    def text(self, ids: list[int], options: GenerationOptionsT) -> str:
        """Decode ids to text."""
        keywords = {}
        if options.clean_up_tokenization_spaces is not None:
            keywords["clean_up_tokenization_spaces"] = options.clean_up_tokenization_spaces
        return self.rewrite_text(
            self.tokenizer.decode(
                self.text_ids(ids, options), skip_special_tokens=options.skip_special_tokens, **keywords
            )
        )

    def text_ids(self, ids: list[int], options: GenerationOptionsT) -> list[int]:
        """Return the ids without those that are no text although the tokenizer does not list them as special."""
        return ids

    def rewrite_text(self, text: str) -> str:
        """Return decoded text, or a piece of it that consists of whole tokens, as the reader expects it."""
        return text

    def stream(
        self, forward: Callable[..., Iterable[Any]], example: Example, options: GenerationOptionsT
    ) -> Iterator[str]:
        """Yield the new text of one prompt in pieces as they are generated.

        Args:
            forward: An engine's ``stream`` bound to a model, which returns an iterator of new ids, int [1, n].
            example: The prompt.
            options: Options of the call.

        Raises:
            InputError: an option does not support streaming; raised by the call, before iteration.
        """
        if options.resolved.num_return_sequences > 1:
            raise InputError(
                f"num_return_sequences is {options.resolved.num_return_sequences}, but a stream has one text; pass "
                "num_return_sequences=1, or call the pipeline"
            )
        for name in ("return_tensors", "clean_up_tokenization_spaces"):
            if getattr(options, name):
                raise InputError(
                    f"{name}=True is not supported in a stream, which yields text as it is generated; omit it"
                )
        rows = {name: values[None] for name, values in example.inputs.items()}
        steps = forward(rows["input_ids"], rows["attention_mask"], **self.arguments(example.group, options))
        return self._pieces(steps, example, options)

    def _pieces(self, steps: Iterable[Any], example: Example, options: GenerationOptionsT) -> Iterator[str]:
        from duonlp.generation.streaming import TextStream

        text = TextStream(self.tokenizer, options.skip_special_tokens)
        end = self.end_detector(self.prompt_ids(example, options), options)
        for ids in steps:
            if piece := text.put(self.text_ids(end.trim(np.asarray(ids)[0]).tolist(), options)):
                yield self.rewrite_text(piece)
            if end.ended:
                break
        if rest := text.end():
            yield self.rewrite_text(rest)
