"""What a search looks through and what it looks for: ranges and choices by name, and objectives with their directions."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from duonlp.errors import InputError
from duonlp.training.best import greater_is_better

SMALLER_IS_BETTER = ("latency", "seconds", "milliseconds", "bytes", "size", "memory", "parameters")
"""Words in the names of what a benchmark measures that say so; those of metrics are in ``duonlp.training.best``."""

RANGE_KEYS, CHOICES_KEYS = ("low", "high", "log", "step"), ("choices",)
DIRECTIONS = {"maximize": True, "minimize": False}
EXAMPLES = "{ low = 0.0, high = 1.0 }, { low = 1e-5, high = 1e-3, log = true } or { choices = [2, 3] }"


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included: whole ones when both are whole.

    log: equally likely on a logarithmic scale. step: only low, low + step, low + 2 step, ...
    """

    name: str
    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def __post_init__(self):
        numbers = {"low": self.low, "high": self.high} | ({} if self.step is None else {"step": self.step})
        for key, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise InputError(f"{self.name}: {key} is {value!r}; it must be a finite number")
        if not isinstance(self.log, bool):
            raise InputError(f"{self.name}: log is {self.log!r}; it must be true or false")
        if not self.low < self.high:
            raise InputError(
                f"{self.name}: low is {self.low} and high {self.high}; low must be below high (a value that is fixed is a "
                "setting of the run, not of the search)"
            )
        if self.log and self.low <= 0:
            raise InputError(f"{self.name}: low is {self.low}; a logarithmic range must begin above 0")
        if self.step is None:
            return
        if self.log:
            raise InputError(
                f"{self.name} has log and step {self.step}; a logarithmic range has no steps, leave one out"
            )
        if self.step <= 0 or (Decimal(str(self.high)) - Decimal(str(self.low))) % Decimal(str(self.step)):
            raise InputError(
                f"{self.name}: steps of {self.step} from {self.low} do not meet {self.high}; give a step above 0 that does"
            )

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    @property
    def size(self) -> float:
        """How many values there are."""
        if self.whole or self.step is not None:
            return round((self.high - self.low) / (self.step or 1)) + 1
        return math.inf

    def distribution(self):
        """As Optuna has it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(self.low, self.high, log=self.log, step=self.step or 1)
        return FloatDistribution(float(self.low), float(self.high), log=self.log, step=self.step)

    def value(self, stored: Any) -> Any:
        """The parameter's value for what Optuna has."""
        return stored

    def examples(self) -> list[Any]:
        """Its ends."""
        ends = [self.low, self.high]
        return ends if self.whole else [float(end) for end in ends]

    def to_dict(self) -> dict[str, Any]:
        """As it is written in TOML."""
        table = {"low": self.low, "high": self.high}
        return table | ({"log": True} if self.log else {}) | ({} if self.step is None else {"step": self.step})


@dataclass(frozen=True)
class Choices:
    """Values without an order; texts, numbers, booleans, or lists and tables of them."""

    name: str
    choices: tuple[Any, ...]

    def __post_init__(self):
        try:
            labels = [self.label(choice) for choice in self.choices]
        except TypeError:  # what JSON has not, such as TOML's dates
            raise InputError(
                f"{self.name}: choices are {list(self.choices)}; give texts, numbers, booleans, or lists and tables of them"
            ) from None
        if len(labels) < 2 or len(set(map(str, labels))) < len(labels):
            raise InputError(
                f"{self.name}: choices are {list(self.choices)}; give at least two, each once (a value that is fixed is a "
                "setting of the run, not of the search)"
            )

    size = property(lambda self: len(self.choices))

    @staticmethod
    def label(choice: Any) -> Any:
        """A choice as Optuna stores it: itself, or a list or table as JSON."""
        if choice is None or isinstance(choice, (bool, int, float, str)):
            return choice
        return json.dumps(choice)

    def distribution(self):
        """As Optuna has it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([self.label(choice) for choice in self.choices])

    def value(self, stored: Any) -> Any:
        """The parameter's value for what Optuna has."""
        return {str(self.label(choice)): choice for choice in self.choices}[str(stored)]

    def examples(self) -> list[Any]:
        """All of them."""
        return list(self.choices)

    def to_dict(self) -> dict[str, Any]:
        """As it is written in TOML."""
        return {"choices": list(self.choices)}


Space = dict[str, Range | Choices]


def read_space(table: Mapping[str, Any], real: Sequence[str] = (), whole: Sequence[str] = ()) -> Space:
    """A space from a table such as that of TOML: {"alpha": {"low": 0.0, "high": 1.0}, "num_layers": {"choices": [2, 3]}}.

    A name with dots may be written as tables in tables, as TOML makes of ``fit.learning_rate = ...``.

    Args:
        table: ranges {"low", "high", and "log" or "step"} and choices {"choices"} by name; Range and Choices are taken, too.
        real: names whose ranges are of real numbers even where their ends were written as whole ones.
        whole: names whose ranges are of whole numbers even where they were written as 1.0.

    Raises:
        InputError: nothing to search, something that is neither a range nor choices, a range without numbers in it, or one
            with 1.5 in it by a name of `whole`.
    """
    space: Space = {}

    def read(name: str, value: Any) -> None:
        if isinstance(value, (Range, Choices)):
            space[name] = value
        elif not isinstance(value, Mapping) or not value:
            raise InputError(f"{name} is {value!r}, which is nothing to search; write for example {EXAMPLES}")
        elif "choices" in value:
            _check_keys(name, value, CHOICES_KEYS)
            if not isinstance(value["choices"], (list, tuple)):
                raise InputError(f"{name}: choices is {value['choices']!r}; it must be a list")
            space[name] = Choices(name, tuple(value["choices"]))
        elif "low" in value or "high" in value:
            _check_keys(name, value, RANGE_KEYS)
            if len({"low", "high"} & set(value)) < 2:
                raise InputError(f"{name} has {', '.join(value)}; a range has low and high")
            found = Range(name, **value)
            numbers = {key: each for key, each in value.items() if key != "log" and each is not None}
            if name in real:
                found = replace(found, **{key: float(each) for key, each in numbers.items()})
            elif name in whole:
                for key, each in numbers.items():
                    if int(each) != each:
                        raise InputError(
                            f"{name}: {key} is {each}, and the setting is a whole number; give whole low, high and step, such "
                            "as { low = 2, high = 8, step = 2 }"
                        )
                found = replace(found, **{key: int(each) for key, each in numbers.items()})
            space[name] = found
        elif all(isinstance(inner, (Mapping, Range, Choices)) for inner in value.values()):
            for key, inner in value.items():
                read(f"{name}.{key}", inner)
        else:
            raise InputError(
                f"{name} has {', '.join(map(str, value))}, which is neither a range nor choices; write for example {EXAMPLES}"
            )

    for name, value in table.items():
        read(name, value)
    if not space:
        raise InputError(f"there is nothing to search; name at least one setting, such as alpha = {EXAMPLES}")
    return space


def _check_keys(name: str, value: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for key in value:
        if key not in allowed:
            raise InputError(f"{name} has {key!r}, beside {', '.join(k for k in value if k != key)}; allowed are "
                             f"{', '.join(allowed)}")  # fmt: skip


@dataclass(frozen=True)
class Objective:
    """A result by its name, and whether a greater one is better."""

    name: str
    greater: bool

    @property
    def direction(self) -> str:
        """As Optuna calls it."""
        return "maximize" if self.greater else "minimize"

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return {"name": self.name, "direction": self.direction}


def read_objectives(names: Sequence[str] | str) -> tuple[Objective, ...]:
    """Objectives by name, such as "accuracy" or "latency", or with their direction: "minimize:false_alarms".

    Raises:
        InputError: none, one twice, or another direction.
    """
    found = []
    for text in [names] if isinstance(names, str) else names:
        direction, colon, name = str(text).rpartition(":")
        if not name or (colon and direction not in DIRECTIONS):
            raise InputError(f"the objective {text!r} is not NAME, minimize:NAME or maximize:NAME")
        smaller = any(word in name for word in SMALLER_IS_BETTER)
        found.append(Objective(name, DIRECTIONS[direction] if colon else greater_is_better(name) and not smaller))
    if not found or len({each.name for each in found}) < len(found):
        raise InputError(f"the objectives are {list(names)}; give at least one, each once")
    return tuple(found)


def front(points: Sequence[Sequence[float]], objectives: Sequence[Objective]) -> list[int]:
    """Indices of the points that no other is at least as good as in everything and better in something (Pareto).

    With one objective these are the best ones. points: a number for each objective, all finite.
    """
    signs = [-1.0 if each.greater else 1.0 for each in objectives]
    costs = [[sign * value for sign, value in zip(signs, point, strict=True)] for point in points]

    def dominated(cost) -> bool:
        return any(other != cost and all(a <= b for a, b in zip(other, cost)) for other in costs)

    return [index for index, cost in enumerate(costs) if not dominated(cost)]
