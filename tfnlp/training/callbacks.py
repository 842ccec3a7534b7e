"""Callbacks of a pretraining run: durable backups, a stop at divergence, and the metrics log."""

import math
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.checkpoints.safetensors_file import StoredTensor
from duonlp.errors import InputError, NonFiniteLossError
from duonlp.training.flops import pair_flops, token_flops
from duonlp.training.log.metrics_log import MetricsLog, NullLog
from duonlp.training.schedules import due
from tfnlp.training.backups import Backups, training_variables
from tfnlp.training.input import Source
from tfnlp.training.pretrainer import Pretrainer


class BackupAndRestore(keras.callbacks.BackupAndRestore):
    """``keras.callbacks.BackupAndRestore`` for a Pretrainer: an interrupted ``fit`` resumes bit-identically.

    A backup holds everything that the rest of the run depends on: parameters, optimizer state, loss scale, the epoch's
    metrics and the position in the data, also in the middle of an epoch. On resume, batches already seen are not read
    again and callbacks are not called for them.

    Each backup is one file, ``step-000001200.safetensors``, written under a temporary name, flushed to disk and renamed;
    older ones are removed only after that. Nothing is saved once the loss is not finite. Under a
    MultiWorkerMirroredStrategy the first worker writes and all workers read, so they must share the folder.

    Args:
        backup_dir: Folder used for the backups of this run alone.
        save_freq: "epoch", or the number of steps between two backups. The end of training is always backed up.
        keep: Number of backups to keep.
        delete_checkpoint: Whether to remove the backups when training ends. By default they stay, so that running the
            same program again does nothing.

    Raises:
        InputError: save_freq or keep is below 1, or the backup is of another model, optimizer or batch size.
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
        self._epoch = self._batch = self._position = 0
        self._saved: tuple[int, int, int] | None = None  # step, epoch and batch of the last backup
        self._logs: dict[str, Any] = {}
        self._metrics: list[np.ndarray] | None = None  # values to restore at the beginning of the epoch

    def set_model(self, model: keras.Model) -> None:
        if not isinstance(model, Pretrainer):
            raise InputError(
                f"this BackupAndRestore needs a Pretrainer, not a {type(model).__name__}; use keras.callbacks.BackupAndRestore"
            )
        super().set_model(model)
        self.backups.writes = is_main_worker(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model, source = self.model, self.model.source
        self._epoch = self._batch = 0
        self._position, self._saved, self._logs, self._metrics = source.step, None, {}, None
        backup = self.backups.newest()
        self._check_workers_agree(0 if backup is None else backup[1]["step"])
        if backup is None:
            return
        tensors, state = backup
        self._check_settings(state)
        self._load(tensors)
        self._epoch, self._batch, self._position = state["epoch"], state["batch"], state["position"]
        self._saved, self._logs = (state["step"], self._epoch, self._batch), state["logs"]
        model._initial_epoch = self._epoch
        model.first_batch, model.first_logs = self._batch, self._logs
        if source.steps is None:
            source.step = self._position

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if epoch != self._epoch or not self.model.first_batch:
            self._batch = 0
        elif self._metrics is not None:  # Keras has just reset the metrics
            for variable, value in zip(self._metric_variables(), self._metrics, strict=True):
                variable.assign(value)
        self._epoch, self._metrics = epoch, None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._batch, self._position, self._logs = batch + 1, self._position + 1, dict(logs or {})
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
        elif self._loss_is_finite() and is_main_worker(self.model):
            for file in self.backups.files():
                file.unlink()

    def _loss_is_finite(self) -> bool:
        return math.isfinite(self._logs.get("step_loss", 0.0))

    def _save_model(self) -> None:
        step = int(self.model.step.numpy())
        point = step, self._epoch, self._batch
        if not self._loss_is_finite():
            return
        # Reading a metric's variables sums over workers, so all workers must take part.
        metrics = [variable.numpy() for variable in self._metric_variables()]
        if not is_main_worker(self.model) or point == self._saved:
            return
        state = {
            "format": 1, "step": step, "epoch": self._epoch, "batch": self._batch, "position": self._position,
            "logs": self._logs, "steps_per_epoch": self.params.get("steps"), **self._fixed_settings(),
        }  # fmt: skip
        self.backups.write(step, state, {f"metric/{i}": v for i, v in enumerate(metrics)} | self._variables())
        self._saved = point

    def _check_workers_agree(self, step: int) -> None:
        """Raise InputError unless all workers resume from the same step."""
        strategy = self.model.distribute_strategy
        if strategy.cluster_resolver is None:
            return
        total = strategy.reduce("SUM", strategy.run(lambda: tf.constant(step, tf.int64)), axis=None)
        if int(total) != step * strategy.num_replicas_in_sync:
            raise InputError(
                f"this worker would resume from step {step} and another from a different step; {str(self.folder)!r} must be "
                "a folder that all workers share"
            )

    def _fixed_settings(self) -> dict[str, Any]:
        """Return the settings that must not change on resume."""
        source, optimizer = self.model.source, self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        return {"batch_size": source.shape[0] * source.hosts, "optimizer": type(optimizer).__name__}

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

    def _load(self, tensors: dict[str, StoredTensor]) -> None:
        stored = {name: tensor for name, tensor in tensors.items() if not name.startswith("metric/")}
        self.backups.restore(self._variables(), stored)
        metrics = len([name for name in tensors if name.startswith("metric/")])
        self._metrics = [tensors[f"metric/{i}"].read() for i in range(metrics)]

    def _variables(self) -> dict[str, keras.Variable]:
        # self.model.weights adds the step and, if any, LoRA's variables.
        return training_variables(self.model.model, self.model.optimizer, self.model.weights)

    def _metric_variables(self) -> list[keras.Variable]:
        return [variable for metric in self.model.metrics for variable in metric.variables]


class StopAtNonFiniteLoss(keras.callbacks.Callback):
    """Raise an error at a non-finite loss, where keras.callbacks.TerminateOnNaN only ends the training.

    Steps are the Pretrainer's own, which continue from a backup; with any other model, the batches of this ``fit``.

    Raises:
        NonFiniteLossError: The loss is not finite; names the steps between which that happened.
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._batches = 0
        self._last_finite = self._step()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._batches += 1
        loss, step = (logs or {}).get("step_loss", (logs or {}).get("loss", 0.0)), self._step()
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss} at step {step}; it was finite at step {self._last_finite}, and backups up to that step "
                "are intact: resume from one with a lower learning rate, longer warmup or a smaller clip_norm"
            )
        self._last_finite = step

    def _step(self) -> int:
        return int(self.model.step.numpy()) if isinstance(self.model, Pretrainer) else self._batches


class PretrainingLog(keras.callbacks.Callback):
    """Log a pretraining run with :class:`~duonlp.training.log.metrics_log.MetricsLog`.

    It logs loss, perplexity, tokens per second and validation loss, and prints the console line; pass ``verbose=0`` to
    fit, or there are two progress bars. With a BackupAndRestore, the log resumes from the same step. With several
    workers, only the first one logs.

    Args:
        folder: Folder of the run, in which metrics.jsonl is written.
        log_every: Steps between two records.
        options: Options of MetricsLog: console, tensorboard, wandb, peak_flops, ...

    Raises:
        InputError: log_every is below 1.
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
        self._total = self._tokens_per_step = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._log is not None:
            return
        # Not in on_train_begin: a BackupAndRestore later in the list would not have restored the step yet.
        step = int(self.model.step.numpy())
        length, flops = _tokens_and_flops(self.model.model.config, self.model.source)
        self._tokens_per_step = self.model.source.shape[0] * length * self.model.source.hosts
        self._total = step + (self.params["epochs"] - epoch) * self.params["steps"] - self.model.first_batch
        log_class = MetricsLog if is_main_worker(self.model) else NullLog
        self._log = log_class(
            self.folder, total_steps=self._total, flops_per_token=flops, resumed_from=step or None, **self.options
        )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        assert self._log is not None and logs is not None
        step = int(self.model.step.numpy())
        if due(step, self.log_every, self._total):
            rate, tokens = self.model.optimizer.learning_rate, step * self._tokens_per_step
            rate = float(keras.ops.convert_to_numpy(rate))
            self._log.step({"step": step, "loss": logs["step_loss"], "tokens": tokens, "learning_rate": rate})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._log is not None and logs and "val_loss" in logs:
            self._log.evaluation({"step": int(self.model.step.numpy()), "loss": logs["val_loss"]})

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._log is not None:
            self._log.close()
        self._log = None


def _tokens_and_flops(config: Any, source: Source) -> tuple[int, float]:
    """Return the tokens of text per row and the training FLOPs per token."""
    length = source.shape[1]
    if config.decoder is None:
        return length, token_flops(config, length).training
    pair = pair_flops(config, length, source.shapes["labels"][1])
    # The source lacks the tokens that its target has; a block has all of them.
    length = getattr(getattr(source.batches, "blocks", None), "block_length", length)
    return length, pair.training / length


def is_main_worker(model: keras.Model) -> bool:
    """Return whether this process is the only worker of the model's strategy, or the first one."""
    resolver = model.distribute_strategy.cluster_resolver
    return resolver is None or resolver.task_id in (None, 0)
