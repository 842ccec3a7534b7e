"""Text generation: prompts continued by a causal language model, with every option of GenerationConfig."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.tasks.base import Example, check_bool, check_choice, check_text
from duonlp.tasks.generation import DEFAULT_NEW_TOKENS, GenerationOptions, GenerationTask, Group


@dataclass(frozen=True)
class TextGenerationOptions(GenerationOptions):
    """Every option of GenerationConfig, those that tasks which write text share (see GenerationOptions), and besides:

    return_full_text: the prompt is part of the text. return_tensors: "generated_token_ids", prompt included, instead.
    add_special_tokens: None leaves it to the tokenizer.
    handle_long_generation: "hole" cuts prompts at their beginning so that the new tokens fit.
    """

    return_full_text: bool = True
    add_special_tokens: bool | None = None
    handle_long_generation: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_bool("return_full_text", self.return_full_text)
        check_bool("add_special_tokens", self.add_special_tokens, optional=True)
        object.__setattr__(self, "prefix", self.prefix or "")
        check_choice("handle_long_generation", self.handle_long_generation, (None, "hole"))


@dataclass(slots=True)
class Prompt:
    """A prompt's text, and how many of its row's tokens came from it (none when the row starts from nothing)."""

    text: str
    tokens: int


class TextGenerationTask(GenerationTask):
    """Text -> [{"generated_text"}, ...], num_return_sequences of them, the best first; as Transformers'
    TextGenerationPipeline, but greedy where nothing says otherwise.

    The engine's `generate` takes left-padded ids and gives the ids of prompts and continuations, [texts, more]. With a
    ``seed``, what is drawn for a prompt depends on seed and prompt alone: not on its batch, nor on the framework.

    Args:
        tokenizer, config, folder: as every task.
        generation_config: the model's own, which holds where no option says otherwise.
    """

    name = "text-generation"
    head = "causal-lm"
    Options = TextGenerationOptions
    padding_side = "left"
    buckets = False  # `generate` pads to its own, and must see how much room the prompts leave
    remedy = 'shorten it, or pass handle_long_generation="hole" to cut its beginning'

    @property
    def wants(self):
        return "a prompt, a list of prompts or an iterator of prompts"

    # -- text to arrays --------------------------------------------------------------------------------------------

    def encode(self, items, options, first=0):
        prompts = [self.prompt(item, f"{self.name}: input {first + i}") for i, item in enumerate(items)]
        special = {} if options.add_special_tokens is None else {"add_special_tokens": options.add_special_tokens}
        encoded = self.tokenizer([options.prefix + prompt for prompt in prompts], verbose=False, **special)
        examples, seen = [], Counter()
        for i, (prompt, ids) in enumerate(zip(prompts, encoded["input_ids"], strict=True)):
            ids = self.cut(ids, options)
            self.check_length(len(ids), first + i)
            group = self.group(ids, options, first + i, seen)
            ids = np.array(ids, np.int32)
            row = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            examples.append([Example(row, state=Prompt(prompt, len(ids)), group=group)])
        return examples

    def prompt(self, item: Any, where: str) -> str:
        if item == "":
            start = self.tokenizer.bos_token
            hint = f"; to start from nothing, give {start!r}" if start else ""
            raise InputError(f"{where} is an empty text, ''; give it some words{hint}")
        if isinstance(item, str):
            return str(item)  # white space alone is a prompt: it has tokens here
        return check_text(item, where)

    def wanted(self, length: int, options: TextGenerationOptions) -> int | None:
        """How many tokens are wanted after a prompt; None when nothing says."""
        config = options.resolved
        if config.max_new_tokens is not None or config.max_length is None:
            return config.max_new_tokens
        return config.max_length - length

    def positions(self, options: TextGenerationOptions) -> int:
        """Of the model, and of its assistant."""
        models = [self.config] + ([] if options.assistant_model is None else [options.assistant_model.config])
        return min(config.max_length for config in models)

    def cut(self, ids: list[int], options: TextGenerationOptions) -> list[int]:
        """With a "hole", the end of a prompt that leaves room for the new tokens."""
        if options.handle_long_generation != "hole":
            return ids
        limit, new = min(self.limit(), self.positions(options)), self.wanted(len(ids), options)
        new = DEFAULT_NEW_TOKENS if new is None else new
        if len(ids) + new <= limit:
            return ids
        if new >= limit:
            raise InputError(f"{self.name}: {new} new tokens leave no room in the model's {limit}; ask for fewer")
        return ids[-(limit - new) :]

    def new_tokens(self, length: int, options: TextGenerationOptions, number: int) -> int:
        """How many tokens one prompt may get; a number nobody asked for gives way to the model's positions."""
        new, positions = self.wanted(length, options), self.positions(options)
        if new is not None and new < 1:
            raise InputError(
                f"{self.name}: input {number} has {length} tokens and max_length, prompt included, is {length + new}; "
                "raise it, or pass max_new_tokens"
            )
        left = positions - length
        if left < (new or 1):
            raise InputError(
                f"{self.name}: input {number} has {length} tokens, {new or 'some'} more are asked for, and the model "
                f"has positions for {positions}; ask for fewer, or {self.remedy}"
            )
        return min(DEFAULT_NEW_TOKENS, left) if new is None else new

    def group(self, ids: list[int], options: TextGenerationOptions, number: int, seen: Counter) -> Group:
        """What a prompt has in common with those it may share a batch with; ``seen`` counts prompts that are alike."""
        config, least, repetition = options.resolved, None, 0
        new = self.new_tokens(len(ids), options, number)
        if config.min_length and config.min_new_tokens is None:
            least = min(max(config.min_length - len(ids), 0), new)
        if config.do_sample and config.seed is not None:
            repetition = seen[tuple(ids)]
            seen[tuple(ids)] += 1
        return Group(new, least, config.forced_bos_token_id is not None and len(ids) == 1, repetition)

    # -- arrays to text --------------------------------------------------------------------------------------------

    def result(self, example, new, options):
        if options.return_tensors:
            return {"generated_token_ids": example.inputs["input_ids"].tolist() + new}
        text = self.text(new, options)
        return {"generated_text": example.state.text + text if options.return_full_text else text}
