"""Callbacks of a pretraining run: a backup that nothing can spoil, an end to runs that diverge, and the log."""

import math
from pathlib import Path

import keras
import tensorflow as tf

from duonlp.errors import InputError, NonFiniteLossError
from duonlp.training.flops import pair_flops, token_flops
from duonlp.training.log.metrics_log import MetricsLog, NullLog
from duonlp.training.schedules import due
from tfnlp.training.backups import Backups, training_variables
from tfnlp.training.pretrainer import Pretrainer


class BackupAndRestore(keras.callbacks.BackupAndRestore):
    """Keras' callback, for a Pretrainer: after an interruption at any moment, fit goes on as if there had been none.

    What is backed up is all that the rest of the run depends on: parameters, the optimizer's state, the loss scale, the
    epoch's metrics, and the position in the data, also in the middle of an epoch. Batches that were seen are not read
    again, and no callback hears of them twice.

    A backup is one file, ``step-000001200.safetensors``, written under another name, brought to the disk and then
    renamed. Older ones are removed after that. Nothing is saved once the loss is not finite. Under a
    MultiWorkerMirroredStrategy the first worker writes, and all read, from a folder they share.

    Args:
        backup_dir: a folder of this run's own.
        save_freq: "epoch", or a number of steps between two backups. The end of the training is one more.
        keep: how many backups stay.
        delete_checkpoint: remove the backups when the training is finished. By default they stay, so that the same
            program, run again, has nothing left to do.

    Raises:
        InputError: save_freq or keep is below 1, or the backup is of another model, optimizer or batch size.
        CheckpointError: no backup in the folder can be read.
    """

    def __init__(self, backup_dir, save_freq="epoch", *, keep: int = 2, delete_checkpoint: bool = False):
        if keep < 1 or not (save_freq == "epoch" or (isinstance(save_freq, int) and save_freq >= 1)):
            raise InputError(f"save_freq is {save_freq!r} and keep {keep}; give 'epoch' or at least 1 step, and keep 1")
        super().__init__(str(backup_dir), save_freq, delete_checkpoint=delete_checkpoint)
        self.folder, self.backups = Path(backup_dir), Backups(backup_dir, keep)
        self._epoch = self._batch = self._position = 0
        self._saved, self._logs, self._metrics = None, {}, None

    def set_model(self, model):
        if not isinstance(model, Pretrainer):
            raise InputError(f"this BackupAndRestore is for a Pretrainer; for {type(model).__name__}, take Keras' own")
        super().set_model(model)
        self.backups.writes = is_main_worker(model)

    def on_train_begin(self, logs=None):
        model, source = self.model, self.model.source
        self._epoch = self._batch = 0
        self._position, self._saved, self._logs, self._metrics = source.step, None, {}, None
        found = self.backups.newest()
        self._agree(0 if found is None else found[1]["step"])
        if found is None:
            return
        tensors, state = found
        self._check(state)
        self._load(tensors)
        self._epoch, self._batch, self._position = state["epoch"], state["batch"], state["position"]
        self._saved, self._logs = (state["step"], self._epoch, self._batch), state["logs"]
        model._initial_epoch = self._epoch
        model.first_batch, model.first_logs = self._batch, self._logs
        if source.steps is None:
            source.step = self._position

    def on_epoch_begin(self, epoch, logs=None):
        if epoch != self._epoch or not self.model.first_batch:
            self._batch = 0
        elif self._metrics is not None:  # Keras has just reset them
            for variable, value in zip(self._metric_variables(), self._metrics, strict=True):
                variable.assign(value)
        self._epoch, self._metrics = epoch, None

    def on_train_batch_end(self, batch, logs=None):
        self._batch, self._position, self._logs = batch + 1, self._position + 1, dict(logs or {})
        if self.save_freq != "epoch" and int(self.model.step.numpy()) % self.save_freq == 0:
            self._save_model()

    def on_epoch_end(self, epoch, logs=None):
        if not self.model.stop_training or self._batch == self.params.get("steps"):
            self._epoch, self._batch = epoch + 1, 0
        if self.save_freq == "epoch":
            self._save_model()

    def on_train_end(self, logs=None):
        if not self.delete_checkpoint:
            self._save_model()
        elif self._finite() and is_main_worker(self.model):
            for file in self.backups.files():
                file.unlink()

    def _finite(self) -> bool:
        return math.isfinite(self._logs.get("step_loss", 0.0))

    def _save_model(self):
        step = int(self.model.step.numpy())
        point = step, self._epoch, self._batch
        if not self._finite():
            return
        metrics = [variable.numpy() for variable in self._metric_variables()]  # of all workers, so all of them read
        if not is_main_worker(self.model) or point == self._saved:
            return
        state = {
            "format": 1, "step": step, "epoch": self._epoch, "batch": self._batch, "position": self._position,
            "logs": self._logs, "steps_per_epoch": self.params.get("steps"), **self._same(),
        }  # fmt: skip
        self.backups.write(step, state, {f"metric/{i}": v for i, v in enumerate(metrics)} | self._variables())
        self._saved = point

    def _agree(self, step: int) -> None:
        """Whether all workers go on from the same step."""
        strategy = self.model.distribute_strategy
        if strategy.cluster_resolver is None:
            return
        total = strategy.reduce("SUM", strategy.run(lambda: tf.constant(step, tf.int64)), axis=None)
        if int(total) != step * strategy.num_replicas_in_sync:
            raise InputError(
                f"this worker would go on from step {step}, another one from a different step; {str(self.folder)!r} must be "
                "one folder that all workers see"
            )

    def _same(self) -> dict:
        """What must not change in the course of a run."""
        source, optimizer = self.model.source, self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        return {"batch_size": source.shape[0] * source.hosts, "optimizer": type(optimizer).__name__}

    def _check(self, state) -> None:
        now = self._same() | ({"steps_per_epoch": self.params.get("steps")} if state["batch"] else {})
        for name, value in now.items():
            if state[name] != value:
                raise InputError(
                    f"the backup in {str(self.folder)!r} is of a run with {name}={state[name]}, now it is {value}; "
                    "go on with the same, or use another folder for a new run"
                )

    def _load(self, tensors) -> None:
        stored = {name: tensor for name, tensor in tensors.items() if not name.startswith("metric/")}
        self.backups.restore(self._variables(), stored)
        metrics = len([name for name in tensors if name.startswith("metric/")])
        self._metrics = [tensors[f"metric/{i}"].read() for i in range(metrics)]

    def _variables(self) -> dict[str, keras.Variable]:
        return training_variables(self.model.model, self.model.optimizer, self.model.weights)  # the step, LoRA's

    def _metric_variables(self) -> list[keras.Variable]:
        return [variable for metric in self.model.metrics for variable in metric.variables]


class StopAtNonFiniteLoss(keras.callbacks.Callback):
    """Ends the training of any model with an error when a loss is not finite: keras.callbacks.TerminateOnNaN, but said.

    Steps are a Pretrainer's own, which go on where a backup does; of any other model, the batches of this ``fit``.

    Raises:
        NonFiniteLossError: it names the steps between which it happened.
    """

    def on_train_begin(self, logs=None):
        self._batches = 0
        self._last_good = self._step()

    def on_train_batch_end(self, batch, logs=None):
        self._batches += 1
        loss, step = (logs or {}).get("step_loss", (logs or {}).get("loss", 0.0)), self._step()
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss} at step {step}; it was finite at step {self._last_good}, and the backups of that step "
                "and before are untouched: go on from one with a lower learning rate, a longer warm-up or a smaller clip_norm"
            )
        self._last_good = step

    def _step(self) -> int:
        return int(self.model.step.numpy()) if isinstance(self.model, Pretrainer) else self._batches


class PretrainingLog(keras.callbacks.Callback):
    """Writes the run to ``duonlp.training.log.metrics_log``: loss, perplexity, tokens a second, validation; and its console line.

    Pass ``verbose=0`` to fit, or there are two progress bars. It goes on where a BackupAndRestore goes on. With several
    workers, only the first one logs.

    Args:
        folder: of the run; metrics.jsonl is in it.
        log_every: steps between two records.
        options: for MetricsLog: console, tensorboard, wandb, peak_flops, ...
    """

    def __init__(self, folder, *, log_every: int = 10, **options):
        super().__init__()
        if log_every < 1:
            raise InputError(f"log_every is {log_every}; it is a number of steps, 1 or more")
        self.folder, self.log_every, self.options, self._log = folder, log_every, options, None

    def on_epoch_begin(self, epoch, logs=None):
        if self._log is not None:
            return
        # Not when the training begins: by now a BackupAndRestore has put the run where it was, wherever in the list it is.
        step, source = int(self.model.step.numpy()), self.model.source
        config, length = self.model.model.config, source.shape[1]
        if config.decoder is None:
            flops = token_flops(config, length).training
        else:  # tokens of text are counted, of which a source has not all
            pair, blocks = (
                pair_flops(config, length, source.shapes["labels"][1]),
                getattr(source.batches, "blocks", None),
            )
            length = getattr(blocks, "block_length", length)
            flops = pair.training / length
        self._tokens = source.shape[0] * length * source.hosts
        left = (self.params["epochs"] - epoch) * self.params["steps"] - self.model.first_batch
        kind = MetricsLog if is_main_worker(self.model) else NullLog
        self._total = step + left
        self._log = kind(
            self.folder, total_steps=self._total, flops_per_token=flops, resumed_from=step or None, **self.options
        )

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.step.numpy())
        if due(step, self.log_every, self._total):
            rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
            self._log.step(
                {"step": step, "loss": logs["step_loss"], "tokens": step * self._tokens, "learning_rate": rate}
            )

    def on_epoch_end(self, epoch, logs=None):
        if "val_loss" in (logs or {}):
            self._log.evaluation({"step": int(self.model.step.numpy()), "loss": logs["val_loss"]})

    def on_train_end(self, logs=None):
        if self._log is not None:
            self._log.close()
        self._log = None


def is_main_worker(model) -> bool:
    """Whether this process is the only worker of the model's strategy, or the first."""
    resolver = model.distribute_strategy.cluster_resolver
    return resolver is None or resolver.task_id in (None, 0)
