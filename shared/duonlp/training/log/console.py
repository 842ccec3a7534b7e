"""A run on the console: a bar that moves on a terminal, a line now and then in a log file."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

BARS = "▁▂▃▄▅▆▇█"


class Curve:
    """All of a curve in bounded space: when it is full, each two neighbouring values become their mean."""

    def __init__(self, capacity: int = 512):
        self.values: list[float] = []
        self._capacity, self._stride, self._waiting = capacity, 1, []

    def add(self, value: float) -> None:
        """One more value; one that is not finite is left out."""
        if not math.isfinite(value):
            return
        self._waiting.append(value)
        if len(self._waiting) < self._stride:
            return
        self.values.append(sum(self._waiting) / len(self._waiting))
        self._waiting = []
        if len(self.values) == self._capacity:
            self.values = [(a + b) / 2 for a, b in zip(self.values[::2], self.values[1::2])]
            self._stride *= 2


def sparkline(values, width: int = 24) -> str:
    """A curve in one line of text, from its lowest to its highest value; "" without a finite one."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not values.size:
        return ""
    pieces = [float(piece.mean()) for piece in np.array_split(values, min(width, values.size))]
    low, high = min(pieces), max(pieces)
    span = (high - low) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in pieces)


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds as 1:02:03, days before them; "-:--:--" when it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "-:--:--"
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days} day{'s' * (days > 1)} " if days else "") + f"{hour}:{minute:02}:{second:02}"


def short(value: float) -> str:
    """A figure in about four characters: 3.21, 24.8, 123, 12,345, 1.2e+09."""
    if math.isfinite(value) and abs(value) >= 1e6:
        return f"{value:.1e}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def step_time(seconds: float) -> str:
    """Seconds of a step, in the unit that fits."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"


class ConsoleDisplay:
    """Shows the records of a run as they come.

    Args:
        console: where to; the standard error when None, so that what a program prints stays apart.
        total_steps: of the run.
        every_seconds: at least that long between two lines, where the console is no terminal.
        description: before the bar.
        unit: what speeds are of.
    """

    def __init__(
        self, console: Console | None, total_steps: int, every_seconds: float = 30.0, description: str = "pretraining",
        unit: str = "tokens",
    ):  # fmt: skip
        self.console = console or Console(stderr=True)
        self.total_steps, self.every_seconds, self.unit = total_steps, every_seconds, unit
        self.curve, self.bar = Curve(), None
        self.line, self.spoken = "", -math.inf  # the newest line that was not printed, and when one was
        if self.console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn(description),
                BarColumn(bar_width=16),
                TextColumn("{task.fields[note]}"),
            )
            # Not more often than an eye reads: drawing takes time from a short step.
            self.bar = Progress(
                *columns, console=self.console, refresh_per_second=4,
                # What is printed meanwhile goes above the bar, unless it was on its way into a file.
                redirect_stdout=sys.stdout.isatty(), redirect_stderr=sys.stderr.isatty(),
            )  # fmt: skip
            self.task = self.bar.add_task("", total=1.0, note="compiling")
            self.room = self.console.width - len(description) - 16 - 2 - 3
            self.bar.start()

    def step(self, record: Mapping[str, Any], progress: float, eta: float | None) -> None:
        """A step's record, the share of the run that is done, and the seconds that are left."""
        self.curve.add(record["loss"])
        if self.bar is not None:
            self.bar.update(self.task, completed=progress, note=self.note(record, eta))
            return
        self.line, now = self.sentence(record, progress, eta), time.monotonic()
        if now - self.spoken >= self.every_seconds or progress >= 1:
            self.print(self.line)
            self.line, self.spoken = "", now

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """A held-out evaluation, a line of its own everywhere."""
        name = record.get("name", "held out")
        text = f"step {record['step']:,}: {name}"
        if "loss" in record:
            text += f" loss {record['loss']:.4f}"
        if "perplexity" in record:
            text += f", perplexity {short(record['perplexity'])}"
        known = (*KNOWN, self.unit)
        self.print(text + "".join(f", {key} {_shown(value)}" for key, value in record.items() if key not in known))

    def print(self, text: str) -> None:
        """A line of text, above the bar where there is one."""
        (self.bar.console if self.bar is not None else self.console).print(
            text, highlight=False, markup=False, soft_wrap=True
        )

    def close(self) -> None:
        """Leaves the bar, or the last step's line, on the console."""
        if self.bar is not None:
            self.bar.stop()
        elif self.line:
            self.print(self.line)

    def note(self, record: Mapping[str, Any], eta: float | None) -> str:
        """What stands beside the bar: as much as there is room for, the most telling first."""
        parts = [f"loss {record['smoothed_loss']:.3f}"]
        rate = record.get(f"{self.unit}_per_second")
        if rate is not None:
            parts += [f"{_rate(rate)} {SHORT_UNITS.get(self.unit, self.unit)}/s", f"ETA {duration(eta)}"]
        if "perplexity" in record:
            parts.append(f"ppl {short(record['perplexity'])}")
        if record.get("mfu") is not None:
            parts.append(f"MFU {record['mfu']:.1%}")
        if record.get("step_seconds") is not None:
            parts.append(f"{step_time(record['step_seconds'])}/step")
        note = parts[0]
        for part in parts[1:]:
            if len(note) + 2 + len(part) > self.room:
                break
            note += f"  {part}"
        width = min(24, self.room - len(note) - 2)
        return f"{sparkline(self.curve.values, width)}  {note}" if width >= 8 and self.curve.values else note

    def sentence(self, record: Mapping[str, Any], progress: float, eta: float | None) -> str:
        """A line for a log file."""
        parts = [
            f"step {record['step']:,}/{self.total_steps:,} ({progress:.0%})",
            f"loss {record['smoothed_loss']:.3f}",
        ]
        if "perplexity" in record:
            parts.append(f"perplexity {short(record['perplexity'])}")
        if record.get("learning_rate") is not None:
            parts.append(f"learning rate {record['learning_rate']:.2e}")
        rate = record.get(f"{self.unit}_per_second")
        if rate is not None:
            parts += [f"{_rate(rate)} {self.unit}/s", f"{step_time(record['step_seconds'])} a step"]
        if record.get("mfu") is not None:
            parts.append(f"MFU {record['mfu']:.1%}")
        if eta is not None:
            parts.append(f"ETA {duration(eta)}")
        return "  ".join(parts)


KNOWN = ("kind", "name", "step", "tokens", "loss", "perplexity", "seconds")
SHORT_UNITS = {"tokens": "tok", "examples": "ex"}


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
