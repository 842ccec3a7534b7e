"""Text-to-text generation: a text read by an encoder, another written by its decoder."""

import contextlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from duonlp.errors import CheckpointError, InputError
from duonlp.generation.config import IGNORED, OPTIONS
from duonlp.tasks.base import TRUNCATIONS, Example, check_bool, check_choice, check_int, describe
from duonlp.tasks.generation import DEFAULT_NEW_TOKENS, GenerationOptions, GenerationTask, Group

DEFAULT_BEAMS = 4
"""Beams where nothing says how many, as in the pipelines of Transformers 4.57."""

OTHER_STRATEGIES = ("penalty_alpha", "prompt_lookup_num_tokens")
"""Options that go without beams, so that the default of beams gives way to them."""


@dataclass(frozen=True)
class Text2TextGenerationOptions(GenerationOptions):
    """Every option of GenerationConfig, those that tasks which write text share (see GenerationOptions), and besides:

    prefix: put before every text; the checkpoint's own when None.
    long_documents: what becomes of a text longer than the source may be: "error" raises, "truncate" cuts off its end. The
        latter is also called truncation=True, as in Transformers.
    max_source_length: how long a source may be in tokens, prefix and special tokens included; as long as model and tokenizer
        allow when None.
    """

    clean_up_tokenization_spaces: bool | None = False
    long_documents: str = "error"
    max_source_length: int | None = None

    LONG_DOCUMENTS: ClassVar[tuple[str, ...]] = ("error", "truncate")
    source_prefix: ClassVar[str] = ""  # the prefix that holds; the task sets it when it checks options

    def __post_init__(self):
        super().__post_init__()
        if self.long_documents == "chunk" and "chunk" not in self.LONG_DOCUMENTS:
            raise InputError(
                'long_documents is "chunk", which summarization and translation have: parts of a text would each get an '
                'answer of their own; pass "truncate", or shorten the text'
            )
        check_choice("long_documents", self.long_documents, self.LONG_DOCUMENTS)
        check_int("max_source_length", self.max_source_length, minimum=1, optional=True)


@dataclass(slots=True)
class Source:
    """A row's text, and where it comes from."""

    text: str
    number: int  # of the input, for messages
    rounds: tuple[tuple[dict[str, str], ...], ...] = ()  # what earlier rounds made of the parts of a long document


class Text2TextGenerationTask(GenerationTask):
    """Text -> [{"generated_text"}], num_return_sequences of them, the best first.

    Follows Text2TextGenerationPipeline of Transformers 4.57 (pipelines/text2text_generation.py; Transformers 5 has dropped
    it): one text gives a list of its results; a list of texts gives one result for each where each has one, and else a list
    for each; an iterator gives a list for each. ``return_tensors`` gives "generated_token_ids" instead, as a list that
    begins with the decoder's start token. Where nothing says otherwise there are 4 beams and up to 256 new tokens. The
    checkpoint's ``prefix`` and ``task_specific_params`` for the task hold over the model's generation config, and options
    over both.

    It differs where 4.57 does not do what it documents: a ``max_length``, of task_specific_params or of the call, holds
    against the default of 256 new tokens; ``num_beams`` of the model's generation config holds against the default of 4;
    what max_length and input lengths are warned about is what will be generated; lists within a list are refused, of which
    4.57 answers the first text alone.

    The engine's `generate` takes sources padded on the right and gives the decoder's ids, [texts, 1 + more].

    Raises:
        InputError: a model without a decoder of its own, a prefix that leaves no room for a text, a tokenizer of another kind.
        CheckpointError: task_specific_params that are no object.
    """

    name = "text2text-generation"
    head = "seq2seq-lm"
    Options = Text2TextGenerationOptions
    result_name: ClassVar[str] = "generated"
    fast_tokenizer = False  # it needs no offsets
    remedy = 'shorten it, or pass long_documents="truncate"'

    def __init__(self, tokenizer, config, folder=None, generation_config=None, task=None):
        super().__init__(tokenizer, config, folder, generation_config, task)
        if config.decoder is None:
            raise InputError(
                f"{self.name} needs an encoder-decoder, loaded with AutoModelForSeq2SeqLM; {config.model_type} is none"
            )
        self.specific(self.name)  # what is wrong with it shows at once

    # -- options ---------------------------------------------------------------------------------------------------

    def rewrite_options(self, changes):
        changes = super().rewrite_options(changes)
        if (truncation := changes.pop("truncation", None)) is not None:
            check_choice("truncation", truncation, (True, False, *TRUNCATIONS))
            given = changes.setdefault("long_documents", "error" if _off(truncation) else "truncate")
            if given != "truncate" and not _off(truncation):
                raise InputError(
                    f"truncation={truncation!r} and long_documents={given!r} contradict each other; leave one out"
                )
        if "return_text" in changes:  # Transformers takes it, and decides by return_tensors alone
            check_bool("return_text", changes.pop("return_text"), optional=True)
        return changes

    def specific(self, task: str) -> dict:
        """The checkpoint's parameters for a task: its prefix, and options of `generate`."""
        stored = self.config.extra.get("task_specific_params") or {}
        if not isinstance(stored, Mapping) or not isinstance(stored.get(task) or {}, Mapping):
            raise CheckpointError(
                f"task_specific_params of config.json must be an object of objects, and is {describe(stored)}; mend it there"
            )
        return dict(stored.get(task) or {})

    def own_config(self, options):
        given = options.given
        config = self.generation_config
        others = options.assistant_model is not None or any(given.get(name) for name in OTHER_STRATEGIES)
        if config.strategy == "greedy" and not others:
            config = replace(config, num_beams=DEFAULT_BEAMS)
        name = self.specific_name(options)
        params = {key: value for key, value in self.specific(name).items() if value is not None}
        unknown = sorted(set(params) - OPTIONS - {"prefix", *IGNORED})
        if unknown:
            warnings.warn(
                f"task_specific_params of config.json for {name} name {', '.join(unknown)}, which no option here is; left out",
                stacklevel=6,
            )
        if others:
            params |= {"num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0}
        if "max_length" in params:
            params.setdefault("max_new_tokens", None)  # a length for this task beats one of all tasks
        try:
            return replace(config, **{key: value for key, value in params.items() if key in OPTIONS})
        except InputError as error:
            raise CheckpointError(f"task_specific_params of config.json for {name}: {error}") from error

    def specific_name(self, options: Text2TextGenerationOptions) -> str:
        """The task of task_specific_params that holds."""
        return self.name

    def complete(self, config, options):
        prefix = self.prefix(options)
        object.__setattr__(options, "source_prefix", prefix)
        if options.max_source_length is not None and options.max_source_length > self.config.max_length:
            raise InputError(
                f"max_source_length is {options.max_source_length} and the model has positions for "
                f"{self.config.max_length}; ask for fewer"
            )
        limit, taken = self.source_limit(options), self.overhead(options)
        if limit is not None and taken >= limit:
            raise InputError(
                f"{self.name}: the prefix {_short(prefix)!r} and special tokens take {taken} of the {limit} tokens "
                "that a source may have, and leave no room for a text; shorten it, or raise max_source_length"
            )
        return config

    def prefix(self, options: Text2TextGenerationOptions) -> str:
        """What stands before every text."""
        prefix = options.prefix
        if prefix is None:
            prefix = self.specific(self.specific_name(options)).get("prefix", self.config.extra.get("prefix"))
        if not isinstance(prefix, (str, type(None))):
            raise CheckpointError(f"the prefix in config.json is {describe(prefix)}; it must be a text: mend it there")
        return prefix or ""

    def needs_config(self, options):
        return True

    # -- text to arrays --------------------------------------------------------------------------------------------

    def source_limit(self, options: Text2TextGenerationOptions) -> int | None:
        """How many tokens a source may have; None when nothing says."""
        return self.limit() if options.max_source_length is None else options.max_source_length

    def sources(
        self, texts: Sequence[str], options: Text2TextGenerationOptions, cut: int | None = None
    ) -> list[list[int]]:
        """Ids of texts with prefix and special tokens, cut to so many tokens."""
        keywords = {} if cut is None else {"truncation": True, "max_length": cut}
        with self.language(options):
            encoded = self.tokenizer([options.source_prefix + text for text in texts], verbose=False, **keywords)
        return encoded["input_ids"]

    def language(self, options: Text2TextGenerationOptions) -> contextlib.AbstractContextManager:
        """While it lasts, the tokenizer marks sources as the options say."""
        return contextlib.nullcontext()

    def overhead(self, options: Text2TextGenerationOptions) -> int:
        """Tokens of a source that are not of its text."""
        return len(self.sources([""], options)[0])

    def encode(self, items, options, first=0):
        texts, seen = self.texts(items, first), Counter()
        cut = self.source_limit(options) if options.long_documents == "truncate" else None
        new, examples = self.new_tokens(options), []
        for number, (text, ids) in enumerate(zip(texts, self.sources(texts, options, cut), strict=True), first):
            examples.append(self.rows_of(ids, Source(text, number), options, new, seen))
        self.check_lengths([rows[0] for rows in examples if len(rows) == 1], options)
        return examples

    def rows_of(self, ids: list[int], source: Source, options, new: int, seen: Counter) -> list[Example]:
        """The rows that a source goes to the model in."""
        if options.max_source_length is not None and len(ids) > options.max_source_length:
            raise InputError(
                f"{self.name}: input {source.number} has {len(ids)} tokens and max_source_length is "
                f"{options.max_source_length}; {self.remedy}"
            )
        return [self.row(ids, source, options, new, seen)]

    def row(self, ids: list[int], source: Source, options, new: int, seen: Counter) -> Example:
        """One source for the model; ``seen`` counts sources that are alike."""
        self.check_length(len(ids), source.number)
        config, repetition = options.resolved, 0
        if config.do_sample and config.seed is not None:
            repetition = seen[tuple(ids)]
            seen[tuple(ids)] += 1
        ids = np.array(ids, np.int32)
        return Example(
            {"input_ids": ids, "attention_mask": np.ones_like(ids)}, source, Group(new, repetition=repetition)
        )

    def new_tokens(self, options: Text2TextGenerationOptions) -> int:
        """How many tokens a text may get; a number that the caller did not ask for gives way to the decoder's positions."""
        config, decoder = options.resolved, self.config.decoder
        models = [self.config, *([] if options.assistant_model is None else [options.assistant_model.config])]
        room = min(model.decoder.max_length for model in models if model.decoder is not None) - 1
        new = config.max_new_tokens
        if new is None:
            new = DEFAULT_NEW_TOKENS if config.max_length is None else config.max_length - 1
        if new < 1:
            raise InputError(
                f"{self.name}: max_length is {config.max_length}, the decoder's start token included; raise it"
            )
        lengths = [name for name in ("max_new_tokens", "max_length") if options.given.get(name) is not None]
        if new > room and (lengths or options.generation_config is not None):
            name = lengths[0] if lengths else "generation_config"
            raise InputError(
                f"{self.name}: {name} asks for {new} new tokens, and the decoder has {decoder.max_length} positions, of "
                f"which its start takes one; ask for {room} or fewer"
            )
        return min(new, room)

    def check_lengths(self, examples: Sequence[Example], options: Text2TextGenerationOptions) -> None:
        """Warns of lengths that hardly go together."""

    # -- arrays to text --------------------------------------------------------------------------------------------

    def start_id(self, options: Text2TextGenerationOptions) -> int:
        """What the decoder begins with."""
        own = options.resolved.decoder_start_token_id
        start = self.config.decoder.start_token_id if own is None else own
        return self.pad_token_id if start is None else start

    def prompt_ids(self, example, options):
        return np.array([self.start_id(options)], np.int32)

    def prompt_columns(self, ids):
        return 1

    def result(self, example, new, options):
        if options.return_tensors:
            return {f"{self.result_name}_token_ids": [self.start_id(options), *new]}
        return {f"{self.result_name}_text": self.text(new, options)}

    def gather(self, results, options):
        return [result[0] for result in results] if all(len(result) == 1 for result in results) else results


def _off(truncation: bool | str) -> bool:
    return truncation in (False, "do_not_truncate")


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
