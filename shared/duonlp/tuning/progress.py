"""A search on the console: a bar with the best so far on a terminal, a line for each trial above it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from duonlp.training.log.console import format_duration
from duonlp.tuning.search_space import Objective


class TuningProgress:
    """Shows trials as they come, on the standard error; a context manager.

    Args:
        total: trials that are to be finished, those of earlier runs included.
        shown: False for nothing at all.
        console: where to, for tests.
    """

    def __init__(self, total: int, objectives: Sequence[Objective], shown: bool = True, console: Console | None = None):
        self.total, self.objectives, self.console = total, objectives, console or Console(stderr=True, quiet=not shown)
        self.bar, self.task, self.ran, self.began = None, None, 0, time.monotonic()
        self.best_text = ""
        if shown and self.console.is_terminal:
            columns = (
                TextColumn("search"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self.bar = Progress(*columns, console=self.console, refresh_per_second=4)
            self.task = self.bar.add_task("", total=total, note="")

    def __enter__(self):
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.stop()

    def begin(self, done: Sequence, best: Sequence, again: int) -> None:
        """What is there from earlier runs."""
        self.best_text = self._best(best)
        if self.bar is not None:
            self.bar.update(self.task, completed=len(done), note=self.best_text)
        self.done = len(done)
        if done:
            self._print(f"going on after {len(done)} trials" + (f", {self.best_text}" if self.best_text else ""))
        if again:
            self._print("a trial was running when the search was killed; it is tried again")

    def start(self, number: int, parameters: Mapping[str, Any], twin) -> None:
        """A trial begins, or has the results of an earlier one with the same settings."""
        self.parameters = ", ".join(f"{name} {shown(value)}" for name, value in parameters.items())
        if twin is not None:
            self._print(f"trial {number} has the settings of trial {twin.number}, and so its results")
        self._note(f"trial {number}")

    def evaluation(self, number: int, epoch: int, name: str, value: float) -> None:
        """A trial has been evaluated after an epoch."""
        self._note(f"trial {number}, epoch {epoch}: {name} {shown(value)}")

    def trial(self, record, best: Sequence) -> None:
        """A trial has finished."""
        self.ran, self.done, self.best_text = self.ran + 1, self.done + 1, self._best(best)
        said = ", ".join(
            f"{each.name} {shown(record.results[each.name])}" for each in self.objectives if each.name in record.results
        )
        said = said if record.state == "complete" else f"{record.state}: {record.reason}"
        text = f"trial {record.number} ({self.parameters}): {said}"
        if any(each.number == record.number for each in best):
            text += "  << the best so far" if len(self.objectives) == 1 else "  << on the front"
        self._print(text)
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)
        left = (time.monotonic() - self.began) / self.ran * max(self.total - self.done, 0)
        self._note(f"ETA {format_duration(left)}")

    def _best(self, best: Sequence) -> str:
        if not best:
            return ""
        if len(self.objectives) > 1:
            return f"{len(best)} on the front"
        name = self.objectives[0].name
        return f"best {name} {shown(best[0].results[name])} (trial {best[0].number})"

    def _note(self, text: str) -> None:
        if self.bar is not None:
            self.bar.update(self.task, note="  ".join(part for part in (self.best_text, text) if part))

    def _print(self, text: str) -> None:
        (self.bar.console if self.bar is not None else self.console).print(
            text, highlight=False, markup=False, soft_wrap=True
        )


def shown(value: Any) -> str:
    """A value in a few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
