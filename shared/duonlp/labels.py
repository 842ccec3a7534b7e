"""Labels and weights as people have them: the forms that train, what they are converted to, and which are refused.

One rule per form, the same for every head, entry and engine. It depends on dtype and shape alone, so that it also holds for
traced arrays; values are checked where they are concrete.

| labels | shape | dtype |
| --- | --- | --- |
| one class or position per text | [B] or [B, 1] | integers of any width, bool |
| one class or token id per token | [B, T] | integers of any width, bool |
| several classes per text | [B, C] | integers, bool or floats: 1 for each class of a text, or its probability |
| numbers | [B] or [B, 1]; [B, C] if the model has C > 1 outputs | integers, bool or floats |

Everything else is an InputError that says what to pass: one-hot rows for one class, floats as class ids, text, NaN, and
ragged or sparse tensors.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.typing import Array, Ops

if TYPE_CHECKING:
    from duonlp.heads import Output

IGNORED = -100
"""Label that the loss ignores."""

WEIGHTS = "sample_weight"
"""Optional entry of a batch: [B], or of the labels' shape; in tfnlp also a dict of these by the names of labels or outputs."""

ARRAY_PACKAGES = ("numpy", "tensorflow", "keras", "jax", "jaxlib")
"""Packages whose arrays have a shape and a dtype that NumPy can name."""

Shape = tuple[int | None, ...]
"""A shape with None for each unknown size."""


def array_of(name: str, value: Any) -> Array:
    """Return lists, pandas objects, PyTorch tensors and the like as a NumPy array; other arrays unchanged.

    Raises:
        InputError: Rows differ in length, or the values cannot be read.
    """
    if isinstance(value, Mapping):
        raise InputError(f"{name} is a dict of {', '.join(map(str, value))}; pass an array")
    if type(value).__module__.split(".")[0] in ARRAY_PACKAGES:
        return value
    try:
        return np.asarray(value)
    except NotImplementedError:  # only the shape is known
        return value
    except ValueError:
        raise InputError(f"{name}: rows differ in length; pass padding=True to the tokenizer") from None
    except Exception as error:
        raise InputError(
            f"{name} is a {type(value).__name__} that NumPy cannot read ({error}); pass a NumPy array"
        ) from None


def concrete_array(values: Any) -> np.ndarray | None:
    """Return the values as an array; None if they are missing, traced, symbolic, or on other processes' devices."""
    if values is None:
        return None
    kinds = {kind.__name__ for kind in type(values).__mro__}
    if kinds & {"Tracer", "KerasTensor", "SymbolicTensor"} or not getattr(values, "is_fully_addressable", True):
        return None
    try:
        return np.asarray(values)
    except NotImplementedError:  # a TensorFlow variable inside a graph
        return None


def static_shape(name: str, values: Any) -> Shape | None:
    """Return the shape with None for each unknown size; None if even the rank is unknown.

    Raises:
        InputError: Rows differ in length, or the tensor is ragged or sparse.
    """
    form = type(values).__name__
    if "Ragged" in form or "Sparse" in form:
        raise InputError(f"{name} is a {form}; pass a dense tensor, padded with {IGNORED} where there is no label")
    if not hasattr(values, "shape"):
        return np.shape(array_of(name, values))
    if getattr(values.shape, "rank", 0) is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in values.shape)


def dtype_of(values: Array) -> np.dtype | None:
    """Return the dtype of an array of any framework; None if it has none."""
    dtype = getattr(values, "dtype", None)
    return None if dtype is None else np.dtype(getattr(dtype, "as_numpy_dtype", dtype))


def is_integral(dtype: np.dtype | None) -> bool:
    """Return whether values of a dtype are class ids: integers or bool; True if the dtype is unknown."""
    return dtype is None or dtype.kind in "iub"


def class_ids(ops: Ops, labels: Array, name: str = "labels") -> Array:
    """Return class ids, token ids or positions as int32.

    Raises:
        InputError: They are not integers.
    """
    if not is_integral(dtype_of(labels)):
        raise InputError(
            f"{name} must be integers, got {dtype_of(labels)}; pass class ids, such as {name}.astype('int32')"
        )
    return ops.cast(labels, "int32")


def check_form(output: "Output", config: TransformerConfig, labels: Array, classes: int | None = None) -> str:
    """Return the kind of the logits that labels are for, see :class:`duonlp.heads.Output`.

    Args:
        output: Output of the model's head that they train.
        config: Configuration of the model.
        labels: Labels, of which only the dtype and the shape are read.
        classes: Size of the labels' axis of classes, if they have one; None for any.

    Raises:
        InputError: The loss does not take labels of this form.
    """
    name = output.labels
    dtype, shape = dtype_of(labels), static_shape(name, labels)
    if dtype is not None and not is_number(dtype):
        raise InputError(
            f"{name} must be numbers, got {'text' if dtype.kind in 'US' else dtype}; map names to ids with "
            "model.config.label2id, and leave no value out"
        )
    kind = output.kind_for(config, None if dtype is None else labels)
    rank = label_rank(output, config, kind)
    if kind in ("softmax", "span") and not is_integral(dtype):
        raise InputError(f"{name} must be integers, got {dtype}; pass class ids, such as {name}.astype('int32')")
    if shape is None:  # only known when a graph runs, which then fails
        return kind
    width = 1 if len(shape) > rank else None if output.per_token or rank == 1 else classes
    if len(shape) in (rank, 2) and (width is None or shape[-1] in (None, width)):
        return kind
    texts = "[batch, length]" if output.per_token else "[batch]"
    per_class = f"[batch, {output.classes(config) or 'classes'}]"
    if kind in ("softmax", "span"):
        expected = f"takes one class per {'token' if output.per_token else 'text'}, {texts}"
        remedy = f"for one-hot rows, pass {name}.argmax(-1)"
        if output.is_by_problem_type:
            remedy += "; for several classes per text, load the model with problem_type='multi_label_classification'"
    elif kind == "bernoulli":
        expected = f"takes a number per {'token, ' + texts if output.per_token else 'class, ' + per_class}"
        remedy = f"for one class per text, pass integers, such as {name}.astype('int32')"
        if config.problem_type is not None:
            remedy = "for one class per text, load the model with problem_type='single_label_classification'"
    else:
        expected, remedy = f"takes numbers, {texts if rank == 1 else per_class}", "reshape them"
    given = name if dtype is None else f"{name} ({dtype})"
    raise InputError(f"{given} has shape {shape}, but this model {expected}; {remedy}")


def is_number(dtype: np.dtype) -> bool:
    """Return whether values of a dtype are integers, bool, or floats, the half-precision ones of JAX included."""
    return dtype.kind in "iubf" or "float" in dtype.name


def label_rank(output: "Output", config: TransformerConfig, kind: str) -> int:
    """Return the rank of an output's labels as its loss takes them."""
    if output.per_token or kind == "bernoulli" or (kind == "regression" and config.num_labels > 1):
        return 2
    return 1


def standard_labels(ops: Ops, output: "Output", config: TransformerConfig, labels: Array) -> Array:
    """Return labels in the form that the losses take.

    Args:
        ops: Array operations of the framework.
        output: Output of the model's head that they train.
        config: Configuration of the model.
        labels: Labels in any form of the module's table; may be traced.

    Returns:
        Class ids or positions as int32 [B] or [B, T]; numbers as float32 [B], [B, C] or [B, T].

    Raises:
        InputError: The loss does not take labels of this form.
    """
    kind = check_form(output, config, labels)
    rank = label_rank(output, config, kind)
    shape = static_shape(output.labels, labels)
    if shape is None or len(shape) > rank:  # [B, 1], or a shape that is only known when a graph runs
        labels = ops.reshape(labels, (-1,) if rank == 1 else (ops.size(labels, 0), -1))
    return ops.cast(labels, "int32" if kind in ("softmax", "span") else "float32")


def check_values(
    output: "Output", config: TransformerConfig, labels: Any, choices: int | None = None, attended: Any = None
) -> None:
    """Raise InputError for labels whose form or values the loss does not take; of traced labels, check the form.

    Args:
        output: Output of the model's head that they train.
        config: Configuration of the model.
        labels: Labels.
        choices: Number of choices of a multiple-choice batch, if known.
        attended: Attention mask [B, T], or None.
    """
    name, labels = output.labels, array_of(output.labels, labels)
    if static_shape(name, labels) is None:
        return
    kind = check_form(output, config, labels, output.classes(config))
    array = concrete_array(labels)
    if array is None:
        return
    if kind == "span":
        expected = (
            "but positions are 0 to 2147483647; use 0, the first token, for no answer, or one beyond the sequence"
        )
        _refuse(name, array, (array < 0) | (array > 2**31 - 1), expected)
    elif kind == "softmax":
        size = choices if output.over == "choices" else output.classes(config)
        if size is not None:
            ids = "token ids" if output.over == "vocabulary" else "class ids"
            expected = f"but this model's {ids} are 0 to {size - 1}; use {IGNORED} where there is no label"
            _refuse(name, array, (array != IGNORED) & ((array < 0) | (array >= size)), expected)
    else:
        array = array.astype(np.float64)
        _refuse(name, array, ~np.isfinite(array), "but a loss needs finite numbers; drop the row or fill in its label")
        mask = np.ones(array.shape) if attended is None else concrete_array(attended)
        if output.counts_attended and mask is not None and mask.shape == array.shape:
            expected = "but a replaced token has the label 1 and others 0; leave padding out with attention_mask"
            _refuse(name, array, (mask != 0) & ((array < 0) | (array > 1)), expected)


def _refuse(name: str, array: np.ndarray, invalid: np.ndarray, expected: str) -> None:
    """Raise InputError if a value is invalid, which the message names with its row."""
    if invalid.any():
        index = tuple(np.argwhere(invalid)[0])
        raise InputError(f"row {index[0]} of {name} contains {array[index]}, {expected}")


def standard_weights(ops: Ops, output: "Output", labels: Array, weights: Any) -> Array | None:
    """Return the weights of an output's labels as float32 [B] or of the labels' shape; None for weights of 1.

    Args:
        ops: Array operations of the framework.
        output: Output of the model's head.
        labels: Its labels, from :func:`standard_labels`.
        weights: The batch's ``sample_weight``: [B], [B, 1], of the labels' shape, or a dict of these; may be traced.

    Raises:
        InputError: The weights fit neither the rows nor the labels.
    """
    if isinstance(weights, Mapping):
        weights = weights.get(output.labels, weights.get(output.logits))
    if weights is None:
        return None
    check_weight_form(output, labels, weights)
    weights, shape = ops.cast(weights, "float32"), static_shape(WEIGHTS, weights)
    if shape is not None and len(shape) == 1:
        return weights
    if len(labels.shape) == 1 or (shape is not None and shape[1:] == (1,)):  # [B, 1]
        return ops.reshape(weights, (-1,))
    if shape is None or len(shape) == 2:  # perhaps [B, 1], which only a graph knows
        weights = weights if shape is not None else ops.reshape(weights, (ops.size(weights, 0), -1))
        return ops.broadcast_to(weights, (ops.size(labels, 0), ops.size(labels, 1)))
    return weights


def check_weight_form(output: "Output", labels: Array, weights: Any) -> None:
    """Raise InputError unless weights are numbers [B], [B, 1] or of the labels' shape, and finite if they are concrete."""
    weights = array_of(WEIGHTS, weights)
    dtype, shape, of_labels = dtype_of(weights), static_shape(WEIGHTS, weights), static_shape("labels", labels)
    if dtype is not None and not is_number(dtype):
        raise InputError(f"{WEIGHTS} must be numbers, got {dtype}; pass one per row")
    if shape is None or of_labels is None:
        return
    column = len(shape) == 2 and shape[1] == 1
    leading = shape[:1] if column else shape
    if not leading or len(leading) > len(of_labels) or not _match(leading, of_labels):
        raise InputError(
            f"{WEIGHTS} has shape {shape} and {output.labels} {of_labels}; pass one weight per row, [batch], or one per label"
        )
    array = concrete_array(weights)
    if array is not None:
        _refuse(WEIGHTS, array, ~np.isfinite(array.astype(np.float64)), "but weights are finite numbers")


def check_against_logits(output: "Output", kind: str, labels: Array, logits: Array) -> None:
    """Raise InputError unless standard labels have the shape that the logits of their output require, where it is known."""
    shape, sizes = static_shape(output.labels, labels), static_shape(output.logits, logits)
    if shape is None or sizes is None:
        return
    expected = sizes[:-1] if kind == "softmax" else sizes[: len(shape)]
    if not _match(shape, expected):
        raise InputError(
            f"{output.labels} has shape {shape} but {output.logits} {sizes}; pass labels of shape {expected}"
        )


def _match(shape: Shape, other: Shape) -> bool:
    """Return whether two shapes agree in the axes that both have, where both are known."""
    return all(None in pair or pair[0] == pair[1] for pair in zip(shape, other))
