"""Callbacks of any training: durable backups, stops at divergence and at SIGTERM, and the metrics log."""

import math
import os
import signal
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import keras
import numpy as np

from duonlp.errors import InputError, NonFiniteLossError
from duonlp.training.flops import pair_flops, token_flops
from duonlp.training.log.metrics_file import FILE, read_metrics
from duonlp.training.log.metrics_log import MetricsLog, NullLog
from duonlp.training.schedules import due
from duonlp.util.files import may_read
from tfnlp.trainer_mixin import TrainerMixin
from tfnlp.training.backups import (
    Backups,
    is_main_worker,
    locked_run,
    newest_backup,
    sum_over_workers,
    training_variables,
    was_preempted,
)


class BackupAndRestore(keras.callbacks.BackupAndRestore):
    """``keras.callbacks.BackupAndRestore`` for tfnlp's models: an interrupted ``fit`` resumes bit-identically.

    A backup holds everything that the rest of the run depends on: parameters, optimizer state, loss scale, dropout, the
    epoch's metrics, the state of other callbacks (SaveBest, GenerationEvaluation) and the position in the data, also in
    the middle of an epoch. On resume, callbacks are not called for batches already seen, and a ``block_dataset`` or
    ``batch_dataset`` does not read them again. Other data is read up to the position, so its order must be the same in
    every run: pass ``shuffle=False``.

    Each backup is one file, ``step-000001200.safetensors``, written under a temporary name, flushed to disk and renamed;
    older ones are removed only after that. Wherever it is in the list, it comes after a PretrainingLog and callbacks with a
    state, so that a run killed right after a backup has their work up to the same step. Nothing is saved once the loss is not
    finite. Under a MultiWorkerMirroredStrategy the first worker writes and all workers read, so they must share the folder.

    Args:
        backup_dir: Folder used for the backups of this run alone.
        save_freq: "epoch", or the number of steps between two backups. The end of training is always backed up.
        keep: Number of backups to keep.
        delete_checkpoint: Whether to remove the backups when training ends. By default they stay, so that running the
            same program again does nothing.

    Raises:
        InputError: save_freq or keep is below 1, the backup is of another model, optimizer or batch size, or another process or
            thread is training with the folder.
        CheckpointError: No backup in the folder is readable.
    """

    # Set by fit before training.
    model: Any
    params: dict[str, Any]

    def __init__(
        self,
        backup_dir: str | os.PathLike,
        save_freq: int | str = "epoch",
        *,
        keep: int = 2,
        delete_checkpoint: bool = False,
    ):
        if keep < 1:
            raise InputError(f"keep is {keep}; it must be at least 1")
        if not (save_freq == "epoch" or (isinstance(save_freq, int) and save_freq >= 1)):
            raise InputError(f"save_freq is {save_freq!r}; it must be 'epoch' or at least 1 step")
        super().__init__(str(backup_dir), save_freq, delete_checkpoint=delete_checkpoint)
        self.folder, self.backups = Path(backup_dir), Backups(backup_dir, keep)
        self._every = save_freq if isinstance(save_freq, int) else None
        self._epoch = self._batch = 0
        self._saved: tuple[int, int, int] | None = None  # step, epoch and batch of the last backup
        self._logs: dict[str, Any] = {}
        self._metrics: list[np.ndarray] | None = None  # values to restore at the beginning of the epoch
        self._callback_states: list[dict[str, Any]] = []
        self._lock = ExitStack()

    def set_model(self, model: keras.Model) -> None:
        if not isinstance(model, TrainerMixin):
            raise InputError(
                f"this BackupAndRestore needs a Pretrainer, a Distiller or a tfnlp model, not a {type(model).__name__}; use "
                "keras.callbacks.BackupAndRestore"
            )
        super().set_model(model)
        self.backups.writes = is_main_worker(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model, progress = self.model, self.model.progress
        self._epoch = self._batch = 0
        self._saved, self._logs, self._metrics, self._callback_states = None, {}, None, []
        self._lock.enter_context(locked_run(self.folder, model, "backups"))
        backup = newest_backup(self.backups, model)
        if backup is None:
            return
        tensors, state = backup
        self._check_settings(state)
        stored = {name: tensor for name, tensor in tensors.items() if not name.startswith("metric/")}
        self.backups.restore(training_variables(model), stored)
        self._epoch, self._batch, self._logs = state["epoch"], state["batch"], state["logs"]
        self._saved = state["step"], self._epoch, self._batch
        model._initial_epoch, progress.first_logs = self._epoch, self._logs
        if self._batch:
            model.build_metrics(progress.epochs)
            self._metrics = [tensors[f"metric/{i}"].read() for i in range(len(tensors) - len(stored))]
        progress.first_batch = self._batch
        if progress.source is not None:
            progress.source.position, progress.source.seen = state["position"], state["seen"]
        self._callback_states = state["callbacks"]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._metrics is not None:  # Keras has just reset the metrics
            for variable, value in zip(self.model.metrics_variables, self._metrics, strict=True):
                variable.assign(value)
        elif epoch != self._epoch:
            self._batch = 0
        self._epoch, self._metrics = epoch, None
        for callback, state in zip(self._stateful_callbacks(), self._callback_states):  # whose on_train_begin is over
            callback.set_state(state)
        self._callback_states = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._batch, self._logs = batch + 1, dict(logs or {})
        if self._every is not None and int(self.model.step.numpy()) % self._every == 0:
            self._save_model()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not self.model.stop_training or self._batch == self.params.get("steps"):
            self._epoch, self._batch = epoch + 1, 0
        if self._every is None:
            self._save_model()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if not self.delete_checkpoint:
            self._save_model()
        elif _is_finite(self._logs) and is_main_worker(self.model):
            for file in self.backups.files():
                file.unlink()

    def first_step(self, steps_per_epoch: int) -> int:
        """Return the step of a run's first backup."""
        return steps_per_epoch if self._every is None else self._every

    def close(self) -> None:
        """Release the folder; tfnlp's ``fit`` calls this, also after an error."""
        self._lock.close()

    def _save_model(self) -> None:
        model, source = self.model, self.model.progress.source
        step = int(model.step.numpy())
        point = step, self._epoch, self._batch
        if not _is_finite(self._logs):
            return
        # Reading a metric's variables sums over workers, so all workers must take part.
        metrics = {f"metric/{i}": variable.numpy() for i, variable in enumerate(model.metrics_variables)}
        if not is_main_worker(model) or point == self._saved:
            return
        state = {
            "epoch": self._epoch, "batch": self._batch, "logs": {name: float(value) for name, value in self._logs.items()},
            "position": source and source.position, "seen": source and source.seen,
            "steps_per_epoch": self.params.get("steps"), "callbacks": [c.get_state() for c in self._stateful_callbacks()],
            **self._fixed_settings(),
        }  # fmt: skip
        self.backups.write(step, state, metrics | training_variables(model))
        self._saved = point

    def _stateful_callbacks(self) -> list[Any]:
        return [callback for callback in self.model.progress.callbacks if hasattr(callback, "get_state")]

    def _fixed_settings(self) -> dict[str, Any]:
        """Return the settings that must not change on resume."""
        source, optimizer = self.model.progress.source, self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        rows = None if source is None else len(next(iter(source.first.values()))) * source.hosts
        return {"batch_size": rows, "optimizer": type(optimizer).__name__, "accumulation": self.model.accumulation}

    def _check_settings(self, state: dict[str, Any]) -> None:
        settings = self._fixed_settings()
        if state["batch"]:  # the epoch was interrupted, so its length must stay
            settings["steps_per_epoch"] = self.params.get("steps")
        for name, value in settings.items():
            if state[name] != value:
                raise InputError(
                    f"the backup in {str(self.folder)!r} is of a run with {name}={state[name]}, but now it is {value}; use the "
                    "same to resume, or another folder for a new run"
                )


def _is_finite(logs: Mapping[str, Any]) -> bool:
    """Return whether the loss of the last step, or its mean since the epoch began, is finite."""
    return math.isfinite(logs.get("step_loss", logs.get("loss", 0.0)))


class StopAtNonFiniteLoss(keras.callbacks.Callback):
    """Raise an error at a non-finite loss, where keras.callbacks.TerminateOnNaN only ends the training.

    Steps of tfnlp's models continue from a backup; of any other model, they are the batches of this ``fit``.

    Raises:
        NonFiniteLossError: The loss is not finite; names the steps between which that happened.
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._batches = 0
        self._last_finite: int | None = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._batches += 1
        step = self._step()
        if (
            self._last_finite is None
        ):  # not in on_train_begin, when a later BackupAndRestore has not restored the step yet
            self._last_finite = step - 1
        if not _is_finite(logs or {}):
            loss = (logs or {}).get("step_loss", (logs or {}).get("loss"))
            raise NonFiniteLossError(
                f"the loss is {loss} at step {step}; it was finite at step {self._last_finite}, and backups up to that step "
                "are intact: resume from one with a lower learning rate, longer warmup or a smaller clip_norm"
            )
        self._last_finite = step

    def _step(self) -> int:
        return int(self.model.step.numpy()) if isinstance(self.model, TrainerMixin) else self._batches


class StopAtSigterm(keras.callbacks.Callback):
    """End ``fit`` after the running step when SIGTERM arrives, so that a BackupAndRestore saves the position.

    With several workers, all of them stop after the same step. Outside the main thread, where Python allows no signal
    handlers, this does nothing.

    Attributes:
        received: Whether the signal has arrived at any worker.
    """

    # Set by fit before training.
    model: Any

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.received, self._signaled = False, threading.Event()
        self._previous: Any = None
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, lambda *_: self._signaled.set())

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.received = sum_over_workers(self.model, int(self._signaled.is_set())) > 0
        if self.received:
            self.model.stop_training = True

    def close(self) -> None:
        """Restore the previous signal handler; tfnlp's ``fit`` calls this, also after an error."""
        if getattr(self, "_previous", None) is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None


class PretrainingLog(keras.callbacks.Callback):
    """Log a run with :class:`~duonlp.training.log.metrics_log.MetricsLog`.

    It logs loss, throughput and validation loss, for blocks also the perplexity, and prints the console line; pass
    ``verbose=0`` to fit, or there are two progress bars. With a BackupAndRestore, the log resumes from the same step. With
    several workers, only the first one logs. A run that was killed before its first backup starts over, and so does its log.

    Args:
        folder: Folder of the run, in which metrics.jsonl is written.
        log_every: Steps between two records.
        options: Options of MetricsLog: console, tensorboard, wandb, peak_flops, ...

    Raises:
        InputError: log_every is below 1, the data is neither from block_dataset nor from batch_dataset, or another process or
            thread is logging to the folder.
    """

    # Set by fit before training.
    model: Any
    params: dict[str, Any]

    def __init__(self, folder: str | os.PathLike, *, log_every: int = 10, **options: Any):
        super().__init__()
        if log_every < 1:
            raise InputError(f"log_every is {log_every}; it must be at least 1 step")
        self.folder, self.log_every, self.options = folder, log_every, options
        self._log: MetricsLog | NullLog | None = None
        self._step = self._total = self._batches = 0
        self._lock = ExitStack()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._log is not None:
            return
        # Not in on_train_begin: a BackupAndRestore later in the list would not have restored the step yet.
        progress, self._step = self.model.progress, int(self.model.step.numpy())
        if progress.source is None:
            raise InputError("PretrainingLog cannot count this data; train on a block_dataset or a batch_dataset")
        self._total = self._step + (self.params["epochs"] - epoch) * self.params["steps"] - progress.first_batch
        self._lock.enter_context(locked_run(self.folder, self.model, "log"))
        log_class = MetricsLog if is_main_worker(self.model) else NullLog
        options: dict[str, Any] = {
            "unit": progress.source.unit,
            "flops_per_token": _flops_per_token(self.model),
            **self.options,
        }
        resumed_from = 0 if not self._step and self._was_killed_before_a_backup() else self._step or None
        self._log = log_class(self.folder, total_steps=self._total, resumed_from=resumed_from, **options)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        assert self._log is not None and logs is not None
        self._step, self._batches = self._step + 1, batch + 1
        if due(self._step, self.log_every, self._total):
            rate, source = self.model.optimizer.learning_rate, self.model.progress.source
            record = {"step": self._step, "loss": logs.get("step_loss", logs["loss"]), source.unit: source.seen}
            self._log.step(record | {"learning_rate": float(keras.ops.convert_to_numpy(rate))})

    def _was_killed_before_a_backup(self) -> bool:
        """Return whether the folder's records may be those of this run, killed before its first backup."""
        backups = [
            c for c in self.model.progress.callbacks if isinstance(c, BackupAndRestore) and not c.delete_checkpoint
        ]
        if not backups or not may_read(Path(self.folder) / FILE):
            return False
        first = backups[0].first_step(self.params["steps"])
        return all(record.get("step", 0) <= first for record in read_metrics(self.folder))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._log is not None and logs and "val_loss" in logs and not was_preempted(self, self._batches):
            self._log.evaluation({"step": self._step, "loss": logs["val_loss"]})

    def close(self) -> None:
        """Close the log; tfnlp's ``fit`` calls this, also after an error."""
        if self._log is not None:
            self._log.close()
        self._log = None
        self._lock.close()


def _flops_per_token(model: Any) -> float | None:
    """Return the training FLOPs per token of text in a block; None for other batches."""
    source, config = model.progress.source, model.config
    if source.unit != "tokens":
        return None
    rows, length = source.first["input_ids"].shape
    if config.decoder is None:
        return token_flops(config, length).training
    return pair_flops(config, length, source.first["labels"].shape[1]).training * rows * source.hosts / source.count({})
