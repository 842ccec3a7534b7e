"""Backups of a training run: one atomically written file each, of which the newest readable one is restored."""

import json
import os
import warnings
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from duonlp.checkpoints.safetensors_file import StoredTensor, TensorToWrite, list_tensors, write_tensors
from duonlp.errors import CheckpointError, InputError
from duonlp.util.files import locked_folder, storage_remedy
from duonlp.util.reading import first_line, parse_json
from tfnlp.pretrained import parameter_tree
from tfnlp.steps.terms import sum_over_workers

FORMAT = 2
"""Version of the contents of a backup; others are refused."""

STATE = "training_state"
"""Name of the tensor that holds the JSON state of the run."""

PARTIAL = ".partial"
"""Suffix of a backup that is still being written."""


class Backups:
    """The backups in a folder: ``step-000001200.safetensors``, ...

    Each is written under a temporary name, flushed to disk and renamed; older ones are removed only after that.

    Args:
        folder: Folder used for backups alone, created by the first write.
        keep: Number of backups to keep.
        writes: Whether this process may rename damaged backups. False for all but the first worker of a strategy.
    """

    def __init__(self, folder: str | os.PathLike, keep: int, *, writes: bool = True):
        self.folder, self.keep, self.writes = Path(folder), keep, writes

    def files(self) -> list[Path]:
        """Return the backups, newest first."""
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def write(self, step: int, state: Mapping[str, Any], values: Mapping[str, np.ndarray | keras.Variable]) -> None:
        """Write the backup of a step and remove old ones.

        Args:
            step: Number of steps done.
            state: JSON-compatible state of the run.
            values: Arrays and variables by name. Variables are read one at a time.

        Raises:
            CheckpointError: The file cannot be written, for example because the disk is full; earlier backups stay.
        """
        state = {"format": FORMAT, "step": step, **state}
        tensors = [_tensor_to_write(STATE, np.frombuffer(json.dumps(state).encode(), np.uint8))]
        tensors += [_tensor_to_write(name, value) for name, value in values.items()]
        file = self.folder / f"step-{step:09d}.safetensors"
        partial = file.with_suffix(PARTIAL)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_tensors(partial, tensors)
            os.replace(partial, file)
            folder = os.open(self.folder, os.O_RDONLY)
            os.fsync(folder)  # makes the rename durable before old backups are removed
            os.close(folder)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"cannot write a checkpoint to {str(self.folder)!r}: {first_line(error)}; earlier checkpoints are intact, so "
                f"{storage_remedy(error)} and resume"
            ) from error
        for old in (*self.files()[self.keep :], *self.folder.glob(f"step-*{PARTIAL}")):
            old.unlink(missing_ok=True)

    def newest(self) -> tuple[dict[str, StoredTensor], dict[str, Any]] | None:
        """Return the tensors and the state of the newest readable backup; None if there are no backups.

        Raises:
            CheckpointError: There are backups and none is readable.
            InputError: The newest one was written by another version.
        """
        files = self.files()
        for i, file in enumerate(files):
            try:
                tensors = list_tensors(file)
                state = parse_json(tensors.pop(STATE).read().tobytes())
            except (CheckpointError, OSError, KeyError, ValueError) as error:
                warnings.warn(f"{file} cannot be read ({error}); falling back to the backup before it", stacklevel=2)
                continue
            if state.get("format") != FORMAT:
                raise InputError(
                    f"{str(file)!r} was written by another version of tfnlp (format {state.get('format')}, now {FORMAT}); resume "
                    "with that version, or use another folder for a new run"
                )
            if self.writes:
                for damaged in files[:i]:  # so that they do not count towards `keep`
                    damaged.replace(damaged.with_suffix(".damaged"))
            return tensors, state
        if files:
            raise CheckpointError(f"cannot read any of {', '.join(map(str, files))}; delete them to start over")
        return None

    def restore(self, variables: Mapping[str, keras.Variable], stored: Mapping[str, StoredTensor]) -> None:
        """Assign stored tensors to the variables of the same names.

        Raises:
            InputError: Names or shapes differ.
        """
        different = sorted(set(variables) ^ set(stored)) or [
            name for name, tensor in stored.items() if tensor.shape != tuple(variables[name].shape)
        ]
        if different:
            raise InputError(
                f"the backup in {str(self.folder)!r} is of another model or optimizer ({', '.join(different[:5])} differ); "
                "use the same to resume, or another folder for a new run"
            )
        for name, variable in variables.items():
            variable.assign(stored[name].read())


def training_variables(trainer: Any) -> dict[str, keras.Variable]:
    """Return all variables that training changes, by name: parameters, optimizer, dropout and the trainer's own."""
    named = {f"model/{path}": variable for path, variable in parameter_tree(trainer.trained_model()).items()}
    parameter_ids = {id(variable) for variable in named.values()}
    others = [variable for variable in trainer.variables if id(variable) not in parameter_ids]
    named |= {f"other/{i}": variable for i, variable in enumerate(others)}
    return named | {f"optimizer/{i}": variable for i, variable in enumerate(trainer.optimizer.variables)}


def is_main_worker(model: keras.Model) -> bool:
    """Return whether this process is the only worker of the model's strategy, or the first one."""
    resolver = model.distribute_strategy.cluster_resolver
    return resolver is None or resolver.task_id in (None, 0)


def was_preempted(callback: Any, batches: int) -> bool:
    """Return whether SIGTERM ended an epoch after `batches` batches, so that a resumed run completes it.

    Args:
        callback: Callback whose ``on_epoch_end`` asks.
        batches: Batches of the epoch that are done.
    """
    callbacks = getattr(getattr(callback.model, "progress", None), "callbacks", ())
    return batches != callback.params.get("steps") and any(getattr(other, "received", False) for other in callbacks)


@contextmanager
def locked_run(folder: str | os.PathLike, model: keras.Model, use: str = "training") -> Generator[None, None, None]:
    """Hold the lock of a run's folder in the first worker; all workers must enter.

    Raises:
        InputError: Another process or thread holds the lock, or the folder cannot be used; in all workers.
    """
    error: InputError | None = None
    with ExitStack() as stack:
        if is_main_worker(model):
            try:
                stack.enter_context(locked_folder(folder, use))
            except InputError as raised:
                error = raised
        if sum_over_workers(model, int(error is not None)):
            raise error or InputError(f"the first worker cannot use the folder {str(folder)!r}; see its error")
        yield


def newest_backup(backups: Backups, trainer: keras.Model) -> tuple[dict[str, StoredTensor], dict[str, Any]] | None:
    """Return :meth:`Backups.newest`, the same on all workers.

    Raises:
        InputError: Workers would resume from different steps.
    """
    newest = backups.newest()
    step = 0 if newest is None else newest[1]["step"]
    if sum_over_workers(trainer, step) != step * trainer.distribute_strategy.num_replicas_in_sync:
        raise InputError(
            f"this worker would resume from step {step} and another from a different step; {str(backups.folder)!r} must be "
            "a folder that all workers share"
        )
    return newest


def _tensor_to_write(name: str, value: np.ndarray | keras.Variable) -> TensorToWrite:
    read = value.numpy if isinstance(value, keras.Variable) else lambda: value
    return TensorToWrite(name, tuple(value.shape), np.dtype(value.dtype), read)
