"""Time contestants in turns, each in its own process: drift of the machine affects all alike, and thread pools never mix."""

import contextlib
import importlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from duonlp.util import machine

__all__ = ["Contestant", "Setting", "Work", "interleave", "machine", "ratios", "write_in_subprocess"]

Setting: TypeAlias = dict[str, Any]
"""Arguments of a contestant's ``prepare`` besides its name; sent to its process as JSON."""

Work: TypeAlias = Callable[[], object]
"""A function that does the timed work once."""

PAUSE = 0.3
"""Seconds before each turn: the previous contestant's threads keep spinning for a while after their work is done."""


class Contestant:
    """A process that prepares some work, then does and times it on request."""

    def __init__(self, module: str, name: str, setting: Setting, environment: Mapping[str, str] | None = None):
        """Start the process.

        Args:
            module: Module with ``prepare(name, setting) -> work``, as ``benchmarks.forward``.
            name: Contestant's name.
            setting: Passed to ``prepare``.
            environment: Additional environment variables.
        """
        self.name = name
        command = [sys.executable, "-m", "benchmarks._interleave", module, name, json.dumps(setting)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | dict(environment or {}),
        )

    def request(self, command: str) -> float:
        """Send a command and return the seconds that the process answers.

        Args:
            command: "ready" (0.0 once the work is prepared), "first call" (one call), "warm up" (one call, which sets how
                often the next commands repeat it), "run" (mean of the repeated calls) or "settle and run" (after an untimed
                call).

        Raises:
            RuntimeError: The process has exited.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
            return float(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):  # exited before the command, or without an answer
            raise RuntimeError(f"{self.name} exited with status {self.process.wait()}") from None

    def close(self) -> None:
        """End the process and wait for it."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def interleave(
    module: str,
    names: Sequence[str],
    setting: Setting,
    rounds: int,
    environments: Mapping[str, Mapping[str, str]] | None = None,
    *,
    settle: bool = True,
    first_calls: dict[str, float] | None = None,
) -> dict[str, list[float]]:
    """Time every contestant once per round, one after the other.

    Args:
        module: Module with ``prepare(name, setting) -> work``, a function that does the work once.
        names: Contestants; one that fails to start is skipped.
        setting: Passed to ``prepare``.
        rounds: Number of timed turns of each contestant.
        environments: Contestant to additional environment variables.
        settle: Whether to make an untimed call before each timed one; unnecessary for work of many seconds.
        first_calls: Filled with the seconds of each contestant's very first call, which compiles.

    Returns:
        {name: [seconds of each round]}; the list of a contestant that cannot run is empty.
    """
    contestants = {name: Contestant(module, name, setting, (environments or {}).get(name)) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    try:
        for name in list(contestants):
            if _request_or_none(contestants[name], "ready") is None:
                del contestants[name]
        for name in list(contestants):  # none works while another is still importing and building its model
            first = _request_or_none(contestants[name], "first call")
            if first is None or _request_or_none(contestants[name], "warm up") is None:
                del contestants[name]
            elif first_calls is not None:
                first_calls[name] = first
        for _ in range(rounds):
            for name, contestant in contestants.items():
                time.sleep(PAUSE)
                seconds[name].append(contestant.request("settle and run" if settle else "run"))
    finally:
        for contestant in contestants.values():
            contestant.close()
    return seconds


def _request_or_none(contestant: Contestant, command: str) -> float | None:
    try:
        return contestant.request(command)
    except RuntimeError:
        return None


def ratios(seconds: Mapping[str, list[float]], reference: str) -> dict[str, float]:
    """Return the median over rounds of each contestant's time divided by the reference's in the same round.

    Args:
        seconds: As returned by :func:`interleave`.
        reference: Name of the contestant to divide by; without its times the result is empty.
    """
    reference_seconds = seconds.get(reference)
    if not reference_seconds:
        return {}
    return {
        name: statistics.median(a / b for a, b in zip(values, reference_seconds, strict=True))
        for name, values in seconds.items()
        if values
    }


def write_in_subprocess(write: Callable[..., None], *arguments: object) -> None:
    """Write a checkpoint with PyTorch in a separate process, so that none of its threads stay in this one.

    Args:
        write: Module-level function that writes the checkpoint.
        arguments: Its positional arguments.

    Raises:
        SystemExit: The process failed.
    """
    process = multiprocessing.get_context("spawn").Process(target=write, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit('the checkpoint could not be written; this needs PyTorch: pip install "duonlp[parity]"')


def _serve(prepare: Callable[[str, Setting], Work], name: str, setting: Setting) -> None:
    """Answer the commands of :meth:`Contestant.request` on standard input."""
    work = prepare(name, setting)
    repeats = 1

    def mean_seconds(calls: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls

    for line in sys.stdin:
        command = line.strip()
        if command == "ready":
            answer = 0.0
        elif command == "first call":
            answer = mean_seconds()
        elif command == "warm up":
            # Short work is repeated, so that the overhead of clock and pipe is negligible.
            answer = mean_seconds()
            repeats = max(1, min(50, int(0.1 / answer)))
        else:
            if command == "settle and run":
                work()  # other contestants have evicted the caches
            answer = mean_seconds(repeats)
        print(answer, flush=True)


if __name__ == "__main__":
    _serve(importlib.import_module(sys.argv[1]).prepare, sys.argv[2], json.loads(sys.argv[3]))
