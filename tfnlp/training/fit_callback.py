"""The callback behind ``fit``: logging, evaluation, checkpoints and stopping, and microbatches weighted by their labels."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.checkpoints.safetensors_file import StoredTensor
from duonlp.errors import InputError, NonFiniteLossError
from duonlp.heads import HEADS, IGNORED
from duonlp.training.best import Best
from duonlp.training.fit_config import FitConfig, fit_event_due
from duonlp.training.fit_loop import BEST
from duonlp.training.log.metrics_log import MetricsLog, NullLog
from duonlp.training.result import FitResult
from duonlp.training.schedules import due
from duonlp.typing import Batch
from duonlp.util.frameworks import keep_heap
from tfnlp.training.backups import Backups, training_variables
from tfnlp.training.input import Feed

CHECKPOINTS = "checkpoints"
"""Subfolder of a run for the checkpoints it resumes from."""


class Run(keras.callbacks.Callback):
    """Count the steps of a fine-tuning run, log, evaluate, save, and stop it.

    Args:
        trainer: Compiled model whose ``fit`` is called.
        model: Model that is saved, evaluated and returned.
        config: Settings of the run.
        total: Optimizer steps of the run.
        best: Tracker of the best evaluation.
        folder: Folder of the run, or None.
        backups: Where to save checkpoints; None saves none.
        tokenizer: Tokenizer to save with the best model.

    Attributes:
        position: Position of the run, stored with every checkpoint: "step" (optimizer steps done), "epoch" and "batch" (of the
            next batch), "examples", "seconds" (without evaluations) and "loss" (of the last step).
        feed: Source of the batches; its marks give the position after each of them. Set before training.
        log: Log of the run. Set before training.
        stop_requested: Returns whether the run should save and stop. Set before training.
        evaluation: Returns the metrics of the model; None if nothing is evaluated. Set before training.
        on_evaluation: Called with the steps done and the metrics after each evaluation. Set before training.
        history: Metrics of each evaluation, with its "step".
        preempted: Whether the run was asked to stop.
    """

    def __init__(
        self, trainer: Any, model: Any, config: FitConfig, total: int, best: Best, folder: Path | None,
        backups: Backups | None, tokenizer: Any,
    ):  # fmt: skip
        super().__init__()
        self.trainer, self.trained, self.config, self.total, self.best = trainer, model, config, total, best
        self.folder, self.backups, self.tokenizer = folder, backups, tokenizer
        self.position: dict[str, Any] = {
            "step": 0, "epoch": 0, "batch": 0, "examples": 0, "seconds": 0.0, "loss": math.nan,
        }  # fmt: skip
        self.feed: Feed | None = None
        self.log: MetricsLog | NullLog = NullLog()
        self.stop_requested: Callable[[], bool] = lambda: False
        self.evaluation: Callable[[], Mapping[str, float]] | None = None
        self.on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None
        self.history: list[dict[str, float]] = []
        self.preempted = False
        self._pieces: list[Mapping[str, float]] = []  # logs of the current step's microbatches
        self._window: list[Mapping[str, float]] = []  # logs of the steps since the last record
        with trainer.distribute_strategy.scope():
            if not trainer.optimizer.built:
                trainer.optimizer.build(trainer.trainable_variables)
        layers = model._flatten_layers()
        generators = [layer.seed_generator for layer in layers if getattr(layer, "seed_generator", None) is not None]
        seeds = np.random.SeedSequence(config.seed).generate_state(max(len(generators), 1))
        for generator, seed in zip(generators, seeds):
            generator.state.assign(np.array([seed, 0], generator.state.dtype))
        others = [*trainer.trainable_variables, *(generator.state for generator in generators)]
        self._variables = training_variables(model, trainer.optimizer, others)

    def restore(self, tensors: Mapping[str, StoredTensor], state: Mapping[str, Any]) -> None:
        """Restore the variables and the position from a backup.

        Raises:
            InputError: The backup is of another model or optimizer.
        """
        assert self.backups is not None
        self.backups.restore(self._variables, tensors)
        self.position = dict(state["at"])
        self.best.restore(state["best"])

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._clock = time.perf_counter() - self.position["seconds"]

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if batch == 1:  # since tf.data's generators have made malloc return memory to the system again
            keep_heap()
        # So that logs are those of the batch alone, not means since the beginning.
        self.trainer.reset_metrics()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        assert logs is not None and self.feed is not None
        self._pieces.append(logs)
        if len(self._pieces) < self.config.accumulation:
            return
        # A plain mean: each microbatch has been weighted by its labels already.
        metrics = {name: float(np.mean([piece[name] for piece in self._pieces])) for name in logs}
        self._pieces.clear()
        position, config, mark = self.position, self.config, self.feed.marks.popleft()
        step = position["step"] + 1
        rate = config.learning_rate_at((step - 0.5) / self.total)
        self._check_finite(step, metrics["loss"], rate)
        position |= {"step": step, "epoch": mark["epoch"], "batch": mark["batch"], "loss": metrics["loss"]}
        position["examples"] += mark["examples"]
        position["seconds"] = time.perf_counter() - self._clock
        self._window.append(metrics)
        last, ends_epoch, self.preempted = step == self.total, mark["ends_epoch"], self.stop_requested()
        evaluates = self.evaluation is not None and fit_event_due(config.evaluate_every, step, ends_epoch, last)
        saves = fit_event_due(config.save_every, step, ends_epoch, last) or self.preempted
        if due(step, config.log_every, self.total) or evaluates or saves or last:
            means = {name: float(np.mean([record[name] for record in self._window])) for name in metrics}
            self._window.clear()
            self.log.step(
                {name: position[name] for name in ("step", "examples", "seconds")} | {"learning_rate": rate} | means
            )
        if evaluates or saves:
            # A non-finite gradient has already corrupted the parameters, even if the loss was finite.
            norm = float(tf.linalg.global_norm(self.trainer.trainable_variables))
            self._check_finite(step, norm, rate, "parameter norm")
        if evaluates:
            self._evaluate(step)
        if self.backups is not None and (saves or self.best.out_of_patience):
            self.backups.write(step, {"format": 1, "at": position, "best": self.best.to_dict()}, self._variables)
        if self.best.out_of_patience:
            best = self.best
            self.log.message(
                f"stopped early: {best.name} has not improved on {best.value} (step {best.step}) in {best.since} evaluations"
            )
        if self.preempted:
            self.log.message(f"preempted: {'saved' if self.backups else 'stopped'} after step {step}")
        if self.best.out_of_patience or self.preempted:
            self.trainer.stop_training = True

    def _evaluate(self, step: int) -> None:
        assert self.evaluation is not None
        began = time.perf_counter()
        metrics = dict(self.evaluation())
        self.history.append({"step": step, **metrics})
        self.log.evaluation({"name": "validation", **self.history[-1]})
        if self.best.update(step, metrics) and self.folder is not None:
            self.trained.save_pretrained(self.folder / BEST, self.tokenizer)
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
        return FitResult(
            self.trained, position["step"], position["examples"], position["seconds"], position["loss"], self.history,
            best_result, self.folder / BEST if self.folder is not None and best_result is not None else None,
            best.out_of_patience, self.preempted and position["step"] < self.total,
        )  # fmt: skip


class Sigterm:
    """Context in which SIGTERM asks the run to save and stop instead of ending the process.

    Entering it returns a function that tells whether the signal has arrived. Outside the main thread, where Python allows
    no handlers, it never does.
    """

    def __enter__(self) -> Callable[[], bool]:
        self._received = threading.Event()
        self._previous: Callable[[int, FrameType | None], Any] | int | None = None
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, lambda *_: self._received.set())
        return self._received.is_set

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)


def label_counts(head: str, batch: Batch) -> np.ndarray:
    """Return the number of loss terms of each row, float64 [B].

    A row counts as one where labels are numbers or missing, and for the head "pretraining", whose two losses count
    differently.
    """
    rows = len(next(iter(batch.values())))
    if len(HEADS[head].label_names) > 1 or "labels" not in batch:
        return np.ones(rows)
    (output,), labels = HEADS[head].outputs, np.asarray(batch["labels"])
    if labels.dtype.kind not in "iu" and labels.ndim == 1:
        return np.ones(rows)
    if output.counts_attended:
        return np.asarray(batch.get("attention_mask", np.ones_like(labels)), np.float64).sum(axis=1)
    return output.align(labels != IGNORED).reshape(rows, -1).sum(axis=1).astype(np.float64)


def split_batch(head: str, batch: Batch, pieces: int) -> Iterator[dict[str, Any]]:
    """Split a batch into microbatches whose mean gradient is that of the batch, by weighting each by its labels.

    Args:
        head: Head of the model.
        batch: NumPy arrays [B, ...].
        pieces: Number of microbatches. Microbatch i has the rows whose index modulo `pieces` is i.

    Yields:
        The microbatches; with several, each has a ``sample_weight`` float32.

    Raises:
        InputError: The batch has fewer rows than pieces.
    """
    if pieces == 1:
        yield dict(batch)
        return
    counts = label_counts(head, batch)
    if len(counts) < pieces:
        raise InputError(f"cannot split a batch of {len(counts)} rows into {pieces} microbatches; lower accumulation")
    weights = np.broadcast_to(np.asarray(batch.get("sample_weight", 1.0), np.float32), len(counts))
    for i in range(pieces):
        rows = slice(i, None, pieces)  # strided, so that padding rows at the end are spread over all microbatches
        share = counts[rows].sum() / max(counts.sum(), 1)
        if not share:  # the mean over no labels is not finite: take a labeled row with weight 0 instead
            rows = [int(counts.argmax())]
        piece = {name: np.asarray(value)[rows] for name, value in batch.items()}
        yield piece | {"sample_weight": (weights[rows] * (pieces * share)).astype(np.float32)}
