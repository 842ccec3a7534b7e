"""What compile, fit, evaluate and predict need to know of a model whose inputs and outputs are dicts."""

from collections.abc import Mapping
from contextlib import ExitStack, contextmanager

import keras
import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.inputs import DECODER_INPUTS, TOKEN_INPUTS, check_inputs
from duonlp.seq2seq import shift_right
from tfnlp import ops
from tfnlp.losses import IGNORED


class Fit:
    """Mixin of the model classes; they bring ``targets``, which names what is learnt from, and ``_loss``.

    Labels come as ``y`` or inside the inputs, under the names of ``targets`` (``labels``, ``start_positions``, ...) or
    of the outputs; they mean the same whichever loss is used. ``compile(optimizer)`` trains with the head's own loss.
    With ``compile(optimizer, loss=...)``, the loss and the metrics see the head's logits alone, labels of -100 are
    masked for them, and a causal language model's labels are shifted for them as they are for its own loss. The decoder of
    an encoder-decoder that is fed no ``decoder_input_ids`` reads the labels, wherever they come from, moved to the right.

    A ``sample_weight`` [B], too, may come as an argument or inside the inputs; the argument is the one that counts.

    ``fit`` and ``evaluate`` look at NumPy arrays before the first step, and at each batch of a
    ``tfnlp.training.batch_dataset`` before it is computed, and raise InputError for labels, ids and shapes that cannot be. (In
    any other tf.data.Dataset, TensorFlow itself refuses a label beyond the classes; with ``jit_compile`` it gives a loss of
    NaN, for ``tfnlp.training.StopAtNonFiniteLoss`` to find.)
    """

    def fit(self, x=None, y=None, *args, **options):
        """As keras.Model.fit."""
        with self._looked_at(x, y, options.get("validation_data")):
            return super().fit(_with_weights(x, y, options), y, *args, **options)

    def evaluate(self, x=None, y=None, *args, **options):
        """As keras.Model.evaluate."""
        with self._looked_at(x, y):
            return super().evaluate(_with_weights(x, y, options), y, *args, **options)

    def check_batch(self, batch, y=None):
        """Raises InputError for a batch of NumPy arrays that the model cannot learn from.

        Args:
            batch: the inputs, perhaps with labels and ``sample_weight`` in it; inputs for a teacher are left out.
            y: labels, as fit takes them.
        """
        inputs = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
        inputs = {n: v for n, v in inputs.items() if n != "sample_weight" and not n.startswith("teacher_")}
        inputs |= self._labels(inputs, y)
        missing = [name for name in self.targets if name not in inputs]
        if missing and self._compile_loss is None:
            raise InputError(f"no {', '.join(missing)} to learn from; a {self.head} model wants them as y, or among x")
        if self._compile_loss is not None and np.asarray(inputs.get("labels")).dtype.kind not in "iu":
            inputs.pop("labels", None)  # a loss of the caller's may want them in another form
        check_inputs(self.config, self.head, inputs)

    @contextmanager
    def _looked_at(self, x, y=None, validation_data=None):
        if all(isinstance(value, np.ndarray) for value in tf.nest.flatten(x if y is None else [x, y])):
            self.check_batch(x, y)
        with ExitStack() as stack:
            for data in (x, validation_data):
                feed = getattr(data, "source", None)  # of a batch_dataset
                if not hasattr(feed, "errors"):
                    continue
                stack.enter_context(feed.errors())
                if feed.check is None:
                    feed.check = self.check_batch
                    stack.callback(setattr, feed, "check", None)
            yield

    def train_step(self, data):
        """A step of fit."""
        return super().train_step(self._with_targets(data))

    def test_step(self, data):
        """A step of evaluate."""
        return super().test_step(self._with_targets(data))

    def _with_targets(self, data):
        """A batch whose weights are no input, and whose inputs have the labels as well, where the decoder is to read them."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(x, Mapping) and "sample_weight" in x:
            x = dict(x)
            inside = x.pop("sample_weight")
            data = x, y, inside if sample_weight is None else sample_weight
            sample_weight = data[2]
        if self.head != "seq2seq-lm" or (isinstance(x, Mapping) and "decoder_input_ids" in x):
            return data
        x = dict(x) if isinstance(x, Mapping) else {"input_ids": x}
        return x | self._labels(x, y), y, sample_weight

    def _symbolic_build(self, iterator=None, data_batch=None):
        # Under a strategy, Keras shows losses and metrics the mean of the replicas' batches, for its shapes: floats, of ids.
        if data_batch is not None:
            whole = tf.nest.map_structure(
                lambda x: tf.cast(x, tf.int32) if tf.is_tensor(x) and x.dtype == tf.float64 else x, data_batch
            )
            data_batch = self._with_targets(whole)
        super()._symbolic_build(iterator=iterator, data_batch=data_batch)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The total loss of a batch: compile's loss, or the head's own, plus what layers and regularizers add."""
        if not self.targets:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        labels = self._labels(x, y)
        if self._compile_loss is not None:
            return super().compute_loss(x, *self._compared(labels, y_pred, sample_weight), training)
        missing = [name for name in self.targets if name not in labels]
        if missing:
            raise InputError(f"no {', '.join(missing)} to learn from; a {self.head} model wants them as y, or among x")
        loss = self._loss(y_pred, (x if isinstance(x, Mapping) else {"input_ids": x}) | labels, sample_weight)
        loss /= tf.distribute.get_strategy().num_replicas_in_sync  # Keras sums over the replicas
        return tf.add_n([loss, *(self._aggregate_additional_loss(added) for added in self.losses)])

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """The metrics of a batch, by name."""
        if self.targets:
            y, y_pred, sample_weight = self._compared(self._labels(x, y), y_pred, sample_weight)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def predict_step(self, data):
        """The outputs for a batch; labels among the inputs are left out, but for what a decoder without inputs reads of them."""
        x = data[0] if isinstance(data, tuple) else data
        if isinstance(x, Mapping):
            kept = {name: x[name] for name in (*TOKEN_INPUTS, *DECODER_INPUTS) if name in x}
            if self.head == "seq2seq-lm" and "labels" in x and "decoder_input_ids" not in x:
                kept["decoder_input_ids"] = shift_right(ops, x["labels"], self.config)
            x = kept
        return self(x, training=False)

    def _labels(self, x, y) -> dict:
        """Label name to labels, from ``y`` and, for what it lacks, from the inputs."""
        labels = {name: x[name] for name in self.targets if isinstance(x, Mapping) and name in x}
        if isinstance(y, Mapping):
            names = {output: name for name, output in self.targets.items()}
            return labels | {names.get(name, name): value for name, value in y.items()}
        if isinstance(y, (list, tuple)):
            return labels | dict(zip(self.targets, y))
        if y is not None:
            if len(self.targets) > 1:
                raise InputError(f"y is one array; a {self.head} model wants a dict of {', '.join(self.targets)}")
            labels |= dict.fromkeys(self.targets, y)
        return labels

    def _compared(self, labels, y_pred, sample_weight):
        """y, y_pred and sample_weight for a Keras loss or metric: bare tensors for one output, dicts for several."""
        y_true, outputs, weights = {}, {}, {}
        for name, output in self.targets.items():
            if name in labels:
                logits, wanted, weight = self._align(y_pred[output], labels[name], sample_weight)
                if weight is not None and weight.shape.rank == 1 and wanted.shape.rank == logits.shape.rank - 1 > 1:
                    weight = tf.expand_dims(weight, 1)  # of a row: for each of its labels
                several = (
                    self.config.problem_type == "multi_label_classification" and self.head == "sequence-classification"
                )
                y_true[output], outputs[output], weights[output] = *_masked(logits, wanted, several), weight
            else:
                outputs[output] = y_pred[output]
        if len(self.targets) == 1 and not isinstance(getattr(self, "loss", None), Mapping):
            (output,) = outputs
            return y_true.get(output), outputs[output], weights.get(output)
        return y_true or None, outputs, None if sample_weight is None else weights

    def _align(self, logits, labels, sample_weight):
        return logits, labels, sample_weight


def _with_weights(x, y, options: dict):
    """The inputs with the argument ``sample_weight`` among them where there is no y: Keras would drop it."""
    if y is not None or not isinstance(x, Mapping) or options.get("sample_weight") is None:
        return x
    return {**x, "sample_weight": options.pop("sample_weight")}


def _masked(logits, labels, several: bool = False):
    """Labels without IGNORED, and logits with the mask that Keras' losses and metrics read.

    Args:
        several: whether labels are [B, C], 1 for each that a row has; a row of IGNORED has none at all.
    """
    if labels.shape.rank != logits.shape.rank - (not several) or not (several or labels.dtype.is_integer):
        return labels, logits  # no class ids
    real = tf.not_equal(labels, tf.cast(IGNORED, labels.dtype))
    logits = tf.identity(logits)
    logits._keras_mask = tf.reduce_any(real, axis=-1) if several else real
    return tf.where(real, labels, tf.zeros_like(labels)), logits
