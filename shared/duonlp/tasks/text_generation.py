"""Text generation: continue prompts with a causal language model, with all options of GenerationConfig."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.tasks.base import Example, check_bool, check_choice, check_text
from duonlp.tasks.generation import DEFAULT_NEW_TOKENS, GenerationOptions, GenerationTask, Group
from duonlp.util.tokenization import tokenize


@dataclass(frozen=True)
class TextGenerationOptions(GenerationOptions):
    """The options of GenerationOptions, and the attributes below.

    With ``return_tensors``, the result is "generated_token_ids", which include the prompt. ``prefix`` defaults to that of
    config.json, and ``max_length`` and ``min_length`` do not count it, as in Transformers.

    Attributes:
        return_full_text: Whether the text includes the prompt.
        add_special_tokens: Whether to add special tokens to prompts; None uses the tokenizer's default.
        handle_long_generation: "hole" truncates the beginning of prompts so that the new tokens fit.
    """

    return_full_text: bool = True
    add_special_tokens: bool | None = None
    handle_long_generation: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool("return_full_text", self.return_full_text)
        check_bool("add_special_tokens", self.add_special_tokens, optional=True)
        check_choice("handle_long_generation", self.handle_long_generation, (None, "hole"))


@dataclass(slots=True)
class Prompt:
    """State of a row.

    Attributes:
        text: The prompt.
        tokens: Number of its tokens.
    """

    text: str
    tokens: int


class TextGenerationTask(GenerationTask[TextGenerationOptions]):
    """Text -> [{"generated_text"}, ...], num_return_sequences of them, best first.

    Follows Transformers' TextGenerationPipeline, but is greedy by default. The engine's ``generate`` takes left-padded ids
    and returns the ids of prompts and continuations, [texts, length]. With a ``seed``, the text sampled for a prompt depends
    only on the seed and the prompt, not on its batch or the framework.
    """

    name = "text-generation"
    head = "causal-lm"
    Options = TextGenerationOptions
    padding_side = "left"
    buckets = False  # `generate` pads to its own buckets, and needs the real length of the prompts
    remedy = 'shorten it, or pass handle_long_generation="hole" to cut its beginning'

    @property
    def accepted_inputs(self) -> str:
        return "a prompt, a list of prompts or an iterator of prompts"

    def check_changes(self, options: TextGenerationOptions, changes: Mapping[str, Any], of_call: bool) -> None:
        super().check_changes(options, changes, of_call)
        if options.return_tensors and changes.get("return_full_text") is False:
            raise InputError(
                "return_full_text=False applies to texts, but return_tensors=True returns ids, those of the prompt included; "
                "omit one of them"
            )

    # -- encoding --------------------------------------------------------------------------------------------------

    def encode(self, items: Sequence[Any], options: TextGenerationOptions, first: int = 0) -> list[list[Example]]:
        prompts = [self.prompt(item, f"{self.name}: input {first + i}") for i, item in enumerate(items)]
        special = {} if options.add_special_tokens is None else {"add_special_tokens": options.add_special_tokens}
        prefix = self.prefix(options)
        encoded = tokenize(self.tokenizer, [prefix + prompt for prompt in prompts], verbose=False, **special)
        overhead = 0
        if prefix:
            of_prefix = tokenize(self.tokenizer, prefix, verbose=False, **{"add_special_tokens": False, **special})
            overhead = len(of_prefix["input_ids"])
        examples: list[list[Example]] = []
        seen: Counter[tuple[int, ...]] = Counter()
        for i, (prompt, ids) in enumerate(zip(prompts, encoded["input_ids"], strict=True)):
            ids = self.truncate(ids, options, overhead)
            self.check_length(len(ids), first + i)
            group = self.group(ids, options, first + i, seen, overhead)
            ids = np.array(ids, np.int32)
            row = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            examples.append([Example(row, state=Prompt(prompt, len(ids)), group=group)])
        return examples

    def prompt(self, item: Any, where: str) -> str:
        """Return a prompt; raise InputError if it is not a string or is empty.

        Args:
            item: The prompt.
            where: Its name, for error messages.
        """
        if item == "":
            start = self.tokenizer.bos_token
            hint = f", or pass {start!r} to generate without a prompt" if start else ""
            raise InputError(f"{where} is an empty text, ''; add some words{hint}")
        if isinstance(item, str):
            return str(item)  # whitespace is a valid prompt
        return check_text(item, where)

    def requested_tokens(self, length: int, options: TextGenerationOptions, overhead: int = 0) -> int | None:
        """Return the requested number of new tokens after a prompt, or None if there is none.

        Args:
            length: Number of tokens of the prompt.
            options: Options of the call.
            overhead: How many of them are those of the prefix.
        """
        config = options.resolved
        if config.max_new_tokens is not None or config.max_length is None:
            return config.max_new_tokens
        return config.max_length - length + overhead

    def max_positions(self, options: TextGenerationOptions) -> int:
        """Return the number of positions of the model, or of its assistant if that has fewer."""
        models = [self.config] + ([] if options.assistant_model is None else [options.assistant_model.config])
        return min(config.max_length for config in models)

    def truncate(self, ids: list[int], options: TextGenerationOptions, overhead: int = 0) -> list[int]:
        """Truncate the beginning of a prompt to leave room for the new tokens, if the options say so.

        Raises:
            InputError: the new tokens alone do not fit.
        """
        if options.handle_long_generation != "hole":
            return ids
        limits = [n for n in (self.limit(), self.max_positions(options)) if n is not None]
        limit, new = min(limits), self.requested_tokens(len(ids), options, overhead)
        new = DEFAULT_NEW_TOKENS if new is None else new
        if len(ids) + new <= limit:
            return ids
        if new >= limit:
            raise InputError(
                f"{self.name}: {new} new tokens leave no room for a prompt, as the limit is {limit}; request fewer"
            )
        return ids[-(limit - new) :]

    def new_tokens(self, length: int, options: TextGenerationOptions, number: int, overhead: int = 0) -> int:
        """Return the maximum number of new tokens for a prompt; the default is limited by the model's positions.

        Args:
            length: Number of tokens of the prompt.
            options: Options of the call.
            number: Index of the prompt, for error messages.
            overhead: Number of tokens of the prefix.

        Raises:
            InputError: the requested number is not positive, or exceeds the positions.
        """
        new, positions = self.requested_tokens(length, options, overhead), self.max_positions(options)
        if new is not None and new < 1:
            raise InputError(
                f"{self.name}: input {number} has {length} tokens, but max_length, which includes the prompt, is "
                f"{options.resolved.max_length}; raise it, or pass max_new_tokens"
            )
        left = positions - length
        if left < (new or 1):
            raise InputError(
                f"{self.name}: input {number} has {length} tokens and {new or 'some'} more are requested, but the model "
                f"has positions for {positions}; request fewer, or {self.remedy}"
            )
        return min(DEFAULT_NEW_TOKENS, left) if new is None else new

    def group(
        self,
        ids: list[int],
        options: TextGenerationOptions,
        number: int,
        seen: Counter[tuple[int, ...]],
        overhead: int = 0,
    ) -> Group:
        """Return the group of a prompt.

        Args:
            ids: Ids of the prompt.
            options: Options of the call.
            number: Index of the prompt, for error messages.
            seen: Counts of equal prompts so far, which are updated.
            overhead: Number of tokens of the prefix.
        """
        config, min_new_tokens, repetition = options.resolved, None, 0
        new = self.new_tokens(len(ids), options, number, overhead)
        if config.min_length and config.min_new_tokens is None:
            min_new_tokens = min(max(config.min_length - len(ids) + overhead, 0), new)
        if config.do_sample and config.seed is not None:
            repetition = seen[tuple(ids)]
            seen[tuple(ids)] += 1
        return Group(new, min_new_tokens, config.forced_bos_token_id is not None and len(ids) == 1, repetition)

    # -- decoding --------------------------------------------------------------------------------------------------

    def result(self, example: Example, new: list[int], options: TextGenerationOptions) -> dict[str, Any]:
        if options.return_tensors:
            return {"generated_token_ids": example.inputs["input_ids"].tolist() + new}
        text = self.text(new, options)
        return {"generated_text": example.state.text + text if options.return_full_text else text}
