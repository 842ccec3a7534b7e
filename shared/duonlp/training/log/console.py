"""Console output of a run: a progress bar on a terminal, occasional lines in a log file."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from duonlp.util.console import plain_console

BARS = "▁▂▃▄▅▆▇█"


class Curve:
    """A series in bounded memory: when full, each pair of neighboring values is replaced by its mean.

    Attributes:
        values: Means of equally many consecutive values each, at most the capacity.
    """

    def __init__(self, capacity: int = 512):
        self.values: list[float] = []
        self._capacity, self._stride = capacity, 1
        self._pending: list[float] = []

    def add(self, value: float) -> None:
        """Add a value; non-finite ones are dropped."""
        if not math.isfinite(value):
            return
        self._pending.append(value)
        if len(self._pending) < self._stride:
            return
        self.values.append(sum(self._pending) / len(self._pending))
        self._pending = []
        if len(self.values) == self._capacity:
            self.values = [(a + b) / 2 for a, b in zip(self.values[::2], self.values[1::2])]
            self._stride *= 2


def sparkline(values: Sequence[float] | np.ndarray, width: int = 24) -> str:
    """Return a curve as one line of text, scaled from its minimum to its maximum; "" without a finite value."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not values.size:
        return ""
    pieces = [float(piece.mean()) for piece in np.array_split(values, min(width, values.size))]
    low, high = min(pieces), max(pieces)
    span = (high - low) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in pieces)


def format_duration(seconds: float | None) -> str:
    """Format seconds as 1:02:03, with days in front; "-:--:--" if unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "-:--:--"
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days} day{'s' * (days > 1)} " if days else "") + f"{hour}:{minute:02}:{second:02}"


def format_short(value: float) -> str:
    """Format a number in about four characters: 3.21, 24.8, 123, 12,345, 1.2e+09."""
    if math.isfinite(value) and abs(value) >= 1e6:
        return f"{value:.1e}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def format_step_time(seconds: float) -> str:
    """Format the duration of a step in seconds or milliseconds."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"


class ConsoleDisplay:
    """Show the records of a run on the console.

    Args:
        console: Console to write to. None for standard error, so that a program's own output stays separate.
        total_steps: Steps of the run.
        every_seconds: Minimum time between two lines if the console is not a terminal.
        description: Text before the bar.
        unit: Unit of the throughput: "tokens" or "examples".
    """

    def __init__(
        self, console: Console | None, total_steps: int, every_seconds: float = 30.0, description: str = "pretraining",
        unit: str = "tokens",
    ):  # fmt: skip
        self.console = console or plain_console(stderr=True)
        self.total_steps, self.every_seconds, self.unit = total_steps, every_seconds, unit
        self.curve = Curve()
        self.bar: Progress | None = None
        self.pending_line, self.last_printed = (
            "",
            -math.inf,
        )  # newest line not yet printed; time of the last printed one
        if self.console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn(description, markup=False),
                BarColumn(bar_width=16),
                TextColumn("{task.fields[note]}", markup=False),
            )
            # Redrawing takes time from short steps, so keep the rate low.
            self.bar = Progress(
                *columns, console=self.console, refresh_per_second=4,
                # Other output goes above the bar, unless it is redirected to a file.
                redirect_stdout=sys.stdout.isatty(), redirect_stderr=sys.stderr.isatty(),
            )  # fmt: skip
            self.task = self.bar.add_task("", total=1.0, note="compiling")
            self.room = self.console.width - len(description) - 16 - 2 - 3
            self.bar.start()

    def step(self, record: Mapping[str, Any], progress: float, eta: float | None) -> None:
        """Show a training step.

        Args:
            record: The record, as :meth:`MetricsLog.step` writes it.
            progress: Share of the run that is done.
            eta: Remaining seconds; None if unknown.
        """
        self.curve.add(record["loss"])
        if self.bar is not None:
            self.bar.update(self.task, completed=progress, note=self.bar_note(record, eta))
            return
        self.pending_line, now = self.log_line(record, progress, eta), time.monotonic()
        if now - self.last_printed >= self.every_seconds or progress >= 1:
            self.print(self.pending_line)
            self.pending_line, self.last_printed = "", now

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Show a held-out evaluation on a line of its own."""
        name = record.get("name", "held-out")
        text = f"step {record['step']:,}: {name}"
        if "loss" in record:
            text += f" loss {record['loss']:.4f}"
        if "perplexity" in record:
            text += f", perplexity {format_short(record['perplexity'])}"
        shown = (*STANDARD_KEYS, self.unit)
        self.print(
            text + "".join(f", {key} {_format_score(value)}" for key, value in record.items() if key not in shown)
        )

    def print(self, text: str) -> None:
        """Print a line of text, above the bar if there is one."""
        (self.bar.console if self.bar is not None else self.console).print(
            text, highlight=False, markup=False, emoji=False, soft_wrap=True
        )

    def close(self) -> None:
        """Stop the bar, or print the last step's line if it is still pending."""
        if self.bar is not None:
            self.bar.stop()
        elif self.pending_line:
            self.print(self.pending_line)

    def bar_note(self, record: Mapping[str, Any], eta: float | None) -> str:
        """Return the text beside the bar: as many figures as fit, the most important first."""
        parts = [f"loss {record['smoothed_loss']:.3f}"]
        rate = record.get(f"{self.unit}_per_second")
        if rate is not None:
            unit = SHORT_UNITS.get(self.unit, self.unit)
            parts += [f"{_format_rate(rate)} {unit}/s", f"ETA {format_duration(eta)}"]
        if "perplexity" in record:
            parts.append(f"ppl {format_short(record['perplexity'])}")
        if record.get("mfu") is not None:
            parts.append(f"MFU {record['mfu']:.1%}")
        if record.get("step_seconds") is not None:
            parts.append(f"{format_step_time(record['step_seconds'])}/step")
        note = parts[0]
        for part in parts[1:]:
            if len(note) + 2 + len(part) > self.room:
                break
            note += f"  {part}"
        width = min(24, self.room - len(note) - 2)
        return f"{sparkline(self.curve.values, width)}  {note}" if width >= 8 and self.curve.values else note

    def log_line(self, record: Mapping[str, Any], progress: float, eta: float | None) -> str:
        """Return a training step as a line for a log file."""
        parts = [
            f"step {record['step']:,}/{self.total_steps:,} ({progress:.0%})",
            f"loss {record['smoothed_loss']:.3f}",
        ]
        if "perplexity" in record:
            parts.append(f"perplexity {format_short(record['perplexity'])}")
        if record.get("learning_rate") is not None:
            parts.append(f"learning rate {record['learning_rate']:.2e}")
        rate = record.get(f"{self.unit}_per_second")
        if rate is not None:
            parts += [f"{_format_rate(rate)} {self.unit}/s", f"{format_step_time(record['step_seconds'])}/step"]
        if record.get("mfu") is not None:
            parts.append(f"MFU {record['mfu']:.1%}")
        if eta is not None:
            parts.append(f"ETA {format_duration(eta)}")
        return "  ".join(parts)


STANDARD_KEYS = ("kind", "name", "step", "tokens", "loss", "perplexity", "seconds")
"""Keys of an evaluation's record that are shown separately or not at all."""

SHORT_UNITS = {"tokens": "tok", "examples": "ex"}


def _format_rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _format_score(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
