"""Build a student from some of its teacher's layers: which layers, its configuration, and where its parameters come from.

Sanh et al. 2019 (DistilBERT, https://arxiv.org/abs/1910.01108) initialized from every other layer of BERT, and Shleifer and
Rush 2020 (https://arxiv.org/abs/2010.13002) did the same with the decoders of summarization models.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from duonlp import architectures
from duonlp.config import TransformerConfig
from duonlp.errors import ConfigError, InputError
from duonlp.parameters import Parameter, parameters

LAYER = re.compile(r"(\w+)/layer_(\d+)/(.+)")


def choose_layers(
    total: int, num_layers: int | None = None, layers: Sequence[int] | None = None, what: str = "layers"
) -> tuple[int, ...]:
    """Return the indices of the layers to copy, out of `total`.

    Evenly spaced layers include the first and the last: 6 of 12 are 0, 2, 4, 7, 9 and 11, as in DistilBERT. A single layer is
    the first.

    Args:
        total: Number of layers of the teacher.
        num_layers: Number of evenly spaced layers to copy.
        layers: Alternatively, the layers themselves in the student's order; negative indices count from the end. With neither,
            all layers are copied.
        what: Name of the argument `layers`, for error messages.

    Raises:
        InputError: Both arguments are given, a layer is out of range or repeated, or no layer is left.
    """
    if num_layers is not None and layers is not None:
        raise InputError(f"num_layers is {num_layers} and {what} is {list(layers)}; give only one of them")
    if layers is not None:
        invalid = [
            i for i in layers if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or not -total <= i < total
        ]
        if invalid or not len(layers):
            raise InputError(
                f"{what} is {list(layers)}; the teacher's {total} layers are numbered from 0 to {total - 1} (or from -{total} "
                "to -1)"
            )
        chosen = tuple(int(i) % total for i in layers)
        if len(set(chosen)) < len(chosen):
            raise InputError(f"{what} is {list(layers)}, which repeats a layer; list each once")
        return chosen
    if num_layers is None:
        return tuple(range(total))
    if isinstance(num_layers, bool) or not isinstance(num_layers, (int, np.integer)) or not 1 <= num_layers <= total:
        raise InputError(f"cannot copy {num_layers!r} {what} of the teacher's {total}; give a number from 1 to {total}")
    return tuple(int(i) for i in np.rint(np.linspace(0, total - 1, num_layers)))


@dataclass(frozen=True)
class Student:
    """The configuration of a student and its relation to the teacher.

    Attributes:
        config: Configuration of the student.
        teacher: Configuration of the teacher.
        steps: For each stack, the index of the teacher's layer that each of the student's layers copies.
    """

    config: TransformerConfig
    teacher: TransformerConfig
    steps: dict[str, tuple[int, ...]]


def student_config(
    config: TransformerConfig,
    head: str,
    *,
    num_layers: int | None = None,
    layers: Sequence[int] | None = None,
    decoder_layers: int | Sequence[int] | None = None,
) -> Student:
    """Return the configuration of a student with some of a teacher's layers, and the origin of each layer.

    Layers that share weights (ALBERT) keep sharing them.

    Args:
        config: Configuration of the teacher.
        head: Head of the teacher.
        num_layers: As for :func:`choose_layers`; in an encoder-decoder, of the encoder.
        layers: As for :func:`choose_layers`; in an encoder-decoder, of the encoder.
        decoder_layers: Number or indices of decoder layers of an encoder-decoder; None for all.

    Raises:
        InputError: The layers are invalid, decoder_layers is given for a model with a single stack, or the resulting order of
            shared weights cannot be expressed in the family's config.json.
    """
    steps = {config.stack: choose_layers(config.num_layers, num_layers, layers)}
    new = replace(config, layers=config.layers.select(steps[config.stack]))
    if config.decoder is not None:
        total = config.decoder.num_layers
        if decoder_layers is None or isinstance(decoder_layers, (int, np.integer)):
            steps["decoder"] = choose_layers(total, decoder_layers, what="decoder_layers")
        else:
            steps["decoder"] = choose_layers(total, layers=decoder_layers, what="decoder_layers")
        new = replace(new, decoder=replace(config.decoder, layers=config.decoder.layers.select(steps["decoder"])))
    elif decoder_layers is not None:
        raise InputError(
            f"decoder_layers is {decoder_layers!r}, but {config.model_type} has one stack of layers; use num_layers or layers"
        )
    try:
        restored = architectures.config_from_hf(architectures.hf_config(new, head))
    except ConfigError:
        restored = None
    if restored is None or restored.layer_order != new.layer_order:
        raise InputError(
            f"this {config.model_type} applies its layer weights in the order {list(config.layer_order)}, and config.json cannot "
            f"express the order {list(new.layer_order)} that layers {list(steps[config.stack])} give; choose other layers"
        )
    if restored.layers != new.layers:
        raise InputError(
            f"the layers of this {config.model_type} differ, and its config.json cannot express a model of layers "
            f"{list(steps[config.stack])}; choose others, with the first layer among them"
        )
    return Student(new, config, steps)


def source_path(path: str, student: Student) -> tuple[str, float]:
    """Return the teacher's parameter that a student's parameter is copied from, and a factor on its values.

    The factor is 1 except for queries whose scores are divided by the layer number (GPT-2's scale_attn_by_inverse_layer_idx):
    the layer has another number in the student, and the factor keeps the scores the same.
    """
    match = LAYER.fullmatch(path)
    if not match:
        return path, 1.0
    stack, number, rest = match[1], int(match[2]), match[3]
    new, old = (c if stack == c.stack else c.as_decoder() for c in (student.config, student.teacher))
    student_step = new.layer_order.index(number)
    teacher_step = student.steps[stack][student_step]
    factor = 1.0
    if old.layers[teacher_step].attention.scale_by_layer and rest.startswith("attention/query/"):
        factor = (student_step + 1) / (teacher_step + 1)
    return f"{stack}/layer_{old.layer_order[teacher_step]}/{rest}", factor


@dataclass(frozen=True)
class CopiedSource:
    """The origin of a student's parameter; the counterpart of duonlp.checkpoints.Source for loaded parameters.

    Attributes:
        path: Path of the parameter in the student.
        parameter: Its shape and initialization.
        values: Function that returns the teacher's values.
        factor: Factor on the values.
    """

    path: str
    parameter: Parameter
    values: Callable[[], np.ndarray]
    factor: float = 1.0

    def read(self, dtype: DTypeLike = np.float32) -> np.ndarray:
        """Return a copy of the values."""
        values = self.values()
        return np.array(
            values if self.factor == 1 else values * np.asarray(self.factor, values.dtype), dtype, order="C"
        )

    def chunks(self, dtype: DTypeLike = np.float32, max_bytes: int = 4 << 20) -> Iterator[tuple[int, Any]]:
        """Yield (0, all values)."""
        yield 0, self.read(dtype)


def student_plan(student: Student, head: str, read: Callable[[str], np.ndarray]) -> list[CopiedSource]:
    """Return the origin of every parameter of a student.

    Args:
        student: Result of :func:`student_config`.
        head: Head of the student.
        read: Function from a teacher's parameter path to its values.
    """
    plan = []
    for path, parameter in parameters(student.config, head).items():
        source, factor = source_path(path, student)
        plan.append(CopiedSource(path, parameter, lambda source=source: read(source), factor))
    return plan
