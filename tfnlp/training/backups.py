"""The state of a training on disk: each backup one file, whole or not at all, the newest that can be read to go on from."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from duonlp.checkpoints.safetensors_file import StoredTensor, TensorToWrite, list_tensors, write_tensors
from duonlp.errors import CheckpointError, InputError
from duonlp.training.run_file import first_line
from tfnlp.pretrained import parameter_tree

STATE = "training_state"
PARTIAL = ".partial"


class Backups:
    """The backups in a folder: ``step-000001200.safetensors``, ...

    Each is written under another name, brought to the disk and then renamed; older ones are removed after that.

    Args:
        folder: of theirs alone; made when the first is written.
        keep: how many stay.
        writes: False in a process that reads alone, the workers of a strategy but for the first.
    """

    def __init__(self, folder: str | os.PathLike, keep: int, *, writes: bool = True):
        self.folder, self.keep, self.writes = Path(folder), keep, writes

    def files(self) -> list[Path]:
        """Backups, the newest first."""
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def write(self, step: int, state: Mapping, values: Mapping[str, np.ndarray | keras.Variable]) -> None:
        """Writes the backup of a step.

        Args:
            state: of the run, for JSON.
            values: variables, which are read one at a time, and arrays.

        Raises:
            CheckpointError: the disk is full, or the like; the backups before it are untouched.
        """
        tensors = [_to_write(STATE, np.frombuffer(json.dumps(state).encode(), np.uint8))]
        tensors += [_to_write(name, value) for name, value in values.items()]
        file = self.folder / f"step-{step:09d}.safetensors"
        partial = file.with_suffix(PARTIAL)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_tensors(partial, tensors)
            os.replace(partial, file)
            folder = os.open(self.folder, os.O_RDONLY)
            os.fsync(folder)  # the new name, before old ones go
            os.close(folder)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"a checkpoint could not be written below {str(self.folder)!r}: {first_line(error)}; the ones before it are "
                "whole: make room and resume"
            ) from error
        for old in (*self.files()[self.keep :], *self.folder.glob(f"step-*{PARTIAL}")):
            old.unlink(missing_ok=True)

    def newest(self) -> tuple[dict[str, StoredTensor], dict] | None:
        """The tensors and the state of the newest backup that can be read; None when there is none at all.

        Raises:
            CheckpointError: there are some, and none can be read.
        """
        files = self.files()
        for i, file in enumerate(files):
            try:
                tensors = list_tensors(file)
                found = tensors, json.loads(tensors.pop(STATE).read().tobytes())
            except (CheckpointError, OSError, KeyError, ValueError) as error:
                warnings.warn(f"{file} cannot be read ({error}); going on from the backup before it", stacklevel=2)
                continue
            if self.writes:
                for damaged in files[:i]:  # or they would count among those that are kept
                    damaged.replace(damaged.with_suffix(".damaged"))
            return found
        if files:
            raise CheckpointError(f"none of {', '.join(map(str, files))} can be read; remove them to begin anew")
        return None

    def restore(self, variables: Mapping[str, keras.Variable], stored: Mapping[str, StoredTensor]) -> None:
        """Gives variables the values that were stored under their names.

        Raises:
            InputError: they are not those of the backup.
        """
        wrong = sorted(set(variables) ^ set(stored)) or [
            name for name, tensor in stored.items() if tensor.shape != tuple(variables[name].shape)
        ]
        if wrong:
            raise InputError(
                f"the backup in {str(self.folder)!r} is of another model or optimizer: {', '.join(wrong[:5])} differ; use "
                "the same, or another folder for a new run"
            )
        for name, variable in variables.items():
            variable.assign(stored[name].read())


def training_variables(model, optimizer, others=()) -> dict[str, keras.Variable]:
    """All that a training changes, by name.

    Args:
        model: one of this package's.
        optimizer: built.
        others: variables beside the model's parameters, in a fixed order.
    """
    named = {f"model/{path}": variable for path, variable in parameter_tree(model).items()}
    there = {id(variable) for variable in named.values()}
    named |= {f"other/{i}": variable for i, variable in enumerate(v for v in others if id(v) not in there)}
    return named | {f"optimizer/{i}": variable for i, variable in enumerate(optimizer.variables)}


def _to_write(name: str, value) -> TensorToWrite:
    read = value.numpy if isinstance(value, keras.Variable) else lambda: value
    return TensorToWrite(name, tuple(value.shape), np.dtype(value.dtype), read)
