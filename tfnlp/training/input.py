"""Batches as a tf.data.Dataset: blocks, each step's from its number alone, on one device or on many; and epochs of anything."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.training.fit_loop import endless_batches

NAMES = ("input_ids", "labels", "segment_ids", "attention_mask", "decoder_input_ids")
"""What a batch may have."""


class Source:
    """Where the batches of a dataset come from, and which is the first that its next iterator gives.

    tf.data has no iterator that can be put anywhere in an endless stream. Here a step's number alone makes its batch, so
    a run that goes on moves ``step``, and nothing is read to be thrown away.
    """

    def __init__(self, batches: Sequence[Mapping[str, np.ndarray]], start: int, steps: int | None):
        self.batches, self.start, self.steps = batches, start, steps
        self.step = start
        self.error: Exception | None = None
        first = self.read(0)
        self.names = tuple(name for name in NAMES if name in first)
        if self.names[:2] != NAMES[:2] or set(self.names) != set(first):
            raise InputError(
                f"a batch has {', '.join(first)}; it must have input_ids and labels, and may have segment_ids, or for an "
                "encoder-decoder attention_mask and decoder_input_ids"
            )
        self.shapes = {name: first[name].shape for name in self.names}
        self.shape = first["input_ids"].shape
        """Rows of this host in a step, and their length."""
        self.hosts = getattr(batches, "host_count", 1)

    def read(self, index: int) -> Mapping[str, np.ndarray]:
        """The batch ``index`` steps after the first one."""
        try:
            return self.batches[self.step + int(index)]
        except Exception as error:
            self.error = error  # TensorFlow makes a text of it
            raise

    def arrays(self, index) -> list[np.ndarray]:
        """The same, as a list in the order of ``names``."""
        batch = self.read(index)
        return [np.ascontiguousarray(batch[name], np.int32) for name in self.names]


def block_dataset(
    batches, *, steps: int | None = None, start: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Any:
    """The batches of blocks for ``Pretrainer.fit`` and ``evaluate``.

    Args:
        batches: ``duonlp.data.Batches``, the sequence of ``held_out_batches``, or anything whose ``[step]`` is a
            dict of ``input_ids``, ``labels`` and, where documents in a block are to stay apart, ``segment_ids``, each
            int32 [B, T]; for an encoder-decoder ``input_ids`` and ``attention_mask`` [B, S], ``decoder_input_ids`` and
            ``labels`` [B, U]. Under a MultiWorkerMirroredStrategy, each worker's ``batches`` are its own rows: give
            ``Batches`` the worker's ``host_index`` and ``host_count``.
        steps: how many batches an iteration has; None for all of a sequence, and no end for a stream, which wants
            ``steps_per_epoch`` of fit.
        start: the first step.
        strategy: the one the model was made under, when it has one; each of its replicas gets an equal share of the rows.

    Returns:
        A tf.data.Dataset, or with a strategy a tf.distribute.DistributedDataset, of dicts of int32 [rows, ...]; the order
        is that of the steps. Transformed further, it forgets its position, so that no run can go on in the middle of it.

    Raises:
        InputError: there is no batch, a batch lacks input_ids or labels, or the rows do not divide among the replicas.
    """
    if start < 0 or (steps is not None and steps < 1):
        raise InputError(f"start is {start} and steps is {steps}; start is at least 0, and steps at least 1")
    if hasattr(batches, "__len__"):
        left = len(batches) - start
        if left < (steps or 1):
            raise InputError(
                f"there are {len(batches)} batches; steps {start} to {start + (steps or 1) - 1} are not there"
            )
        steps = left if steps is None else steps
    source = Source(batches, start, steps)
    if strategy is None:
        if source.hosts > 1:
            raise InputError(
                f"the batches are those of one of {source.hosts} hosts; pass the strategy that trains on all of them"
            )
        dataset = _dataset(source, 1)
    else:
        dataset = strategy.distribute_datasets_from_function(
            lambda context: _dataset(source, _replicas(source, context))
        )
    dataset.source = source
    return dataset


def _replicas(source: Source, context: tf.distribute.InputContext) -> int:
    """Replicas of this host, among which its rows are divided."""
    hosts, index = context.num_input_pipelines, getattr(source.batches, "host_index", 0)
    if (source.hosts, index) != (hosts, context.input_pipeline_id):
        raise InputError(
            f"the batches are those of host {index} of {source.hosts}, and this is worker {context.input_pipeline_id} of "
            f"{hosts}; make them with host_index={context.input_pipeline_id}, host_count={hosts}"
        )
    replicas = context.num_replicas_in_sync // hosts
    if source.shape[0] % replicas:
        raise InputError(
            f"{source.shape[0]} rows a step do not divide among {replicas} replicas; take a batch_size that is a multiple "
            f"of {replicas * hosts}"
        )
    return replicas


def _dataset(source: Source, replicas: int) -> tf.data.Dataset:
    rows = source.shape[0]

    def load(index):
        arrays = tf.numpy_function(source.arrays, [index], [tf.int32] * len(source.names))
        batch = dict(zip(source.names, arrays))
        for name, array in batch.items():
            array.set_shape(source.shapes[name])
        if replicas == 1:
            return batch
        return {name: tf.reshape(x, (replicas, rows // replicas, x.shape[1])) for name, x in batch.items()}

    numbers = tf.data.Dataset.counter() if source.steps is None else tf.data.Dataset.range(source.steps)
    dataset = numbers.map(load)  # one after the other: the Python inside could not run at the same time anyway
    dataset = (dataset if replicas == 1 else dataset.unbatch()).prefetch(2 * replicas)
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def batch_dataset(batches, epochs: int = 1, *, first_epoch: int = 0, first_batch: int = 0) -> tf.data.Dataset:
    """Batches of labelled texts, of pairs, of anything, for ``model.fit``, in the order that jaxnlp's fit has them in.

    All epochs follow one another, each in an order of its own, so fit is told where one ends::

        model.fit(batch_dataset(batches, epochs=3), epochs=3, steps_per_epoch=len(batches), shuffle=False)

    The batches stay dicts: the labels and a ``sample_weight`` in them are found by the models of this package. Their ``fit``
    also looks at each batch before it computes anything of it, and says what is wrong: a label beyond ``num_labels``, ...

    Args:
        batches: ``LabelledBatches`` or ``PairBatches`` of duonlp.data, or anything with ``epoch(n)`` and ``len()``; or a
            list of dicts of NumPy arrays [B, ...], the same in every epoch.
        epochs: how many of them.
        first_epoch, first_batch: the number of the first epoch, and the first batch of it; for runs that go on. Nothing is
            read to be thrown away where the batches have ``epoch(n, first)``.

    Returns:
        A tf.data.Dataset of dicts, as the batches have them: integers as int32, numbers as float32.

    Raises:
        InputError: there is no batch, or a number is out of range.
    """
    if epochs < 1 or first_epoch < 0 or first_batch < 0:
        raise InputError(
            f"epochs is {epochs}, first_epoch {first_epoch} and first_batch {first_batch}; give at least 1, 0 and 0"
        )

    def rows():
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
    """Batches on their way through tf.data: what each is marked with, whether one cannot be used, and what went wrong.

    Args:
        rows: gives an iterator of (mark, batch), dicts of NumPy arrays [B, ...], from the first on.
        check: raises for a batch that cannot be used.

    marks: of the batches that were read and not taken yet, in their order; those marked None have none.
    error: what stopped the reading. (TensorFlow makes a text of it.)
    """

    def __init__(
        self, rows: Callable[[], Iterator[tuple[Any, Mapping]]], check: Callable[[Mapping], None] | None = None
    ):
        self.rows, self.check = rows, check
        self.marks: deque = deque()
        self.error: Exception | None = None

    def dataset(self) -> tf.data.Dataset:
        """The batches, once each; this Feed is its ``source``."""
        first = next(iter(self.rows()), None)
        if first is None:
            raise InputError("there are no batches; give at least one")
        signature = {}
        for name, value in first[1].items():
            value = array(value)
            # Lengths differ from batch to batch, and the rows of the last one may be fewer.
            signature[name] = tf.TensorSpec([None] * value.ndim, value.dtype, name=name)
        dataset = tf.data.Dataset.from_generator(self._read, output_signature=signature)
        options = tf.data.Options()
        options.deterministic = True
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        dataset = dataset.prefetch(2).with_options(options)
        dataset.source = self
        return dataset

    @contextmanager
    def errors(self):
        """Inside, what stopped the reading is raised as it was."""
        self.error = None
        try:
            yield
        except tf.errors.OpError:
            if self.error is not None:
                raise self.error from None
            raise

    def _read(self):
        marks = self.marks = deque()  # an iterator before this one may still be reading ahead
        try:
            for mark, batch in self.rows():
                if self.check is not None:
                    self.check(batch)
                if mark is not None:
                    marks.append(mark)
                yield {name: array(value) for name, value in batch.items()}
        except Exception as error:
            self.error = error
            raise


def array(value) -> np.ndarray:
    """As TensorFlow is to have it: int64 as int32, float64 as float32."""
    value = np.asarray(value)
    return value.astype({"int64": np.int32, "float64": np.float32}.get(value.dtype.name, value.dtype), copy=False)
