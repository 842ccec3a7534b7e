"""Show a search on the console: a progress bar with the best result, and one line per trial."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from duonlp.training.log.console import format_duration
from duonlp.tuning.search_space import Objective
from duonlp.tuning.study import TrialRecord
from duonlp.util.console import plain_console


class TuningProgress:
    """Context manager that shows the trials of a search on standard error.

    Args:
        total: Trials to finish, including those of earlier runs.
        objectives: The objectives.
        shown: False to print nothing.
        console: The console, for tests.
    """

    def __init__(self, total: int, objectives: Sequence[Objective], shown: bool = True, console: Console | None = None):
        self.total, self.objectives, self.console = (
            total,
            objectives,
            console or plain_console(stderr=True, quiet=not shown),
        )
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.ran, self.start_time = 0, time.monotonic()
        self.best_text = ""
        if shown and self.console.is_terminal:
            columns = (
                TextColumn("search"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self.bar = Progress(*columns, console=self.console, refresh_per_second=4)
            self.task = self.bar.add_task("", total=total, note="")

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, done: Sequence[TrialRecord], best: Sequence[TrialRecord], interrupted: int) -> None:
        """Show the state of a resumed search: finished trials, the best ones, and the number of interrupted trials."""
        self.best_text = self._best(best)
        self._update(completed=len(done), note=self.best_text)
        self.done = len(done)
        if done:
            self._print(f"resuming after {len(done)} trials" + (f", {self.best_text}" if self.best_text else ""))
        if interrupted:
            self._print("repeating the trial that was running when the search was killed")

    def start(self, number: int, parameters: Mapping[str, Any], twin: TrialRecord | None) -> None:
        """Show that a trial starts, or that it copies the results of an earlier one with the same settings."""
        self.parameters = ", ".join(f"{name} {short(value)}" for name, value in parameters.items())
        if twin is not None:
            self._print(f"trial {number} repeats the settings of trial {twin.number} and copies its results")
        self._note(f"trial {number}")

    def evaluation(self, number: int, epoch: int, name: str, value: float) -> None:
        """Show an intermediate value of a trial."""
        self._note(f"trial {number}, epoch {epoch}: {name} {short(value)}")

    def trial(self, record: TrialRecord, best: Sequence[TrialRecord]) -> None:
        """Show a finished trial."""
        self.ran, self.done, self.best_text = self.ran + 1, self.done + 1, self._best(best)
        names = [objective.name for objective in self.objectives if objective.name in record.results]
        outcome = ", ".join(f"{name} {short(record.results[name])}" for name in names)
        if record.state != "complete":
            outcome = f"{record.state}: {record.reason}"
        text = f"trial {record.number} ({self.parameters}): {outcome}"
        if any(trial.number == record.number for trial in best):
            text += "  << best so far" if len(self.objectives) == 1 else "  << on the front"
        self._print(text)
        self._update(completed=self.done)
        left = (time.monotonic() - self.start_time) / self.ran * max(self.total - self.done, 0)
        self._note(f"ETA {format_duration(left)}")

    def _best(self, best: Sequence[TrialRecord]) -> str:
        if not best:
            return ""
        if len(self.objectives) > 1:
            return f"{len(best)} on the front"
        name = self.objectives[0].name
        return f"best {name} {short(best[0].results[name])} (trial {best[0].number})"

    def _note(self, text: str) -> None:
        self._update(note="  ".join(part for part in (self.best_text, text) if part))

    def _update(self, **fields: Any) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, **fields)

    def _print(self, text: str) -> None:
        (self.bar.console if self.bar is not None else self.console).print(
            text, highlight=False, markup=False, emoji=False, soft_wrap=True
        )


def short(value: Any) -> str:
    """Format a value in a few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
