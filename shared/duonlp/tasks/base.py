"""What every task has: a tokenizer, options checked in one place, text to arrays, arrays to results.

A task holds no model. :class:`duonlp.pipelines.Pipeline` batches what :meth:`Task.encode` makes, runs either engine's
forward pass on it, lets :meth:`Task.reduce` keep what matters of each batch, and asks :meth:`Task.decode` for results.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from duonlp.errors import CheckpointError, InputError


@dataclass(slots=True)
class Example:
    """One row for the model. An item gives one, or several when its text is read through windows.

    inputs: 1-D int32 arrays of one length, by input name.
    state: whatever decoding needs.
    group: rows of different groups never share a batch (they need different settings of `generate`).
    """

    inputs: dict[str, np.ndarray]
    state: Any = None
    group: Any = None

    @property
    def length(self) -> int:
        return len(self.inputs["input_ids"])


@dataclass(frozen=True)
class Options:
    """Options of a task. Subclasses add fields, and check them in ``__post_init__``."""


@dataclass(frozen=True)
class TruncationOptions(Options):
    """Options of the tasks that read a text in one piece.

    truncation: cut texts that are too long, instead of raising.
    max_length: what is too long, in tokens; the model's own limit by default.
    """

    truncation: bool | str = False
    max_length: int | None = None

    def __post_init__(self):
        check_choice("truncation", self.truncation, (True, False, *TRUNCATIONS))
        check_int("max_length", self.max_length, minimum=1, optional=True)


TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")


@dataclass
class Arranged:
    """The inputs of one call: the items, and the shape of the answer ("one", "list" or "stream")."""

    shape: str
    items: Iterable
    wrap: bool = False  # one item whose result goes into a list, as Transformers does for some calls
    options: dict = field(default_factory=dict)  # keywords left after the inputs among them were taken out


class Task:
    """Base of all tasks.

    Args:
        tokenizer: a tokenizer of Transformers, a fast one unless the task can do with any.
        config: the model's TransformerConfig.
        folder: the checkpoint's folder, for tasks that read more files of it.

    Raises:
        InputError: when the tokenizer is not a fast one where the task needs one, or lacks a token the task needs.
    """

    name: ClassVar[str]
    head: ClassVar[str]
    Options: ClassVar[type[Options]] = Options
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    per_token: ClassVar[bool] = True  # outputs have a length axis, cut back to each row's own length
    padding_side: ClassVar[str] = "right"
    fast_tokenizer: ClassVar[bool] = True  # it needs a fast one, for offsets
    generates: ClassVar[bool] = False  # its forward pass is a model's `generate`
    buckets: bool = True  # batches are padded to a few shapes; False where the forward pass sees to that, or cannot

    def __init__(self, tokenizer, config, folder: str | os.PathLike | None = None):
        usable = (
            getattr(tokenizer, "is_fast", False) if self.fast_tokenizer else hasattr(tokenizer, "convert_tokens_to_ids")
        )
        if not usable:
            raise InputError(
                f"{self.name} got a tokenizer of type {type(tokenizer).__name__}, and needs "
                f"{'a fast one' if self.fast_tokenizer else 'one of Transformers'}: "
                "load it with transformers.AutoTokenizer.from_pretrained(...)"
            )
        self.tokenizer = tokenizer
        self.config = config
        self.folder = None if folder is None else Path(folder)

    # -- options ---------------------------------------------------------------------------------------------------

    def options(self, base: Options | None = None, **changes) -> Options:
        """This task's options: those of `base` (or the defaults), with `changes`, checked.

        Raises:
            InputError: for an unknown keyword or a value that is not allowed.
        """
        changes = self.rewrite_options(changes)
        allowed = [f.name for f in fields(self.Options)]
        for name in changes:
            if name not in allowed:
                raise InputError(
                    f"{self.name} has no option {name!r}; its options are {', '.join(allowed) or '(none)'}"
                )
        options = self.Options(**changes) if base is None else replace(base, **changes)
        self.check_options(options)
        return options

    def rewrite_options(self, changes: dict) -> dict:
        """Translates other spellings of options, such as Transformers' `tokenizer_kwargs`."""
        return changes

    def check_options(self, options: Options) -> None:
        """Raises InputError for options that do not suit this model or tokenizer."""

    # -- inputs ----------------------------------------------------------------------------------------------------

    def arrange(self, inputs: Any, keywords: dict) -> Arranged:
        """Sorts out what one call was given: one item, a list of items, or an iterator of them."""
        if inputs is None:
            raise InputError(f"{self.name} needs an input: {self.wants}")
        if isinstance(inputs, (str, Mapping)):
            return Arranged("one", [inputs], options=keywords)
        if isinstance(inputs, (bytes, bytearray)) or not isinstance(inputs, Iterable):
            raise InputError(f"{self.name} got {describe(inputs)}; give {self.wants}")
        if hasattr(inputs, "__len__"):
            return Arranged("list", list(inputs), options=keywords)
        return Arranged("stream", inputs, options=keywords)

    @property
    def wants(self) -> str:
        """The allowed inputs, for error messages."""
        return "a text, a list of texts or an iterator of texts"

    def gather(self, results: list, options: Options) -> Any:
        """The answer to a call with a list: a list, unless a task can stack its results."""
        return results

    # -- the two ways across ---------------------------------------------------------------------------------------

    def encode(self, items: Sequence, options: Options, first: int = 0) -> list[list[Example]]:
        """Items to rows, one list of rows for each item.

        Args:
            items: some of the call's items, tokenized together.
            first: number of items before these, so that an error can say which item it means.
        """
        raise NotImplementedError

    def reduce(self, examples: Sequence[Example], outputs: Mapping[str, np.ndarray], options: Options) -> list[dict]:
        """A batch's outputs to one small dict a row, so that a batch need not be kept.

        Args:
            examples: the rows of the batch.
            outputs: float32 arrays [at least len(examples), ...], padded on ``padding_side``.
        """
        if not self.per_token:
            return [{key: value[row].copy() for key, value in outputs.items()} for row in range(len(examples))]
        return [
            {key: value[row, : example.length].copy() for key, value in outputs.items()}
            for row, example in enumerate(examples)
        ]

    def decode(self, item: Any, examples: Sequence[Example], outputs: Sequence[dict], options: Options) -> Any:
        """The result for one item, from what :meth:`reduce` kept of its rows."""
        raise NotImplementedError

    def again(
        self, item: Any, examples: Sequence[Example], outputs: Sequence[dict], options: Options
    ) -> list[Example] | None:
        """More rows for an item that needs the model once more, made of what it gave; None when that can be decoded.

        Args:
            examples: the item's rows of this round.
            outputs: what :meth:`reduce` kept of each.
        """
        return None

    def run(self, forward, batch: dict[str, np.ndarray], group: Any, options: Options) -> Mapping[str, Any]:
        """The forward pass; tasks that generate call it otherwise."""
        return forward(batch)

    def output_width(self) -> int:
        """Numbers the model gives for each token, which bounds how many rows fit one batch."""
        return self.config.hidden_size

    # -- shared by the tasks ---------------------------------------------------------------------------------------

    @property
    def pad_token_id(self) -> int:
        """The id in padded places. The model's own first: by it some models tell positions, or the last token."""
        for value in (self.config.pad_token_id, self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if isinstance(value, int) and 0 <= value < self.config.embedding.vocab_size:
                return value
        return 0

    @property
    def input_names(self) -> list[str]:
        """The inputs to feed: ids, mask, and the token types if both the tokenizer and the model have them."""
        names = ["input_ids", "attention_mask"]
        names += ["token_type_ids"] if "token_type_ids" in self.tokenizer.model_input_names else []
        embedding = self.config.embedding
        return names if embedding.type_vocab_size or embedding.token_types_from_words else names[:2]

    def limit(self) -> int | None:
        """What truncation cuts to: the model's positions, or what its tokenizer says if that is less."""
        limits = [self.config.max_length, self.tokenizer.model_max_length]
        limits = [int(n) for n in limits if n is not None and 0 < n < 10**9]
        return min(limits, default=None)

    def texts(self, items: Sequence, first: int) -> list[str]:
        """The items, each checked to be a text with something in it."""
        return [check_text(item, f"{self.name}: input {first + i}") for i, item in enumerate(items)]

    def tokenize(self, *args, options: Options, **keywords):
        """One call of the tokenizer for many texts, with the truncation the options ask for."""
        truncation = options.truncation
        if truncation not in (False, "do_not_truncate"):
            keywords |= {"truncation": truncation, "max_length": options.max_length or self.limit()}
            if keywords["max_length"] is None:
                keywords["truncation"] = False
        return self.tokenizer(*args, return_attention_mask=True, verbose=False, **keywords)

    def rows(self, encoded, first: int = 0, items: Sequence[int] | None = None) -> list[dict[str, np.ndarray]]:
        """Tokenizer output to dicts of int32 arrays, each checked against the model's positions.

        Args:
            items: for each row the number of its item, where an item can have several.
        """
        names = [name for name in self.input_names if name in encoded]
        columns = [encoded[name] for name in names]
        rows = []
        for i, values in enumerate(zip(*columns, strict=True)):
            row = {name: np.array(value, np.int32) for name, value in zip(names, values, strict=True)}
            self.check_length(len(row["input_ids"]), first + (i if items is None else items[i]))
            rows.append(row)
        return rows

    def check_length(self, length: int, number: int) -> None:
        """Raises InputError for a row that is empty, or longer than the model has positions."""
        limit = self.config.max_length
        if limit is not None and length > limit:
            raise InputError(
                f"{self.name}: input {number} has {length} tokens and the model has positions for {limit}; "
                f"{self.remedy}"
            )
        if length == 0:
            raise InputError(f"{self.name}: input {number} has no token the tokenizer knows; leave it out")

    remedy: ClassVar[str] = "shorten it, or pass truncation=True"


def read_json(path: Path) -> Any:
    """A JSON file, or None where there is none."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch the checkpoint again") from error


def describe(value: Any) -> str:
    """A short account of a value for an error message: its repr, cut, and its type."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} of type {type(value).__name__}"


def check_text(value: Any, where: str) -> str:
    """`value`, if it is a text that holds more than white space; raises InputError."""
    if not isinstance(value, str):
        raise InputError(f"{where} is {describe(value)}; a text (str) is needed")
    if not value or value.isspace():
        raise InputError(f"{where} is an empty text, {value!r}; leave it out, or give it some words")
    return str(value)


def check_int(name: str, value: Any, *, minimum: int, optional: bool = False) -> None:
    """Raises InputError unless `value` is an integer of at least `minimum` (or None, where that is allowed)."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        also = " or None" if optional else ""
        raise InputError(f"{name} is {describe(value)}; it must be an integer of at least {minimum}{also}")


def check_bool(name: str, value: Any, optional: bool = False) -> None:
    """Raises InputError unless `value` is True or False (or None, where that is allowed)."""
    if not (isinstance(value, (bool, np.bool_)) or (optional and value is None)):
        raise InputError(f"{name} is {describe(value)}; it must be True or False{' or None' if optional else ''}")


def check_string(name: str, value: Any, optional: bool = False) -> None:
    """Raises InputError unless `value` is a text (or None, where that is allowed)."""
    if not (isinstance(value, str) or (optional and value is None)):
        raise InputError(f"{name} is {describe(value)}; it must be a text{' or None' if optional else ''}")


def check_choice(name: str, value: Any, allowed: Sequence) -> None:
    """Raises InputError unless `value` is one of `allowed`."""
    if not any(value is a or (isinstance(value, str) and value == a) for a in allowed):
        raise InputError(f"{name} is {describe(value)}; it must be one of {', '.join(map(repr, allowed))}")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
