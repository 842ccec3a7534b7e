"""Examine the installed engines, each in a process of its own: one that fails, or dies, is part of the answer."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from duonlp.util.frameworks import INSTALL, NEEDS, PACKAGES, installed
from duonlp.util.reading import parse_json

SECONDS = 120
"""Time that an engine may take to be imported."""


@dataclass(frozen=True)
class EngineReport:
    """What an engine will use.

    Attributes:
        package: "tfnlp" or "jaxnlp".
        framework: "tf" or "jax".
        installed: Whether its framework is installed.
        problem: Why it does not work, with the command that installs it if it is missing; "" if it works.
        devices: What it computes on.
        threads: Threads per operation; None for as many as there are cores.
        kernels: Implementations by what they compute.
        onednn: Whether TensorFlow's graph uses oneDNN for floating-point operations; None if unknown.
    """

    package: str
    framework: str
    installed: bool
    problem: str = ""
    devices: tuple[str, ...] = ()
    threads: int | None = None
    kernels: dict[str, str] = field(default_factory=dict)
    onednn: bool | None = None


def examine(frameworks: Sequence[str] = tuple(PACKAGES), seconds: float = SECONDS) -> list[EngineReport]:
    """Import each engine in a process of its own, all at once, and return what they report.

    Args:
        frameworks: Any of "tf" and "jax".
        seconds: Time after which an engine is given up.
    """
    processes = {name: _start(name) for name in frameworks if installed(name)}
    return [_report(name, processes.get(name), seconds) for name in frameworks]


def _start(framework: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "duonlp.doctor.probe", framework]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def _report(framework: str, process: subprocess.Popen | None, seconds: float) -> EngineReport:
    package = PACKAGES[framework]
    if process is None:
        return EngineReport(package, framework, False, f"{NEEDS[framework]} is not installed; {INSTALL[framework]}")
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return EngineReport(package, framework, True, f"importing it takes more than {seconds:g} seconds")
    if process.returncode:
        last = next((line.strip() for line in reversed(err.splitlines()) if line.strip()), "no message")
        return EngineReport(package, framework, True, f"it ended with status {process.returncode}: {last}")
    answer = parse_json(out.strip().splitlines()[-1])
    return EngineReport(
        package, framework, True, "", tuple(answer["devices"]), answer["threads"], answer["kernels"], answer["onednn"]
    )
