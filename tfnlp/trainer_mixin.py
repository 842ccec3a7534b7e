"""Adapt compile, fit, evaluate and predict of Keras to models whose inputs and outputs are dicts."""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.heads import HEADS, IGNORED, loss_terms, outputs_of, targets_of
from duonlp.inputs import check_inputs, named_inputs
from duonlp.seq2seq import shift_right
from duonlp.typing import Array
from tfnlp import losses, ops

# The final class is a keras.Model, which the type checker needs to know of its mixins.
_Model = keras.Model if TYPE_CHECKING else object


class TrainerMixin(_Model):
    """Mixin of the model classes for training with Keras.

    Labels are passed as ``y`` or inside the inputs, under the names in ``targets`` (``labels``,
    ``start_positions``, ...) or those of the outputs, with the same meaning for every loss.
    ``compile(optimizer)`` trains with the head's own loss. With ``compile(optimizer, loss=...)``, the loss and
    the metrics get only the head's logits; labels of -100 are masked, and labels of a causal language model are
    shifted, as for the head's own loss. Without ``decoder_input_ids``, the decoder of an encoder-decoder reads
    the labels shifted to the right.

    A ``sample_weight`` [B] may also be passed either as an argument or inside the inputs; the argument takes precedence.

    ``fit`` and ``evaluate`` validate NumPy arrays before the first step and each batch of a
    ``tfnlp.training.batch_dataset`` before it is used, and raise InputError for invalid labels, ids or shapes.
    In any other tf.data.Dataset, TensorFlow itself raises an error for a label outside the classes; with
    ``jit_compile`` the loss becomes NaN, which ``tfnlp.training.StopAtNonFiniteLoss`` detects.

    Attributes:
        head: Name of the model's head.
        config: The model's configuration.
        targets: Label name to the name of the output that its loss is computed from.
    """

    head: str
    config: TransformerConfig

    @property
    def targets(self) -> dict[str, str]:
        """Label name to the name of the output that its loss is computed from."""
        return targets_of(self.head, self.config)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **options: Any) -> keras.callbacks.History:
        """Train the model; see keras.Model.fit."""
        with self._validated_data(x, y, options.get("validation_data")):
            return super().fit(_with_weights(x, y, options), y, *args, **options)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **options: Any) -> Any:
        """Evaluate the loss and the metrics; see keras.Model.evaluate."""
        with self._validated_data(x, y):
            return super().evaluate(_with_weights(x, y, options), y, *args, **options)

    def check_batch(self, batch: Array | Mapping[str, Array], y: Any = None) -> None:
        """Raise InputError for a batch of NumPy arrays that the model cannot train on.

        Args:
            batch: Inputs, optionally with labels and ``sample_weight``; a teacher's inputs are ignored.
            y: Labels, as fit takes them.
        """
        inputs = {
            n: v
            for n, v in named_inputs(self.config, batch).items()
            if n != "sample_weight" and not n.startswith("teacher_")
        }
        inputs |= self._labels(inputs, y)
        if self._compile_loss is None:
            self._check_labels(inputs)
        elif np.asarray(inputs.get("labels")).dtype.kind not in "iu":
            inputs.pop("labels", None)  # a custom loss may take another form of labels
        check_inputs(self.config, self.head, inputs)

    def _check_labels(self, labels: Mapping[str, Any]) -> None:
        """Raise InputError if a label of the head is missing."""
        missing = [name for name in self.targets if name not in labels]
        if missing:
            raise InputError(
                f"no {', '.join(missing)} to learn from; pass them to this {self.head} model as y or inside x"
            )

    @contextmanager
    def _validated_data(self, x: Any, y: Any = None, validation_data: Any = None) -> Generator[None]:
        """Check NumPy arrays now, and batches of a batch_dataset while the context is active."""
        if all(isinstance(value, np.ndarray) for value in tf.nest.flatten(x if y is None else [x, y])):
            self.check_batch(x, y)
        with ExitStack() as stack:
            for data in (x, validation_data):
                source: Any = getattr(data, "source", None)  # set by batch_dataset
                if not hasattr(source, "errors"):
                    continue
                stack.enter_context(source.errors())
                if source.check is None:
                    source.check = self.check_batch
                    stack.callback(setattr, source, "check", None)
            yield

    def train_step(self, data: Any) -> dict[str, Any]:
        """Run one step of fit."""
        return super().train_step(self._prepare_batch(data))

    def test_step(self, data: Any) -> dict[str, Any]:
        """Run one step of evaluate."""
        return super().test_step(self._prepare_batch(data))

    def _prepare_batch(self, data: Any) -> Any:
        """Move ``sample_weight`` out of the inputs, and add the labels to them if the decoder needs them as input."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(x, Mapping) and "sample_weight" in x:
            x = dict(x)
            input_weight = x.pop("sample_weight")
            data = x, y, input_weight if sample_weight is None else sample_weight
            sample_weight = data[2]
        if not HEADS[self.head].shifts_labels or (isinstance(x, Mapping) and "decoder_input_ids" in x):
            return data
        return named_inputs(self.config, x) | self._labels(x, y), y, sample_weight

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Under a distribution strategy, Keras averages the replicas' batches here, which turns ids into
        # float64.
        if data_batch is not None:
            data_batch = tf.nest.map_structure(
                lambda x: tf.cast(x, tf.int32) if tf.is_tensor(x) and x.dtype == tf.float64 else x, data_batch
            )
            data_batch = self._prepare_batch(data_batch)
        super()._symbolic_build(iterator=iterator, data_batch=data_batch)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> tf.Tensor | None:
        """Return the total loss of a batch: compile's loss or the head's own, plus the losses added by layers."""
        if not self.targets:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        labels = self._labels(x, y)
        if self._compile_loss is not None:
            return super().compute_loss(x, *self._keras_loss_arguments(labels, y_pred, sample_weight), training)
        self._check_labels(labels)
        loss = self._loss(y_pred, named_inputs(self.config, x) | labels, sample_weight)
        loss /= tf.distribute.get_strategy().num_replicas_in_sync  # Keras sums over the replicas
        return tf.add_n([loss, *(self._aggregate_additional_loss(added) for added in self.losses)])

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Return the metrics of a batch by name."""
        if self.targets:
            y, y_pred, sample_weight = self._keras_loss_arguments(self._labels(x, y), y_pred, sample_weight)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def predict_step(self, data: Any) -> dict[str, Any]:
        """Return the outputs for a batch; labels only serve as input of a decoder without decoder_input_ids."""
        x = data[0] if isinstance(data, tuple) else data
        if isinstance(x, Mapping):
            inputs = {spec.name: x[spec.name] for spec in self.config.inputs if spec.name in x}
            if HEADS[self.head].shifts_labels and "labels" in x and "decoder_input_ids" not in x:
                inputs["decoder_input_ids"] = shift_right(ops, x["labels"], self.config)
            x = inputs
        return self(x, training=False)

    def _loss(
        self, out: Mapping[str, Any], inputs: Mapping[str, Any], sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Return the head's loss for the labels in ``inputs``."""
        batch = dict(inputs) if sample_weight is None else {**inputs, "sample_weight": sample_weight}
        terms = loss_terms(ops, losses, self.head, self.config, out, batch)
        return tf.add_n([losses.mean(total, count) for total, count in terms.values()])

    def _labels(self, x: Any, y: Any) -> dict[str, Any]:
        """Return labels by name, from ``y`` and, for those not in it, from the inputs."""
        labels = {name: x[name] for name in self.targets if isinstance(x, Mapping) and name in x}
        if isinstance(y, Mapping):
            names = {output: name for name, output in self.targets.items()}
            return labels | {names.get(name, name): value for name, value in y.items()}
        if isinstance(y, (list, tuple)):
            return labels | dict(zip(self.targets, y))
        if y is not None:
            if len(self.targets) > 1:
                raise InputError(f"y is one array; pass this {self.head} model a dict with {', '.join(self.targets)}")
            labels |= dict.fromkeys(self.targets, y)
        return labels

    def _keras_loss_arguments(
        self, labels: Mapping[str, Any], y_pred: Mapping[str, Any], sample_weight: tf.Tensor | None
    ) -> tuple[Any, Any, Any]:
        """Return y, y_pred and sample_weight for a Keras loss or metric: tensors for one output, dicts for several."""
        y_true, outputs, weights = {}, {}, {}
        for target_output in outputs_of(self.head, self.config):
            name, output = target_output.labels, target_output.logits
            multi_label = not target_output.per_token and target_output.kind_for(self.config) == "bernoulli"
            if name in labels:
                logits, target = target_output.align(y_pred[output], is_logits=True), target_output.align(labels[name])
                weight = target_output.align(sample_weight)
                if weight is not None and weight.shape.rank == 1 and target.shape.rank == logits.shape.rank - 1 > 1:
                    weight = tf.expand_dims(weight, 1)  # [B, 1]: each row's weight applies to all its labels
                y_true[output], outputs[output] = _mask_labels(logits, target, multi_label)
                weights[output] = weight
            else:
                outputs[output] = y_pred[output]
        if len(self.targets) == 1 and not isinstance(getattr(self, "loss", None), Mapping):
            (output,) = outputs
            return y_true.get(output), outputs[output], weights.get(output)
        return y_true or None, outputs, None if sample_weight is None else weights


def _with_weights(x: Any, y: Any, options: dict[str, Any]) -> Any:
    """Move the argument ``sample_weight`` into the inputs if there is no y, since Keras would drop it."""
    if y is not None or not isinstance(x, Mapping) or options.get("sample_weight") is None:
        return x
    return {**x, "sample_weight": options.pop("sample_weight")}


def _mask_labels(logits: tf.Tensor, labels: tf.Tensor, multi_label: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
    """Replace IGNORED labels, and attach to the logits the mask that Keras' losses and metrics use.

    Args:
        logits: [..., C].
        labels: int [...], or [B, C] if multi_label.
        multi_label: Whether labels are [B, C], 1 for each class of a row. A row of IGNORED is masked.

    Returns:
        Labels and logits.
    """
    if labels.shape.rank != logits.shape.rank - (not multi_label) or not (multi_label or labels.dtype.is_integer):
        return labels, logits  # not class ids
    is_labeled = tf.not_equal(labels, tf.cast(IGNORED, labels.dtype))
    masked_logits: Any = tf.identity(logits)  # Any, since Keras attaches masks to tensors as a private attribute
    masked_logits._keras_mask = tf.reduce_any(is_labeled, axis=-1) if multi_label else is_labeled
    return tf.where(is_labeled, labels, tf.zeros_like(labels)), masked_logits
