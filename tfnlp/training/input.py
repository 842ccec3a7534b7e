"""Training batches as tf.data.Datasets: blocks addressed by step, and epochs of arbitrary batches."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.training.fit_loop import endless_batches
from duonlp.typing import Batch

NAMES = ("input_ids", "labels", "segment_ids", "attention_mask", "decoder_input_ids")
"""Arrays a batch of blocks may have, in the order in which they pass through tf.data."""


class Source:
    """Reads the batches of a :func:`block_dataset`, from a position that can be moved.

    tf.data's iterators cannot be positioned in an endless stream. Here the step number alone determines a batch, so a
    resumed run sets ``step`` and skips nothing by reading it.

    Args:
        batches: Batches by step.
        start: Step of the first batch.
        steps: Number of batches per iteration; None for an endless stream.

    Attributes:
        step: Step of the first batch of the next iterator.
        error: Exception that ended reading, since TensorFlow only passes on its text.
        names: Names of the batch's arrays.
        shapes: Their shapes.
        shape: Rows of this host per step, and their length.
        hosts: Number of hosts that share a global batch.

    Raises:
        InputError: A batch lacks input_ids or labels, or has other arrays than NAMES.
    """

    def __init__(self, batches: Any, start: int, steps: int | None):
        self.batches, self.start, self.steps = batches, start, steps
        self.step = start
        self.error: Exception | None = None
        first = self.read(0)
        self.names = tuple(name for name in NAMES if name in first)
        if self.names[:2] != NAMES[:2] or set(self.names) != set(first):
            raise InputError(
                f"a batch has {', '.join(first)}; it must have input_ids and labels, and may have segment_ids or, for an "
                "encoder-decoder, attention_mask and decoder_input_ids"
            )
        self.shapes = {name: first[name].shape for name in self.names}
        self.shape: tuple[int, int] = first["input_ids"].shape
        self.hosts: int = getattr(batches, "host_count", 1)

    def read(self, index: int) -> Batch:
        """Return the batch `index` steps after ``step``."""
        try:
            return self.batches[self.step + int(index)]
        except Exception as error:
            self.error = error
            raise

    def arrays(self, index: int) -> list[np.ndarray]:
        """Return the arrays of :meth:`read` as int32, in the order of ``names``."""
        batch = self.read(index)
        return [np.ascontiguousarray(batch[name], np.int32) for name in self.names]


def block_dataset(
    batches: Any, *, steps: int | None = None, start: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Any:
    """Return batches of blocks as a dataset for ``Pretrainer.fit`` and ``evaluate``.

    Args:
        batches: ``duonlp.data.Batches``, the sequence of ``held_out_batches``, or an object whose ``[step]`` is a dict of
            ``input_ids``, ``labels`` and, to keep documents of a block apart, ``segment_ids``, each int32 [B, T]; for an
            encoder-decoder ``input_ids`` and ``attention_mask`` [B, S], ``decoder_input_ids`` and ``labels`` [B, U].
            Under a MultiWorkerMirroredStrategy, each worker passes its own rows: give ``Batches`` the worker's
            ``host_index`` and ``host_count``.
        steps: Number of batches per iteration; None for all of a sequence, or for an endless stream, which needs
            ``steps_per_epoch`` in fit.
        start: Step of the first batch.
        strategy: Strategy that the model was created under, if any. Each replica gets an equal share of the rows.

    Returns:
        A tf.data.Dataset, or with a strategy a tf.distribute.DistributedDataset, of dicts of int32 [rows, ...] in step
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
    source = Source(batches, start, steps)
    if strategy is None:
        if source.hosts > 1:
            raise InputError(
                f"the batches are the rows of one of {source.hosts} hosts; pass the strategy that trains on all of them"
            )
        dataset = _dataset(source, 1)
    else:
        dataset = strategy.distribute_datasets_from_function(
            lambda context: _dataset(source, _replicas(source, context))
        )
    dataset.source = source
    return dataset


def _replicas(source: Source, context: tf.distribute.InputContext) -> int:
    """Return the number of replicas that share the rows of this host."""
    hosts, index = context.num_input_pipelines, getattr(source.batches, "host_index", 0)
    if (source.hosts, index) != (hosts, context.input_pipeline_id):
        raise InputError(
            f"the batches are those of host {index} of {source.hosts} but this is worker {context.input_pipeline_id} of "
            f"{hosts}; create them with host_index={context.input_pipeline_id} and host_count={hosts}"
        )
    replicas = context.num_replicas_in_sync // hosts
    if source.shape[0] % replicas:
        raise InputError(
            f"{source.shape[0]} rows per step do not divide among {replicas} replicas; use a batch_size that is a multiple of "
            f"{replicas * hosts}"
        )
    return replicas


def _dataset(source: Source, replicas: int) -> tf.data.Dataset:
    rows = source.shape[0]

    def load(index: tf.Tensor) -> dict[str, tf.Tensor]:
        arrays = tf.numpy_function(source.arrays, [index], [tf.int32] * len(source.names))
        batch = dict(zip(source.names, arrays))
        for name, array in batch.items():
            array.set_shape(source.shapes[name])
        if replicas == 1:
            return batch
        return {name: tf.reshape(x, (replicas, rows // replicas, x.shape[1])) for name, x in batch.items()}

    numbers = tf.data.Dataset.counter() if source.steps is None else tf.data.Dataset.range(source.steps)
    dataset = numbers.map(load)  # sequential, since Python code would not run in parallel anyway
    dataset = (dataset if replicas == 1 else dataset.unbatch()).prefetch(2 * replicas)
    return dataset.with_options(_ordered_options())


def _ordered_options() -> tf.data.Options:
    """Return options that keep the order of batches and do not let a strategy shard them."""
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


def batch_dataset(batches: Any, epochs: int = 1, *, first_epoch: int = 0, first_batch: int = 0) -> tf.data.Dataset:
    """Return batches of any kind as a dataset for ``model.fit``, in the same order as jaxnlp's fit.

    The epochs follow one another in the dataset, each in its own order, so fit must be told their length::

        model.fit(batch_dataset(batches, epochs=3), epochs=3, steps_per_epoch=len(batches), shuffle=False)

    The batches stay dicts: tfnlp's models find the labels and the ``sample_weight`` in them. Their ``fit`` also checks
    each batch before it is computed and raises InputError for an invalid one, such as a label beyond ``num_labels``.

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

    def rows() -> Iterator[tuple[None, Batch]]:
        for epoch, _, batch, ends_epoch in endless_batches(batches, first_epoch, first_batch):
            yield None, batch
            if ends_epoch and epoch + 1 == first_epoch + epochs:
                return

    feed = Feed(rows)
    dataset = feed.dataset()
    if hasattr(batches, "__len__"):
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(epochs * len(batches) - first_batch))
        dataset.source = feed
    return dataset


class Feed:
    """Passes batches through tf.data, keeping a mark for each, checking them, and remembering the error that stops it.

    Args:
        rows: Returns a new iterator of (mark, batch), from the first batch on. A batch is a dict of NumPy arrays [B, ...];
            a mark is any object, or None for no mark.
        check: Raises for an invalid batch; None to check nothing.

    Attributes:
        marks: Marks of the batches read ahead, in order. The consumer removes them as it takes the batches.
        error: Exception that ended reading, since TensorFlow only passes on its text.
    """

    def __init__(
        self,
        rows: Callable[[], Iterator[tuple[Any, Batch]]],
        check: Callable[[Mapping[str, Any]], None] | None = None,
    ):
        self.rows, self.check = rows, check
        self.marks: deque[Any] = deque()
        self.error: Exception | None = None

    def dataset(self) -> tf.data.Dataset:
        """Return a tf.data.Dataset that yields each batch once and has this Feed as its ``source``.

        Raises:
            InputError: There are no batches.
        """
        first = next(iter(self.rows()), None)
        if first is None:
            raise InputError("there are no batches; pass at least one")
        signature = {}
        for name, value in first[1].items():
            value = narrow_dtype(value)
            # Lengths differ from batch to batch, and the last batch may have fewer rows.
            signature[name] = tf.TensorSpec([None] * value.ndim, value.dtype, name=name)
        dataset = tf.data.Dataset.from_generator(self._read, output_signature=signature)
        dataset = dataset.prefetch(2).with_options(_ordered_options())
        dataset.source = self
        return dataset

    @contextmanager
    def errors(self) -> Generator[None]:
        """Raise errors of reading as they were, not as TensorFlow's."""
        self.error = None
        try:
            yield
        except tf.errors.OpError:
            if self.error is not None:
                raise self.error from None
            raise

    def _read(self) -> Iterator[dict[str, np.ndarray]]:
        marks = self.marks = deque()  # a new one, since an earlier iterator may still be reading ahead
        try:
            for mark, batch in self.rows():
                if self.check is not None:
                    self.check(batch)
                if mark is not None:
                    marks.append(mark)
                yield {name: narrow_dtype(value) for name, value in batch.items()}
        except Exception as error:
            self.error = error
            raise


def narrow_dtype(value: Any) -> np.ndarray:
    """Return an array with int64 narrowed to int32 and float64 to float32."""
    value = np.asarray(value)
    return value.astype({"int64": np.int32, "float64": np.float32}.get(value.dtype.name, value.dtype), copy=False)
