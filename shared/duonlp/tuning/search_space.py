"""Search spaces, as ranges and choices by name, and objectives with their directions."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from duonlp.errors import InputError
from duonlp.training.best import greater_is_better

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SMALLER_IS_BETTER = ("latency", "seconds", "milliseconds", "bytes", "size", "memory", "parameters")
"""Words in names of benchmark results that are minimized; those of metrics are in ``duonlp.training.best``."""

RANGE_KEYS, CHOICES_KEYS = ("low", "high", "log", "step"), ("choices",)
DIRECTIONS = {"maximize": True, "minimize": False}
EXAMPLES = "{ low = 0.0, high = 1.0 }, { low = 1e-5, high = 1e-3, log = true } or { choices = [2, 3] }"


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both inclusive: integers if both are.

    Attributes:
        name: Path of the setting.
        low: Smallest value.
        high: Largest value.
        log: Sample uniformly on a logarithmic scale.
        step: Restrict the values to low, low + step, low + 2 step, ...
    """

    name: str
    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def __post_init__(self) -> None:
        numbers = {"low": self.low, "high": self.high} | ({} if self.step is None else {"step": self.step})
        for key, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise InputError(f"{self.name}: {key} is {value!r}; it must be a finite number")
        if not isinstance(self.log, bool):
            raise InputError(f"{self.name}: log is {self.log!r}; it must be true or false")
        if not self.low < self.high:
            raise InputError(
                f"{self.name}: low is {self.low} and high {self.high}; low must be below high (set a fixed value in the run's "
                "settings instead)"
            )
        if self.log and self.low <= 0:
            raise InputError(f"{self.name}: low is {self.low}; the low end of a logarithmic range must be positive")
        if self.step is None:
            return
        if self.log:
            raise InputError(
                f"{self.name} has log and step {self.step}; a logarithmic range has no steps, remove one of them"
            )
        if self.step <= 0 or (Decimal(str(self.high)) - Decimal(str(self.low))) % Decimal(str(self.step)):
            raise InputError(
                f"{self.name}: steps of {self.step} from {self.low} do not reach {self.high}; give a positive step that does"
            )

    @property
    def whole(self) -> bool:
        """Whether all values are integers."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    @property
    def size(self) -> float:
        """Number of values, or infinity."""
        if self.whole or self.step is not None:
            return round((self.high - self.low) / (self.step or 1)) + 1
        return math.inf

    def distribution(self) -> "BaseDistribution":
        """Return the Optuna distribution."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(float(self.low), float(self.high), log=self.log, step=self.step)

    def value(self, stored: Any) -> Any:
        """Return the parameter for a value stored by Optuna."""
        return stored

    def examples(self) -> list[Any]:
        """Return the two ends."""
        ends = [self.low, self.high]
        return ends if self.whole else [float(end) for end in ends]

    def to_dict(self) -> dict[str, Any]:
        """Return the table as written in TOML."""
        table = {"low": self.low, "high": self.high}
        return table | ({"log": True} if self.log else {}) | ({} if self.step is None else {"step": self.step})


@dataclass(frozen=True)
class Choices:
    """Unordered values: strings, numbers, booleans, or lists and tables of them.

    Attributes:
        name: Path of the setting.
        choices: The values.
    """

    name: str
    choices: tuple[Any, ...]

    def __post_init__(self) -> None:
        try:
            labels = [self.label(choice) for choice in self.choices]
        except TypeError:  # not representable in JSON, such as TOML's dates
            raise InputError(
                f"{self.name}: choices are {list(self.choices)}; give strings, numbers, booleans, or lists and tables of them"
            ) from None
        if len(labels) < 2 or len(set(map(str, labels))) < len(labels):
            raise InputError(
                f"{self.name}: choices are {list(self.choices)}; give at least two different ones (set a fixed value in the "
                "run's settings instead)"
            )

    @property
    def size(self) -> int:
        """Number of values."""
        return len(self.choices)

    @staticmethod
    def label(choice: Any) -> Any:
        """Return a choice as Optuna stores it: itself, or JSON for a list or table."""
        if choice is None or isinstance(choice, (bool, int, float, str)):
            return choice
        return json.dumps(choice)

    def distribution(self) -> "BaseDistribution":
        """Return the Optuna distribution."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([self.label(choice) for choice in self.choices])

    def value(self, stored: Any) -> Any:
        """Return the parameter for a value stored by Optuna."""
        return {str(self.label(choice)): choice for choice in self.choices}[str(stored)]

    def examples(self) -> list[Any]:
        """Return all values."""
        return list(self.choices)

    def to_dict(self) -> dict[str, Any]:
        """Return the table as written in TOML."""
        return {"choices": list(self.choices)}


Space = dict[str, Range | Choices]


def read_space(table: Mapping[str, Any], real: Sequence[str] = (), whole: Sequence[str] = ()) -> Space:
    """Parse a search space such as {"alpha": {"low": 0.0, "high": 1.0}, "num_layers": {"choices": [2, 3]}}.

    A dotted name may be given as nested tables, as TOML parses ``fit.learning_rate = ...``.

    Args:
        table: Ranges {"low", "high", and "log" or "step"} and choices {"choices"} by name; also Range and Choices objects.
        real: Names of float settings, whose ranges are continuous even with integer bounds.
        whole: Names of integer settings, whose bounds may be written as 1.0.

    Raises:
        InputError: The space is empty, an entry is neither a range nor choices, a range is invalid, or the range of an
            integer setting has a fractional bound.
    """
    space: Space = {}

    def read(name: str, value: Any) -> None:
        if isinstance(value, (Range, Choices)):
            space[name] = value
        elif not isinstance(value, Mapping) or not value:
            raise InputError(f"{name} is {value!r}, which is neither a range nor choices; write for example {EXAMPLES}")
        elif "choices" in value:
            _check_keys(name, value, CHOICES_KEYS)
            if not isinstance(value["choices"], (list, tuple)):
                raise InputError(f"{name}: choices is {value['choices']!r}; it must be a list")
            space[name] = Choices(name, tuple(value["choices"]))
        elif "low" in value or "high" in value:
            _check_keys(name, value, RANGE_KEYS)
            if len({"low", "high"} & set(value)) < 2:
                raise InputError(f"{name} has {', '.join(value)}; a range needs low and high")
            dimension = Range(name, **value)
            numbers = {key: number for key, number in value.items() if key != "log" and number is not None}
            if name in real:
                bounds: dict[str, Any] = {key: float(number) for key, number in numbers.items()}
                dimension = Range(name, **{**value, **bounds})
            elif name in whole:
                for key, number in numbers.items():
                    if int(number) != number:
                        raise InputError(
                            f"{name}: {key} is {number}, but the setting is an integer; give integers for low, high and step, "
                            "such as { low = 2, high = 8, step = 2 }"
                        )
                bounds = {key: int(number) for key, number in numbers.items()}
                dimension = Range(name, **{**value, **bounds})
            space[name] = dimension
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
        raise InputError(f"the search space is empty; name at least one setting, such as alpha = {EXAMPLES}")
    return space


def _check_keys(name: str, value: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for key in value:
        if key not in allowed:
            raise InputError(
                f"{name} has the unknown key {key!r} next to {', '.join(k for k in value if k != key)}; allowed are "
                f"{', '.join(allowed)}"
            )


@dataclass(frozen=True)
class Objective:
    """A result to optimize.

    Attributes:
        name: Name of the result.
        greater: Whether greater values are better.
    """

    name: str
    greater: bool

    @property
    def direction(self) -> str:
        """Direction in Optuna's terms."""
        return "maximize" if self.greater else "minimize"

    def to_dict(self) -> dict[str, str]:
        """Return the objective as a dict for JSON."""
        return {"name": self.name, "direction": self.direction}


def read_objectives(names: Sequence[str] | str) -> tuple[Objective, ...]:
    """Parse objectives, such as "accuracy" or "latency", optionally with a direction: "minimize:false_alarms".

    Raises:
        InputError: There is none, one occurs twice, or a direction is unknown.
    """
    objectives = []
    for text in [names] if isinstance(names, str) else names:
        direction, colon, name = str(text).rpartition(":")
        if not name or (colon and direction not in DIRECTIONS):
            raise InputError(f"invalid objective {text!r}; write NAME, minimize:NAME or maximize:NAME")
        smaller = any(word in name for word in SMALLER_IS_BETTER)
        objectives.append(Objective(name, DIRECTIONS[direction] if colon else greater_is_better(name) and not smaller))
    if not objectives or len({objective.name for objective in objectives}) < len(objectives):
        raise InputError(f"the objectives are {list(names)}; give at least one, without repetitions")
    return tuple(objectives)


def front(points: Sequence[Sequence[float]], objectives: Sequence[Objective]) -> list[int]:
    """Return the indices of the Pareto front: points that no other point dominates.

    With one objective these are the best ones.

    Args:
        points: One finite number per objective for each point.
        objectives: The objectives.
    """
    signs = [-1.0 if objective.greater else 1.0 for objective in objectives]
    costs = [[sign * value for sign, value in zip(signs, point, strict=True)] for point in points]

    def dominated(cost: list[float]) -> bool:
        return any(other != cost and all(a <= b for a, b in zip(other, cost)) for other in costs)

    return [index for index, cost in enumerate(costs) if not dominated(cost)]
