"""What people pass to Keras' fit, evaluate and predict, read as arrays before Keras sees it; and the weights of classes.

Keras itself replicates, moves or drops ``sample_weight`` and ``class_weight`` depending on where the labels are, and does not
take the output of a tokenizer. Here every form of data gets the same treatment.
"""

import inspect
import types
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.heads import Output
from duonlp.labels import WEIGHTS, array_of, check_form, dtype_of, is_integral, is_number, static_shape
from duonlp.typing import Ops

Read = Callable[[Any, Any, Any], tuple[Any, Any, Any]]
"""``(x, y, sample_weight) -> (x, y, sample_weight)``."""


def name_arguments(method: str, *args: Any, **options: Any) -> dict[str, Any]:
    """Return the arguments of a method of keras.Model by name."""
    arguments = inspect.signature(getattr(keras.Model, method)).bind(None, *args, **options).arguments
    arguments |= arguments.pop("kwargs", {})
    return {name: value for name, value in arguments.items() if name != "self"}


def holds_arrays(data: Any) -> bool:
    """Return whether data is in memory: arrays of any framework, lists, or a dict of these such as a BatchEncoding."""
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)) or hasattr(data, "source"):
        return False
    return isinstance(data, (Mapping, list, tuple)) or hasattr(data, "__array__")


def read_array(name: str, value: Any) -> np.ndarray:
    """Return a list, or an array of any framework, as a NumPy array.

    Raises:
        InputError: Rows differ in length, or the tensor is ragged or sparse.
    """
    static_shape(name, value)
    return np.asarray(array_of(name, value))


def read_inputs(x: Any) -> Any:
    """Return inputs as a dict of arrays, or as an array."""
    if isinstance(x, Mapping):
        nested = isinstance(x.get(WEIGHTS), Mapping)
        weights = {WEIGHTS: {n: read_array(WEIGHTS, w) for n, w in x[WEIGHTS].items()}} if nested else {}
        present = {name: value for name, value in x.items() if value is not None and name not in weights}
        return {name: read_array(name, value) for name, value in present.items()} | weights
    return read_array("x", x) if holds_arrays(x) else x


def read_labels(targets: Mapping[str, str], y: Any) -> Any:
    """Return labels as an array, a dict or a tuple of arrays.

    Args:
        targets: Names of the model's labels and of the outputs they train.
        y: Labels: an array or a list, a dict by label or output, or a tuple or list with an array for each label.

    Raises:
        InputError: There are more arrays than labels, or one cannot be read.
    """
    if y is None:
        return None
    if isinstance(y, Mapping):
        return {name: read_array(name, value) for name, value in y.items()}
    names = list(targets) or ["y"]
    if isinstance(y, (list, tuple)) and (len(names) > 1 or (len(y) == 1 and len(getattr(y[0], "shape", ())) > 0)):
        if len(y) > len(names):
            raise InputError(f"y has {len(y)} parts; this model takes {', '.join(names)}")
        return tuple(read_array(name, value) for name, value in zip(names, y))
    return read_array(names[0], y)


def read_weights(targets: Mapping[str, str], y: Any, weights: Any) -> Any:
    """Return ``sample_weight`` in the structure of y, as Keras requires: one array for all labels is that of each.

    Args:
        targets: Names of the model's labels and of the outputs they train.
        y: Labels from :func:`read_labels`, or None.
        weights: An array or a list; a dict by label or output; or a tuple or list with an array for each label.

    Raises:
        InputError: The weights have parts that are not labels.
    """
    if weights is None:
        return None
    if isinstance(weights, (list, tuple)) and np.ndim(weights[0] if weights else 0) > 0:
        if isinstance(y, tuple):
            weights = name_weights(targets, weights)
        elif len(weights) == 1:  # like y
            (weights,) = weights
    if not isinstance(weights, Mapping):
        weights = read_array(WEIGHTS, weights)
        if isinstance(y, Mapping):
            return dict.fromkeys(y, weights)
        return (weights,) * len(y) if isinstance(y, tuple) else weights
    by_label = name_weights(targets, weights)
    if y is None:
        return {name: read_array(WEIGHTS, value) for name, value in by_label.items()}
    if not isinstance(y, (Mapping, tuple)):
        return read_array(WEIGHTS, next(iter(by_label.values())))
    outputs = {output: name for name, output in targets.items()}
    names = list(y) if isinstance(y, Mapping) else list(targets)[: len(y)]
    rows = len(next(iter(y.values()) if isinstance(y, Mapping) else iter(y)))
    parts = [read_array(WEIGHTS, by_label.get(outputs.get(n, n), np.ones(rows, np.float32))) for n in names]
    return dict(zip(names, parts)) if isinstance(y, Mapping) else tuple(parts)


def name_weights(targets: Mapping[str, str], weights: Any) -> Any:
    """Return weights by label if they are a dict by label or output, or a tuple; a single array, or the only one, as it is.

    Raises:
        InputError: A name is neither a label nor an output, there are more parts than labels, or a dict is empty.
    """
    if isinstance(weights, (list, tuple)):
        if len(weights) > len(targets):
            raise InputError(f"{WEIGHTS} has {len(weights)} parts; this model takes {', '.join(targets)}")
        weights = dict(zip(targets, weights))
    if not isinstance(weights, Mapping) or not targets:
        return weights
    outputs = {output: name for name, output in targets.items()}
    weights = {outputs.get(name, name): value for name, value in weights.items()}
    if not weights:
        raise InputError(f"{WEIGHTS} is an empty dict; omit it, or pass weights for {', '.join(targets)}")
    if unknown := weights.keys() - targets.keys():
        raise InputError(f"{WEIGHTS} has {', '.join(sorted(unknown))}; it may have {', '.join([*targets, *outputs])}")
    return weights


class KeepsError:
    """Base of what TensorFlow reads from, which passes on only the text of an error.

    Attributes:
        error: The last error of reading.
    """

    error: Exception | None = None

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


class BatchReader(KeepsError):
    """Reads every batch of a generator or PyDataset, and keeps an error, of which TensorFlow passes on the text alone.

    Args:
        read: Reads and checks a batch.
    """

    def __init__(self, read: Read):
        self.read = read

    def __call__(self, data: Any) -> Any:
        """Return a batch as arrays."""
        try:
            return pack(*self.read(*keras.utils.unpack_x_y_sample_weight(data)))
        except InputError as error:
            self.error = error
            raise

    def wrap(self, data: Any) -> Any:
        """Return a generator or PyDataset that yields arrays; other data unchanged."""
        if isinstance(data, types.GeneratorType):
            return (batch if isinstance(batch, tuple) else (batch,) for batch in map(self, data))
        return ReadDataset(data, self) if isinstance(data, keras.utils.PyDataset) else data


class ReadDataset(keras.utils.PyDataset):
    """A PyDataset that reads the batches of another.

    Args:
        dataset: The other.
        reader: Reads its batches; other processes, to which a model cannot be sent, only convert them to arrays.
    """

    def __init__(self, dataset: keras.utils.PyDataset, reader: BatchReader):
        options = {name: getattr(dataset, name) for name in ("workers", "use_multiprocessing", "max_queue_size")}
        super().__init__(**options)
        self.dataset, self.reader = dataset, convert_batch if dataset.use_multiprocessing else reader

    @property
    def num_batches(self) -> int | None:
        """Number of batches; None if there is no end."""
        return self.dataset.num_batches

    def __len__(self) -> int:
        return len(self.dataset)  # pyrefly: ignore[bad-argument-type]

    def __getitem__(self, index: int) -> Any:
        return self.reader(self.dataset[index])

    def on_epoch_begin(self) -> None:
        """Tell the dataset."""
        self.dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """Tell the dataset."""
        self.dataset.on_epoch_end()


def convert_batch(data: Any) -> Any:
    """Return a batch as arrays, without checks."""
    x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
    y, weights = (
        tuple(map(read_inputs, part)) if isinstance(part, tuple) else read_inputs(part) for part in (y, weights)
    )
    return pack(read_inputs(x), y, weights)


def pack(x: Any, y: Any, weights: Any) -> Any:
    """Return a batch as Keras takes it."""
    return (x, y, weights) if y is None and weights is not None else keras.utils.pack_x_y_sample_weight(x, y, weights)


def labels_to_check(output: Output, config: TransformerConfig, labels: Any) -> np.ndarray | None:
    """Return labels for a Keras loss if they are class ids, whose range can be checked; None for another form.

    Raises:
        InputError: They are not numbers, or there is one number for all rows.
    """
    labels = read_array(output.labels, labels)
    dtype = dtype_of(labels)
    if not labels.ndim:
        raise InputError(f"{output.labels} is a single number; pass one for each row")
    if dtype is not None and not is_number(dtype):
        check_form(output, config, labels)
    if not is_integral(dtype):
        return None
    try:
        check_form(output, config, labels, output.classes(config))
    except InputError:
        return None
    return labels


def loose_labels(ops: Ops, output: Output, config: TransformerConfig, labels: Any) -> Any:
    """Return labels for a Keras loss, which may take other forms than the head's own: only class ids [B, 1] become [B].

    Args:
        ops: Array operations of the framework.
        output: Output of the model's head.
        config: Configuration of the model.
        labels: Labels of the batch.

    Raises:
        InputError: Whether they are class ids cannot be seen, because their rank is unknown.
    """
    if not is_integral(dtype_of(labels)):
        return labels
    shape, is_id = static_shape(output.labels, labels), output.kind_for(config, labels) in ("softmax", "span")
    if shape is None and is_id:
        raise InputError(
            f"{output.labels} has an unknown rank; set it with tf.ensure_shape, and compile again before passing other shapes"
        )
    if is_id and not output.per_token and shape is not None and shape[1:] == (1,):
        labels = ops.reshape(labels, (-1,))
    return ops.cast(labels, "int32")


def map_labels(targets: Mapping[str, str], y: Any, function: Callable[[str, Any], Any]) -> Any:
    """Return ``function(name of the label, array)`` for each array of labels, or of their weights, in their structure.

    Args:
        targets: Names of the model's labels and of the outputs they train.
        y: An array, a dict by label or output, a tuple in the order of the labels, or None.
        function: The function.
    """
    if y is None or not targets:
        return y
    outputs = {output: name for name, output in targets.items()}
    if isinstance(y, Mapping):
        return {name: function(outputs.get(name, name), value) for name, value in y.items()}
    if isinstance(y, tuple):
        return tuple(function(name, value) for name, value in zip(targets, y))
    return function(next(iter(targets)), y)


def weights_as_float32(weights: np.ndarray) -> np.ndarray:
    """Return weights in memory as float32, and [B, 1] as [B]."""
    return (weights[:, 0] if weights.shape[1:] == (1,) else weights).astype(np.float32)


def class_weight_table(
    class_weight: Any, outputs: Sequence[Output], config: TransformerConfig, has_own_loss: bool
) -> tuple[float, ...]:
    """Return the weight of each class; 1 for those that are not named, as in Keras.

    Args:
        class_weight: {class id: weight}.
        outputs: Outputs of the model's head.
        config: Configuration of the model.
        has_own_loss: Whether the loss is that of the head, rather than a Keras loss.

    Raises:
        InputError: It is no such dict, or the labels are not one class per text or token.
    """
    advice = "pass sample_weight with a weight for each row"
    if len(outputs) != 1:
        raise InputError(
            f"class_weight needs a model with one kind of labels, and this one has {len(outputs)}; {advice}"
        )
    (output,) = outputs
    kind, size = output.kind_for(config), output.classes(config)
    if has_own_loss and output.is_by_problem_type and kind != "softmax":
        raise InputError(f"class_weight needs one class per text, but this model's problem is {kind}; {advice}")
    if not isinstance(class_weight, Mapping) or not class_weight:
        raise InputError(f"class_weight is {class_weight!r}; pass a dict such as {{0: 1.0, 1: 5.0}}")
    for key, weight in class_weight.items():
        is_id = isinstance(key, (int, np.integer)) and not isinstance(key, bool) and key >= 0
        if not is_id or (size is not None and kind == "softmax" and key >= size):
            raise InputError(f"class_weight has the class {key!r}; classes are integers from 0 to {(size or 2) - 1}")
        if not isinstance(weight, (int, float, np.number)) or not np.isfinite(weight):
            raise InputError(f"class_weight gives class {key} the weight {weight!r}; weights are finite numbers")
    return tuple(float(class_weight.get(i, 1.0)) for i in range(max(class_weight) + 1))


def class_weights(table: Sequence[float], output: Output, labels: tf.Tensor, classes: int | None) -> tf.Tensor:
    """Return the weight of each label, float32 [B] or [B, T]; 1 for classes beyond the table and ignored labels.

    Args:
        table: From :func:`class_weight_table`.
        output: Output of the model's head.
        labels: Class ids; or, for a Keras loss, one-hot rows.
        classes: Number of classes.

    Raises:
        InputError: The labels name no class.
    """
    rank = 2 if output.per_token else 1
    if labels.shape.rank == rank + 1 and labels.shape[-1] == 1:
        labels = tf.squeeze(labels, -1)
    elif labels.shape.rank == rank + 1 and labels.shape[-1] == classes:
        labels = tf.argmax(labels, axis=-1, output_type=tf.int32)
    if labels.shape.rank != rank:
        raise InputError(
            f"class_weight cannot tell the classes of {output.labels} of shape {labels.shape}; pass class ids, or sample_weight"
        )
    ids = labels if labels.dtype.is_integer else tf.round(labels)
    ids, last = tf.cast(ids, tf.int32), len(table) - 1
    weights = tf.gather(tf.constant(table, tf.float32), tf.clip_by_value(ids, 0, last))
    return tf.where((ids >= 0) & (ids <= last), weights, 1.0)


def like_labels(y: Any, weights: tf.Tensor) -> Any:
    """Return weights in the structure of y."""
    if isinstance(y, Mapping):
        return dict.fromkeys(y, weights)
    return tuple(weights for _ in y) if isinstance(y, (list, tuple)) else weights
