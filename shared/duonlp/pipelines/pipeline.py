"""The loop round a task: read inputs, tokenize a chunk at once, batch by length, run a model, answer in order."""

import itertools
import operator
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.positions import position_ids
from duonlp.tasks import make_task
from duonlp.tasks.base import Example, Options, Task, check_int, describe
from duonlp.util.buckets import bucket

SHORTEST = 16
"""Least length that rows are padded to: below it, one shape costs less than compiling several."""

MAX_OUTPUT = 2**27
"""Numbers one batch's output may hold (512 MB of float32); rows of a wide vocabulary go in smaller batches."""

PROGRESS_AFTER = 2.0
"""Seconds of expected work from which a terminal gets a progress bar; of work so far where no end is known."""


class Pipeline:
    """A task and a model's forward pass: texts in, results out.

    Args:
        task: a task object, which has the tokenizer.
        forward: ``forward(batch) -> outputs``, from a dict of int32 arrays [batch, length] (input_ids, attention_mask,
            position_ids, and token_type_ids where the model has them) to a dict of float arrays. For tasks that write text
            ``forward(input_ids, attention_mask, *, max_new_tokens, eos_token_id, pad_token_id, **more) -> ids``, where
            more is generation_config and what else was asked for.
        stream: for tasks that write text, the same as an iterator of new ids, int [1, n].
        batch_size: rows of a batch at most.
        progress: show a progress bar; None shows one on a terminal when the work will take a while.
        options: options of the task for every call; a call can override them.

    Raises:
        InputError: for an option the task does not have.
    """

    def __init__(
        self,
        task: Task,
        forward: Callable[..., Any],
        *,
        batch_size: int = 32,
        progress: bool | None = None,
        stream: Callable[..., Iterator] | None = None,
        **options,
    ):
        check_int("batch_size", batch_size, minimum=1)
        self.task = task
        self.forward = forward
        self.new_ids = stream
        self.batch_size = int(batch_size)
        self.progress = progress
        self.options = task.options(**options)
        self.shapes: set[tuple[int, int]] = set()  # [rows, tokens] of the batches so far: what an engine compiled
        # Options of the construction count as given, e.g. token classification of split words.
        self._given = options

    @property
    def tokenizer(self):
        return self.task.tokenizer

    @property
    def config(self):
        return self.task.config

    def __repr__(self):
        return f"Pipeline({self.task.name!r}, model_type={getattr(self.config, 'model_type', None)!r})"

    def __call__(self, inputs: Any = None, *more: str, batch_size=None, progress=None, **keywords) -> Any:
        """Results for one input, a list of them (a list), or an iterator (an iterator, computed as it is read).

        Args:
            inputs: what the task reads; question answering also takes ``question=`` and ``context=``.
            batch_size, progress: as at construction, for this call. An iterator of unknown length has a bar without an end.
            keywords: options of the task, for this call.

        Raises:
            InputError: for an input or a keyword that the task cannot work on; it names the input by its number.
        """
        if more:
            keywords = self._positional(inputs, more, keywords)
            inputs = None
        if batch_size is not None:
            check_int("batch_size", batch_size, minimum=1)
        arranged = self.task.arrange(inputs, keywords | self._construction(keywords))
        rest = {key: value for key, value in arranged.options.items() if key in keywords}
        options = self.task.options(self.options, **rest)
        rows = int(batch_size or self.batch_size)
        items = arranged.items
        total = operator.length_hint(items, 0) or None if arranged.shape == "stream" else len(items)
        bar = Progress(total, self.progress if progress is None else progress, self.task.name)
        if arranged.shape == "stream":
            return self._stream(items, options, rows, bar)
        results = []
        with bar:
            for start in range(0, len(items), self._chunk(rows)):
                chunk = items[start : start + self._chunk(rows)]
                results += self._results(chunk, options, rows, start, bar)
        if arranged.shape == "one":
            return [results[0]] if arranged.wrap else results[0]
        return self.task.gather(results, options)

    def stream(self, prompt: str, **keywords) -> Iterator[str]:
        """The new text of one prompt in pieces, as soon as they are decided; joined they are what a call gives.

        Args:
            keywords: options of the task, for this call. The prompt is not among the pieces, whatever they say.

        Raises:
            InputError: at once, for a prompt or an option that the task cannot work on, for beam search, which decides
                nothing before its end, and for tasks that write no text.
        """
        if self.new_ids is None:
            raise InputError(f"{self.task.name} has no stream here; pipelines over a model that write text have one")
        if not isinstance(prompt, str):
            raise InputError(
                f"a stream is for one prompt, a text, and got {describe(prompt)}; call the pipeline for more"
            )
        options = self.task.options(self.options, **keywords)
        (examples,) = self.task.encode([prompt], options)
        if len(examples) > 1:
            raise InputError(
                f"{self.task.name} reads this text in {len(examples)} parts, and a stream is of one; call the pipeline"
            )
        return self.task.stream(self.new_ids, examples[0], options)

    def _construction(self, keywords: dict) -> dict:
        """Options of the construction that change how inputs are read."""
        names = ("is_split_into_words",)
        return {name: self._given[name] for name in names if name in self._given and name not in keywords}

    def _positional(self, inputs: Any, more: tuple, keywords: dict) -> dict:
        if self.task.name != "question-answering" or len(more) != 1 or {"question", "context"} & set(keywords):
            raise InputError(f"{self.task.name} got {1 + len(more)} inputs by position; give {self.task.wants}")
        return keywords | {"question": inputs, "context": more[0]}

    @staticmethod
    def _chunk(rows: int) -> int:
        return max(1024, rows * 16)

    def _stream(self, items: Iterable, options: Options, rows: int, bar: "Progress") -> Iterator:
        """Reads a few batches ahead, so that they can be sorted by length."""
        items, done = iter(items), 0
        with bar:
            while chunk := list(itertools.islice(items, rows * 8)):
                yield from self._results(chunk, options, rows, done, bar)
                done += len(chunk)

    def _results(self, items: Sequence, options: Options, rows: int, first: int, bar: "Progress") -> list:
        """Results for items that are tokenized, sorted and batched together, in as many rounds as they need."""
        results: list[Any] = [None] * len(items)
        waiting = dict(enumerate(self.task.encode(items, options, first)))
        begun: dict[int, float] = {}  # how much of an item is done, of those in several rows
        ahead = 1.0  # what earlier rounds left of it, as a guess
        while waiting:
            more: dict[int, list[Example]] = {}
            for finished in self._round(waiting, options, rows, begun, ahead):
                for number, kept in finished:
                    item, examples = items[number], waiting[number]
                    again = self.task.again(item, examples, kept, options)
                    if again is None:
                        results[number] = self.task.decode(item, examples, kept, options)
                        begun.pop(number, None)
                    else:
                        more[number] = again
                bar.advance(sum(number not in more for number, _ in finished), sum(begun.values()))
            waiting, ahead = more, ahead / 10
        return results

    def _round(
        self, waiting: dict[int, list[Example]], options: Options, rows: int, begun: dict[int, float], ahead: float
    ) -> Iterator[list[tuple[int, list[dict]]]]:
        """For each batch, the items whose last row was in it, by number, with what the task keeps of all their rows."""
        flat = [(number, place) for number, examples in waiting.items() for place in range(len(examples))]
        kept: dict[int, list[dict]] = {number: [{} for _ in examples] for number, examples in waiting.items()}
        left = {number: len(examples) for number, examples in waiting.items()}
        for batch in self._batches([waiting[number][place] for number, place in flat], rows):
            places = [flat[i] for i in batch]
            outputs = self._forward([waiting[number][place] for number, place in places], options, rows)
            finished = []
            for (number, place), output in zip(places, outputs, strict=True):
                kept[number][place] = output
                left[number] -= 1
                if len(waiting[number]) > 1:
                    begun[number] = 1 - ahead * (0.1 + 0.9 * left[number] / len(waiting[number]))
                if not left[number]:
                    finished.append((number, kept.pop(number)))
            yield finished

    def _batches(self, examples: list[Example], rows: int) -> Iterator[list[int]]:
        """Numbers of the rows that go together, longest first: when memory is short, it shows at once."""
        groups: dict[Any, list[int]] = {}
        for i, example in enumerate(examples):
            groups.setdefault(example.group, []).append(i)
        for group in groups.values():
            group.sort(key=lambda i: -examples[i].length)
            while group:
                longest = self._width(examples[group[0]].length)
                fits = MAX_OUTPUT // max(1, longest * self.task.output_width())
                size = min(rows, max(1, fits))
                yield group[:size]
                del group[:size]

    def _forward(self, examples: list[Example], options: Options, rows: int) -> list[dict]:
        """One batch through the model, and what the task keeps of it."""
        group = examples[0].group
        batch = self._pad(examples, rows)
        outputs = self.task.run(self.forward, batch, group, options)
        missing = [key for key in self.task.outputs if key not in outputs]
        if missing:
            raise InputError(
                f"{self.task.name} needs the model's {', '.join(missing)}, and it gave "
                f"{', '.join(outputs) or 'nothing'}; "
                f'load it with the head for "{self.task.head}"'
            )
        arrays = {key: as_numpy(outputs[key]) for key in self.task.outputs}
        return self.task.reduce(examples, arrays, options)

    def _width(self, longest: int) -> int:
        """Columns of a batch whose longest row is so long: a bucket, but never more than the model has positions."""
        return bucket(max(longest, SHORTEST), max(longest, self.config.max_length)) if self.task.buckets else longest

    def _pad(self, examples: list[Example], rows: int) -> dict[str, np.ndarray]:
        """Examples side by side, padded to a bucket of lengths and a bucket of at most so many rows."""
        length, count = self._width(max(example.length for example in examples)), len(examples)
        # A batch cut short gets rows that are thrown away, so that its shape is one seen before.
        total = bucket(count, max(count, rows)) if self.task.buckets else count
        left = self.task.padding_side == "left"
        self.shapes.add((total, length))
        batch = {}
        for name in examples[0].inputs:
            array = np.full((total, length), self.task.pad_token_id if name == "input_ids" else 0, np.int32)
            for row, example in enumerate(examples):
                values = example.inputs[name]
                array[row, length - len(values) if left else 0 :][: len(values)] = values
            array[count:] = array[0]  # a row that attends to nothing would divide by zero, so these repeat a real one
            batch[name] = array
        if not left and not self.task.generates:
            batch["position_ids"] = position_ids(self.config, batch["input_ids"], batch["attention_mask"])
        return batch


def as_numpy(value: Any) -> np.ndarray:
    """An engine's array in NumPy; half precision becomes float32."""
    array = np.asarray(value)
    if array.dtype.kind in "iub" or array.dtype == np.float32:
        return array
    return array.astype(np.float32)


class Progress:
    """A bar on the terminal that only shows when work is long: it waits until it can tell.

    Args:
        total: items of the whole work; None where nobody knows, and the bar has no end.
        show: True for always, False for never, None for long work on a terminal.
        label: what is being done.
    """

    def __init__(self, total: int | None, show: bool | None, label: str):
        if show not in (True, False, None):
            raise InputError(f"progress is {describe(show)}; it must be True, False or None")
        self.total, self.show, self.label = total, show, label
        self.done, self.bar, self.start = 0, None, 0.0
        if show is None and not sys.stderr.isatty():
            self.show = False

    def __enter__(self):
        self.start = time.monotonic()
        if self.show:
            self._open()
        return self

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.stop()

    def advance(self, items: int, begun: float = 0.0) -> None:
        """So many more items are done; shows the bar once it is clear that the rest will take a while.

        Args:
            begun: how much is done of those that are not, together, in items.
        """
        self.done += items
        done = self.done + begun
        if self.bar is None and self.show is None and done:
            elapsed = time.monotonic() - self.start
            expected = elapsed if self.total is None else elapsed / done * (self.total - done)
            if expected > PROGRESS_AFTER:
                self._open()
        if self.bar is not None:
            self.bar.update(self.task, completed=done)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        last = TimeElapsedColumn() if self.total is None else TimeRemainingColumn()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), last
        # The results of an iterator may be printed meanwhile: above the bar on a terminal, and into a file as they are.
        self.bar = Bar(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
        self.bar.start()
        self.task = self.bar.add_task(self.label, total=self.total, completed=self.done)


def make_pipeline(
    name: str, forward: Callable[..., Any], tokenizer, config, folder=None, *, batch_size: int = 32, **options
) -> Pipeline:
    """The pipeline of a task by name, round a forward pass of any origin."""
    return Pipeline(make_task(name, tokenizer, config, folder), forward, batch_size=batch_size, **options)
