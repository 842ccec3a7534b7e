"""Progress bars, and Rich consoles that print users' texts as they are: Rich would replace ``[red]`` and ``:smile:`` in them."""

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from duonlp.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

PROGRESS_AFTER = 2.0
"""Expected remaining time in seconds (or time so far, if the total is unknown) after which a progress bar is shown."""


def plain_console(**options: Any) -> "Console":
    """Return a rich Console that interprets neither markup nor emoji codes; use ``rich.text.Text`` for styles."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, **options)


class Progress:
    """A progress bar on standard error that only appears if the work takes long.

    Args:
        total: Number of items, or None if unknown.
        show: True shows the bar at once, False never, and None on a terminal once the work is expected to take long.
        label: Description of the work.

    Raises:
        InputError: ``show`` has another value.
    """

    def __init__(self, total: int | None, show: bool | None, label: str) -> None:
        if show not in (True, False, None):
            raise InputError(f"progress is {show!r}; expected True, False or None")
        self.total, self.show, self.label = total, show, label
        self.done, self.start = 0, 0.0
        self.bar: RichProgress | None = None
        # A bar redirects standard output, which threads cannot do each for itself.
        self.may_redirect = threading.current_thread() is threading.main_thread()
        if show is None and not (sys.stderr.isatty() and self.may_redirect):
            self.show = False

    def __enter__(self) -> Self:
        self.start = time.monotonic()
        if self.show:
            self._open()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, items: int, partial: float = 0.0) -> None:
        """Record progress, and show the bar once the rest is expected to take long.

        Args:
            items: Number of items completed since the last call.
            partial: Total fraction done of unfinished items, in items.
        """
        self.done += items
        done = self.done + partial
        if self.bar is None and self.show is None and done:
            elapsed = time.monotonic() - self.start
            expected = elapsed if self.total is None else elapsed / done * (self.total - done)
            if expected > PROGRESS_AFTER:
                self._open()
        if self.bar is not None:
            self.bar.update(self.task, completed=done)

    def _open(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        last = TimeElapsedColumn() if self.total is None else TimeRemainingColumn()
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), last
        # The caller can print results of an iterator meanwhile: above the bar on a terminal, unchanged into a file.
        self.bar = Bar(
            *columns, console=plain_console(stderr=True), redirect_stdout=self.may_redirect and sys.stdout.isatty()
        )
        self.bar.start()
        self.task = self.bar.add_task(self.label, total=self.total, completed=self.done)
