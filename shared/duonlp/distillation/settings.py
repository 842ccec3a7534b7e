"""What a student learns from its teacher: the settings, checked once.

The loss is ``alpha * own + (1 - alpha) * T^2 * KL(teacher || student) + sum of weight * loss``, where own is the student's
loss on the labels and the KL is between softmaxes of logits / T (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np

from duonlp.errors import InputError
from duonlp.util.suggestions import nearest, unknown_setting

POSITIONS = ("attended", "labelled")
"""Which tokens a KL over each token's classes may count: those that are no padding, or those that have a label."""

Pairs = tuple[tuple[int, int], ...]
"""(student, teacher) each."""


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states like the teacher's: their mean squared error ("mse"; Jiao et al. 2020, https://arxiv.org/abs/1909.10351),
    or 1 - their cosine ("cosine"; Sanh et al. 2019, https://arxiv.org/abs/1910.01108), the mean over pairs of states.

    Where the widths differ, a projection that is learned along takes the student's states to the teacher's width.

    layers: (student state, teacher state) each: 0 is the embeddings, i what layer i has made, negative ones count from the
        end. None: every state of the student, with the teacher's that lies as deep.
    """

    weight: float = 1.0
    kind: str = "mse"
    layers: Pairs | None = None

    loss: ClassVar[str] = "hidden_states"

    def __post_init__(self):
        _check_weight(self)
        _check_choice("kind of a hidden_states loss", self.kind, ("mse", "cosine"))
        object.__setattr__(self, "layers", _pairs(self.layers, self.loss))

    @property
    def name(self) -> str:
        """What it is called among the parts of the loss."""
        return f"hidden_{self.kind}"

    def pairs(self, student_layers: int, teacher_layers: int) -> Pairs:
        """(student state, teacher state) each, from 0 on; raises InputError for states that there are not."""
        if self.layers is None:
            return uniform_map(student_layers, teacher_layers)
        return _resolved(self.layers, student_layers + 1, teacher_layers + 1, "hidden state")


@dataclass(frozen=True)
class Attentions:
    """Attention probabilities like the teacher's, head by head: their KL ("kl"; Wang et al. 2020, section 3.1,
    https://arxiv.org/abs/2002.10957) or their mean squared error ("mse"), the mean over pairs of layers.

    layers: (student layer, teacher layer) each, from 0 on; negative ones count from the end. None: every layer of the
        student, with the teacher's that ends as deep.
    """

    weight: float = 1.0
    kind: str = "kl"
    layers: Pairs | None = None

    loss: ClassVar[str] = "attentions"

    def __post_init__(self):
        _check_weight(self)
        _check_choice("kind of an attentions loss", self.kind, ("kl", "mse"))
        object.__setattr__(self, "layers", _pairs(self.layers, self.loss))

    @property
    def name(self) -> str:
        """What it is called among the parts of the loss."""
        return f"attention_{self.kind}"

    def pairs(self, student_layers: int, teacher_layers: int) -> Pairs:
        """(student layer, teacher layer) each, from 0 on; raises InputError for layers that there are not."""
        if self.layers is None:
            return tuple((s - 1, t - 1) for s, t in uniform_map(student_layers, teacher_layers)[1:] if t)
        return _resolved(self.layers, student_layers, teacher_layers, "layer")


@dataclass(frozen=True)
class Relations:
    """MiniLM's self-attention relations: how alike the queries of any two tokens are, and their keys, and their values, as
    the teacher has it (Wang et al. 2021, https://arxiv.org/abs/2012.15828); the mean over `of` and pairs of layers.

    Widths and numbers of heads may differ: both models' vectors are cut into as many relation heads.

    heads: how many; None: as many as the teacher has attention heads.
    layers: (student layer, teacher layer) each, from 0 on; negative ones count from the end.
    of: one or several of "query", "key" and "value".
    """

    weight: float = 1.0
    heads: int | None = None
    layers: Pairs = ((-1, -1),)
    of: tuple[str, ...] = ("query", "key", "value")

    loss: ClassVar[str] = "relations"
    name: ClassVar[str] = "relation_kl"

    def __post_init__(self):
        _check_weight(self)
        if self.heads is not None and (not _is_whole(self.heads) or self.heads < 1):
            raise InputError(f"heads of a relations loss is {self.heads!r}; give a whole number from 1 on")
        if self.layers is None:
            raise InputError("a relations loss needs its layers; give pairs such as [[-1, -1]], the last of both")
        object.__setattr__(self, "layers", _pairs(self.layers, self.loss))
        of = (self.of,) if isinstance(self.of, str) else self.of
        of = tuple(of) if isinstance(of, Iterable) else ()
        for each in of:
            _check_choice("of in a relations loss", each, ("query", "key", "value"))
        if not of or len(set(of)) < len(of):
            raise InputError(
                f"of is {list(of) or self.of!r} in a relations loss; give some of query, key, value, each once"
            )
        object.__setattr__(self, "of", of)

    def pairs(self, student_layers: int, teacher_layers: int) -> Pairs:
        """(student layer, teacher layer) each, from 0 on; raises InputError for layers that there are not."""
        return _resolved(self.layers, student_layers, teacher_layers, "layer")


LOSSES = {cls.loss: cls for cls in (HiddenStates, Attentions, Relations)}
"""The losses besides that of the logits, by their names in settings."""


@dataclass(frozen=True)
class Distillation:
    """What a student learns from its teacher.

    alpha: the share of the student's own loss on the labels, from 0 to 1; the rest is the logits' loss.
    temperature: what logits are divided by before the softmax, above 0. Regression has none.
    losses: of what is inside the models, each with its weight.
    positions: which tokens a KL over each token's classes counts: "attended", "labelled", or None for what the head needs:
        all attended ones in masked-LM; in token classification, causal-LM and seq2seq-LM the labelled ones, or the attended
        ones where there are no labels.
    """

    alpha: float = 0.5
    temperature: float = 2.0
    losses: tuple[HiddenStates | Attentions | Relations, ...] = ()
    positions: str | None = None

    def __post_init__(self):
        if not _is_number(self.alpha) or not 0 <= self.alpha <= 1:
            raise InputError(f"alpha is {self.alpha!r}; it is the share of the student's own loss, from 0 to 1")
        if not _is_number(self.temperature) or not 0 < self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature!r}; it must be above 0 (1 to 4 is usual)")
        if self.positions is not None:
            _check_choice("positions", self.positions, POSITIONS)
        losses = (self.losses,) if isinstance(self.losses, (*LOSSES.values(), Mapping)) else self.losses
        if isinstance(losses, str) or not isinstance(losses, Iterable):
            raise InputError(f"losses is {losses!r}; give a list of tables, each with its `loss`")
        losses = tuple(_loss(each) if isinstance(each, Mapping) else each for each in losses)
        for each in losses:
            if not isinstance(each, tuple(LOSSES.values())):
                raise InputError(f"{each!r} is no loss; give {', '.join(cls.__name__ for cls in LOSSES.values())}")
        object.__setattr__(self, "losses", losses)
        for name in ("alpha", "temperature"):  # 2 is the same setting as 2.0, and written down as such
            object.__setattr__(self, name, float(getattr(self, name)))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """From a mapping, such as a TOML table: ``{"alpha": 0.5, "losses": [{"loss": "hidden_states", "kind": "cosine"}]}``.

        ``loss`` says which: hidden_states, attentions or relations; the other keys are the fields of that class.

        Raises:
            InputError: a key that is no setting, with the nearest that is one; a value that is out of range.
        """
        _check_keys(settings, cls, "distillation")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Every setting, for JSON; :meth:`of` takes it back."""
        losses = [{"loss": each.loss, **_plain(asdict(each))} for each in self.losses]
        return asdict(self) | {"losses": losses}

    @classmethod
    def distilbert(cls) -> Self:
        """DistilBERT's three parts: 5 x KL at T = 2, 2 x masked-LM, 1 x the cosine of the last hidden states (Sanh et al.
        2019, https://arxiv.org/abs/1910.01108, and their training script), all divided by 7, so that the first two are
        1 - alpha and alpha."""
        return cls(alpha=2 / 7, temperature=2.0, losses=(HiddenStates(1 / 7, "cosine", ((-1, -1),)),))

    @property
    def loss_names(self) -> tuple[str, ...]:
        """What each of ``losses`` is called among the parts of the loss: hidden_mse, ..., the second of a kind hidden_mse_2."""
        kinds = [each.name for each in self.losses]
        before = [kinds[:i].count(kind) for i, kind in enumerate(kinds)]
        return tuple(kind if not n else f"{kind}_{n + 1}" for kind, n in zip(kinds, before))

    def needs(self, cls: type) -> bool:
        """Whether there is a loss of this class: models give hidden states and attentions only when they are asked to."""
        return any(isinstance(each, cls) for each in self.losses)

    @property
    def needs_hidden_states(self) -> bool:
        """Whether the models are to be called with ``output_hidden_states``."""
        return self.needs(HiddenStates) or self.needs(Relations)

    @property
    def needs_attentions(self) -> bool:
        """Whether the models are to be called with ``output_attentions``."""
        return self.needs(Attentions)


def uniform_map(student_layers: int, teacher_layers: int) -> Pairs:
    """((0, 0), ...): student state j and teacher state j * teacher_layers / student_layers, rounded, halves up."""
    n, total = student_layers, teacher_layers
    return tuple((j, (2 * j * total + n) // (2 * n)) for j in range(n + 1)) if n else ((0, 0),)


def _loss(settings: Mapping[str, Any]):
    settings = dict(settings)
    name = settings.pop("loss", None)
    if name is None:
        raise InputError(f"a loss lacks its `loss`, which is one of {', '.join(LOSSES)}: {settings}")
    _check_choice("loss", name, LOSSES)
    _check_keys(settings, LOSSES[name], f"the {name} loss")
    return LOSSES[name](**settings)


def _check_keys(settings: Mapping[str, Any], cls: type, what: str) -> None:
    known = [f.name for f in fields(cls)]
    for key in settings:
        if key not in known:
            raise InputError(unknown_setting(key, known, what))


def _check_choice(what: str, value: Any, allowed) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{what} is {value!r}; it must be one of {', '.join(allowed)}{nearest(str(value), allowed)}")


def _check_weight(loss) -> None:
    if not _is_number(loss.weight) or not 0 <= loss.weight < math.inf:
        raise InputError(f"weight of the {loss.loss} loss is {loss.weight!r}; it must be 0 or more")
    object.__setattr__(loss, "weight", float(loss.weight))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _pairs(layers: Sequence | None, loss: str) -> Pairs | None:
    if layers is None:
        return None
    found = layers if isinstance(layers, Sequence) and not isinstance(layers, str) else ()
    each = [isinstance(p, Sequence) and len(p) == 2 and all(_is_whole(i) for i in p) for p in found]
    if not each or not all(each):
        raise InputError(
            f"layers of the {loss} loss is {layers!r}; give pairs of whole numbers, (student, teacher), such as [[-1, -1]]"
        )
    return tuple((int(student), int(teacher)) for student, teacher in found)


def _resolved(layers: Pairs, student: int, teacher: int, what: str) -> Pairs:
    for pair in layers:
        for index, total, whose in zip(pair, (student, teacher), ("student", "teacher")):
            if not -total <= index < total:
                raise InputError(
                    f"layers has {list(pair)}, and the {whose} has no {what} {index}; it has {total}, 0 to {total - 1}, or "
                    f"-{total} to -1 counted from the end"
                )
    return tuple((s % student, t % teacher) for s, t in layers)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    def listed(value):
        return [listed(each) for each in value] if isinstance(value, tuple) else value

    return {name: listed(value) for name, value in settings.items()}
