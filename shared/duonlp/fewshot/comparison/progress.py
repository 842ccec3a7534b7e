"""Show a comparison on the console: a progress bar with the time left, and one line per cell."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from duonlp.fewshot.comparison.cells import AT_THRESHOLD, Cell
from duonlp.training.log.console import format_duration
from duonlp.util.console import plain_console


class ComparisonProgress:
    """Context manager that shows the cells of a comparison.

    Args:
        cells: All cells.
        done: Results of those that are finished, None for the others.
        console: Whether to show anything, or the rich Console to show it on. True is standard error.
    """

    def __init__(self, cells: Sequence[Cell], done: Mapping[Cell, Mapping[str, Any] | None], console: Any = True):
        self.console = plain_console(stderr=True, quiet=not console) if isinstance(console, bool) else console
        self.left = [cell for cell in cells if done[cell] is None]
        self.seconds: dict[str, list[float]] = {}
        for cell, record in done.items():
            if record is not None:
                self._note_seconds(cell.method, record)
        self.total, self.skipped, self.began = len(cells), len(cells) - len(self.left), 0.0
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        if console and self.console.is_terminal:
            columns = (
                TextColumn("comparison"), BarColumn(bar_width=16), MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )  # fmt: skip
            self.bar = Progress(*columns, console=self.console, refresh_per_second=4)
            self.task = self.bar.add_task("", total=self.total, completed=self.skipped, note="")

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        if self.skipped:
            self._print(f"resuming: {self.skipped} of {self.total} cells are finished")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def start(self, cell: Cell) -> None:
        """Show that a cell starts."""
        self.began = time.perf_counter()
        self._update(note="  ".join(part for part in (str(cell), self._time_left()) if part))

    def finish(self, cell: Cell, record: Mapping[str, Any]) -> None:
        """Show the scores of a cell."""
        self._note_seconds(cell.method, record)
        scores = record[AT_THRESHOLD] or record
        seconds = time.perf_counter() - self.began
        self._end(cell, f"micro F1 {scores['micro_f1']:.3f}, macro F1 {scores['macro_f1']:.3f} ({seconds:.1f} s)")

    def fail(self, cell: Cell, message: str) -> None:
        """Show why a cell has no scores."""
        self._end(cell, f"failed: {message}")

    def _end(self, cell: Cell, text: str) -> None:
        self.left.remove(cell)
        left = self._time_left()
        self._print(f"[{self.total - len(self.left)}/{self.total}] {cell}: {text}{f'; {left}' if left else ''}")
        self._update(completed=self.total - len(self.left))

    def _note_seconds(self, method: str, record: Mapping[str, Any]) -> None:
        total = float(record.get("fit_seconds") or 0) + float(record.get("score_seconds") or 0)
        self.seconds.setdefault(method, []).append(total)

    def _time_left(self) -> str:
        """Return the time left, by the mean of each method's cells; of methods without any, by the mean of all cells."""
        all_cells = [value for values in self.seconds.values() for value in values]
        if not all_cells or not self.left:
            return ""
        times = (self.seconds.get(cell.method, all_cells) for cell in self.left)
        return f"ETA {format_duration(sum(sum(values) / len(values) for values in times))}"

    def _update(self, **fields: Any) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, **fields)

    def _print(self, text: str) -> None:
        console = self.bar.console if self.bar is not None else self.console
        console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
