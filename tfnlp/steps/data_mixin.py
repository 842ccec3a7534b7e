"""Read what Keras' fit, evaluate and predict are passed: the same forms of labels and weights wherever they are."""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import tensorflow as tf

from duonlp import numpy_ops
from duonlp.errors import InputError
from duonlp.heads import outputs_of, standard_batch, targets_of
from duonlp.inputs import named_inputs
from duonlp.labels import WEIGHTS, standard_labels, standard_weights
from duonlp.typing import Array
from tfnlp import ops
from tfnlp.steps import keras_data
from tfnlp.steps.step import TrainStep


class DataMixin(TrainStep):
    """Mixin that reads and checks data before Keras sees it, and multiplies the weights of classes in.

    Attributes:
        train_function: Function of a training step; None before it is made.
    """

    train_function: Any
    _class_weights: tuple[float, ...] | None = None

    @property
    def targets(self) -> dict[str, str]:
        """Label name to the name of the output that its loss is computed from."""
        return targets_of(self.head, self.config)

    @property
    def _loss_head(self) -> str:
        """Head that describes how outputs and labels compare."""
        return self.head

    def check_batch(self, batch: Array | Mapping[str, Array], y: Any = None) -> None:
        """Raise InputError for a batch of NumPy arrays that the model cannot train on."""
        raise NotImplementedError

    def _check_labels(self, labels: Mapping[str, Any]) -> None:
        """Raise InputError if a label of the head is missing."""
        raise NotImplementedError

    def predict(self, x: Any, *args: Any, **options: Any) -> Any:
        """Compute the outputs; see keras.Model.predict."""
        reader = keras_data.BatchReader(lambda x, y, weights: (keras_data.read_inputs(x), None, None))
        return super().predict(reader.wrap(keras_data.read_inputs(x)), *args, **options)

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, class_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Train the model on one batch; see keras.Model.train_on_batch."""
        self._set_class_weights(class_weight)
        return super().train_on_batch(*self._read_tensors(x, y, sample_weight), return_dict=return_dict)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """Evaluate the model on one batch; see keras.Model.test_on_batch."""
        return super().test_on_batch(*self._read_tensors(x, y, sample_weight), return_dict=return_dict)

    def predict_on_batch(self, x: Any) -> Any:
        """Compute the outputs for one batch; see keras.Model.predict_on_batch."""
        return super().predict_on_batch(keras_data.read_inputs(x))

    def _read(self, x: Any, y: Any, weights: Any) -> tuple[Any, Any, Any]:
        """Return data in memory as checked arrays; weights of labels that are among the inputs join them there."""
        x, y = keras_data.read_inputs(x), keras_data.read_labels(self.targets, y)
        weights = keras_data.read_weights(self.targets, y, weights)
        if y is None and weights is not None:
            x, weights = {**named_inputs(self.config, x), WEIGHTS: weights}, None
        self.check_batch(x if weights is None else {**named_inputs(self.config, x), WEIGHTS: weights}, y)
        # In one form, since TensorFlow compiles a step once more for each rank, and then for an unknown one.
        outputs = {output.labels: output for output in outputs_of(self._loss_head, self.config)}
        convert = keras_data.loose_labels if self._compile_loss is not None else standard_labels

        def standard(name: str, values: Any) -> Any:
            if name == WEIGHTS:
                return keras_data.map_labels(self.targets, values, lambda _, part: keras_data.weights_as_float32(part))
            return convert(numpy_ops, outputs[name], self.config, values) if name in outputs else values

        if isinstance(x, Mapping):
            x = {name: standard(name, values) for name, values in x.items()}
        return x, keras_data.map_labels(self.targets, y, standard), standard(WEIGHTS, weights)

    def _read_tensors(self, x: Any, y: Any, weights: Any) -> tuple[Any, Any, Any]:
        x, y, weights = self._read(x, y, weights)
        y, weights = (v if v is None else tf.nest.map_structure(tf.convert_to_tensor, v) for v in (y, weights))
        return tf.nest.map_structure(tf.convert_to_tensor, x), y, weights

    @contextmanager
    def _read_data(self, options: dict[str, Any]) -> Generator[None]:
        """Read and check what fit or evaluate is passed, now or, of a dataset, generator or PyDataset, batch by batch.

        Args:
            options: Arguments of fit or evaluate by name; data among them is replaced.
        """
        reader, validation = keras_data.BatchReader(self._read), options.get("validation_data")
        x, y, weights = (options.get(name) for name in ("x", "y", WEIGHTS))
        if keras_data.holds_arrays(x):
            options |= dict(zip(("x", "y", WEIGHTS), self._read(x, y, weights)))
        else:
            options["x"] = reader.wrap(self._distribute(x))
        if keras_data.holds_arrays(validation):
            options["validation_data"] = self._read(*keras.utils.unpack_x_y_sample_weight(validation))
        elif validation is not None:
            options["validation_data"] = reader.wrap(self._distribute(validation))
        with ExitStack() as stack:
            stack.enter_context(reader.errors())
            for data in (x, validation):
                source: Any = getattr(data, "source", None)  # set by batch_dataset
                if not hasattr(source, "errors"):
                    continue
                stack.enter_context(source.errors())
                if source.check is None:
                    source.check = self.check_batch
                    stack.callback(setattr, source, "check", None)
            yield

    def _set_class_weights(self, class_weight: Any) -> None:
        """Set the ``class_weight`` of the steps that follow, which are compiled again if it differs."""
        table = None
        if class_weight is not None:
            outputs = outputs_of(self._loss_head, self.config)
            table = keras_data.class_weight_table(class_weight, outputs, self.config, self._compile_loss is None)
        if table != self._class_weights:
            self._class_weights, self.train_function = table, None

    def _weigh_classes(self, data: Any) -> Any:
        """Return a batch of a dataset with ``sample_weight`` multiplied by the weights of the labels' classes."""
        if self._class_weights is None:
            return data
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        batch, (output,) = self._as_batch(data), outputs_of(self._loss_head, self.config)
        self._check_labels(batch)
        labels = batch[output.labels]
        weights = keras_data.class_weights(self._class_weights, output, labels, output.classes(self.config))
        rows = standard_weights(ops, output, labels, batch.get(WEIGHTS))
        if rows is not None:
            rank = max(weights.shape.rank, rows.shape.rank)
            weights, rows = (ops.expand_dims(w, tuple(range(w.shape.rank, rank))) for w in (weights, rows))
            weights = weights * rows
        if y is None:
            return {**x, WEIGHTS: weights}
        return x, y, keras_data.like_labels(y, weights)

    def _distribute(self, data: Any) -> Any:
        """Give each replica its rows of a ``batch_dataset``; return other data unchanged."""
        if isinstance(data, tf.data.Dataset) and hasattr(data, "source") and self._replicas() > 1:
            return data.source.dataset(self.distribute_strategy)
        return data

    def _standard_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch with labels and weights in the form that the losses take, see duonlp.labels."""
        if WEIGHTS in batch:
            batch[WEIGHTS] = keras_data.name_weights(self.targets, batch[WEIGHTS])
            if isinstance(batch[WEIGHTS], Mapping) and len(self.targets) == 1:
                (batch[WEIGHTS],) = batch[WEIGHTS].values()
        if self._compile_loss is None:
            return standard_batch(ops, self._loss_head, self.config, batch)
        outputs = [output for output in outputs_of(self._loss_head, self.config) if output.labels in batch]
        return batch | {o.labels: keras_data.loose_labels(ops, o, self.config, batch[o.labels]) for o in outputs}

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
