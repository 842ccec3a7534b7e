"""The callback behind ``fit``: it counts steps, logs, evaluates, saves and stops."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.errors import DuonlpError, NonFiniteLossError
from duonlp.training.best import Best
from duonlp.training.fit_config import FitConfig, fit_event_due
from duonlp.training.fit_loop import BEST
from duonlp.training.log.learning_curve import LearningCurve
from duonlp.training.log.metrics_log import MetricsLog, NullLog
from duonlp.training.result import FitResult
from duonlp.training.schedules import due
from duonlp.typing import Tokenizer
from duonlp.util.frameworks import keep_heap
from tfnlp.training.backups import Backups, is_main_worker, newest_backup, training_variables
from tfnlp.training.callbacks import StopAtSigterm

CHECKPOINTS = "checkpoints"
"""Subfolder of a run for the checkpoints it resumes from."""


class Run(keras.callbacks.Callback):
    """Count the steps of a fine-tuning run, log, evaluate, save, and stop it.

    With several workers, all of them evaluate and the first one writes.

    Args:
        trainer: Compiled model whose ``fit`` is called, its optimizer built.
        config: Settings of the run.
        total: Optimizer steps of the run.
        best: Tracker of the best evaluation.
        folder: Folder of the run, or None.
        tokenizer: Tokenizer to save with the best model.
        sigterm: Callback before this one that tells whether SIGTERM has arrived.

    Attributes:
        position: Position of the run, stored with every checkpoint: "step" (optimizer steps done), "data" (position of the next
            batch in the source; None for the start), "examples", "seconds" (without evaluations) and "loss" (of the last step).
        log: Log of the run. Set before training.
        evaluation: Returns the metrics of the model; None if nothing is evaluated. Set before training.
        on_evaluation: Called with the steps done and the metrics after each evaluation. Set before training.
        history: Metrics of each evaluation, with its "step".
        curve: The learning curve.
        preempted: Whether the run was asked to stop.

    Raises:
        InputError: The newest checkpoint is of another model or optimizer.
    """

    # Set by fit before training.
    model: Any

    def __init__(
        self, trainer: Any, config: FitConfig, total: int, best: Best, folder: Path | None, tokenizer: Tokenizer | None,
        sigterm: StopAtSigterm,
    ):  # fmt: skip
        super().__init__()
        self.trainer, self.config, self.total, self.best = trainer, config, total, best
        self.folder, self.tokenizer, self.sigterm, self._writes = folder, tokenizer, sigterm, is_main_worker(trainer)
        self.position: dict[str, Any] = {"step": 0, "data": None, "examples": 0, "seconds": 0.0, "loss": math.nan}
        self.log: MetricsLog | NullLog = NullLog()
        self.evaluation: Callable[[], Mapping[str, float]] | None = None
        self.on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None
        self.history: list[dict[str, float]] = []
        self.preempted = False
        self.curve = LearningCurve("examples", folder if self._writes else None)
        self._window: list[np.ndarray] = []  # sums over the steps since the last record, by variable of the metrics
        self._backups = None if folder is None else Backups(folder / CHECKPOINTS, config.keep_last, writes=self._writes)
        newest = None if self._backups is None else newest_backup(self._backups, trainer)
        if self._backups is not None and newest is not None:
            self._backups.restore(training_variables(trainer), newest[0])
            self.position = dict(newest[1]["at"])
            self.best.restore(newest[1]["best"])
            self.curve.restore(newest[1].get("learning_curve"))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._clock = time.perf_counter() - self.position["seconds"]
        self.trainer.progress.source.seen = self.position["examples"]

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if batch == 1:  # since tf.data's generators have made malloc return memory to the system again
            keep_heap()
        # So that logs are those of the batch alone, not means since the beginning.
        self.trainer.reset_metrics()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        position, config, source = self.position, self.config, self.trainer.progress.source
        step = position["step"] + 1
        rate = config.learning_rate_at((step - 0.5) / self.total)
        self._check_finite(step, metrics["loss"], rate)
        position |= {"step": step, "data": source.position, "examples": source.seen, "loss": metrics["loss"]}
        position["seconds"] = time.perf_counter() - self._clock
        # Of this batch alone. Read once, since several workers communicate for it.
        variables = [variable.numpy() for variable in self.trainer.metrics_variables]
        totals, counts = variables[:2]  # of the loss, which Keras lists first
        sums = zip(totals.tolist(), counts.tolist())
        self.curve.add({str(number): pair for number, pair in enumerate(sums) if pair[1]})
        self._window = [a + b for a, b in zip(self._window, variables, strict=True)] if self._window else variables
        last, ends_epoch, self.preempted = step == self.total, source.ended_epoch, self.sigterm.received
        evaluates = self.evaluation is not None and fit_event_due(config.evaluate_every, step, ends_epoch, last)
        saves = fit_event_due(config.save_every, step, ends_epoch, last) or self.preempted
        if due(step, config.log_every, self.total) or evaluates or saves or last:
            record = {name: position[name] for name in ("step", "examples", "seconds")} | {"learning_rate": rate}
            self.log.step(record | self._window_metrics())
        if evaluates or saves:
            # A non-finite gradient has already corrupted the parameters, even if the loss was finite.
            norm = float(tf.linalg.global_norm(self.trainer.trainable_variables))
            self._check_finite(step, norm, rate, "parameter norm")
        if evaluates:
            try:
                self._evaluate(step)
            except DuonlpError:
                self._save(step)  # so that the training is not lost with the evaluation
                raise
        if evaluates or ends_epoch or last:
            results = self.history[-1] if evaluates else None
            count, epoch = position["examples"], source.position[0] + (source.position[1] > 0)
            self.curve.record(step, epoch, count, rate, results, ends_epoch)
        if saves or self.best.out_of_patience:
            self._save(step)
        if self.best.out_of_patience:
            best = self.best
            self.log.message(
                f"stopped early: {best.name} has not improved on {best.value} (step {best.step}) in {best.since} evaluations"
            )
            self.trainer.stop_training = True
        if self.preempted:
            self.log.message(f"preempted: {'saved' if self._backups else 'stopped'} after step {step}")

    def _save(self, step: int) -> None:
        """Write a checkpoint, where the run has a folder."""
        if self._backups is not None and self._writes:
            state = {"at": self.position, "best": self.best.to_dict(), "learning_curve": self.curve.state()}
            self._backups.write(step, state, training_variables(self.trainer))

    def _window_metrics(self) -> dict[str, float]:
        """Return the metrics over the steps since the last record, whose losses weigh every label the same."""
        sums, results = iter(self._window), {}
        for metric in self.trainer.metrics:
            result = metric.stateless_result([tf.constant(next(sums)) for _ in metric.variables])
            results |= result if isinstance(result, dict) else {metric.name: result}
        self._window = []
        return {name: float(value) for name, value in results.items()}

    def _evaluate(self, step: int) -> None:
        assert self.evaluation is not None
        with nullcontext() if self.trainer.masks is None else self.trainer.masks.applied():
            self._evaluate_model(step, self.evaluation)

    def _evaluate_model(self, step: int, evaluation: Callable[[], Mapping[str, float]]) -> None:
        began = time.perf_counter()
        metrics = dict(evaluation())
        self.history.append({"step": step, **metrics})
        self.log.evaluation({"name": "validation", **self.history[-1]})
        candidate = step >= self.config.first_candidate(self.total)
        if candidate and self.best.update(step, metrics) and self.folder is not None and self._writes:
            self.trainer.trained_model().save_pretrained(self.folder / BEST, self.tokenizer)
        if self.on_evaluation is not None:
            self.on_evaluation(step, metrics)
        self._clock += time.perf_counter() - began

    def _check_finite(self, step: int, value: float, rate: float, name: str = "loss") -> None:
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"step {step} has a {name} of {value}; the best model and the last checkpoint precede it: lower the learning "
                f"rate ({rate:.3g}), warm up longer or clip harder, then start over"
            )

    def result(self) -> FitResult:
        """Return the result of the run."""
        best, position = self.best, self.position
        best_result = None
        if best.value is not None and best.step is not None:
            best_result = {"value": best.value, "step": best.step}
        done = position["step"], position["examples"], position["seconds"], position["loss"]
        return FitResult(
            self.trainer.trained_model(), *done, self.history, best_result,
            self.folder / BEST if self.folder is not None and best_result is not None else None,
            best.out_of_patience, self.preempted and position["step"] < self.total, self.curve.records,
        )  # fmt: skip
