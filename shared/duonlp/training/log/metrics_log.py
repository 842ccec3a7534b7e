"""The log of a training run: console, metrics.jsonl, TensorBoard and Weights & Biases."""

import errno
import math
import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from duonlp.errors import InputError
from duonlp.training.flops import mfu
from duonlp.training.log.console import ConsoleDisplay
from duonlp.training.log.metrics_file import EVALUATION, FILE, STEP, remove_after, to_line, to_plain
from duonlp.training.log.trackers import TensorBoard, Tracker, WeightsAndBiases
from duonlp.util.files import locked_folder, storage_errors

TRAINING_GROUP = "train"
"""Prefix of a training step's metrics in TensorBoard and Weights & Biases: train/loss."""


class MetricsLog:
    """The log of a run, a context manager for the main process; other processes use a :class:`NullLog`.

    Every call appends a line to ``metrics.jsonl`` at once, so a killed run keeps all of its records. Non-finite numbers are
    written as "nan", "inf" and "-inf", which float() reads.

    Args:
        folder: Folder of the run; created if missing.
        total_steps: Steps of the whole run, from which progress and remaining time are computed.
        console: Whether to show progress, or the rich Console to show it on. True is standard error.
        tensorboard: Whether to write TensorBoard event files (extra `pretrain`).
        wandb: Options of ``wandb.init``. None does not import wandb.
        flops_per_token: Training FLOPs per token (:attr:`TokenFlops.training`), for the MFU.
        peak_flops: Peak FLOP/s of all devices together. None, where it is not published, omits the MFU.
        window: Number of records over which throughput and the smoothed loss are averaged.
        resumed_from: Step the run resumes from (0 to start over); later records are removed. None for a new run.
        console_seconds: Minimum time between two console lines if the console is not a terminal.
        description: Text before the progress bar.
        unit: What records count and throughput is measured in. With "tokens" the loss is per token and has a perplexity;
            anything else, such as "examples", has none.

    Raises:
        InputError: A new run in a folder that has metrics already or that another process or thread is writing, a damaged
            metrics.jsonl, or an argument out of range.
        StorageError: metrics.jsonl cannot be written; also raised by the methods, which leave it without a part of a record.
        MissingExtraError: tensorboardX or wandb is requested and not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        total_steps: int,
        console: bool | Console = True,
        tensorboard: bool = False,
        wandb: Mapping[str, Any] | None = None,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        window: int = 20,
        resumed_from: int | None = None,
        console_seconds: float = 30.0,
        description: str = "pretraining",
        unit: str = "tokens",
    ):
        for name, value in (("total_steps", total_steps), ("window", window)):
            if value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if flops_per_token is not None and peak_flops is not None:
            mfu(1.0, flops_per_token, peak_flops)  # raises for an invalid peak before training starts
        self.folder, self.total_steps, self.unit = Path(folder), total_steps, unit
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self._losses: deque[float] = deque(maxlen=window)
        self._marks: deque[tuple[int, int, float, float]] = deque(maxlen=window + 1)
        self._start, self._last_step = time.perf_counter(), resumed_from or 0
        self._last_count: int | None = None  # tokens or examples at the last step
        self._file: FileIO | None = None

        file = self.folder / FILE
        with ExitStack() as stack:
            stack.enter_context(locked_folder(self.folder, "metrics"))
            if resumed_from is None and file.exists() and file.stat().st_size:
                raise InputError(
                    f"{str(file)!r} has the records of an earlier run; resume that run, or use another folder"
                )
            if file.exists():
                remove_after(file, resumed_from or 0)
            with storage_errors(file):
                # Unbuffered, so that no part of a record is left to be written after a full disk.
                self._file = stack.enter_context(open(file, "ab", buffering=0))
            self._trackers: list[Tracker] = [TensorBoard(self.folder, resumed_from)] if tensorboard else []
            if wandb is not None:
                self._trackers.append(WeightsAndBiases(self.folder, wandb, resumed_from))
            self._opened = stack.pop_all()
        self._display: ConsoleDisplay | None = None
        if console:
            target = console if isinstance(console, Console) else None
            self._display = ConsoleDisplay(target, total_steps, console_seconds, description, unit)

    def step(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Log a training step. Steps may be skipped.

        Args:
            record: Metrics of the step:

                - "step": steps done;
                - "loss": in nats per token with the unit "tokens";
                - the unit ("tokens" or "examples"): number seen since the run began, including before a resume;
                - "learning_rate" (optional);
                - "seconds" (optional): training time; by default the time since this log was created;
                - "progress" (optional): share of the run that is done; by default the share of its steps;
                - any other numbers.

        Returns:
            The record as written, with "smoothed_loss" (mean over the window), "perplexity" for the unit "tokens" and, from
            the second record on, "<unit>_per_second", "step_seconds" and "mfu" (if known) over the window; plus
            "eta_seconds", which is not written.

        Raises:
            InputError: A required key is missing, the step is not greater than the previous one, or a key is one that the log
                adds itself.
        """
        record = {key: to_plain(value) for key, value in record.items()}
        missing = [key for key in ("step", "loss", self.unit) if record.get(key) is None]
        if missing:
            raise InputError(
                f"the record of a step lacks {', '.join(missing)}; it has only {', '.join(record) or 'no keys'}"
            )
        self._check_names(record, "kind", "smoothed_loss", "step_seconds", "mfu", f"{self.unit}_per_second")
        step, loss, count = record["step"], record["loss"], record[self.unit]
        if step <= self._last_step:
            raise InputError(f"step {step} was logged after step {self._last_step}; steps must increase")
        self._last_step, self._last_count = step, count
        seconds = record.setdefault("seconds", time.perf_counter() - self._start)
        progress = record.get("progress")
        progress = step / self.total_steps if progress is None else progress
        self._losses.append(loss)
        record = {"kind": STEP, **record}
        if self.unit == "tokens":
            record["perplexity"] = perplexity(loss)
        record["smoothed_loss"] = sum(self._losses) / len(self._losses)

        eta = None
        self._marks.append((step, count, seconds, progress))
        first_step, first_count, first_seconds, first_progress = self._marks[0]
        elapsed = seconds - first_seconds
        if elapsed > 0:
            record[f"{self.unit}_per_second"] = (count - first_count) / elapsed
            record["step_seconds"] = elapsed / (step - first_step)
            if self.unit == "tokens" and self.flops_per_token is not None and self.peak_flops is not None:
                record["mfu"] = mfu(record["tokens_per_second"], self.flops_per_token, self.peak_flops)
            if progress > first_progress:
                eta = max(0.0, 1 - progress) * elapsed / (progress - first_progress)
        self._write(TRAINING_GROUP, record)
        if self._display is not None:
            self._display.step(record, progress, eta)
        return record | {"eta_seconds": eta}

    def evaluation(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Log an evaluation.

        Args:
            record: Metrics of the evaluation:

                - "step": steps done;
                - "loss" (optional): on held-out text, in nats per token with the unit "tokens";
                - "name" (optional): kind of evaluation, where there are several;
                - the unit (optional): as in :meth:`step`, from which it is taken by default;
                - any other numbers.

        Returns:
            The record as written, with the "perplexity" of a loss per token.

        Raises:
            InputError: "step" is missing, a key is one that the log adds itself, or the name is that of the training steps.
        """
        record = {key: to_plain(value) for key, value in record.items()}
        if record.get("step") is None:
            raise InputError(f"the record of an evaluation lacks step; it has only {', '.join(record) or 'no keys'}")
        self._check_names(record, "kind")
        if record.get("name") == TRAINING_GROUP:
            raise InputError(f"an evaluation is named {TRAINING_GROUP!r}, like the training steps; name it otherwise")
        if self._last_count is not None:
            record.setdefault(self.unit, self._last_count)
        record = {"kind": EVALUATION, **record}
        if "loss" in record and self.unit == "tokens":
            record["perplexity"] = perplexity(record["loss"])
        self._write(record.get("name", EVALUATION), record)
        if self._display is not None:
            self._display.evaluation(record)
        return record

    def _check_names(self, record: Mapping[str, Any], *names: str) -> None:
        """Raise InputError for a record with a name that the log adds."""
        added = (*names, "perplexity") if self.unit == "tokens" and "loss" in record else names
        if both := [name for name in added if name in record]:
            raise InputError(f"the record has {', '.join(both)}, which the log adds itself; rename it")

    def message(self, text: str) -> None:
        """Print a line on the console, above the bar."""
        if self._display is not None:
            self._display.print(text)

    def close(self, failed: bool = False) -> None:
        """Close the log. Closing it again does nothing."""
        if self._file is None:
            return
        self._file = None
        if self._display is not None:
            self._display.close()
        with self._opened:
            for tracker in self._trackers:
                tracker.close(failed)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def _write(self, group: str, record: Mapping[str, Any]) -> None:
        if self._file is None:
            raise InputError(f"the log in {str(self.folder)!r} is closed; create a new one")
        line, size = to_line(record), self._file.seek(0, os.SEEK_END)
        with storage_errors(self.folder / FILE):
            try:  # straight to the operating system, so that it survives a kill of this process
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._file.truncate(size)
                raise
        numbers = {
            key: value
            for key, value in record.items()
            if isinstance(value, (int, float)) and key not in ("step", "progress") and not isinstance(value, bool)
        }
        for tracker in self._trackers:
            tracker.log(group, record["step"], numbers)


class NullLog:
    """A log that does nothing, with the arguments and methods of :class:`MetricsLog`, for all but the main process."""

    def __init__(self, *args: Any, **options: Any):
        pass

    def step(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return dict(record)

    def evaluation(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return dict(record)

    def message(self, text: str) -> None:
        pass

    def close(self, failed: bool = False) -> None:
        pass

    def __enter__(self) -> "NullLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


def perplexity(loss: float) -> float:
    """Return exp(loss) of a loss in nats per token; infinity on overflow."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
