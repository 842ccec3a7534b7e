"""Training batches as tf.data.Datasets: blocks addressed by step, and epochs of arbitrary batches."""

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.heads import ROW_MASK
from duonlp.labels import array_of
from duonlp.training.fit_loop import count_examples, endless_batches
from duonlp.typing import Batch
from duonlp.util.frameworks import keep_heap
from tfnlp.steps.keras_data import KeepsError

OUT_OF_DATA = "Your input ran out of data"
"""Start of Keras' warning at the end of a dataset whose length it does not know."""


class Read(NamedTuple):
    """A batch read from a source.

    Attributes:
        batch: NumPy arrays [B, ...].
        position: Position of the next batch, JSON-compatible.
        ends_epoch: Whether the batch is the last of its epoch.
    """

    batch: Batch
    position: Any
    ends_epoch: bool


class Source(KeepsError):
    """Batches for tf.data, from a position that can be moved and that a backup stores.

    tf.data's iterators cannot be positioned. Here every new iterator starts at ``position``, so a resumed run moves it and
    reads none of the batches already done.

    Args:
        read: Returns an iterator over the batches from a position on.
        start: Position of the first batch.
        steps: Number of batches from ``start`` on; None if there is no end, or none is known.
        unit: What ``count`` counts: "tokens" or "examples".
        count: Returns the number of tokens or examples in a batch.
        hosts: Number of hosts whose batches together are the global batch; 1 if each batch is the global one.
        fixed_shapes: Whether all batches have the shapes of the first one, and rows that divide among the replicas.

    Attributes:
        first: The first batch.
        position: Position of the next batch that a step takes.
        seen: Tokens or examples of the batches taken so far.
        ended_epoch: Whether the last batch taken ended an epoch.
        check: Raises InputError for an invalid batch; None to check nothing.
        error: Exception that ended reading, since TensorFlow only passes on its text.

    Raises:
        InputError: There are no batches.
    """

    def __init__(
        self, read: Callable[[Any], Iterator[Read]], start: Any, *, steps: int | None = None, unit: str = "examples",
        count: Callable[[Batch], int] = count_examples, hosts: int = 1, fixed_shapes: bool = False,
    ):  # fmt: skip
        self.read, self.start, self.steps, self.unit, self.count = read, start, steps, unit, count
        self.hosts, self.fixed_shapes = hosts, fixed_shapes
        self.position, self.seen, self.ended_epoch, self._taken = start, 0, False, 0
        self.check: Callable[[Mapping[str, Any]], None] | None = None
        self._marks: deque[tuple[Any, bool, int]] = deque()  # of the batches read ahead
        first = next(read(start), None)
        if first is None:
            raise InputError("there are no batches; pass at least one")
        self.first = first.batch

    def advance(self) -> None:
        """Record that a step has taken the next batch."""
        if not self._marks:  # the last of several steps_per_execution, at the end of the data
            return
        self.position, self.ended_epoch, count = self._marks.popleft()
        self.seen += count
        self._taken += 1
        if self._taken == 2:  # since tf.data's generators have made malloc return memory to the system again
            keep_heap()

    def dataset(self, strategy: tf.distribute.Strategy | None = None) -> Any:
        """Return the batches as a tf.data.Dataset, or as a tf.distribute.DistributedDataset for a strategy.

        Each replica gets an equal share of the rows of a global batch. If they do not divide, the last replicas get fewer;
        one without any gets a copy of the last row, marked by ``row_mask``.
        """
        if strategy is None:
            dataset = self._dataset(1, range(1))
            if self.steps is not None:
                dataset = dataset.apply(tf.data.experimental.assert_cardinality(self.steps))
        else:
            dataset: Any = strategy.distribute_datasets_from_function(self._worker_dataset)
            if self.steps is not None:
                dataset._cardinality = self.steps  # in steps, for Keras; TensorFlow counts the parts for replicas
        dataset.source = self
        return dataset

    def _worker_dataset(self, context: tf.distribute.InputContext) -> tf.data.Dataset:
        replicas = context.num_replicas_in_sync
        local = replicas // context.num_input_pipelines
        if self.hosts > 1 or self.fixed_shapes:  # the rows are this worker's own
            return self._dataset(local, range(local))
        first = context.input_pipeline_id * local
        return self._dataset(replicas, range(first, first + local))

    def _dataset(self, parts: int, own: range) -> tf.data.Dataset:
        """Return a dataset of the parts of every batch that belong to this process."""
        signature = {}
        for name, value in self._split(self.first, parts)[0].items():
            # Otherwise, lengths differ from batch to batch, and the last batch may have fewer rows.
            shape = value.shape if self.fixed_shapes else [None] * value.ndim
            signature[name] = tf.TensorSpec(shape, value.dtype, name=name)
        dataset = tf.data.Dataset.from_generator(partial(self._read_parts, parts, own), output_signature=signature)
        options = tf.data.Options()
        options.deterministic = True
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return dataset.prefetch(2 * len(own)).with_options(options)

    def _read_parts(self, parts: int, own: range) -> Iterator[dict[str, np.ndarray]]:
        marks = self._marks = deque()  # a new one, since an earlier iterator may still be reading ahead
        try:
            for batch, position, ends_epoch in self.read(self.position):
                if self.check is not None:
                    self.check(batch)
                marks.append((position, ends_epoch, self.count(batch)))
                split = self._split(batch, parts)
                yield from (split[part] for part in own)
        except Exception as error:
            self.error = error
            raise

    def _split(self, batch: Batch, parts: int) -> list[dict[str, np.ndarray]]:
        """Split a batch into parts with equally many rows, except for the last ones."""
        arrays = {name: narrow_dtype(array_of(name, value)) for name, value in batch.items()}
        if parts == 1:
            return [arrays]
        rows = len(next(iter(arrays.values())))
        size = -(-rows // parts)
        if not self.fixed_shapes:
            arrays[ROW_MASK] = arrays.get(ROW_MASK, np.ones(rows)).astype(np.int32)
        split = []
        for first in range(0, size * parts, size):
            own = slice(first, first + size) if first < rows else slice(rows - 1, rows)
            split.append({name: value[own] for name, value in arrays.items()})
            if first >= rows:
                split[-1][ROW_MASK] = np.zeros(1, np.int32)
        return split

    @contextmanager
    def evaluating(self) -> Generator[None]:
        """Read from the start, then return to where a training on the same source was."""
        before = self.position, self._marks
        self.position = self.start
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", OUT_OF_DATA)
                yield
        finally:
            self.position, self._marks = before


def block_dataset(
    batches: Any, *, steps: int | None = None, start: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Any:
    """Return batches of blocks as a dataset for ``Pretrainer.fit`` and ``evaluate``.

    Args:
        batches: ``duonlp.data.Batches``, the sequence of ``held_out_batches``, or an object whose ``[step]`` is a dict of
            arrays of the same shapes in every step: ``input_ids`` and ``labels``, int [B, T]; ``segment_ids`` to keep the
            documents of a block apart; for an encoder-decoder ``attention_mask`` [B, S] and ``decoder_input_ids`` [B, U];
            and whatever a loss of your own reads. Under a MultiWorkerMirroredStrategy, each worker passes its own rows:
            give ``Batches`` the worker's ``host_index`` and ``host_count``.
        steps: Number of batches per iteration; None for all of a sequence, or for an endless stream, which needs
            ``steps_per_epoch`` in fit.
        start: Step of the first batch.
        strategy: Strategy that the model was created under, if any. Each replica gets an equal share of the rows.

    Returns:
        A tf.data.Dataset, or with a strategy a tf.distribute.DistributedDataset, of dicts of arrays [rows, ...] in step
        order. Transforming it further loses its position, so that a run could not resume in the middle of it.

    Raises:
        InputError: There are too few batches, a batch lacks input_ids or labels, or its rows do not divide among the
            replicas.
    """
    if start < 0 or (steps is not None and steps < 1):
        raise InputError(f"start is {start} and steps is {steps}; start must be 0 or more and steps at least 1")
    if hasattr(batches, "__len__"):
        available = len(batches) - start
        if available < (steps or 1):
            raise InputError(
                f"there are {len(batches)} batches but steps {start} to {start + (steps or 1) - 1} are requested; lower start "
                "or steps"
            )
        steps = available if steps is None else steps
    end = None if steps is None else start + steps
    hosts = getattr(batches, "host_count", 1)

    def read(position: int) -> Iterator[Read]:
        for step in itertools.count(position) if end is None else range(position, end):
            yield Read(batches[step], start if step + 1 == end else step + 1, step + 1 == end)

    first = batches[start]
    if not {"input_ids", "labels"} <= set(first):
        raise InputError(f"a batch has {', '.join(first)}; it must have input_ids and labels")
    # The source of an encoder-decoder lacks the tokens that its target has; a block has all of them.
    length = getattr(getattr(batches, "blocks", None), "block_length", first["input_ids"].shape[1])
    tokens = len(first["input_ids"]) * hosts * length
    source: Any = Source(
        read, start, steps=steps, unit="tokens", count=lambda _: tokens, hosts=hosts, fixed_shapes=True
    )
    source.batches = batches
    if strategy is not None:
        _check_worker(source, strategy)
    elif hosts > 1:
        raise InputError(
            f"the batches are the rows of one of {hosts} hosts; pass the strategy that trains on all of them"
        )
    return source.dataset(strategy)


def _check_worker(source: Any, strategy: tf.distribute.Strategy) -> None:
    """Raise InputError unless the blocks are this worker's and their rows divide among its replicas."""
    resolver = strategy.cluster_resolver
    workers = getattr(strategy.extended, "_num_workers", 1)
    worker = resolver.task_id if resolver is not None and workers > 1 else 0
    host, rows = getattr(source.batches, "host_index", 0), len(source.first["input_ids"])
    if (source.hosts, host) != (workers, worker):
        raise InputError(
            f"the batches are those of host {host} of {source.hosts} but this is worker {worker} of {workers}; create them "
            f"with host_index={worker} and host_count={workers}"
        )
    replicas = strategy.num_replicas_in_sync // workers
    if rows % replicas:
        raise InputError(
            f"{rows} rows per step do not divide among {replicas} replicas; use a batch_size that is a multiple of "
            f"{replicas * workers}"
        )


def batch_dataset(batches: Any, epochs: int = 1, *, first_epoch: int = 0, first_batch: int = 0) -> tf.data.Dataset:
    """Return batches of any kind as a dataset for ``model.fit``, in the same order as jaxnlp's fit.

    The epochs follow one another in the dataset, each in its own order, so fit must be told their length::

        model.fit(batch_dataset(batches, epochs=3), epochs=3, steps_per_epoch=len(batches), shuffle=False)

    The batches stay dicts: tfnlp's models find the labels and the ``sample_weight`` in them. Their ``fit`` also checks
    each batch before it is computed and raises InputError for an invalid one, such as a label beyond ``num_labels``; and
    under a tf.distribute strategy it gives each replica its rows, on several workers as well.

    Args:
        batches: ``LabelledBatches`` or ``PairBatches`` of duonlp.data, or another object with ``epoch(n)`` and ``len()``;
            or a list of dicts of NumPy arrays [B, ...], the same in every epoch.
        epochs: Number of epochs.
        first_epoch: Number of the first epoch, to resume a run.
        first_batch: Index of the first batch within the first epoch. Batches before it are not read if the batches have
            ``epoch(n, first)``.

    Returns:
        A tf.data.Dataset of dicts like the batches, with integers as int32 and floats as float32.

    Raises:
        InputError: There are no batches, or a number is out of range.
    """
    if epochs < 1 or first_epoch < 0 or first_batch < 0:
        raise InputError(
            f"epochs is {epochs}, first_epoch {first_epoch} and first_batch {first_batch}; they must be at least 1, 0 and 0"
        )
    return epoch_source(batches, epochs, first_epoch, first_batch).dataset()


def epoch_source(batches: Any, epochs: int | None = None, first_epoch: int = 0, first_batch: int = 0) -> Source:
    """Return the source of a :func:`batch_dataset`; without a number of epochs, it has no end."""
    start, end = [first_epoch, first_batch], None if epochs is None else first_epoch + epochs

    def read(position: list[int]) -> Iterator[Read]:
        for epoch, index, batch, ends_epoch in endless_batches(batches, *position):
            is_last = ends_epoch and epoch + 1 == end
            yield Read(batch, start if is_last else [epoch + ends_epoch, 0 if ends_epoch else index + 1], ends_epoch)
            if is_last:
                return

    steps = epochs * len(batches) - first_batch if epochs is not None and hasattr(batches, "__len__") else None
    return Source(read, start, steps=steps)


def narrow_dtype(value: Any) -> np.ndarray:
    """Return an array with int64 narrowed to int32 and float64 to float32."""
    value = np.asarray(value)
    return value.astype({"int64": np.int32, "float64": np.float32}.get(value.dtype.name, value.dtype), copy=False)
