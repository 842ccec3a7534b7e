"""Base class of tasks that read texts: tokenization, truncation, and batches padded to one length."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.positions import position_ids
from duonlp.tasks.base import Example, Options, Task, check_choice, check_int, check_text, describe
from duonlp.typing import Tokenizer
from duonlp.util.tokenization import tokenize


@dataclass(frozen=True)
class TruncationOptions(Options):
    """Options of tasks that read a text in one piece.

    Attributes:
        truncation: Truncate texts that are too long instead of raising; None truncates if there is a ``max_length``.
        max_length: Maximum number of tokens (default: the model's limit).
    """

    truncation: bool | str | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        check_choice("truncation", self.truncation, (True, False, None, *TRUNCATIONS))
        check_int("max_length", self.max_length, minimum=1, optional=True)

    @property
    def truncates(self) -> bool:
        """Whether texts are truncated; a length alone is enough, as for Transformers' tokenizers."""
        if self.truncation is None:
            return self.max_length is not None
        return self.truncation not in (False, "do_not_truncate")


TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
"""Truncation strategies of Transformers' tokenizers."""


TextOptionsT = TypeVar("TextOptionsT", bound=Options)


class TextTask(Task[TextOptionsT]):
    """Base class of tasks that read texts.

    Args:
        tokenizer: A tokenizer of Transformers; a fast one unless the task needs no offsets.
        config: See :class:`Task`.
        folder: See :class:`Task`.

    Raises:
        InputError: the tokenizer is not a fast one but has to be, or lacks a token that the task needs.

    Attributes:
        fast_tokenizer: Whether a fast tokenizer is required, for its offsets.
        remedy: Advice for texts that are too long.
    """

    fast_tokenizer: ClassVar[bool] = True
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
        super().__init__(tokenizer, config, folder)
        self.tokenizer = tokenizer

    @property
    def accepted_inputs(self) -> str:
        return "a text, a list of texts or an iterator of texts"

    def chunk_size(self, rows: int) -> int:
        return max(1024, rows * 16)  # many, so that rows of similar length are batched together

    def batch(self, examples: Sequence[Example], rows: int, length: int) -> dict[str, np.ndarray]:
        left = self.padding_side == "left"
        batch = {}
        for name in examples[0].inputs:
            array = np.full((rows, length), self.pad_token_id if name == "input_ids" else 0, np.int32)
            for row, example in enumerate(examples):
                values = example.inputs[name]
                array[row, length - len(values) if left else 0 :][: len(values)] = values
            array[len(examples) :] = array[0]  # a fully masked row would divide by zero in attention
            batch[name] = array
        if not left and not self.generates:
            batch["position_ids"] = position_ids(self.config, batch["input_ids"], batch["attention_mask"])
        return batch

    def check_changes(self, options: TextOptionsT, changes: Mapping[str, Any], of_call: bool) -> None:
        if isinstance(options, TruncationOptions) and not options.truncates and changes.get("max_length") is not None:
            raise InputError(
                f"max_length={options.max_length} has no effect with truncation={options.truncation!r}; omit one of them"
            )

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
        model = [spec.name for spec in self.config.inputs if spec.source == "tokens"]
        produced = {"input_ids", "attention_mask", *({"token_type_ids"} & {*self.tokenizer.model_input_names})}
        return [name for name in model if name in produced]

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
        if options.truncates:
            keywords |= {"truncation": options.truncation or True, "max_length": options.max_length or self.limit()}
            if keywords["max_length"] is None:
                keywords["truncation"] = False
        return tokenize(self.tokenizer, *args, return_attention_mask=True, verbose=False, **keywords)

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
            try:
                row = {name: np.array(value, np.int32) for name, value in zip(names, values, strict=True)}
            except OverflowError:
                raise InputError(
                    f"{self.name}: the tokenizer gives ids of 2**31 or more, which no model has; use the model's own tokenizer"
                ) from None
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


def text_and_pair(item: Any, where: str) -> tuple[str, str | None]:
    """Return an item as (text, second text or None).

    Args:
        item: A text or a pair.
        where: Name of the item, for error messages.

    Raises:
        InputError: the item is neither.
    """
    if not isinstance(item, Mapping):
        if isinstance(item, (list, tuple)):
            raise InputError(f'{where} is {describe(item)}; pass a pair of texts as {{"text": ..., "text_pair": ...}}')
        return check_text(item, where), None
    unknown = [key for key in item if key not in ("text", "text_pair")]
    if unknown or "text" not in item:
        raise InputError(
            f'{where} has the keys {", ".join(map(repr, item))}; expected "text" and optionally "text_pair"'
        )
    pair = item.get("text_pair")
    return check_text(item["text"], f"{where}, text"), (
        None if pair is None else check_text(pair, f"{where}, text_pair")
    )
