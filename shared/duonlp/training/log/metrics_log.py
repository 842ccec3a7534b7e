"""What a training run says of itself: on the console, in metrics.jsonl, and to TensorBoard or Weights & Biases."""

import math
import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from duonlp.errors import InputError
from duonlp.training.flops import mfu
from duonlp.training.log.console import ConsoleDisplay
from duonlp.training.log.metrics_file import EVALUATION, FILE, STEP, cut_back, plain, to_line
from duonlp.training.log.trackers import TensorBoard, WeightsAndBiases

TRAINING_GROUP = "train"
"""Before the names of a step's figures, in TensorBoard and Weights & Biases: train/loss."""


class MetricsLog:
    """The log of a run. Used as a context manager, by the main process alone; the others have a :class:`NullLog`.

    Every call adds a line to ``metrics.jsonl``: nothing is kept back, so a run that is killed has all of its records.
    Numbers that JSON does not have are written as "nan", "inf" and "-inf", which float() reads.

    Args:
        folder: the run's; made when it is not there.
        total_steps: of the whole run, for the share that is done and the time that is left.
        console: whether to show progress, or the rich Console to show it on; True is the standard error.
        tensorboard: whether to write event files (extra `pretrain`).
        wandb: options of ``wandb.init``; None, and nothing of Weights & Biases is imported.
        flops_per_token: of training (:attr:`TokenFlops.training`), for the MFU.
        peak_flops: FLOP/s of all devices together; None where nobody publishes them, and the MFU is left out.
        window: records that speeds and the smoothed loss are taken over.
        resumed_from: the step that the run goes on from, 0 when it starts again; later records are removed. None for a
            new run.
        console_seconds: at least that long between two lines, where the console is no terminal.
        description: before the bar.
        unit: what a step's records count, and speeds are of: "tokens", each of which has a loss and so a perplexity; or
            another word, such as "examples".

    Raises:
        InputError: a new run in a folder that has metrics already, a damaged metrics.jsonl, or a value not allowed.
        MissingExtraError: tensorboardX or wandb was asked for and is not installed.
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
            mfu(1.0, flops_per_token, peak_flops)  # raises for a peak that is not allowed, before the training
        self.folder, self.total_steps, self.unit = Path(folder), total_steps, unit
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self._losses: deque[float] = deque(maxlen=window)
        self._marks: deque[tuple[int, int, float, float]] = deque(maxlen=window + 1)
        self._start, self._last_step, self._counted = time.perf_counter(), resumed_from or 0, None
        self._file = None

        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / FILE
        if resumed_from is None and file.exists() and file.stat().st_size:
            raise InputError(
                f"{str(file)!r} has the records of another run; resume that run, or give this one another folder"
            )
        if file.exists():
            cut_back(file, resumed_from or 0)
        self._trackers = [TensorBoard(self.folder, resumed_from)] if tensorboard else []
        if wandb is not None:
            self._trackers.append(WeightsAndBiases(self.folder, wandb, resumed_from))
        self._file = open(file, "ab")  # noqa: SIM115 (close() is called by whoever made the log)
        self._display = None
        if console:
            where = console if isinstance(console, Console) else None
            self._display = ConsoleDisplay(where, total_steps, console_seconds, description, unit)

    def step(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Logs a training step; it may be called for some steps alone.

        Args:
            record: "step" (steps done), "loss" (nats a token) and "tokens", or what the unit is (seen since the run
                began, resumed parts included); and, as there are, "learning_rate", "seconds" (of training; without it,
                the time since this log was made), "progress" (share of the run done; without it, of its steps), and any
                other number.

        Returns:
            The record as written: with "perplexity" of a loss a token, "smoothed_loss" (mean of the window) and, from the
            second record on, "tokens_per_second" (of the unit), "step_seconds" and "mfu" where it is known, all over the
            window; and "eta_seconds", which the file has not.

        Raises:
            InputError: something is missing, or the step is not after the one before.
        """
        record = {key: plain(value) for key, value in record.items()}
        missing = [key for key in ("step", "loss", self.unit) if record.get(key) is None]
        if missing:
            raise InputError(
                f"the record of a step lacks {', '.join(missing)}; it has {', '.join(record) or 'nothing'}"
            )
        step, loss, counted = record["step"], record["loss"], record[self.unit]
        if step <= self._last_step:
            raise InputError(f"step {step} was logged after step {self._last_step}; steps must rise")
        self._last_step, self._counted = step, counted
        seconds = record.setdefault("seconds", time.perf_counter() - self._start)
        progress = record.get("progress")
        progress = step / self.total_steps if progress is None else progress
        self._losses.append(loss)
        record = {"kind": STEP, **record}
        if self.unit == "tokens":
            record["perplexity"] = perplexity(loss)
        record["smoothed_loss"] = sum(self._losses) / len(self._losses)

        eta = None
        self._marks.append((step, counted, seconds, progress))
        first_step, first_counted, first_seconds, first_progress = self._marks[0]
        elapsed = seconds - first_seconds
        if elapsed > 0:
            record[f"{self.unit}_per_second"] = (counted - first_counted) / elapsed
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
        """Logs an evaluation.

        Args:
            record: "step", and "loss" on held-out text (nats a token) or any other numbers; "name" when there is more
                than one kind; "tokens", or what the unit is, as in :meth:`step`, whose last value is taken otherwise.

        Returns:
            The record as written: with the "perplexity" of a loss a token.
        """
        record = {key: plain(value) for key, value in record.items()}
        if record.get("step") is None:
            raise InputError(f"the record of an evaluation lacks step; it has {', '.join(record) or 'nothing'}")
        if self._counted is not None:
            record.setdefault(self.unit, self._counted)
        record = {"kind": EVALUATION, **record}
        if "loss" in record and self.unit == "tokens":
            record["perplexity"] = perplexity(record["loss"])
        self._write(record.get("name", EVALUATION), record)
        if self._display is not None:
            self._display.evaluation(record)
        return record

    def message(self, text: str) -> None:
        """Says something on the console, above the bar."""
        if self._display is not None:
            self._display.print(text)

    def close(self, failed: bool = False) -> None:
        """Ends the log; a second time does nothing."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        if self._display is not None:
            self._display.close()
        for tracker in self._trackers:
            tracker.close(failed)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close(failed=kind is not None)

    def _write(self, group: str, record: Mapping[str, Any]) -> None:
        if self._file is None:
            raise InputError(f"the log in {str(self.folder)!r} is closed; make another to go on")
        self._file.write(to_line(record))
        self._file.flush()  # to the system, so that it outlives this process
        numbers = {
            key: value
            for key, value in record.items()
            if isinstance(value, (int, float)) and key not in ("step", "progress") and not isinstance(value, bool)
        }
        for tracker in self._trackers:
            tracker.log(group, record["step"], numbers)


class NullLog:
    """The log of every process but the main one: the same methods, which do nothing. Takes what MetricsLog takes."""

    def __init__(self, *args, **options):
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

    def __exit__(self, kind, error, traceback) -> None:
        pass


def perplexity(loss: float) -> float:
    """exp of a loss in nats a token; infinite where that is beyond a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
