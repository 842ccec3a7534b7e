"""Settings of knowledge distillation, validated once.

The loss is ``alpha * task + (1 - alpha) * T^2 * KL(teacher || student) + sum of weight * loss``, where task is the student's loss
on the labels and the KL is between softmaxes of logits / T (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np

from duonlp.errors import InputError
from duonlp.util.suggestions import nearest, unknown_setting

POSITIONS = ("attended", "labelled")
"""Tokens that a per-token KL counts: those that are not padding, or those with a label."""

Pairs: TypeAlias = tuple[tuple[int, int], ...]
"""(student index, teacher index) pairs."""


@dataclass(frozen=True)
class HiddenStates:
    """Loss that matches hidden states, averaged over pairs of states.

    It is their mean squared error ("mse"; Jiao et al. 2020, https://arxiv.org/abs/1909.10351) or 1 - their cosine ("cosine";
    Sanh et al. 2019, https://arxiv.org/abs/1910.01108). If the widths differ, a trained projection maps the student's states to
    the teacher's width.

    Attributes:
        weight: Weight in the total loss.
        kind: "mse" or "cosine".
        layers: (student state, teacher state) pairs. State 0 is the embeddings, state i the output of layer i; negative
            indices count from the end. None pairs every student state with the teacher state at the same relative depth.

    Raises:
        InputError: A value is invalid.
    """

    weight: float = 1.0
    kind: str = "mse"
    layers: Pairs | None = None

    loss: ClassVar[str] = "hidden_states"

    def __post_init__(self) -> None:
        _check_weight(self)
        _check_choice("kind of a hidden_states loss", self.kind, ("mse", "cosine"))
        object.__setattr__(self, "layers", None if self.layers is None else _check_pairs(self.layers, self.loss))

    @property
    def name(self) -> str:
        """Name of its loss term."""
        return f"hidden_{self.kind}"

    def pairs(self, student_layers: int, teacher_layers: int) -> Pairs:
        """Return the (student state, teacher state) pairs with non-negative indices; raise InputError if out of range."""
        if self.layers is None:
            return uniform_map(student_layers, teacher_layers)
        return _resolve(self.layers, student_layers + 1, teacher_layers + 1, "hidden state")


@dataclass(frozen=True)
class Attentions:
    """Loss that matches attention probabilities head by head, averaged over pairs of layers.

    It is their KL divergence ("kl"; Wang et al. 2020, section 3.1, https://arxiv.org/abs/2002.10957) or mean squared error
    ("mse").

    Attributes:
        weight: Weight in the total loss.
        kind: "kl" or "mse".
        layers: (student layer, teacher layer) pairs, counted from 0; negative indices count from the end. None pairs every
            student layer with the teacher layer that ends at the same relative depth.

    Raises:
        InputError: A value is invalid.
    """

    weight: float = 1.0
    kind: str = "kl"
    layers: Pairs | None = None

    loss: ClassVar[str] = "attentions"

    def __post_init__(self) -> None:
        _check_weight(self)
        _check_choice("kind of an attentions loss", self.kind, ("kl", "mse"))
        object.__setattr__(self, "layers", None if self.layers is None else _check_pairs(self.layers, self.loss))

    @property
    def name(self) -> str:
        """Name of its loss term."""
        return f"attention_{self.kind}"

    def pairs(self, student_layers: int, teacher_layers: int) -> Pairs:
        """Return the (student layer, teacher layer) pairs with non-negative indices; raise InputError if out of range."""
        if self.layers is None:
            return tuple((s - 1, t - 1) for s, t in uniform_map(student_layers, teacher_layers)[1:] if t)
        return _resolve(self.layers, student_layers, teacher_layers, "layer")


@dataclass(frozen=True)
class Relations:
    """Loss that matches MiniLM's self-attention relations, averaged over `of` and pairs of layers.

    Relations are the softmaxed scaled products of queries with queries, keys with keys, and values with values (Wang et al.
    2021, https://arxiv.org/abs/2012.15828). Widths and numbers of heads may differ, since both models' vectors are split into
    the same number of relation heads.

    Attributes:
        weight: Weight in the total loss.
        heads: Number of relation heads; None for the teacher's number of attention heads.
        layers: (student layer, teacher layer) pairs, counted from 0; negative indices count from the end.
        of: One or more of "query", "key" and "value".

    Raises:
        InputError: A value is invalid.
    """

    weight: float = 1.0
    heads: int | None = None
    layers: Pairs = ((-1, -1),)
    of: tuple[str, ...] = ("query", "key", "value")

    loss: ClassVar[str] = "relations"
    name: ClassVar[str] = "relation_kl"

    def __post_init__(self) -> None:
        _check_weight(self)
        if self.heads is not None and (not _is_integer(self.heads) or self.heads < 1):
            raise InputError(f"heads of a relations loss is {self.heads!r}; it must be an integer, at least 1")
        if self.layers is None:
            raise InputError(
                "a relations loss needs layers; give pairs such as [[-1, -1]], the last layer of both models"
            )
        object.__setattr__(self, "layers", _check_pairs(self.layers, self.loss))
        of = (self.of,) if isinstance(self.of, str) else self.of
        of = tuple(of) if isinstance(of, Iterable) else ()
        for name in of:
            _check_choice("of in a relations loss", name, ("query", "key", "value"))
        if not of or len(set(of)) < len(of):
            raise InputError(
                f"of is {list(of) or self.of!r} in a relations loss; give some of query, key, value, each once"
            )
        object.__setattr__(self, "of", of)

    def pairs(self, student_layers: int, teacher_layers: int) -> Pairs:
        """Return the (student layer, teacher layer) pairs with non-negative indices; raise InputError if out of range."""
        return _resolve(self.layers, student_layers, teacher_layers, "layer")


InnerLoss: TypeAlias = HiddenStates | Attentions | Relations
"""A loss on hidden states or attention, in addition to that on the logits."""

LOSSES: dict[str, type[InnerLoss]] = {cls.loss: cls for cls in (HiddenStates, Attentions, Relations)}
"""Losses on hidden states and attention, by their names in settings."""


@dataclass(frozen=True)
class Distillation:
    """Settings of the distillation loss.

    Attributes:
        alpha: Weight of the student's own loss on the labels, in [0, 1]; the loss on the logits has weight 1 - alpha.
        temperature: Divisor of the logits before the softmax, above 0. Not used in regression.
        losses: Losses on hidden states and attention, each with its weight.
        positions: Tokens that a per-token KL counts: "attended", "labelled", or None for the head's default: all attended
            tokens in masked-LM; in token classification, causal-LM and seq2seq-LM the labeled ones, or the attended ones
            without labels.

    Raises:
        InputError: A value is invalid.
    """

    alpha: float = 0.5
    temperature: float = 2.0
    losses: tuple[InnerLoss, ...] = ()
    positions: str | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.alpha) or not 0 <= self.alpha <= 1:
            raise InputError(f"alpha is {self.alpha!r}; it must be in [0, 1], the weight of the student's own loss")
        if not _is_number(self.temperature) or not 0 < self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature!r}; it must be above 0 (1 to 4 is usual)")
        if self.positions is not None:
            _check_choice("positions", self.positions, POSITIONS)
        losses: Any = (self.losses,) if isinstance(self.losses, (*LOSSES.values(), Mapping)) else self.losses
        if isinstance(losses, str) or not isinstance(losses, Iterable):
            raise InputError(f"losses is {losses!r}; give a list of tables, each with its `loss`")
        losses = tuple(_build_loss(loss) if isinstance(loss, Mapping) else loss for loss in losses)
        for loss in losses:
            if not isinstance(loss, tuple(LOSSES.values())):
                raise InputError(
                    f"{loss!r} is not a loss; give one of {', '.join(c.__name__ for c in LOSSES.values())}"
                )
        object.__setattr__(self, "losses", losses)
        for name in ("alpha", "temperature"):  # 2 and 2.0 must compare and serialize alike
            object.__setattr__(self, name, float(getattr(self, name)))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Build from a mapping such as ``{"alpha": 0.5, "losses": [{"loss": "hidden_states", "kind": "cosine"}]}``.

        ``loss`` is hidden_states, attentions or relations; the other keys are the fields of that class.

        Raises:
            InputError: A key is unknown or a value is out of range.
        """
        _check_keys(settings, cls, "distillation")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON-compatible values, for :meth:`of`."""
        losses = [{"loss": loss.loss, **_to_plain(asdict(loss))} for loss in self.losses]
        return asdict(self) | {"losses": losses}

    @classmethod
    def distilbert(cls) -> Self:
        """Return DistilBERT's loss: 5 x KL at T = 2, 2 x masked-LM and 1 x the cosine of the last hidden states.

        From Sanh et al. 2019 (https://arxiv.org/abs/1910.01108) and their training script, divided by 7 so that the first two
        weights are 1 - alpha and alpha.
        """
        return cls(alpha=2 / 7, temperature=2.0, losses=(HiddenStates(1 / 7, "cosine", ((-1, -1),)),))

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the loss terms of ``losses``: hidden_mse, ..., and hidden_mse_2 for the second of a kind."""
        kinds = [loss.name for loss in self.losses]
        earlier = [kinds[:i].count(kind) for i, kind in enumerate(kinds)]
        return tuple(kind if not count else f"{kind}_{count + 1}" for kind, count in zip(kinds, earlier))

    def needs(self, cls: type) -> bool:
        """Return whether there is a loss of this class."""
        return any(isinstance(loss, cls) for loss in self.losses)

    @property
    def needs_hidden_states(self) -> bool:
        """Whether the models must be called with ``output_hidden_states``."""
        return self.needs(HiddenStates) or self.needs(Relations)

    @property
    def needs_attentions(self) -> bool:
        """Whether the models must be called with ``output_attentions``."""
        return self.needs(Attentions)


def uniform_map(student_layers: int, teacher_layers: int) -> Pairs:
    """Return ((0, 0), ...): student state j with teacher state j * teacher_layers / student_layers, rounded half up."""
    n, total = student_layers, teacher_layers
    return tuple((j, (2 * j * total + n) // (2 * n)) for j in range(n + 1)) if n else ((0, 0),)


def _build_loss(settings: Mapping[str, Any]) -> InnerLoss:
    settings = dict(settings)
    name = settings.pop("loss", None)
    if name is None:
        raise InputError(f"the loss {settings} has no `loss` key; set it to one of {', '.join(LOSSES)}")
    _check_choice("loss", name, LOSSES)
    _check_keys(settings, LOSSES[name], f"the {name} loss")
    return LOSSES[name](**settings)


def _check_keys(settings: Mapping[str, Any], cls: Any, what: str) -> None:
    names = [f.name for f in fields(cls)]
    for key in settings:
        if key not in names:
            raise InputError(unknown_setting(key, names, what))


def _check_choice(what: str, value: Any, allowed: Iterable[str]) -> None:
    allowed = tuple(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{what} is {value!r}; it must be one of {', '.join(allowed)}{nearest(str(value), allowed)}")


def _check_weight(loss: InnerLoss) -> None:
    if not _is_number(loss.weight) or not 0 <= loss.weight < math.inf:
        raise InputError(f"weight of the {loss.loss} loss is {loss.weight!r}; it must be 0 or more")
    object.__setattr__(loss, "weight", float(loss.weight))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check_pairs(layers: Any, loss: str) -> Pairs:
    """Return the pairs as tuples of int; raise InputError if they are not pairs of integers."""
    pairs = layers if isinstance(layers, Sequence) and not isinstance(layers, str) else ()
    valid = [isinstance(pair, Sequence) and len(pair) == 2 and all(_is_integer(i) for i in pair) for pair in pairs]
    if not valid or not all(valid):
        raise InputError(
            f"layers of the {loss} loss is {layers!r}; give pairs of integers, (student, teacher), such as [[-1, -1]]"
        )
    return tuple((int(student), int(teacher)) for student, teacher in pairs)


def _resolve(layers: Pairs, student: int, teacher: int, what: str) -> Pairs:
    """Return the pairs with non-negative indices; raise InputError if out of range."""
    for pair in layers:
        for index, total, whose in zip(pair, (student, teacher), ("student", "teacher")):
            if not -total <= index < total:
                raise InputError(
                    f"layers has the pair {list(pair)}, but the {whose} has no {what} {index}; give an index from {-total} to "
                    f"{total - 1}"
                )
    return tuple((s % student, t % teacher) for s, t in layers)


def _to_plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with tuples as lists."""

    def as_list(value: Any) -> Any:
        return [as_list(item) for item in value] if isinstance(value, tuple) else value

    return {name: as_list(value) for name, value in settings.items()}
