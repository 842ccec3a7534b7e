"""The callback that ``fit`` is: what is done after each step of a fine-tuning, and where it stands."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.errors import InputError, NonFiniteLossError
from duonlp.inputs import IGNORED
from duonlp.training.best import Best
from duonlp.training.fit_config import FitConfig, fit_event_due
from duonlp.training.fit_loop import BEST
from duonlp.training.log.metrics_log import NullLog
from duonlp.training.result import FitResult
from duonlp.training.schedules import due
from duonlp.util.frameworks import keep_heap
from tfnlp.training.backups import Backups, training_variables
from tfnlp.training.input import Feed

CHECKPOINTS = "checkpoints"
"""The folder of what a run is resumed from, below the run's."""


class Run(keras.callbacks.Callback):
    """Counts the steps of a fine-tuning, logs, evaluates, saves, and stops it.

    Args:
        trainer, model, config, total, folder, tokenizer: as tfnlp.training.fit.train has them; compiled.
        best: of the evaluations.
        backups: to resume from; None for none.

    at: how far the run is.
    feed, log, asked, evaluation, on_evaluation: set before it begins: where the batches come from, what is told of the steps,
        whether someone asked to stop, what gives the results of an evaluation, if there are any, and who is told of them.
    """

    def __init__(
        self, trainer: keras.Model, model, config: FitConfig, total: int, best: Best, folder: Path | None,
        backups: Backups | None, tokenizer,
    ):  # fmt: skip
        super().__init__()
        self.trainer, self.trained, self.config, self.total, self.best = trainer, model, config, total, best
        self.folder, self.backups, self.tokenizer = folder, backups, tokenizer
        self.at = {"step": 0, "epoch": 0, "batch": 0, "examples": 0, "seconds": 0.0, "loss": math.nan}
        self.feed: Feed | None = None
        self.log: Any = NullLog()
        self.asked: Callable[[], bool] = lambda: False
        self.evaluation: Callable[[], Mapping[str, float]] | None = None
        self.on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None
        self.history: list[dict[str, float]] = []
        self.preempted = False
        self._pieces: list[Mapping[str, float]] = []
        self._window: list[Mapping[str, float]] = []
        with trainer.distribute_strategy.scope():
            if not trainer.optimizer.built:
                trainer.optimizer.build(trainer.trainable_variables)
        layers = model._flatten_layers()
        generators = [layer.seed_generator for layer in layers if getattr(layer, "seed_generator", None) is not None]
        draws = np.random.SeedSequence(config.seed).generate_state(max(len(generators), 1))
        for generator, draw in zip(generators, draws):
            generator.state.assign(np.array([draw, 0], generator.state.dtype))
        others = [*trainer.trainable_variables, *(generator.state for generator in generators)]
        self._variables = training_variables(model, trainer.optimizer, others)

    def restore(self, tensors, state: Mapping[str, Any]) -> None:
        """Goes on from a backup."""
        self.backups.restore(self._variables, tensors)
        self.at = dict(state["at"])
        self.best.restore(state["best"])

    def on_train_begin(self, logs=None):
        self._clock = time.perf_counter() - self.at["seconds"]

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1:  # tf.data's generators have made malloc give its memory back again
            keep_heap()
        """Forgets the metrics, so that a loss is the batch's own, not the mean since the beginning."""
        self.trainer.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self._pieces.append(logs)
        if len(self._pieces) < self.config.accumulation:
            return
        # each piece has been weighted by its labels
        found = {name: float(np.mean([piece[name] for piece in self._pieces])) for name in logs}
        self._pieces.clear()
        at, config, mark = self.at, self.config, self.feed.marks.popleft()
        step = at["step"] + 1
        rate = config.learning_rate_at((step - 0.5) / self.total)
        self._check(step, found["loss"], rate)
        at |= {"step": step, "epoch": mark["epoch"], "batch": mark["batch"], "loss": found["loss"]}
        at["examples"] += mark["examples"]
        at["seconds"] = time.perf_counter() - self._clock
        self._window.append(found)
        last, ends_epoch, self.preempted = step == self.total, mark["ends_epoch"], self.asked()
        evaluates = self.evaluation is not None and fit_event_due(config.evaluate_every, step, ends_epoch, last)
        saves = fit_event_due(config.save_every, step, ends_epoch, last) or self.preempted
        if due(step, config.log_every, self.total) or evaluates or saves or last:
            means = {name: float(np.mean([each[name] for each in self._window])) for name in found}
            self._window.clear()
            self.log.step(
                {name: at[name] for name in ("step", "examples", "seconds")} | {"learning_rate": rate} | means
            )
        if evaluates or saves:
            # a gradient that is no number has spoilt the parameters already
            self._check(
                step, float(tf.linalg.global_norm(self.trainer.trainable_variables)), rate, "norm of the parameters"
            )
        if evaluates:
            self._evaluate(step)
        if self.backups is not None and (saves or self.best.out_of_patience):
            self.backups.write(step, {"format": 1, "at": at, "best": self.best.to_dict()}, self._variables)
        if self.best.out_of_patience:
            best = self.best
            self.log.message(
                f"stopped: no better {best.name} than {best.value} of step {best.step} for {best.since} times"
            )
        if self.preempted:
            self.log.message(f"asked to stop: {'saved' if self.backups else 'stopped'} after step {step}")
        if self.best.out_of_patience or self.preempted:
            self.trainer.stop_training = True

    def _evaluate(self, step: int) -> None:
        began = time.perf_counter()
        results = dict(self.evaluation())
        self.history.append({"step": step, **results})
        self.log.evaluation({"name": "validation", **self.history[-1]})
        if self.best.update(step, results) and self.folder is not None:
            self.trained.save_pretrained(self.folder / BEST, self.tokenizer)
        if self.on_evaluation is not None:
            self.on_evaluation(step, results)
        self._clock += time.perf_counter() - began

    def _check(self, step: int, value: float, rate: float, what: str = "loss") -> None:
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"step {step} has a {what} of {value}; the best model and the last checkpoint are from before: lower the "
                f"learning rate ({rate:.3g}), warm up longer, or clip harder, then start anew"
            )

    def result(self) -> FitResult:
        """How it ended."""
        best, at = self.best, self.at
        where = None if self.folder is None or best.value is None else self.folder / BEST
        return FitResult(
            self.trained, at["step"], at["examples"], at["seconds"], at["loss"], self.history,
            None if best.value is None else {"value": best.value, "step": best.step}, where, best.out_of_patience,
            self.preempted and at["step"] < self.total,
        )  # fmt: skip


class Sigterm:
    """While it is entered, SIGTERM asks the run to save and leave, instead of ending the process; gives who tells of it."""

    def __enter__(self) -> Callable[[], bool]:
        self._asked, self._before = threading.Event(), None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
        return self._asked.is_set

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def label_counts(head: str, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """How many terms of the loss each row of a batch has, float64 [B]; heads of two losses go by their rows."""
    labels = np.asarray(batch["labels"]) if "labels" in batch and head != "pretraining" else None
    rows = len(batch["input_ids"])
    if labels is None or (labels.dtype.kind not in "iu" and labels.ndim == 1):
        return np.ones(rows)
    if head == "replaced-token-detection":
        return np.asarray(batch.get("attention_mask", np.ones_like(labels)), np.float64).sum(axis=1)
    counted = labels != IGNORED
    return (counted[:, 1:] if head == "causal-lm" else counted.reshape(rows, -1)).sum(axis=1).astype(np.float64)


def pieces_of(head: str, batch: Mapping[str, np.ndarray], pieces: int) -> Iterator[dict[str, np.ndarray]]:
    """A batch in so many pieces, whose mean gradient is that of the whole: each weighs as many labels as it has.

    Raises:
        InputError: it has fewer rows than pieces.
    """
    if pieces == 1:
        yield dict(batch)
        return
    counts = label_counts(head, batch)
    if len(counts) < pieces:
        raise InputError(f"a batch of {len(counts)} rows cannot be computed in {pieces} pieces; lower accumulation")
    given = np.broadcast_to(np.asarray(batch.get("sample_weight", 1.0), np.float32), len(counts))
    for i in range(pieces):
        rows = slice(i, None, pieces)  # what fills up the batch's end is shared by all
        share = counts[rows].sum() / max(counts.sum(), 1)
        if not share:  # a mean over nothing is no number: a row that has something, without weight
            rows = [int(counts.argmax())]
        piece = {name: np.asarray(value)[rows] for name, value in batch.items()}
        yield piece | {"sample_weight": (given[rows] * (pieces * share)).astype(np.float32)}
