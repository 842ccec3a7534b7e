"""A student made of some of its teacher's layers, in what needs no framework: which layers, its configuration, its values.

Sanh et al. 2019 (DistilBERT, https://arxiv.org/abs/1910.01108) began with every other layer of BERT; so did Shleifer and
Rush 2020 (https://arxiv.org/abs/2010.13002) with the decoders of summarisers.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from duonlp import architectures
from duonlp.config import TransformerConfig
from duonlp.errors import ConfigError, InputError
from duonlp.parameters import Parameter, parameters

LAYER = re.compile(r"(\w+)/layer_(\d+)/(.+)")


def chosen_layers(
    total: int, num_layers: int | None = None, layers: Sequence[int] | None = None, what: str = "layers"
) -> tuple[int, ...]:
    """Which of ``total`` layers are taken, counted from 0.

    Evenly spaced ones have the first and the last among them: 6 of 12 are 0, 2, 4, 7, 9 and 11, those of DistilBERT. One
    layer alone is the first.

    Args:
        num_layers: how many, evenly spaced.
        layers: or the layers themselves, in the student's order; negative ones count from the end.
        what: the name of ``layers``, for messages. With neither it is all of them.

    Raises:
        InputError: both are given, there are not so many, one is there twice, or there is none.
    """
    if num_layers is not None and layers is not None:
        raise InputError(f"num_layers is {num_layers} and {what} {list(layers)}; give one of the two")
    if layers is not None:
        wrong = [
            i for i in layers if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or not -total <= i < total
        ]
        if wrong or not len(layers):
            raise InputError(
                f"{what} is {list(layers)}; the teacher's {total} are numbered from 0 to {total - 1}, or from -{total} to -1"
            )
        chosen = tuple(int(i) % total for i in layers)
        if len(set(chosen)) < len(chosen):
            raise InputError(f"{what} is {list(layers)}, which takes a layer twice; name each once")
        return chosen
    if num_layers is None:
        return tuple(range(total))
    if isinstance(num_layers, bool) or not isinstance(num_layers, (int, np.integer)) or not 1 <= num_layers <= total:
        raise InputError(
            f"{num_layers!r} {what} are asked for, and the teacher has {total}; give a number from 1 to {total}"
        )
    return tuple(int(i) for i in np.rint(np.linspace(0, total - 1, num_layers)))


@dataclass(frozen=True)
class Student:
    """What a student is made of.

    config: the student's. teacher: the teacher's.
    steps: of each stack, which of the teacher's steps each of the student's is.
    """

    config: TransformerConfig
    teacher: TransformerConfig
    steps: dict[str, tuple[int, ...]]


def student_config(
    config: TransformerConfig, head: str, *, num_layers=None, layers=None, decoder_layers=None
) -> Student:
    """The configuration of a student with some of the layers of a teacher, and where each of them comes from.

    Layers that share weights (ALBERT) go on sharing them.

    Args:
        config, head: of the teacher.
        num_layers, layers: as chosen_layers has them; of an encoder-decoder, they are those of the encoder.
        decoder_layers: of an encoder-decoder's decoder, a number or a sequence; None for all.

    Raises:
        InputError: as chosen_layers; decoder_layers for a model without a second stack; or weights shared in an order that
            the family's config.json cannot tell.
    """
    steps = {config.stack: chosen_layers(config.num_layers, num_layers, layers)}
    new = replace(config, layer_order=_renumbered(config.layer_order, steps[config.stack]))
    if config.decoder is not None:
        total = len(config.decoder.layer_order)
        several = decoder_layers is not None and not isinstance(decoder_layers, (int, np.integer))
        numbers = (None, decoder_layers) if several else (decoder_layers, None)
        steps["decoder"] = chosen_layers(total, *numbers, what="decoder_layers")
        order = _renumbered(config.decoder.layer_order, steps["decoder"])
        new = replace(new, decoder=replace(config.decoder, layer_order=order))
    elif decoder_layers is not None:
        raise InputError(
            f"decoder_layers is {decoder_layers!r}, and a {config.model_type} has one stack of layers; say num_layers or layers"
        )
    try:
        told = architectures.config_from_hf(architectures.hf_config(new, head))
    except ConfigError:
        told = None
    if told is None or told.layer_order != new.layer_order:
        raise InputError(
            f"the layers of this {config.model_type} apply their weights in the order {list(config.layer_order)}, and its "
            f"config.json cannot tell that of steps {list(steps[config.stack])}, {list(new.layer_order)}; choose other layers"
        )
    return Student(new, config, steps)


def _renumbered(order: Sequence[int], steps: Sequence[int]) -> tuple[int, ...]:
    """Which sets of weights the steps that are left apply, numbered without gaps."""
    kept = list(dict.fromkeys(order[step] for step in steps))
    return tuple(kept.index(order[step]) for step in steps)


def source_path(path: str, student: Student) -> tuple[str, float]:
    """The teacher's parameter that one of the student's starts as, and what it is multiplied by.

    The factor is 1 but for queries whose scores are divided by the number of their layer (GPT-2's
    scale_attn_by_inverse_layer_idx): the number is another one in the student, and the product stays the same.
    """
    found = LAYER.fullmatch(path)
    if not found:
        return path, 1.0
    stack, number, rest = found[1], int(found[2]), found[3]
    new, old = (c if stack == c.stack else c.as_decoder() for c in (student.config, student.teacher))
    mine = new.layer_order.index(number)
    theirs = student.steps[stack][mine]
    factor = 1.0
    if old.attention.scale_by_layer and rest.startswith("attention/query/"):
        factor = (mine + 1) / (theirs + 1)
    return f"{stack}/layer_{old.layer_order[theirs]}/{rest}", factor


@dataclass(frozen=True)
class CopiedSource:
    """Where a student's parameter comes from, as duonlp.checkpoints.Source is for one that is loaded."""

    path: str
    parameter: Parameter
    values: Callable[[], np.ndarray]
    factor: float = 1.0

    def read(self, dtype=np.float32) -> np.ndarray:
        """The values, in memory of their own."""
        values = self.values()
        return np.array(
            values if self.factor == 1 else values * np.asarray(self.factor, values.dtype), dtype, order="C"
        )

    def chunks(self, dtype=np.float32, max_bytes: int = 4 << 20):
        """(0, all of them)."""
        yield 0, self.read(dtype)


def student_plan(student: Student, head: str, read: Callable[[str], np.ndarray]) -> list[CopiedSource]:
    """Every parameter of the student; ``read`` gives the values of a teacher's path."""
    plan = []
    for path, parameter in parameters(student.config, head).items():
        source, factor = source_path(path, student)
        plan.append(CopiedSource(path, parameter, lambda source=source: read(source), factor))
    return plan
