"""The registry of attacks, their outcomes, and the budget that ends them.

@attack("truncated files")
def truncated_files(budget):
    for _ in budget:
        ...
        yield Outcome(f"cut at byte {n}", HELD)
"""

import importlib
import pkgutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import tests.attack

HELD = "held"
"""Verdict of a case in which the library did what it promises."""

FAULTS = {
    "wrong": "a result that is wrong, and nothing said so",
    "traceback": "an exception that is not one of the library's errors",
    "hang": "no answer in time",
    "memory": "more memory than the input justifies",
    "crash": "the process died",
    "lost": "neither the old nor the new state could be loaded",
    "left behind": "files of an interrupted run that the next one did not remove",
    "forged": "a program that fails its tests was judged to have passed",
    "escape": "a program reached something outside its sandbox",
}
"""Verdicts of cases in which it did not, with their meanings."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of one case of an attack.

    Attributes:
        case: What was done, in enough detail to repeat it.
        verdict: HELD, or one of FAULTS.
        detail: For a fault, what happened.
    """

    case: str
    verdict: str
    detail: str = ""

    def __post_init__(self) -> None:
        assert self.verdict == HELD or self.verdict in FAULTS, self.verdict


@dataclass
class Budget:
    """How long an attack may go on: iterate over it to get the number of each case until time or cases are used up.

    Attributes:
        folder: An empty folder of the attack's own.
        seed: Seed of ``rng``.
        seconds: Time after which no further case starts.
        cases: Number of cases after which no further one starts.
    """

    folder: Path
    seed: int = 0
    seconds: float = float("inf")
    cases: float = float("inf")
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.start = time.monotonic()

    @property
    def seconds_left(self) -> float:
        """Seconds until no further case starts."""
        return self.seconds - (time.monotonic() - self.start)

    def __iter__(self) -> Iterator[int]:
        number = 0
        while number < self.cases and self.seconds_left > 0:
            yield number
            number += 1


Attack = Callable[[Budget], Iterator[Outcome]]
ATTACKS: dict[str, Attack] = {}
"""Every registered attack by name."""


def attack(name: str) -> Callable[[Attack], Attack]:
    """Register an attack under a name."""

    def register(function: Attack) -> Attack:
        assert name not in ATTACKS, name
        ATTACKS[name] = function
        return function

    return register


def load_attacks() -> dict[str, Attack]:
    """Import every module of this package and return the registered attacks."""
    for module in pkgutil.iter_modules(tests.attack.__path__):
        if not module.name.startswith(("_", "test_")):
            importlib.import_module(f"tests.attack.{module.name}")
    return ATTACKS
