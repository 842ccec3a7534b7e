"""Text-to-text generation with an encoder-decoder."""

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from duonlp.config import DecoderConfig, TransformerConfig
from duonlp.errors import CheckpointError, InputError
from duonlp.generation import GenerationConfig
from duonlp.generation.config import IGNORED, OPTIONS, UNSUPPORTED, is_neutral
from duonlp.generation.options.stored import read_options
from duonlp.tasks.base import Example, check_bool, check_choice, check_int, describe
from duonlp.tasks.generation import DEFAULT_NEW_TOKENS, GenerationOptions, GenerationTask, Group
from duonlp.tasks.text import TRUNCATIONS
from duonlp.typing import Tokenizer
from duonlp.util.tokenization import has_line_break_token, private_tokenizer, restore_line_breaks

DEFAULT_BEAMS = 4
"""Default number of beams, as in the pipelines of Transformers 4.57."""

OTHER_STRATEGIES = ("penalty_alpha", "prompt_lookup_num_tokens")
"""Options that select a strategy without beams, which disables DEFAULT_BEAMS."""


@dataclass(frozen=True)
class Text2TextGenerationOptions(GenerationOptions):
    """The options of GenerationOptions, and the attributes below.

    ``prefix`` defaults to the checkpoint's. ``truncation=True``, as in Transformers, is the same as "truncate".

    Attributes:
        long_documents: What to do with a source that is too long: "error" raises, "truncate" truncates its end.
        max_source_length: Maximum number of tokens of a source, including prefix and special tokens (default: the limit of
            model and tokenizer).
        source_prefix: The effective prefix; set by the task when it checks the options.
    """

    clean_up_tokenization_spaces: bool | None = False
    long_documents: str = "error"
    max_source_length: int | None = None

    LONG_DOCUMENTS: ClassVar[tuple[str, ...]] = ("error", "truncate")
    source_prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.long_documents == "chunk" and "chunk" not in self.LONG_DOCUMENTS:
            raise InputError(
                'long_documents="chunk" is only supported by summarization and translation, whose results for parts of a '
                'text can be combined; use "truncate", or shorten the text'
            )
        check_choice("long_documents", self.long_documents, self.LONG_DOCUMENTS)
        check_int("max_source_length", self.max_source_length, minimum=1, optional=True)


Text2TextOptionsT = TypeVar("Text2TextOptionsT", bound=Text2TextGenerationOptions)


@dataclass(slots=True)
class Source:
    """State of a row.

    Attributes:
        text: The source text.
        number: Index of the input, for error messages.
        rounds: The parts of a long document and their results, for each earlier round.
    """

    text: str
    number: int
    rounds: tuple[tuple[dict[str, str], ...], ...] = ()


class Text2TextGenerationTask(GenerationTask[Text2TextOptionsT]):
    """Text -> [{"generated_text"}], num_return_sequences of them, best first.

    Follows Text2TextGenerationPipeline of Transformers 4.57 (pipelines/text2text_generation.py, removed in Transformers 5):

    - The result for one text is a list; the result for a list of texts has one dict per text if num_return_sequences is 1,
      otherwise one list per text; an iterator yields one list per text.
    - ``return_tensors`` returns "generated_token_ids" instead, a list that begins with the decoder's start token.
    - The defaults are 4 beams and up to 256 new tokens. The checkpoint's ``prefix`` and ``task_specific_params`` for the
      task override the model's generation config, and options override both.

    It differs where 4.57 does not behave as documented:

    - ``max_length``, in task_specific_params or in the call, overrides the default of 256 new tokens.
    - ``num_beams`` in the model's generation config overrides the default of 4.
    - Warnings about max_length and input lengths refer to the effective settings.
    - Nested lists are an error; 4.57 processes only the first text of each.
    - PEGASUS' token "<n>" is a line break in texts.

    The engine's ``generate`` takes right-padded sources and returns the decoder's ids, [texts, 1 + new tokens].

    Raises:
        InputError: the model has no decoder, the prefix leaves no room for a text, or the tokenizer is unsupported.
        CheckpointError: the checkpoint's task_specific_params are invalid.
    """

    name = "text2text-generation"
    head = "seq2seq-lm"
    Options = Text2TextGenerationOptions
    result_name: ClassVar[str] = "generated"
    fast_tokenizer = False
    remedy = 'shorten it, or pass long_documents="truncate"'

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: TransformerConfig,
        folder: str | os.PathLike[str] | None = None,
        generation_config: GenerationConfig | None = None,
        task: str | None = None,
    ) -> None:
        super().__init__(tokenizer, config, folder, generation_config, task)
        if config.decoder is None:
            raise InputError(
                f"{self.name} needs an encoder-decoder, loaded with AutoModelForSeq2SeqLM, but {config.model_type} is not one"
            )
        self.task_params(self.name)  # fails early if they are invalid
        self.has_line_break_token = has_line_break_token(tokenizer)

    @property
    def decoder(self) -> DecoderConfig:
        """Configuration of the model's decoder."""
        assert self.config.decoder is not None
        return self.config.decoder

    # -- options ---------------------------------------------------------------------------------------------------

    def rewrite_options(self, changes: dict[str, Any]) -> dict[str, Any]:
        changes = super().rewrite_options(changes)
        if (truncation := changes.pop("truncation", None)) is not None:
            check_choice("truncation", truncation, (True, False, *TRUNCATIONS))
            long_documents = changes.setdefault("long_documents", "truncate" if _truncates(truncation) else "error")
            if long_documents != "truncate" and _truncates(truncation):
                raise InputError(
                    f"truncation={truncation!r} and long_documents={long_documents!r} are contradictory; pass one of them"
                )
        return_text = changes.pop("return_text", None)  # the opposite of return_tensors, which decides
        check_bool("return_text", return_text, optional=True)
        if return_text is not None and bool(return_text) == bool(changes.get("return_tensors", False)):
            raise InputError(
                f"return_text={return_text} and return_tensors={changes.get('return_tensors', False)} are contradictory; "
                "return_tensors=True returns ids instead of texts: pass only that"
            )
        return changes

    def task_params(self, task: str) -> dict[str, Any]:
        """Return the checkpoint's task_specific_params for a task: a prefix, and options of ``generate``.

        Raises:
            CheckpointError: they are invalid.
        """
        stored = self.config.extra.get("task_specific_params") or {}
        if not isinstance(stored, Mapping) or not isinstance(stored.get(task) or {}, Mapping):
            raise CheckpointError(
                f"task_specific_params of config.json is {describe(stored)}; expected an object of objects: fix config.json"
            )
        return dict(stored.get(task) or {})

    def base_config(self, options: Text2TextOptionsT) -> GenerationConfig:
        explicit = options.explicit
        config = self.generation_config
        no_beams = options.assistant_model is not None or any(explicit.get(name) for name in OTHER_STRATEGIES)
        if config.strategy == "greedy" and config.prompt_lookup_num_tokens is None and not no_beams:
            config = replace(config, num_beams=DEFAULT_BEAMS)
        name = self.task_params_name(options)
        params = {key: value for key, value in self.task_params(name).items() if value is not None}
        neutral = {option for option in UNSUPPORTED if is_neutral(option, params.get(option))}
        unknown = sorted(set(params) - OPTIONS - neutral - {"prefix", *IGNORED})
        if unknown:
            warnings.warn(
                f"task_specific_params of config.json for {name} have unknown options, which are ignored: {', '.join(unknown)}",
                stacklevel=6,
            )
        if no_beams:
            params |= {"num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0}
        if "max_length" in params and "max_new_tokens" not in params:
            config = replace(config, max_new_tokens=None)  # a length for this task overrides the general one
        read = read_options(params, {name: getattr(config, name) for name in OPTIONS})
        for error in read.unusable.values():
            raise CheckpointError(f"task_specific_params of config.json for {name}: {error}")
        return replace(config, **read.usable)

    def task_params_name(self, options: Text2TextOptionsT) -> str:
        """Return the name of the task whose task_specific_params apply."""
        return self.name

    def finalize_config(self, config: GenerationConfig, options: Text2TextOptionsT) -> GenerationConfig:
        prefix = self.prefix(options)
        object.__setattr__(options, "source_prefix", prefix)
        if options.max_source_length is not None and options.max_source_length > self.config.max_length:
            raise InputError(
                f"max_source_length is {options.max_source_length}, but the model has positions for "
                f"{self.config.max_length}; lower it"
            )
        limit, overhead = self.source_limit(options), self.overhead(options)
        if limit is not None and overhead >= limit:
            raise InputError(
                f"{self.name}: the prefix {_shorten(prefix)!r} and special tokens take {overhead} of a source's {limit} "
                "tokens and leave no room for a text; shorten the prefix, or raise max_source_length"
            )
        return config

    def stored_prefix(self, options: Text2TextOptionsT) -> Any:
        return self.task_params(self.task_params_name(options)).get("prefix", super().stored_prefix(options))

    def needs_config(self, options: Text2TextOptionsT) -> bool:
        return True

    # -- encoding --------------------------------------------------------------------------------------------------

    def source_limit(self, options: Text2TextOptionsT) -> int | None:
        """Return the maximum number of tokens of a source, or None if there is no limit."""
        return self.limit() if options.max_source_length is None else options.max_source_length

    def encode_sources(
        self, texts: Sequence[str], options: Text2TextOptionsT, max_length: int | None = None
    ) -> list[list[int]]:
        """Return the ids of texts with prefix and special tokens, truncated to ``max_length`` tokens."""
        keywords = {} if max_length is None else {"truncation": True, "max_length": max_length}
        with private_tokenizer(self.tokenizer) as own:
            self.set_source_language(own, options)
            return own([options.source_prefix + text for text in texts], verbose=False, **keywords)["input_ids"]

    def set_source_language(self, tokenizer: Tokenizer, options: Text2TextOptionsT) -> None:
        """Set the source language of a private tokenizer, if it has one."""

    def overhead(self, options: Text2TextOptionsT) -> int:
        """Return the number of tokens that prefix and special tokens take in a source."""
        return len(self.encode_sources([""], options)[0])

    def encode(self, items: Sequence[Any], options: Text2TextOptionsT, first: int = 0) -> list[list[Example]]:
        texts = self.texts(items, first)
        seen: Counter[tuple[int, ...]] = Counter()
        max_length = self.source_limit(options) if options.long_documents == "truncate" else None
        new, examples = self.new_tokens(options), []
        sources = self.encode_sources(texts, options, max_length)
        for number, (text, ids) in enumerate(zip(texts, sources, strict=True), first):
            examples.append(self.make_examples(ids, Source(text, number), options, new, seen))
        self.warn_about_lengths([rows[0] for rows in examples if len(rows) == 1], options)
        return examples

    def make_examples(
        self, ids: list[int], source: Source, options: Text2TextOptionsT, new: int, seen: Counter[tuple[int, ...]]
    ) -> list[Example]:
        """Return the rows in which a source is read.

        Args:
            ids: Ids of the source.
            source: State of the rows.
            options: Options of the call.
            new: Maximum number of new tokens.
            seen: Counts of equal sources so far, which are updated.

        Raises:
            InputError: the source is too long.
        """
        if options.max_source_length is not None and len(ids) > options.max_source_length:
            raise InputError(
                f"{self.name}: input {source.number} has {len(ids)} tokens, but max_source_length is "
                f"{options.max_source_length}; {self.remedy}"
            )
        return [self.make_example(ids, source, options, new, seen)]

    def make_example(
        self, ids: list[int], source: Source, options: Text2TextOptionsT, new: int, seen: Counter[tuple[int, ...]]
    ) -> Example:
        """Return one row; see :meth:`make_examples`."""
        self.check_length(len(ids), source.number)
        config, repetition = options.resolved, 0
        if config.do_sample and config.seed is not None:
            repetition = seen[tuple(ids)]
            seen[tuple(ids)] += 1
        input_ids = np.array(ids, np.int32)
        inputs = {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
        return Example(inputs, source, Group(new, repetition=repetition))

    def new_tokens(self, options: Text2TextOptionsT) -> int:
        """Return the maximum number of new tokens; defaults are limited by the decoder's positions.

        Raises:
            InputError: the requested number is not positive, or exceeds the positions.
        """
        config, decoder = options.resolved, self.decoder
        models = [self.config, *([] if options.assistant_model is None else [options.assistant_model.config])]
        room = min(model.decoder.max_length for model in models if model.decoder is not None) - 1
        new = config.max_new_tokens
        if new is None:
            new = DEFAULT_NEW_TOKENS if config.max_length is None else config.max_length - 1
        if new < 1:
            raise InputError(
                f"{self.name}: max_length is {config.max_length}, which includes the decoder's start token; raise it"
            )
        lengths = [name for name in ("max_new_tokens", "max_length") if options.explicit.get(name) is not None]
        if new > room and (lengths or options.generation_config is not None):
            name = lengths[0] if lengths else "generation_config"
            raise InputError(
                f"{self.name}: {name} requests {new} new tokens, but the decoder has {decoder.max_length} positions, one of "
                f"them for the start token; request at most {room}"
            )
        return min(new, room)

    def warn_about_lengths(self, examples: Sequence[Example], options: Text2TextOptionsT) -> None:
        """Warn about implausible combinations of source lengths and length options."""

    # -- decoding --------------------------------------------------------------------------------------------------

    def start_id(self, options: Text2TextOptionsT) -> int:
        """Return the decoder's start token."""
        start = options.resolved.decoder_start_token_id
        start = self.decoder.start_token_id if start is None else start
        return self.pad_token_id if start is None else start

    def prompt_ids(self, example: Example, options: Text2TextOptionsT) -> np.ndarray:
        return np.array([self.start_id(options)], np.int32)

    def prompt_columns(self, ids: np.ndarray) -> int:
        return 1

    def result(self, example: Example, new: list[int], options: Text2TextOptionsT) -> dict[str, Any]:
        if options.return_tensors:
            return {f"{self.result_name}_token_ids": [self.start_id(options), *new]}
        return {f"{self.result_name}_text": self.text(new, options)}

    def rewrite_text(self, text: str) -> str:
        return restore_line_breaks(text) if self.has_line_break_token else text

    def gather(self, results: list[Any], options: Text2TextOptionsT) -> list[Any]:
        return [result[0] for result in results] if all(len(result) == 1 for result in results) else results


def _truncates(truncation: bool | str) -> bool:
    return truncation not in (False, "do_not_truncate")


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
