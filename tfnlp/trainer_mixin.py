"""Adapt fit, evaluate and predict of Keras to models whose inputs and outputs are dicts."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

import keras
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.heads import HEADS, IGNORED, ROW_MASK, loss_terms, outputs_of
from duonlp.inputs import TEACHER, check_inputs, check_weights, named_inputs, shift_right
from duonlp.labels import WEIGHTS, standard_weights
from duonlp.pruning import Pruning
from duonlp.training.fit_loop import check_label_counts
from duonlp.typing import Array
from duonlp.util.frameworks import check_process
from tfnlp import losses, ops
from tfnlp.pruning.keras_masks import KerasMasks, UpdateMasks
from tfnlp.steps import keras_data
from tfnlp.steps.data_mixin import DataMixin
from tfnlp.steps.saving import KerasFiles, check_callbacks
from tfnlp.steps.terms import Terms, compiled_terms, sum_over_workers, total_loss

ADDED = "added"
"""Name of the term of the losses that layers add."""

OTHER_TARGETS = "y"
"""Entry of a batch for the y of a model whose head has no labels."""


@dataclass
class FitProgress:
    """Where a running ``fit`` is; a BackupAndRestore moves it.

    Attributes:
        source: Source of the batches; None for data that is not from ``batch_dataset`` or ``block_dataset``.
        callbacks: Callbacks of the fit.
        epochs: Keras' iterator over the epoch's batches.
        first_batch: Batches of the first epoch that were done before a resume.
        first_logs: Logs of the last of them.
    """

    source: Any = None
    callbacks: list[Any] = field(default_factory=list)
    epochs: Any = None
    first_batch: int = 0
    first_logs: dict[str, float] = field(default_factory=dict)


def _backups_last(callbacks: list[Any]) -> list[Any]:
    """Return callbacks with a BackupAndRestore after those whose state or records belong to its backup.

    Otherwise a run killed right after a backup would lack what they would have done next.
    """
    owners = [
        i for i, callback in enumerate(callbacks) if hasattr(callback, "get_state") or hasattr(callback, "log_every")
    ]
    end = max(owners, default=-1) + 1
    moved = [callback for callback in callbacks[:end] if hasattr(callback, "backups")]
    return [callback for callback in callbacks[:end] if callback not in moved] + moved + callbacks[end:]


class TrainerMixin(KerasFiles, DataMixin):
    """Mixin of the models that train: tfnlp's own, ``Pretrainer`` and ``Distiller``.

    Labels are passed as ``y`` or inside the inputs, under the names in ``targets`` (``labels``,
    ``start_positions``, ...) or those of the outputs, with the same meaning for every loss.
    ``compile(optimizer)`` trains with the head's own loss. With ``compile(optimizer, loss=...)``, the loss and
    the metrics get only the head's logits; labels of -100 are masked, and labels of a causal language model are
    shifted, as for the head's own loss. Without ``decoder_input_ids``, the decoder of an encoder-decoder reads
    the labels shifted to the right.

    Labels may have any form of :mod:`duonlp.labels`, and inputs be the BatchEncoding of a tokenizer. A ``sample_weight``, [B]
    or of the labels' shape, or a dict of these by output, may be passed either as an argument or inside the inputs; the argument
    takes precedence. It multiplies the terms of the loss, whose mean divides by their number, as Keras' losses do.
    ``class_weight`` multiplies it wherever the labels are. Rows whose ``row_mask`` [B] is 0 count for nothing.

    The ``loss`` of an epoch weighs every label the same, whatever batch and replica it was in.

    ``fit`` and ``evaluate`` validate arrays before the first step and each batch of a generator, PyDataset or
    ``tfnlp.training.batch_dataset`` before it is used, and raise InputError for invalid labels, ids or shapes.
    In any other tf.data.Dataset, dtypes and shapes are checked, and TensorFlow itself raises an error for a label
    outside the classes; with ``jit_compile`` the loss becomes NaN, which ``tfnlp.training.StopAtNonFiniteLoss`` detects.

    Attributes:
        progress: Where the running ``fit`` is; None outside of it.
    """

    progress: FitProgress | None = None

    def compile(
        self, optimizer: Any = "rmsprop", *args: Any, pruning: Pruning | None = None, **options: Any
    ) -> None:  # fmt: skip
        """Prepare for training; see keras.Model.compile.

        Args:
            optimizer: From ``tfnlp.training.make_optimizer``, or any Keras optimizer created under the model's strategy.
            args: Further arguments of keras.Model.compile.
            pruning: Which weights become zero during ``fit``, and when; None for none.
            options: Further options of keras.Model.compile, and of :meth:`tfnlp.steps.step.TrainStep.compile`.

        Raises:
            InputError: An argument is out of range or does not fit the model.
        """
        super().compile(optimizer, *args, **options)
        masks = None if pruning is None else KerasMasks(self.trained_model(), pruning)
        object.__setattr__(self, "masks", masks)  # hidden from Keras, which would save them with the model

    def fit(self, x: Any = None, y: Any = None, *args: Any, **options: Any) -> keras.callbacks.History:
        """Train the model; see keras.Model.fit."""
        check_process()
        options = keras_data.name_arguments("fit", x, y, *args, **options)
        callbacks = options.get("callbacks")
        if isinstance(callbacks, (list, tuple)):
            callbacks = options["callbacks"] = _backups_last(tf.nest.flatten(callbacks))
        if self.masks is not None:
            options["callbacks"] = callbacks = [UpdateMasks(self.masks), *tf.nest.flatten(callbacks or [])]
        self._set_class_weights(options.pop("class_weight", None))
        with self._read_data(options), self._fitting(options["x"], callbacks):
            self._check_label_counts(options["x"], options.get("y"))
            return super().fit(**options)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **options: Any) -> Any:
        """Evaluate the loss and the metrics; see keras.Model.evaluate."""
        check_process()
        options = keras_data.name_arguments("evaluate", x, y, *args, **options)
        with ExitStack() as stack:
            if not options.get("_use_cached_eval_dataset"):  # otherwise fit has read the data
                stack.enter_context(self._read_data(options))
            if hasattr(options["x"], "source"):
                stack.enter_context(options["x"].source.evaluating())
            return super().evaluate(**options)

    def _check_label_counts(self, x: Any, y: Any) -> None:
        """Raise InputError if no label of arrays, or of the first batches of a source, counts on any worker."""
        source: Any = getattr(x, "source", None)
        if source is not None:
            remaining = (read.batch for read in islice(source.read(source.start), 1, None))
            batches = chain([source.first], remaining)
        elif keras_data.holds_arrays(x):
            batches = [named_inputs(self.config, x) | self._labels(x, y)]
        else:
            return
        if getattr(source, "hosts", 1) == 1:
            check_label_counts(batches, self._counts_labels)
        else:
            check_label_counts(batches, lambda batch: sum_over_workers(self, int(self._counts_labels(batch))) > 0)

    def _counts_labels(self, batch: Mapping[str, Any]) -> bool:
        """Return whether a label of a batch of NumPy arrays counts; True where only computing the loss tells."""
        return True

    @contextmanager
    def _fitting(self, x: Any, callbacks: Any) -> Generator[None]:
        """Keep ``progress`` while the context is active, and close callbacks that have a ``close`` method after it."""
        source = getattr(x, "source", None)
        callbacks = tf.nest.flatten(getattr(callbacks, "callbacks", callbacks))
        check_callbacks(callbacks)
        self.progress = FitProgress(source, [callback for callback in callbacks if callback is not None])
        if source is not None:
            source.position, source.seen = source.start, 0
        try:
            yield
        finally:
            for callback in self.progress.callbacks:
                getattr(callback, "close", lambda: None)()
            if source is not None:
                source.position = source.start
            self.progress = self._initial_epoch = None

    def check_batch(self, batch: Array | Mapping[str, Array], y: Any = None) -> None:
        """Raise InputError for a batch of NumPy arrays that the model cannot train on.

        Args:
            batch: Inputs, optionally with labels and ``sample_weight``; a teacher's inputs are ignored.
            y: Labels, as fit takes them.
        """
        inputs, others = named_inputs(self.config, batch), (WEIGHTS, ROW_MASK)
        weights = keras_data.name_weights(self.targets, inputs.get(WEIGHTS))
        inputs = {n: v for n, v in inputs.items() if n not in others and not n.startswith(TEACHER)}
        inputs |= self._labels(inputs, y)
        self._check_labels(inputs)
        check_weights(self.config, self.head, {**inputs, WEIGHTS: weights})
        for output in outputs_of(self._loss_head, self.config) if self._compile_loss is not None else ():
            if output.labels in inputs:
                inputs[output.labels] = keras_data.labels_to_check(output, self.config, inputs[output.labels])
        check_inputs(self.config, self.head, inputs)

    def _check_labels(self, labels: Mapping[str, Any]) -> None:
        """Raise InputError if a label of the head is missing; a loss of compile may be that of some outputs alone."""
        missing = [name for name in self.targets if name not in labels]
        is_optional = self._compile_loss is not None and (not self.targets or len(missing) < len(self.targets))
        if (missing or not self.targets) and not is_optional:
            raise InputError(
                f"no {', '.join(missing) or 'labels'} to learn from; pass them to this {self.head} model as y or inside x"
            )

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Build what the first step would have to create; Keras calls this before fit and evaluate."""
        if iterator is not None and self.progress is not None and self.progress.epochs is None:
            self.progress.epochs = iterator
            iterator._enumerate_iterator = partial(self._remaining_batches, iterator._enumerate_iterator)
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        if self._distribute_strategy is not None:
            self.build_metrics(iterator, data_batch)

    def _remaining_batches(self, enumerate_batches: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """Yield Keras' (first batch, last batch, iterator) of an epoch, without the batches done before a resume."""
        assert self.progress is not None
        first_batch, self.progress.first_batch = self.progress.first_batch, 0
        for first, last, iterator in enumerate_batches():
            if first >= first_batch:
                yield first, last, iterator
            elif self.progress.source is None:  # otherwise the source starts behind them
                next(iterator)

    def build_metrics(self, iterator: Any, data_batch: Any = None) -> None:
        """Create the variables of compiled losses and metrics, which Keras creates in the first step.

        Args:
            iterator: Keras' iterator over the batches; one of them is read, and the iterator is reset.
            data_batch: A batch in place of the iterator.
        """
        if all(part is None or part.built for part in (self._compile_loss, self._compile_metrics)):
            return
        if data_batch is None:
            _, _, batches = next(iter(iterator))
            data_batch = next(batches)
            iterator.reset()
        strategy = self.distribute_strategy
        local = tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], data_batch)
        batch = tf.nest.map_structure(tf.convert_to_tensor, self._as_batch(local))
        with strategy.scope():
            super()._symbolic_build(data_batch=(self._inputs(batch), batch))

    def make_train_function(self, force: bool = False) -> None:
        """Set the function that fit calls with its iterator."""
        if force or self.train_function is None:
            run = self._make_function(lambda data: self.train_step(self._weigh_classes(data)))

            def run_and_advance(iterator: Any) -> dict[str, Any]:
                logs = run(iterator)
                if self.progress is not None and self.progress.source is not None:
                    for _ in range(self.steps_per_execution):
                        self.progress.source.advance()
                return logs

            self.train_function = run_and_advance

    def _terms(self, batch: dict[str, Any], training: bool) -> tuple[Terms, dict[str, Any]]:
        outputs = self(self._inputs(batch), training=training)
        terms = self._label_terms(outputs, batch, self._share(training))
        return terms | self._added_terms(self.losses, batch), outputs

    def _count_terms(self, batch: Any, exact: bool = True) -> dict[str, tf.Tensor]:
        targets = outputs_of(self._loss_head, self.config)
        has_single_term = self._has_own_loss() and len(targets) == 1 and not self.losses
        if exact or not has_single_term or targets[0].labels not in batch:
            # Layers may add losses in training alone.
            return super()._count_terms(batch) | {ADDED: _count_rows(batch)}
        # Of a single term only the magnitude must be known before its gradient.
        return {targets[0].logits: tf.cast(tf.size(batch[targets[0].labels]), tf.float32)}

    def _has_own_loss(self) -> bool:
        """Return whether the loss is that of the model's head alone."""
        return self._compile_loss is None

    def _label_terms(self, outputs: Mapping[str, Any], batch: Mapping[str, Any], share: float = 1.0) -> Terms:
        """Return the terms of the loss on the labels: compile's loss or the head's own."""
        self._check_labels(batch)
        if self._compile_loss is not None:
            return compiled_terms(self._compile_loss, *self._keras_arguments(batch, outputs), share)
        return loss_terms(ops, losses, self._loss_head, self.config, outputs, batch, self._label_smoothing)

    def _added_terms(self, added: list[tf.Tensor], batch: Mapping[str, Any]) -> Terms:
        """Return the losses that layers add as one term: regularization of weights, or means over the rows."""
        if not added:
            return {}
        rows = _count_rows(batch)
        loss = tf.add_n([tf.cast(loss, tf.float32) for loss in added])
        return {ADDED: (tf.where(rows > 0, loss * rows, 0.0), rows)}  # a replica without rows has no mean

    def _update_compiled_metrics(self, batch: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if self._compile_metrics is not None:
            self._compile_metrics.update_state(*self._keras_arguments(batch, outputs))

    def _get_metrics_result_or_logs(self, logs: dict[str, Any]) -> dict[str, Any]:
        # Without logs, all batches of the epoch were done before a resume.
        return super()._get_metrics_result_or_logs(logs or (self.progress.first_logs if self.progress else logs))

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> tf.Tensor:
        """Return the loss of outputs for a batch on its own; the steps of fit and evaluate do not call this."""
        return total_loss(self._label_terms(y_pred, self._as_batch((x, y, sample_weight))))

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Update the compiled metrics by the outputs for a batch, and return all metrics."""
        self._update_compiled_metrics(self._as_batch((x, y, sample_weight)), y_pred)
        return self.get_metrics_result()

    def predict_step(self, data: Any) -> dict[str, Any]:
        """Return the outputs for a batch; labels only serve as input of a decoder without decoder_input_ids."""
        x = data[0] if isinstance(data, tuple) else data
        if isinstance(x, Mapping):
            x = self._inputs({n: x[n] for n in (*(spec.name for spec in self.config.inputs), *self.targets) if n in x})
        return self(x, training=False)

    def _as_batch(self, data: Any) -> dict[str, Any]:
        """Return inputs, labels and ``sample_weight`` as one dict."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        batch = named_inputs(self.config, x)
        if y is not None:
            has_names = self.targets or (isinstance(y, Mapping) and OTHER_TARGETS in y)
            batch |= self._labels(batch, y) if has_names else {OTHER_TARGETS: y}
        if sample_weight is not None:
            batch[WEIGHTS] = sample_weight
        return self._standard_batch(batch)

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the model reads of a batch; a decoder reads the labels shifted to the right by default."""
        others = *self.targets, OTHER_TARGETS, WEIGHTS, ROW_MASK
        inputs = {n: value for n, value in batch.items() if n not in others and not n.startswith(TEACHER)}
        if HEADS[self.head].shifts_labels and "decoder_input_ids" not in inputs and "labels" in batch:
            inputs["decoder_input_ids"] = shift_right(ops, batch["labels"], self.config)
        return inputs

    def _loss(self, out: Mapping[str, Any], inputs: Mapping[str, Any]) -> tf.Tensor:
        """Return the head's loss for the labels in ``inputs``, which a call of the model adds to its outputs."""
        terms = loss_terms(ops, losses, self.head, self.config, out, inputs)
        return tf.add_n([losses.mean(total, count) for total, count in terms.values()])

    def _keras_arguments(self, batch: Mapping[str, Any], y_pred: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Return y, y_pred and sample_weight for a Keras loss or metric: tensors for one output, dicts for several."""
        sample_weight = batch.get(WEIGHTS)
        if not self.targets:
            return batch.get(OTHER_TARGETS), y_pred, sample_weight
        y_true, outputs, weights = {}, {}, {}
        for target_output in outputs_of(self._loss_head, self.config):
            name, output = target_output.labels, target_output.logits
            multi_label = not target_output.per_token and target_output.kind_for(self.config) == "bernoulli"
            if name in batch:
                logits, target = target_output.align(y_pred[output], is_logits=True), target_output.align(batch[name])
                weight = target_output.align(standard_weights(ops, target_output, batch[name], sample_weight))
                if weight is not None and weight.shape.rank == 1 and target.shape.rank == logits.shape.rank - 1 > 1:
                    weight = tf.expand_dims(weight, 1)  # [B, 1]: each row's weight applies to all its labels
                y_true[output], outputs[output] = _mask_labels(logits, target, batch.get(ROW_MASK), multi_label)
                weights[output] = weight
            else:
                outputs[output] = y_pred[output]
        if len(self.targets) == 1 and not isinstance(getattr(self, "loss", None), Mapping):
            (output,) = outputs
            return y_true.get(output), outputs[output], weights.get(output)
        return y_true or None, outputs, None if sample_weight is None else weights


def _count_rows(batch: Mapping[str, Any]) -> tf.Tensor:
    """Return the number of rows that count, float32 []."""
    if ROW_MASK in batch:
        return tf.reduce_sum(tf.cast(batch[ROW_MASK], tf.float32))
    return tf.cast(ops.size(tf.nest.flatten(batch)[0], 0), tf.float32)


def _mask_labels(
    logits: tf.Tensor, labels: tf.Tensor, row_mask: tf.Tensor | None, multi_label: bool = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """Replace IGNORED labels, and attach to the logits the mask that Keras' losses and metrics use.

    Args:
        logits: [..., C].
        labels: int [...], or [B, C] if multi_label; other labels are masked by rows alone.
        row_mask: [B], 0 for rows to mask, or None.
        multi_label: Whether labels are [B, C], 1 for each class of a row. A row of IGNORED is masked.

    Returns:
        Labels and logits.
    """
    mask = None if row_mask is None else tf.cast(row_mask, tf.bool)
    if labels.shape.rank == logits.shape.rank - (not multi_label) and (multi_label or labels.dtype.is_integer):
        is_labeled = tf.not_equal(labels, tf.cast(IGNORED, labels.dtype))
        labels = tf.where(is_labeled, labels, tf.zeros_like(labels))
        is_labeled = tf.reduce_any(is_labeled, axis=-1) if multi_label else is_labeled
        axes = tuple(range(1, is_labeled.shape.rank))
        mask = is_labeled if mask is None else is_labeled & ops.expand_dims(mask, axes)
    if mask is None:
        return labels, logits
    masked_logits: Any = tf.identity(logits)  # Any, since Keras attaches masks to tensors as a private attribute
    masked_logits._keras_mask = mask
    return labels, masked_logits
