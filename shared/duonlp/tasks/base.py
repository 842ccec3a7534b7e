"""Base class of all tasks: checked options, encoding of inputs, and conversion of outputs to results.

A task contains no model. :class:`duonlp.pipelines.Pipeline` batches the rows of :meth:`Task.encode`, runs an engine's forward
pass on them, calls :meth:`Task.reduce` to keep what is needed of each batch, and :meth:`Task.decode` to build the results.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import CheckpointError, InputError
from duonlp.schema import Kind, check
from duonlp.util import reading
from duonlp.util.permissions import explain_denied


@dataclass(slots=True)
class Example:
    """One row of a batch. An item of the input has one, or several if its text is read in windows or parts.

    Attributes:
        inputs: Arrays of one row by input name, such as int32 [tokens] or float32 [channels, height, width].
        state: Task-specific data needed for decoding.
        group: Rows of different groups never share a batch, e.g. because they need different settings of ``generate``.
    """

    inputs: dict[str, np.ndarray]
    state: Any = None
    group: Any = None

    @property
    def length(self) -> int:
        """Number of tokens of a text; 1 for an image."""
        return len(self.inputs.get("input_ids", (0,)))


@dataclass(frozen=True)
class Options:
    """Options of a task. Subclasses add fields and validate them in ``__post_init__``."""


OptionsT = TypeVar("OptionsT", bound=Options)


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
        processor: What converts inputs to arrays: a tokenizer or an image processor.
        config: The model's configuration.
        folder: Folder of the checkpoint, for tasks that read further files.

    Attributes:
        name: Name of the task.
        head: Head that the model needs.
        needs: Processor that the task needs: "tokenizer" or "image_processor".
        Options: Class of the task's options.
        outputs: Model outputs that the task reads.
        per_token: Whether outputs have a length axis, which is cut to each row's length.
        padding_side: Side on which rows are padded.
        generates: Whether the forward pass is a model's ``generate``.
        buckets: Whether batches are padded to a few shapes; False if the forward pass pads, or if it must not be padded.
        input_options: Options that :meth:`parse_inputs` needs, also if they were passed to the constructor.
    """

    name: str = ""
    head: ClassVar[str]
    needs: ClassVar[str] = "tokenizer"
    Options: ClassVar[type[Any]] = Options
    outputs: tuple[str, ...] = ("logits",)
    per_token: ClassVar[bool] = True
    padding_side: ClassVar[str] = "right"
    generates: ClassVar[bool] = False
    buckets: bool = True
    input_options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, processor: Any, config: TransformerConfig, folder: str | os.PathLike[str] | None = None) -> None:
        self.processor = processor
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
        self.check_changes(options, changes, of_call=base is not None)
        return options

    def rewrite_options(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Translate alternative spellings of options, such as Transformers' ``tokenizer_kwargs``."""
        return changes

    def check_options(self, options: OptionsT) -> None:
        """Raise InputError if the options do not suit this model or tokenizer."""

    def check_changes(self, options: OptionsT, changes: Mapping[str, Any], of_call: bool) -> None:
        """Raise InputError if a change has no effect; one of the constructor may have its effect in later calls.

        Args:
            options: The options with the changes applied.
            changes: Options that the caller passed together.
            of_call: Whether they were passed to a call, not to the constructor.
        """

    # -- inputs ----------------------------------------------------------------------------------------------------

    def positional(self, inputs: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the inputs and keywords of a call with further positional arguments.

        Raises:
            InputError: The task has no use for them.
        """
        raise InputError(f"{self.name} got {1 + len(args)} positional inputs; pass {self.accepted_inputs}")

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
        raise NotImplementedError

    def gather(self, results: list[Any], options: OptionsT) -> Any:
        """Combine the results for a list of items; by default, return them as a list."""
        return results

    # -- encoding and decoding -------------------------------------------------------------------------------------

    def encode(self, items: Sequence[Any], options: OptionsT, first: int = 0) -> list[list[Example]]:
        """Convert items to rows.

        Args:
            items: Some of the items of a call, encoded together.
            options: Options of the call.
            first: Index of the first of these items in the call, for error messages.

        Returns:
            A list of rows for each item.

        Raises:
            InputError: an item is invalid; the message gives its index.
        """
        raise NotImplementedError

    def chunk_size(self, rows: int) -> int:
        """Return how many items to encode at once for batches of ``rows`` rows."""
        return rows

    def batch(self, examples: Sequence[Example], rows: int, length: int) -> dict[str, np.ndarray]:
        """Return the examples as one batch of inputs; further rows repeat the first.

        Args:
            examples: At most ``rows`` examples.
            rows: Rows of the batch.
            length: Tokens to pad to, for texts.
        """
        padded = [*examples, *[examples[0]] * (rows - len(examples))]
        return {name: np.stack([example.inputs[name] for example in padded]) for name in examples[0].inputs}

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


def read_json(path: Path, schema: Mapping[str, Kind] | None = None) -> Any:
    """Return the contents of a JSON file, or None if it does not exist.

    Args:
        path: The file.
        schema: Kinds of the values of an object; None for a file that may hold anything.

    Raises:
        CheckpointError: the file is not valid JSON, may not be read, or a value is of the wrong kind.
    """
    advice = "download the checkpoint again"
    try:
        if not path.is_file():
            return None
    except PermissionError:
        raise CheckpointError(explain_denied(path)) from None
    if schema is None:
        return reading.read_json(path, error=CheckpointError, advice=advice)
    values = reading.read_json_object(path, error=CheckpointError, advice=advice)
    check(str(path), values, schema, CheckpointError)
    return values


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
    if not reading.is_unicode(value):
        raise InputError(f"{where} is {describe(value)}, which is not valid Unicode; decode it with its own encoding")
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


def check_positive(name: str, value: Any) -> None:
    """Raise InputError unless a value is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise InputError(f"{name} is {value!r}; it must be a number above 0")


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


def score_function(config: TransformerConfig, function: str | None) -> str:
    """Return ``function``, or if it is None the one that :func:`class_scores` uses for a model."""
    if function is not None:
        return function
    if config.problem_type == "regression":
        return "none"
    return "sigmoid" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "softmax"


def class_scores(logits: np.ndarray, config: TransformerConfig, function: str | None) -> np.ndarray:
    """Convert logits [labels] of a classifier to scores.

    Args:
        logits: float32 [labels].
        config: The model's configuration.
        function: "sigmoid", "softmax", "none", or None for the function with which the model was trained.
    """
    function = score_function(config, function)
    if function == "sigmoid":
        return (1.0 / (1.0 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    return softmax(logits) if function == "softmax" else logits


def ranked_labels(scores: np.ndarray, config: TransformerConfig, top_k: int | None) -> list[dict[str, Any]]:
    """Return the labels of the highest scores [labels], best first: a list of {"label", "score"}; all if `top_k` is None."""
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": config.labels[i], "score": float(scores[i])} for i in order.tolist()]


def check_function_to_apply(options: Any) -> None:
    """Put ``function_to_apply`` of frozen options into lower case, and raise InputError if it is unknown."""
    if isinstance(options.function_to_apply, str):  # accept "Sigmoid"
        object.__setattr__(options, "function_to_apply", options.function_to_apply.lower())
    check_choice("function_to_apply", options.function_to_apply, ("sigmoid", "softmax", "none", None))
