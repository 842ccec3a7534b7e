"""What the tasks that write text share: every option of GenerationConfig, and where a text ends."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Any, ClassVar

import numpy as np

from duonlp.errors import InputError
from duonlp.generation import GenerationConfig
from duonlp.generation.config import IGNORED, UNSUPPORTED
from duonlp.generation.prompt import resolve_config
from duonlp.tasks.base import Example, Options, Task, check_bool, check_string, describe

DEFAULT_NEW_TOKENS = 256
"""Tokens generated when nothing says how many, as in Transformers; fewer where the model's positions end sooner."""


class _Unsaid:
    """Stands for an option that nobody gave: the model's own holds. (None, to `generate`, is an option's default.)"""

    def __repr__(self):
        return "as the model says"


UNSAID = _Unsaid()

GENERATION = tuple(f.name for f in fields(GenerationConfig) if f.name != "extra")
"""Options that are `generate`'s, by name."""

SEPARATE = {"max_new_tokens", "max_length", "eos_token_id", "pad_token_id"}
"""Those that every call of `generate` is told by themselves."""

_EveryOption = make_dataclass(
    "_EveryOption", [(name, Any, field(default=UNSAID)) for name in GENERATION], bases=(Options,), frozen=True
)


@dataclass(frozen=True)
class GenerationOptions(_EveryOption):
    """Every option of GenerationConfig, for which the model's own holds where it is not given, and besides:

    generation_config: a GenerationConfig or a dict in place of the model's own, and of options of the construction.
    logits_processor: functions (ids, logits, step) -> logits of your own; see `generate`.
    assistant_model: a smaller model with the same tokenizer, for speculative decoding.
    return_tensors: ids instead of text. skip_special_tokens, clean_up_tokenization_spaces: as in the tokenizer's `decode`.
    prefix: put before every text, and not returned.
    """

    generation_config: Any = None
    logits_processor: Sequence[Callable] | None = None
    assistant_model: Any = None
    return_tensors: bool = False
    skip_special_tokens: bool = True
    clean_up_tokenization_spaces: bool | None = None
    prefix: str | None = None

    resolved: ClassVar[GenerationConfig | None] = None  # all of it together; the task sets it when it checks options

    def __post_init__(self):
        check_bool("return_tensors", self.return_tensors)
        check_bool("skip_special_tokens", self.skip_special_tokens)
        check_bool("clean_up_tokenization_spaces", self.clean_up_tokenization_spaces, optional=True)
        check_string("prefix", self.prefix, optional=True)
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
        stops: duonlp.generation.StopStrings, or None.
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


class GenerationTask(Task):
    """Base of the tasks that write text.

    Args:
        tokenizer, config, folder: as every task.
        generation_config: the model's own, which holds where no option says otherwise.
        task: the name it was asked for by, where that says more than the class ("translation_en_to_fr").
    """

    Options = GenerationOptions
    outputs = ("sequences",)
    generates = True

    def __init__(
        self, tokenizer, config, folder=None, generation_config: GenerationConfig | None = None, task: str | None = None
    ):
        super().__init__(tokenizer, config, folder)
        self.name = task or type(self).name
        self.generation_config = generation_config or GenerationConfig.for_model(config)

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
        config = resolve_config(self.config, self.own_config(options), options.generation_config, options.given)
        if config.returns_dict and not self.generation_config.returns_dict:
            raise InputError(
                f"{self.name} gives texts; for scores, logits and log probabilities call model.generate(ids, "
                "return_dict_in_generate=True, output_scores=True)"
            )
        object.__setattr__(options, "resolved", self.complete(config, options))

    def complete(self, config: GenerationConfig, options: GenerationOptions) -> GenerationConfig:
        """The options of `generate`, with what other options of the task mean for them."""
        return config

    def own_config(self, options: GenerationOptions) -> GenerationConfig:
        """What holds where no option says otherwise."""
        return self.generation_config

    def arguments(self, group: Group, options: GenerationOptions) -> dict[str, Any]:
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
        if self.needs_config(options):
            arguments["generation_config"] = config
        for name in ("logits_processor", "assistant_model"):
            if getattr(options, name) is not None:
                arguments[name] = getattr(options, name)
        return arguments | ({"tokenizer": self.tokenizer} if config.stop_strings else {})

    def needs_config(self, options: GenerationOptions) -> bool:
        """Whether the options differ from what the model does by itself."""
        return bool(options.given.keys() - SEPARATE) or options.generation_config is not None

    # -- the text --------------------------------------------------------------------------------------------------

    def prompt_ids(self, example: Example, options: GenerationOptions) -> np.ndarray:
        """int32 [length]: what a row's text continues."""
        return example.inputs["input_ids"]

    def ending(self, prompt: np.ndarray, options: GenerationOptions) -> Ending:
        """What finds the end of a text after a prompt's ids, int [length]."""
        stops, config = None, options.resolved
        if config.stop_strings:
            from duonlp.generation.stop_strings import StopStrings

            vocab_size = self.config.as_decoder().embedding.vocab_size
            stops = StopStrings.build(self.tokenizer, config.stop_strings, vocab_size)
        return Ending(config.eos_ids, stops, prompt)

    def run(self, forward, batch, group, options):
        ids = batch["input_ids"]
        sequences = forward(ids, batch["attention_mask"], **self.arguments(group, options))
        if isinstance(sequences, Mapping):
            sequences = sequences["sequences"]
        new = np.asarray(sequences)[:, self.prompt_columns(ids) :]  # [batch * texts, n]
        return {"sequences": new.reshape(len(ids), len(new) // len(ids), new.shape[1])}

    def prompt_columns(self, ids: np.ndarray) -> int:
        """How many columns of what `generate` gives for ids [batch, length] are no new ids."""
        return ids.shape[1]

    def reduce(self, examples, outputs, options):
        rows = []
        for example, texts in zip(examples, outputs["sequences"]):  # which has rows of padding at its end
            prompt = self.prompt_ids(example, options)
            rows.append({"new": [self.ending(prompt, options).take(new).copy() for new in texts]})
        return rows

    def decode(self, item, examples, outputs, options):
        return [self.result(examples[0], new.tolist(), options) for new in outputs[0]["new"]]

    def result(self, example: Example, new: list[int], options: GenerationOptions) -> dict[str, Any]:
        """One text as the pipeline gives it."""
        raise NotImplementedError

    def text(self, ids: list[int], options: GenerationOptions) -> str:
        """The text of ids."""
        keywords = {}
        if options.clean_up_tokenization_spaces is not None:
            keywords["clean_up_tokenization_spaces"] = options.clean_up_tokenization_spaces
        return self.tokenizer.decode(ids, skip_special_tokens=options.skip_special_tokens, **keywords)

    def stream(self, forward, example: Example, options: GenerationOptions) -> Iterator[str]:
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

    def _pieces(self, steps, example: Example, options: GenerationOptions) -> Iterator[str]:
        from duonlp.generation.streaming import TextStream

        text = TextStream(self.tokenizer, options.skip_special_tokens)
        ending = self.ending(self.prompt_ids(example, options), options)
        for ids in steps:
            if piece := text.put(ending.take(np.asarray(ids)[0])):
                yield piece
            if ending.over:
                break
        if rest := text.end():
            yield rest
