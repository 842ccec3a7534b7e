"""Run a task on a model: encode inputs in chunks, batch them by length, and return the results in order."""

import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError, NonFiniteOutputError
from duonlp.tasks import make_task
from duonlp.tasks.base import Example, Task, check_int, describe
from duonlp.tasks.generation import GenerationTask
from duonlp.typing import Tokenizer
from duonlp.util.buckets import bucket, largest_bucket
from duonlp.util.console import Progress

MIN_LENGTH = 16
"""Minimum length to which rows are padded; compiling further shapes costs more than the padding."""

MAX_OUTPUT = 2**27
"""Maximum number of values in a batch's output (512 MB of float32); limits the batch size for large vocabularies."""


class Pipeline:
    """A task combined with a model's forward pass; call it on inputs to get results.

    Args:
        task: The task, which has the tokenizer or another processor.
        forward: ``forward(batch) -> outputs``, from a dict of the model's inputs (for texts int32 [batch, length]: input_ids,
            attention_mask, position_ids, and token_type_ids if the model has them) to a dict of float arrays. For tasks that
            generate text, ``forward(input_ids, attention_mask, *, max_new_tokens, eos_token_id, pad_token_id, **options) ->
            ids``, where options can contain generation_config and further arguments of ``generate``.
        batch_size: Maximum number of rows in a batch.
        max_tokens: Maximum number of tokens in a batch of texts, padding included, where it has several rows; None for no limit.
            A CPU reads long texts in small batches faster, whose attention fits its cache.
        progress: Whether to show a progress bar; None shows one on a terminal if the work takes long.
        stream: For tasks that generate text, like ``forward`` but returning an iterator of new ids, int [1, n].
        options: Default options of the task, which a call can override.

    Attributes:
        weights_folder: Folder whose weights the model has; None for a model in memory, which may have been trained since.

    Raises:
        InputError: an option is unknown or has an invalid value.

    Any number of threads may call a pipeline at the same time.
    """

    def __init__(
        self,
        task: Task[Any],
        forward: Callable[..., Any],
        *,
        batch_size: int = 32,
        max_tokens: int | None = None,
        progress: bool | None = None,
        stream: Callable[..., Iterable[Any]] | None = None,
        **options: Any,
    ) -> None:
        check_int("batch_size", batch_size, minimum=1)
        self.task = task
        self.forward = forward
        self._stream_ids = stream
        check_int("max_tokens", max_tokens, minimum=1, optional=True)
        self.batch_size = int(batch_size)
        self.max_tokens = max_tokens
        self.progress = progress
        self.options = task.options(**options)
        self._shapes: set[tuple[int, int]] = set()
        self._constructor_options = options
        self.weights_folder = task.folder

    @property
    def shapes(self) -> set[tuple[int, int]]:
        """Shapes [rows, tokens] of all batches so far, i.e. those that an engine has compiled."""
        return self._shapes.copy()

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the task; of a task that reads no texts, its other processor."""
        return self.task.processor

    @property
    def config(self) -> TransformerConfig:
        return self.task.config

    def __repr__(self) -> str:
        return f"Pipeline({self.task.name!r}, model_type={getattr(self.config, 'model_type', None)!r})"

    def __call__(
        self,
        inputs: Any = None,
        *args: Any,
        batch_size: int | None = None,
        progress: bool | None = None,
        **keywords: Any,
    ) -> Any:
        """Return the results for one input, a list of inputs, or an iterator of inputs.

        Args:
            inputs: Inputs of the task; question answering also accepts ``question=`` and ``context=``.
            args: The context, if ``inputs`` is a question; candidate labels, of zero-shot classification.
            batch_size: Overrides the constructor's, for this call.
            progress: Overrides the constructor's, for this call. For an iterator of unknown length, the bar has no total.
            keywords: Options of the task, for this call.

        Returns:
            One result, a list of results, or, for an iterator, an iterator that computes results as it is read.

        Raises:
            InputError: an input or option is invalid; for an input, the message gives its index.
            NonFiniteOutputError: an output of the model is NaN or infinite.
        """
        if args:
            inputs, keywords = self.task.positional(inputs, args, keywords)
        if batch_size is not None:
            check_int("batch_size", batch_size, minimum=1)
        parsed = self.task.parse_inputs(inputs, keywords | self._input_options(keywords))
        changes = {key: value for key, value in parsed.keywords.items() if key in keywords}
        options = self.task.options(self.options, **changes)
        rows = int(batch_size or self.batch_size)
        show = self.progress if progress is None else progress
        if parsed.kind == "stream":
            total = operator.length_hint(parsed.stream, 0) or None
            return self._stream(parsed.stream, options, rows, Progress(total, show, self.task.name))
        items, results = parsed.items, []
        with Progress(len(items), show, self.task.name) as bar:
            for start in range(0, len(items), self.task.chunk_size(rows)):
                chunk = items[start : start + self.task.chunk_size(rows)]
                results += self._run_items(chunk, options, rows, start, bar)
        if parsed.kind == "one":
            return [results[0]] if parsed.wrap else results[0]
        return self.task.gather(results, options)

    def stream(self, prompt: str, **keywords: Any) -> Iterator[str]:
        """Yield the new text of one prompt in pieces as they are generated.

        Joined, the pieces are the text that a call returns, without the prompt.

        Args:
            prompt: The prompt.
            keywords: Options of the task, for this call.

        Raises:
            InputError: the prompt or an option is invalid, or the task or the decoding strategy (such as beam search) does
                not support streaming; raised by the call, before iteration.
        """
        if self._stream_ids is None or not isinstance(self.task, GenerationTask):
            raise InputError(
                f"{self.task.name} does not support streaming here; use a task and a model that generate text"
            )
        if not isinstance(prompt, str):
            raise InputError(f"stream got {describe(prompt)}; pass one prompt (str), or call the pipeline for several")
        options = self.task.options(self.options, **keywords)
        (examples,) = self.task.encode([prompt], options)
        if len(examples) > 1:
            raise InputError(
                f"{self.task.name} reads this text in {len(examples)} parts, but a stream has only one; call the pipeline"
            )
        return self.task.stream(self._stream_ids, examples[0], options)

    def _input_options(self, keywords: dict[str, Any]) -> dict[str, Any]:
        """Return the constructor's options that affect how inputs are parsed."""
        names, options = self.task.input_options, self._constructor_options
        return {name: options[name] for name in names if name in options and name not in keywords}

    def _stream(self, items: Iterable[Any], options: Any, rows: int, bar: "Progress") -> Iterator[Any]:
        """Yield results while reading a few batches ahead, so that rows can be sorted by length."""
        iterator, done = iter(items), 0
        with bar:
            while chunk := list(itertools.islice(iterator, min(rows * 8, self.task.chunk_size(rows)))):
                yield from self._run_items(chunk, options, rows, done, bar)
                done += len(chunk)

    def _run_items(self, items: Sequence[Any], options: Any, rows: int, first: int, bar: "Progress") -> list[Any]:
        """Return the results for items that are encoded, sorted and batched together, in as many rounds as needed."""
        results: list[Any] = [None] * len(items)
        pending = dict(enumerate(self.task.encode(items, options, first)))  # index of an item -> its rows
        partial: dict[int, float] = {}  # index -> estimated fraction done, for unfinished items of several rows
        remaining = 1.0  # estimated fraction of an item's work that is left after earlier rounds
        while pending:
            next_pending: dict[int, list[Example]] = {}
            for finished in self._run_round(pending, options, rows, partial, remaining, first):
                for number, outputs in finished:
                    item, examples = items[number], pending[number]
                    next_examples = self.task.next_round(item, examples, outputs, options)
                    if next_examples is None:
                        results[number] = self.task.decode(item, examples, outputs, options)
                        partial.pop(number, None)
                    else:
                        next_pending[number] = next_examples
                bar.advance(sum(number not in next_pending for number, _ in finished), sum(partial.values()))
            pending, remaining = next_pending, remaining / 10
        return results

    def _run_round(
        self,
        pending: dict[int, list[Example]],
        options: Any,
        rows: int,
        partial: dict[int, float],
        remaining: float,
        first: int,
    ) -> Iterator[list[tuple[int, list[dict[str, Any]]]]]:
        """Run all rows once and yield, for each batch, (index, reduced outputs of all rows) of the items it completed."""
        flat = [(number, row) for number, examples in pending.items() for row in range(len(examples))]
        reduced: dict[int, list[dict[str, Any]]] = {
            number: [{} for _ in examples] for number, examples in pending.items()
        }
        num_left = {number: len(examples) for number, examples in pending.items()}
        for batch in self._batches([pending[number][row] for number, row in flat], rows):
            members = [flat[i] for i in batch]
            inputs = [first + number for number, _ in members]
            outputs = self._forward([pending[number][row] for number, row in members], options, rows, inputs)
            finished = []
            for (number, row), output in zip(members, outputs, strict=True):
                reduced[number][row] = output
                num_left[number] -= 1
                if len(pending[number]) > 1:
                    partial[number] = 1 - remaining * (0.1 + 0.9 * num_left[number] / len(pending[number]))
                if not num_left[number]:
                    finished.append((number, reduced.pop(number)))
            yield finished

    def _batches(self, examples: list[Example], rows: int) -> Iterator[list[int]]:
        """Yield the indices of the rows of each batch, longest first, so that running out of memory shows early."""
        groups: dict[Any, list[int]] = {}
        for i, example in enumerate(examples):
            groups.setdefault(example.group, []).append(i)
        for group in groups.values():
            group.sort(key=lambda i: -examples[i].length)
            while group:
                longest = self._width(examples[group[0]].length)
                max_rows = MAX_OUTPUT // max(1, longest * self.task.output_width())
                if self.max_tokens is not None:
                    max_rows = min(max_rows, largest_bucket(max(1, self.max_tokens // longest)))
                size = min(rows, max(1, max_rows))
                yield group[:size]
                del group[:size]

    def _forward(self, examples: list[Example], options: Any, rows: int, inputs: list[int]) -> list[dict[str, Any]]:
        """Run the model on one batch and return the reduced outputs of each row; ``inputs`` are the rows' items."""
        group = examples[0].group
        batch = self._pad(examples, rows)
        try:
            outputs = self.task.run(self.forward, batch, group, options)
        except NonFiniteOutputError as error:
            raise NonFiniteOutputError(f"{self.task.name}: input {inputs[error.row]}", error.output) from None
        missing = [key for key in self.task.outputs if key not in outputs]
        if missing:
            raise InputError(
                f"{self.task.name} needs the model's {', '.join(missing)}, but it returned "
                f"{', '.join(outputs) or 'nothing'}; load it with the {self.task.head!r} head"
            )
        arrays = {key: as_numpy(outputs[key]) for key in self.task.outputs}
        reduced = self.task.reduce(examples, arrays, options)
        for number, row in zip(inputs, reduced, strict=True):
            for name, value in row.items():
                if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise NonFiniteOutputError(f"{self.task.name}: input {number}", name)
        return reduced

    def _width(self, longest: int) -> int:
        """Return the padded length of a batch: a bucket, but at most the model's number of positions."""
        return bucket(max(longest, MIN_LENGTH), max(longest, self.config.max_length)) if self.task.buckets else longest

    def _pad(self, examples: list[Example], rows: int) -> dict[str, np.ndarray]:
        """Pad rows to a bucket of lengths, and their number to a bucket of at most ``rows``."""
        length, count = self._width(max(example.length for example in examples)), len(examples)
        # Pad a smaller batch with rows that are discarded, so that its shape has been compiled before.
        total = bucket(count, max(count, rows)) if self.task.buckets else count
        self._shapes.add((total, length))
        return self.task.batch(examples, total, length)


def as_numpy(value: Any) -> np.ndarray:
    """Convert an engine's array to NumPy, half precision to float32."""
    array = np.asarray(value)
    if array.dtype.kind in "iub" or array.dtype == np.float32:
        return array
    return array.astype(np.float32)


def make_pipeline(
    name: str,
    forward: Callable[..., Any],
    tokenizer: Tokenizer,
    config: TransformerConfig,
    folder: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = 32,
    **options: Any,
) -> Pipeline:
    """Create a pipeline for a task by name around any forward pass.

    Args:
        name: Name of the task.
        forward: See :class:`Pipeline`.
        tokenizer: Tokenizer or image processor; see :class:`duonlp.tasks.Task`.
        config: See :class:`duonlp.tasks.Task`.
        folder: See :class:`duonlp.tasks.Task`.
        batch_size: See :class:`Pipeline`.
        options: See :class:`Pipeline`.

    Raises:
        InputError: the task or an option is unknown, or the task does not support the tokenizer or the model.
    """
    return Pipeline(make_task(name, tokenizer, config, folder), forward, batch_size=batch_size, **options)
