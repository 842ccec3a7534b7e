"""Text generation: prompts continued by a causal language model, greedily."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.errors import InputError
from shared.generation import GenerationConfig
from shared.tasks.base import (
    Example,
    Options,
    Task,
    check_bool,
    check_choice,
    check_int,
    check_string,
    check_text,
    describe,
)

DEFAULT_NEW_TOKENS = 256
"""Tokens generated when nothing says how many, as in Transformers 5; fewer where the model's positions end sooner."""


@dataclass(frozen=True)
class TextGenerationOptions(Options):
    """max_new_tokens: how many tokens to add at most; or max_length: how many there are at most, prompt included.

    eos_token_id: id or ids that end a text; the model's by default. pad_token_id: fills ended texts of a batch.
    return_full_text: the prompt is part of the text. return_tensors: "generated_token_ids", prompt included, instead.
    skip_special_tokens, clean_up_tokenization_spaces: as in the tokenizer's `decode`.
    prefix: put before every prompt, and not returned. add_special_tokens: None leaves it to the tokenizer.
    handle_long_generation: "hole" cuts prompts at their beginning so that the new tokens fit.
    do_sample, num_beams: only False and 1, greedy decoding, for now.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    return_full_text: bool = True
    return_tensors: bool = False
    skip_special_tokens: bool = True
    clean_up_tokenization_spaces: bool | None = None
    prefix: str = ""
    add_special_tokens: bool | None = None
    handle_long_generation: str | None = None
    do_sample: bool = False
    num_beams: int = 1

    def __post_init__(self):
        check_int("max_new_tokens", self.max_new_tokens, minimum=1, optional=True)
        check_int("max_length", self.max_length, minimum=1, optional=True)
        check_int("pad_token_id", self.pad_token_id, minimum=0, optional=True)
        check_bool("return_full_text", self.return_full_text)
        check_bool("return_tensors", self.return_tensors)
        check_bool("skip_special_tokens", self.skip_special_tokens)
        check_bool("clean_up_tokenization_spaces", self.clean_up_tokenization_spaces, optional=True)
        check_bool("add_special_tokens", self.add_special_tokens, optional=True)
        check_string("prefix", self.prefix, optional=True)
        object.__setattr__(self, "prefix", self.prefix or "")
        check_choice("handle_long_generation", self.handle_long_generation, (None, "hole"))
        if self.eos_token_id is not None:
            ids = self.eos_token_id if isinstance(self.eos_token_id, Sequence) else (self.eos_token_id,)
            for token in ids:
                check_int("eos_token_id", token, minimum=0)
            object.__setattr__(self, "eos_token_id", tuple(int(token) for token in ids))
        if self.do_sample is not False or self.num_beams != 1:
            raise InputError(
                f"do_sample is {self.do_sample!r} and num_beams {self.num_beams!r}; only greedy decoding is there so "
                "far: do_sample=False, num_beams=1"
            )


@dataclass(slots=True)
class Prompt:
    """A prompt's text, and how many of its row's tokens came from it (none when the row starts from nothing)."""

    text: str
    tokens: int


class TextGenerationTask(Task):
    """Text -> [{"generated_text"}], as Transformers' TextGenerationPipeline with ``do_sample=False``.

    The engine's `generate` takes left-padded ids and gives the ids of prompt and continuation, [batch, more].

    Args:
        tokenizer, config, folder: as every task.
        generation_config: the model's own, whose lengths and special ids hold where no option says otherwise.
    """

    name = "text-generation"
    head = "causal-lm"
    Options = TextGenerationOptions
    outputs = ("sequences",)
    padding_side = "left"
    buckets = False  # `generate` pads to its own, and must see how much room the prompts leave
    remedy = 'shorten it, or pass handle_long_generation="hole" to cut its beginning'

    def __init__(self, tokenizer, config, folder=None, generation_config: GenerationConfig | None = None):
        super().__init__(tokenizer, config, folder)
        self.generation_config = generation_config or GenerationConfig.for_model(config)

    @property
    def wants(self):
        return "a prompt, a list of prompts or an iterator of prompts"

    def arrange(self, inputs, keywords):
        arranged = super().arrange(inputs, keywords)
        if not isinstance(inputs, (str, list, tuple)) and arranged.shape == "one":
            raise InputError(f"{self.name} got {describe(inputs)}; give {self.wants}")
        return arranged

    def output_width(self):
        return 1

    @property
    def input_names(self):
        return ["input_ids", "attention_mask"]

    # -- text to arrays --------------------------------------------------------------------------------------------

    def encode(self, items, options, first=0):
        prompts = [self.prompt(item, f"{self.name}: input {first + i}") for i, item in enumerate(items)]
        special = {} if options.add_special_tokens is None else {"add_special_tokens": options.add_special_tokens}
        encoded = self.tokenizer([options.prefix + prompt for prompt in prompts], verbose=False, **special)
        examples = []
        for i, (prompt, ids) in enumerate(zip(prompts, encoded["input_ids"], strict=True)):
            ids = self.cut(ids, options)
            self.check_length(len(ids), first + i)
            new = self.new_tokens(len(ids), options, first + i)
            ids = np.array(ids, np.int32)
            row = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            examples.append([Example(row, state=Prompt(prompt, len(ids)), group=new)])
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
        """How many tokens the call, or else the model, wants after a prompt; None when neither says."""
        own = self.generation_config
        # Every configuration has a max_length, and the default of it is nobody's wish.
        own_length = own.max_length if own.max_length != GenerationConfig.max_length else None
        for new, total in ((options.max_new_tokens, options.max_length), (own.max_new_tokens, own_length)):
            if new is not None or total is not None:
                return new if new is not None else total - length
        return None

    def cut(self, ids: list[int], options: TextGenerationOptions) -> list[int]:
        """With a "hole", the end of a prompt that leaves room for the new tokens."""
        if options.handle_long_generation != "hole":
            return ids
        limit, new = self.limit(), self.wanted(len(ids), options)
        new = DEFAULT_NEW_TOKENS if new is None else new
        if len(ids) + new <= limit:
            return ids
        if new >= limit:
            raise InputError(f"{self.name}: {new} new tokens leave no room in the model's {limit}; ask for fewer")
        return ids[-(limit - new) :]

    def new_tokens(self, length: int, options: TextGenerationOptions, number: int) -> int:
        """How many tokens one prompt may get; a number nobody asked for gives way to the model's positions."""
        new, left = self.wanted(length, options), self.config.max_length - length
        if new is not None and new < 1:
            raise InputError(
                f"{self.name}: input {number} has {length} tokens and max_length, prompt included, is {length + new}; "
                "raise it, or pass max_new_tokens"
            )
        if left < (new or 1):
            raise InputError(
                f"{self.name}: input {number} has {length} tokens, {new or 'some'} more are asked for, and the model "
                f"has positions for {self.config.max_length}; ask for fewer, or {self.remedy}"
            )
        return min(DEFAULT_NEW_TOKENS, left) if new is None else new

    # -- arrays to text --------------------------------------------------------------------------------------------

    def run(self, forward, batch, group, options):
        ends, pads = self.ends(options), (options.pad_token_id, self.generation_config.pad_token_id, self.pad_token_id)
        sequences = forward(
            batch["input_ids"],
            batch["attention_mask"],
            max_new_tokens=group,
            eos_token_id=list(ends) if ends else None,
            pad_token_id=next(pad for pad in pads if pad is not None),
        )
        return {"sequences": np.asarray(sequences)[:, batch["input_ids"].shape[1] :]}

    def ends(self, options: TextGenerationOptions) -> tuple[int, ...]:
        """The ids that end a text."""
        return self.generation_config.eos_ids if options.eos_token_id is None else tuple(options.eos_token_id)

    def reduce(self, examples, outputs, options):
        ends = np.array(self.ends(options), np.int64)
        rows = []
        for row in range(len(examples)):
            new = outputs["sequences"][row]
            stops = np.flatnonzero(np.isin(new, ends))
            rows.append({"new": new[: stops[0] + 1].copy() if len(stops) else new.copy()})
        return rows

    def decode(self, item, examples, outputs, options):
        prompt, new = examples[0], outputs[0]["new"].tolist()
        if options.return_tensors:
            return [{"generated_token_ids": prompt.inputs["input_ids"].tolist() + new}]
        keywords = {}
        if options.clean_up_tokenization_spaces is not None:
            keywords["clean_up_tokenization_spaces"] = options.clean_up_tokenization_spaces
        text = self.tokenizer.decode(new, skip_special_tokens=options.skip_special_tokens, **keywords)
        return [{"generated_text": prompt.state.text + text if options.return_full_text else text}]
