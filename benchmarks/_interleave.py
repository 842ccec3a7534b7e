"""Contestants in processes of their own, taking turns: drift of the machine hits all alike, thread pools never meet."""

import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from duonlp.util import machine

__all__ = ["Contestant", "interleave", "machine", "ratios"]

PAUSE = 0.3
"""Seconds before each turn: threads of the one before go on spinning for a while when their work is done."""


class Contestant:
    """A process that has prepared some work and does it when told to."""

    def __init__(self, module: str, name: str, setting: dict, environment: dict | None = None):
        self.name = name
        command = [sys.executable, "-m", "benchmarks._interleave", module, name, json.dumps(setting)]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | (environment or {})
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, word: str) -> float:
        """Send a word, wait for the number that answers it."""
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
            return float(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):  # it has ended, or ends without an answer
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}") from None

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def interleave(
    module: str,
    names: Sequence[str],
    setting: dict,
    rounds: int,
    environments: dict | None = None,
    *,
    settle: bool = True,
    first_calls: dict | None = None,
) -> dict:
    """Seconds of every contestant in every round, one after the other within a round.

    Args:
        module: has ``prepare(name, setting) -> work``, a function that does the work once.
        names: the contestants; one that fails to start is left out and reported with its error.
        settle: an untimed call before each timed one; needless for work of many seconds.
        first_calls: filled with the seconds of each contestant's very first call, which compiles.

    Returns:
        {name: [seconds of each round]}; a contestant that cannot run has an empty list.
    """
    contestants = {name: Contestant(module, name, setting, (environments or {}).get(name)) for name in names}
    seconds = {name: [] for name in names}
    try:
        for name in list(contestants):
            if _answer(contestants, name, "ready") is None:
                del contestants[name]
        for name in list(contestants):  # none starts while another is still importing and building its model
            first = _answer(contestants, name, "first call")
            if first is None or _answer(contestants, name, "warm up") is None:
                del contestants[name]
            elif first_calls is not None:
                first_calls[name] = first
        for _ in range(rounds):
            for name, contestant in contestants.items():
                time.sleep(PAUSE)
                seconds[name].append(contestant.ask("go" if settle else "go at once"))
    finally:
        for contestant in contestants.values():
            contestant.close()
    return seconds


def _answer(contestants: dict, name: str, word: str) -> float | None:
    try:
        return contestants[name].ask(word)
    except RuntimeError:
        return None


def ratios(seconds: dict, reference: str) -> dict[str, float]:
    """The median over rounds of each contestant's time divided by the reference's in the same round."""
    theirs = seconds.get(reference)
    return {
        name: statistics.median(a / b for a, b in zip(values, theirs, strict=True))
        for name, values in seconds.items()
        if values and theirs
    }


def _serve(prepare: Callable, name: str, setting: dict) -> None:
    work = prepare(name, setting)
    repeat = 1

    def timed(times: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - start) / times

    for line in sys.stdin:
        word = line.strip()
        if word == "ready":
            answer = 0.0
        elif word == "first call":
            answer = timed()
        elif word == "warm up":
            # short work is timed several times over, so that the clock and the pipe do not matter
            answer = timed()
            repeat = max(1, min(50, int(0.1 / answer)))
        else:
            if word == "go":
                work()  # the caches are another's by now
            answer = timed(repeat)
        print(answer, flush=True)


if __name__ == "__main__":
    _serve(importlib.import_module(sys.argv[1]).prepare, sys.argv[2], json.loads(sys.argv[3]))
