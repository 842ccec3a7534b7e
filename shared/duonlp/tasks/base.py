"""Base class of all tasks: checked options, tokenization, and conversion of outputs to results.

A task contains no model. :class:`duonlp.pipelines.Pipeline` batches the rows of :meth:`Task.encode`, runs an engine's forward
pass on them, calls :meth:`Task.reduce` to keep what is needed of each batch, and :meth:`Task.decode` to build the results.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import CheckpointError, InputError
from duonlp.typing import Tokenizer


@dataclass(slots=True)
class Example:
    """One row of a batch. An item of the input has one, or several if its text is read in windows or parts.

    Attributes:
        inputs: int32 arrays [tokens] by input name.
        state: Task-specific data needed for decoding.
        group: Rows of different groups never share a batch, e.g. because they need different settings of ``generate``.
    """

    inputs: dict[str, np.ndarray]
    state: Any = None
    group: Any = None

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.inputs["input_ids"])


@dataclass(frozen=True)
class Options:
    """Options of a task. Subclasses add fields and validate them in ``__post_init__``."""


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class TruncationOptions(Options):
    """Options of tasks that read a text in one piece.

    Attributes:
        truncation: Truncate texts that are too long instead of raising.
        max_length: Maximum number of tokens (default: the model's limit).
    """

    truncation: bool | str = False
    max_length: int | None = None

    def __post_init__(self) -> None:
        check_choice("truncation", self.truncation, (True, False, *TRUNCATIONS))
        check_int("max_length", self.max_length, minimum=1, optional=True)


TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
"""Truncation strategies of Transformers' tokenizers."""


@dataclass
class ParsedInputs:
    """The inputs of one call.

    Attributes:
        kind: Shape of the result: "one", "list" or "stream".
        items: The items, unless ``kind`` is "stream".
        stream: An iterable of items if ``kind`` is "stream".
        wrap: Whether the result for one item is returned in a list, as Transformers does for some calls.
        keywords: Keywords that remain after removing those that are inputs.
    """

    kind: Literal["one", "list", "stream"]
    items: list[Any]
    stream: Iterable[Any] = ()
    wrap: bool = False
    keywords: dict[str, Any] = field(default_factory=dict)


class Task(Generic[OptionsT]):
    """Base class of all tasks.

    Args:
        tokenizer: A tokenizer of Transformers; a fast one unless the task needs no offsets.
        config: The model's configuration.
        folder: Folder of the checkpoint, for tasks that read further files.

    Raises:
        InputError: the tokenizer is not a fast one but has to be, or lacks a token that the task needs.

    Attributes:
        name: Name of the task.
        head: Head that the model needs.
        Options: Class of the task's options.
        outputs: Model outputs that the task reads.
        per_token: Whether outputs have a length axis, which is cut to each row's length.
        padding_side: Side on which rows are padded.
        fast_tokenizer: Whether a fast tokenizer is required, for its offsets.
        generates: Whether the forward pass is a model's ``generate``.
        buckets: Whether batches are padded to a few shapes; False if the forward pass pads, or if it must not be padded.
        remedy: Advice for texts that are too long.
    """

    name: str = ""
    head: ClassVar[str]
    Options: ClassVar[type[Any]] = Options
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    per_token: ClassVar[bool] = True
    padding_side: ClassVar[str] = "right"
    fast_tokenizer: ClassVar[bool] = True
    generates: ClassVar[bool] = False
    buckets: bool = True
    remedy: ClassVar[str] = "shorten it, or pass truncation=True"

    def __init__(
        self, tokenizer: Tokenizer, config: TransformerConfig, folder: str | os.PathLike[str] | None = None
    ) -> None:
        usable = (
            getattr(tokenizer, "is_fast", False) if self.fast_tokenizer else hasattr(tokenizer, "convert_tokens_to_ids")
        )
        if not usable:
            raise InputError(
                f"{self.name} needs {'a fast tokenizer' if self.fast_tokenizer else 'a tokenizer of Transformers'}, got "
                f"{type(tokenizer).__name__}; load one with transformers.AutoTokenizer.from_pretrained(...)"
            )
        self.tokenizer = tokenizer
        self.config = config
        self.folder = None if folder is None else Path(folder)

    # -- options ---------------------------------------------------------------------------------------------------

    def options(self, base: OptionsT | None = None, **changes: Any) -> OptionsT:
        """Return validated options: ``base``, or the defaults, with ``changes`` applied.

        Raises:
            InputError: an option is unknown or has an invalid value.
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

    def rewrite_options(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Translate alternative spellings of options, such as Transformers' ``tokenizer_kwargs``."""
        return changes

    def check_options(self, options: OptionsT) -> None:
        """Raise InputError if the options do not suit this model or tokenizer."""

    # -- inputs ----------------------------------------------------------------------------------------------------

    def parse_inputs(self, inputs: Any, keywords: dict[str, Any]) -> ParsedInputs:
        """Determine whether a call was given one item, a list of items or an iterator of items.

        Raises:
            InputError: ``inputs`` is missing or of an unsupported type.
        """
        if inputs is None:
            raise InputError(f"{self.name} needs an input; pass {self.accepted_inputs}")
        if isinstance(inputs, (str, Mapping)):
            return ParsedInputs("one", [inputs], keywords=keywords)
        if isinstance(inputs, (bytes, bytearray)) or not isinstance(inputs, Iterable):
            raise InputError(f"{self.name} got {describe(inputs)}; pass {self.accepted_inputs}")
        if hasattr(inputs, "__len__"):
            return ParsedInputs("list", list(inputs), keywords=keywords)
        return ParsedInputs("stream", [], inputs, keywords=keywords)

    @property
    def accepted_inputs(self) -> str:
        """Description of the accepted inputs, for error messages."""
        return "a text, a list of texts or an iterator of texts"

    def gather(self, results: list[Any], options: OptionsT) -> Any:
        """Combine the results for a list of items; by default, return them as a list."""
        return results

    # -- encoding and decoding -------------------------------------------------------------------------------------

    def encode(self, items: Sequence[Any], options: OptionsT, first: int = 0) -> list[list[Example]]:
        """Convert items to rows.

        Args:
            items: Some of the items of a call, tokenized together.
            options: Options of the call.
            first: Index of the first of these items in the call, for error messages.

        Returns:
            A list of rows for each item.

        Raises:
            InputError: an item is invalid; the message gives its index.
        """
        raise NotImplementedError

    def reduce(
        self, examples: Sequence[Example], outputs: Mapping[str, np.ndarray], options: OptionsT
    ) -> list[dict[str, Any]]:
        """Reduce the outputs of a batch to a small dict per row, so that the batch can be freed.

        Args:
            examples: The rows of the batch.
            outputs: float32 arrays [at least len(examples), ...], padded on ``padding_side``.
            options: Options of the call.
        """
        if not self.per_token:
            return [{key: value[row].copy() for key, value in outputs.items()} for row in range(len(examples))]
        return [
            {key: value[row, : example.length].copy() for key, value in outputs.items()}
            for row, example in enumerate(examples)
        ]

    def decode(
        self, item: Any, examples: Sequence[Example], outputs: Sequence[dict[str, Any]], options: OptionsT
    ) -> Any:
        """Return the result for one item.

        Args:
            item: The item.
            examples: Its rows.
            outputs: What :meth:`reduce` returned for each row.
            options: Options of the call.
        """
        raise NotImplementedError

    def next_round(
        self, item: Any, examples: Sequence[Example], outputs: Sequence[dict[str, Any]], options: OptionsT
    ) -> list[Example] | None:
        """Return further rows to run for an item, or None if it can be decoded.

        Args:
            item: The item.
            examples: Its rows in this round.
            outputs: What :meth:`reduce` returned for each row.
            options: Options of the call.
        """
        return None

    def run(
        self, forward: Callable[..., Any], batch: dict[str, np.ndarray], group: Any, options: OptionsT
    ) -> Mapping[str, Any]:
        """Run the forward pass on a batch whose rows are all of ``group``."""
        return forward(batch)

    def output_width(self) -> int:
        """Return the number of output values per token, which limits the rows of a batch."""
        return self.config.hidden_size

    # -- helpers for subclasses ------------------------------------------------------------------------------------

    @property
    def pad_token_id(self) -> int:
        """Id for padding. The model's own comes first: some models derive positions or the last token from it."""
        for value in (self.config.pad_token_id, self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if isinstance(value, int) and 0 <= value < self.config.embedding.vocab_size:
                return value
        return 0

    @property
    def input_names(self) -> list[str]:
        """Model inputs: ids, mask, and token types if both the tokenizer and the model have them."""
        names = ["input_ids", "attention_mask"]
        names += ["token_type_ids"] if "token_type_ids" in self.tokenizer.model_input_names else []
        embedding = self.config.embedding
        return names if embedding.type_vocab_size or embedding.token_types_from_words else names[:2]

    def limit(self) -> int | None:
        """Return the number of tokens to truncate to: the smaller of the model's and the tokenizer's limits."""
        limits = [self.config.max_length, self.tokenizer.model_max_length]
        limits = [int(n) for n in limits if n is not None and 0 < n < 10**9]
        return min(limits, default=None)

    def texts(self, items: Sequence[Any], first: int) -> list[str]:
        """Return the items; raise InputError if one is not a nonempty text."""
        return [check_text(item, f"{self.name}: input {first + i}") for i, item in enumerate(items)]

    def tokenize(self, *args: Any, options: TruncationOptions, **keywords: Any) -> Any:
        """Call the tokenizer on many texts at once, with the truncation that the options specify."""
        truncation = options.truncation
        if truncation not in (False, "do_not_truncate"):
            keywords |= {"truncation": truncation, "max_length": options.max_length or self.limit()}
            if keywords["max_length"] is None:
                keywords["truncation"] = False
        return self.tokenizer(*args, return_attention_mask=True, verbose=False, **keywords)

    def rows(
        self, encoded: Mapping[str, Any], first: int = 0, items: Sequence[int] | None = None
    ) -> list[dict[str, np.ndarray]]:
        """Convert the tokenizer's output to dicts of int32 arrays [tokens].

        Args:
            encoded: Output of the tokenizer.
            first: Index of the item of the first row, if each item has one row.
            items: Index of each row's item, if items can have several rows.

        Raises:
            InputError: a row is empty or has more tokens than the model has positions.
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
        """Raise InputError if a row of item ``number`` is empty or longer than the model has positions."""
        limit = self.config.max_length
        if limit is not None and length > limit:
            raise InputError(
                f"{self.name}: input {number} has {length} tokens, but the model has positions for {limit}; {self.remedy}"
            )
        if length == 0:
            raise InputError(f"{self.name}: input {number} has no tokens; remove it, or add some words")


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file, or None if it does not exist.

    Raises:
        CheckpointError: the file is not valid JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download the checkpoint again") from error


def describe(value: Any) -> str:
    """Return the (shortened) repr and the type of a value, for an error message."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def check_text(value: Any, where: str) -> str:
    """Return ``value``; raise InputError if it is not a string or is blank.

    Args:
        value: The value.
        where: Name of the value, for the error message.
    """
    if not isinstance(value, str):
        raise InputError(f"{where} is {describe(value)}; expected a text (str)")
    if not value or value.isspace():
        raise InputError(f"{where} is an empty text, {value!r}; remove it, or add some words")
    return str(value)


def check_int(name: str, value: Any, *, minimum: int, optional: bool = False) -> None:
    """Raise InputError unless ``value`` is an integer of at least ``minimum``, or None if ``optional``."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise InputError(
            f"{name} is {describe(value)}; expected an integer of at least {minimum}{' or None' if optional else ''}"
        )


def check_bool(name: str, value: Any, optional: bool = False) -> None:
    """Raise InputError unless ``value`` is True or False, or None if ``optional``."""
    if not (isinstance(value, (bool, np.bool_)) or (optional and value is None)):
        raise InputError(f"{name} is {describe(value)}; expected True or False{' or None' if optional else ''}")


def check_string(name: str, value: Any, optional: bool = False) -> None:
    """Raise InputError unless ``value`` is a string, or None if ``optional``."""
    if not (isinstance(value, str) or (optional and value is None)):
        raise InputError(f"{name} is {describe(value)}; expected a string{' or None' if optional else ''}")


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise InputError unless ``value`` is one of ``allowed``."""
    if not any(value is a or (isinstance(value, str) and value == a) for a in allowed):
        raise InputError(f"{name} is {describe(value)}; expected one of {', '.join(map(repr, allowed))}")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute the softmax over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
