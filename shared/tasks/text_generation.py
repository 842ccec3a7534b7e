"""Text generation: prompts continued by a causal language model, with every option of GenerationConfig."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Any, ClassVar

import numpy as np

from shared.errors import InputError
from shared.generation import GenerationConfig
from shared.generation.config import IGNORED, UNSUPPORTED
from shared.generation.prompt import resolve_config
from shared.tasks.base import (
    Example,
    Options,
    Task,
    check_bool,
    check_choice,
    check_string,
    check_text,
    describe,
)

DEFAULT_NEW_TOKENS = 256
"""Tokens generated when nothing says how many, as in Transformers 5; fewer where the model's positions end sooner."""


class _Unsaid:
    """Stands for an option that nobody gave: the model's own holds. (None, to `generate`, is an option's default.)"""

    def __repr__(self):
        return "as the model says"


UNSAID = _Unsaid()

GENERATION = tuple(f.name for f in fields(GenerationConfig) if f.name != "extra")
"""Options that are `generate`'s, by name."""

SEPARATE = {"max_new_tokens", "max_length", "eos_token_id", "pad_token_id"}
"""Those that every call of `generate` is told by themselves."""

GenerationOptions = make_dataclass(
    "GenerationOptions", [(name, Any, field(default=UNSAID)) for name in GENERATION], bases=(Options,), frozen=True
)


@dataclass(frozen=True)
class TextGenerationOptions(GenerationOptions):
    """Every option of GenerationConfig, for which the model's own holds where it is not given, and besides:

    generation_config: a GenerationConfig or a dict in place of the model's own, and of options of the construction.
    logits_processor: functions (ids, logits, step) -> logits of your own; see `generate`.
    assistant_model: a smaller model with the same tokenizer, for speculative decoding.
    return_full_text: the prompt is part of the text. return_tensors: "generated_token_ids", prompt included, instead.
    skip_special_tokens, clean_up_tokenization_spaces: as in the tokenizer's `decode`.
    prefix: put before every prompt, and not returned. add_special_tokens: None leaves it to the tokenizer.
    handle_long_generation: "hole" cuts prompts at their beginning so that the new tokens fit.
    """

    generation_config: Any = None
    logits_processor: Sequence[Callable] | None = None
    assistant_model: Any = None
    return_full_text: bool = True
    return_tensors: bool = False
    skip_special_tokens: bool = True
    clean_up_tokenization_spaces: bool | None = None
    prefix: str = ""
    add_special_tokens: bool | None = None
    handle_long_generation: str | None = None

    resolved: ClassVar[GenerationConfig | None] = None  # all of it together; the task sets it when it checks options

    def __post_init__(self):
        check_bool("return_full_text", self.return_full_text)
        check_bool("return_tensors", self.return_tensors)
        check_bool("skip_special_tokens", self.skip_special_tokens)
        check_bool("clean_up_tokenization_spaces", self.clean_up_tokenization_spaces, optional=True)
        check_bool("add_special_tokens", self.add_special_tokens, optional=True)
        check_string("prefix", self.prefix, optional=True)
        object.__setattr__(self, "prefix", self.prefix or "")
        check_choice("handle_long_generation", self.handle_long_generation, (None, "hole"))
        if not isinstance(self.logits_processor, (list, tuple, type(None))):
            raise InputError(
                f"logits_processor is {describe(self.logits_processor)}; give a list of functions "
                "(ids, logits, step) -> logits"
            )
        if self.assistant_model is not None and not hasattr(self.assistant_model, "config"):
            raise InputError(
                f"assistant_model is {describe(self.assistant_model)}; give a loaded model of the same package, or name "
                "a checkpoint where the pipeline is made"
            )

    @property
    def given(self) -> dict[str, Any]:
        """The options of `generate` that somebody gave."""
        return {name: getattr(self, name) for name in GENERATION if getattr(self, name) is not UNSAID}


@dataclass(slots=True)
class Prompt:
    """A prompt's text, and how many of its row's tokens came from it (none when the row starts from nothing)."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Group:
    """What prompts that go together have in common, so that none is treated otherwise than it would be alone."""

    new_tokens: int
    min_new_tokens: int | None = None  # what is left of min_length, where there is one
    single: bool = False  # prompts of one token, which forced_bos_token_id acts on
    repetition: int = 0  # with a seed: how many equal prompts came before, for equal prompts of a batch draw apart


class Ending:
    """Finds where a text ends: with an id that ends texts, or with the token that completes a stop string.

    Args:
        end_ids: ids that end texts.
        stops: shared.generation.stop_strings.StopStrings, or None.
        prompt: int [length], the ids before the text.
    """

    def __init__(self, end_ids: Sequence[int], stops, prompt: np.ndarray):
        self.end_ids, self.stops, self.over = frozenset(end_ids), stops, False
        self.state = 0 if stops is None else int(stops.start(prompt[None])[0])

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Those of some more ids, int [n], that still belong to the text."""
        if self.over:
            return ids[:0]
        for count, token in enumerate(ids.tolist(), 1):
            if self.stops is not None:
                self.state = int(self.stops.transitions[self.state, token])
                self.over = self.state == self.stops.accept
            if self.over or token in self.end_ids:
                self.over = True
                return ids[:count]
        return ids


class TextGenerationTask(Task):
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

    # -- options ---------------------------------------------------------------------------------------------------

    def options(self, base=None, **changes):
        if base is not None and changes.get("generation_config") is not None:
            base = replace(base, **dict.fromkeys(GENERATION, UNSAID))  # it stands for all of them, as in Transformers
        return super().options(base, **changes)

    def rewrite_options(self, changes):
        changes = dict(changes)
        if "stop_sequence" in changes:  # the name Transformers' pipeline has for it
            changes.setdefault("stop_strings", changes.pop("stop_sequence"))
        if changes.get("max_length") is not None:
            changes.setdefault("max_new_tokens", UNSAID)  # a length for this call beats one of the construction
        for name in [name for name in changes if name in IGNORED or name in UNSUPPORTED]:
            GenerationConfig().with_options(**{name: changes.pop(name)})  # says so when it would change the text
        return changes

    def check_options(self, options):
        # Not in a method of its own: a warning of with_options then names the line that called the pipeline.
        config = resolve_config(self.config, self.generation_config, options.generation_config, options.given)
        if config.returns_dict and not self.generation_config.returns_dict:
            raise InputError(
                f"{self.name} gives texts; for scores, logits and log probabilities call model.generate(ids, "
                "return_dict_in_generate=True, output_scores=True)"
            )
        object.__setattr__(options, "resolved", config)

    def arguments(self, group: Group, options: TextGenerationOptions) -> dict[str, Any]:
        """Keywords of `generate` or `stream` for prompts of a group."""
        config = options.resolved
        pads = config.pad_token_id, self.pad_token_id
        arguments = {
            "max_new_tokens": group.new_tokens,
            "eos_token_id": list(config.eos_ids) or None,
            "pad_token_id": next(pad for pad in pads if pad is not None),
        }
        if group.min_new_tokens is not None:
            arguments["min_new_tokens"] = group.min_new_tokens
        if options.given.keys() - SEPARATE or options.generation_config is not None:
            arguments["generation_config"] = config
        for name in ("logits_processor", "assistant_model"):
            if getattr(options, name) is not None:
                arguments[name] = getattr(options, name)
        return arguments | ({"tokenizer": self.tokenizer} if config.stop_strings else {})

    def ending(self, prompt: np.ndarray, options: TextGenerationOptions) -> Ending:
        """What finds the end of a text after a prompt's ids, int [length]."""
        stops, config = None, options.resolved
        if config.stop_strings:
            from shared.generation.stop_strings import StopStrings

            stops = StopStrings.build(self.tokenizer, config.stop_strings, self.config.embedding.vocab_size)
        return Ending(config.eos_ids, stops, prompt)

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

    def run(self, forward, batch, group, options):
        ids = batch["input_ids"]
        sequences = forward(ids, batch["attention_mask"], **self.arguments(group, options))
        if isinstance(sequences, Mapping):
            sequences = sequences["sequences"]
        new = np.asarray(sequences)[:, ids.shape[1] :]  # [batch * texts, n]
        return {"sequences": new.reshape(len(ids), len(new) // len(ids), new.shape[1])}

    def reduce(self, examples, outputs, options):
        rows = []
        for example, texts in zip(examples, outputs["sequences"], strict=True):
            prompt = example.inputs["input_ids"]
            rows.append({"new": [self.ending(prompt, options).take(new).copy() for new in texts]})
        return rows

    def decode(self, item, examples, outputs, options):
        return [self.result(examples[0], new.tolist(), options) for new in outputs[0]["new"]]

    def result(self, prompt: Example, new: list[int], options: TextGenerationOptions) -> dict[str, Any]:
        """One text as the pipeline gives it."""
        if options.return_tensors:
            return {"generated_token_ids": prompt.inputs["input_ids"].tolist() + new}
        keywords = {}
        if options.clean_up_tokenization_spaces is not None:
            keywords["clean_up_tokenization_spaces"] = options.clean_up_tokenization_spaces
        text = self.tokenizer.decode(new, skip_special_tokens=options.skip_special_tokens, **keywords)
        return {"generated_text": prompt.state.text + text if options.return_full_text else text}

    def stream(self, forward, example: Example, options: TextGenerationOptions) -> Iterator[str]:
        """The new text of one prompt in pieces, as soon as they are decided.

        Args:
            forward: an engine's `stream`, round a model: an iterator of new ids, int [1, n].

        Raises:
            InputError: at once, for options that there is nothing to stream with.
        """
        if options.resolved.num_return_sequences > 1:
            raise InputError(
                f"num_return_sequences={options.resolved.num_return_sequences}: a stream is one text; pass "
                "num_return_sequences=1, or call the pipeline"
            )
        for name in ("return_tensors", "clean_up_tokenization_spaces"):
            if getattr(options, name):
                raise InputError(
                    f"{name}=True does not go with a stream, whose pieces are text as it comes; leave it out"
                )
        rows = {name: values[None] for name, values in example.inputs.items()}
        steps = forward(rows["input_ids"], rows["attention_mask"], **self.arguments(example.group, options))
        return self._pieces(steps, example, options)

    def _pieces(self, steps, example: Example, options: TextGenerationOptions) -> Iterator[str]:
        from shared.generation.streaming import TextStream

        text = TextStream(self.tokenizer, options.skip_special_tokens)
        ending = self.ending(example.inputs["input_ids"], options)
        for ids in steps:
            if piece := text.put(ending.take(np.asarray(ids)[0])):
                yield piece
            if ending.over:
                break
        if rest := text.end():
            yield rest
