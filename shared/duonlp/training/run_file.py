"""``run.json``, which identifies the run in a folder so that it cannot be resumed as a different one."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duonlp.errors import CheckpointError, InputError
from duonlp.training.settings import Settings
from duonlp.util.files import may_read, storage_errors, write_text

RUN_FILE = "run.json"

FORMAT = 2
"""Format of run.json and of the checkpoints beside it. Files without a number have format 1."""


def check_run(folder: str | os.PathLike, config: Settings, description: Mapping[str, Any]) -> bool:
    """Return whether the folder holds this run already, possibly without a checkpoint yet.

    Args:
        folder: Folder of the run.
        config: Settings of the run. Those in ``config.fixed_on_resume`` must equal the stored ones.
        description: Everything else that identifies the run: model, head, data.

    Raises:
        InputError: The folder is a file or cannot be read, or holds a run of another version, with another model, other data or
            incompatible settings.
        CheckpointError: run.json is damaged.
    """
    folder = Path(folder)
    if may_read(folder) and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file; give a folder for the run")
    if not may_read(folder / RUN_FILE):
        return False
    stored = read_run(folder)
    version = stored.get("format", 1)
    if version != FORMAT:
        raise InputError(
            f"{str(folder)!r} holds a run saved by {'an older' if version < FORMAT else 'a newer'} version of duonlp (format "
            f"{version}, this version's is {FORMAT}), which cannot be resumed here; finish it with that version, or use another "
            "folder"
        )
    for name, value in json.loads(json.dumps(description)).items():
        if stored.get(name) != value:
            raise InputError(
                f"{str(folder)!r} holds a run with different {name} ({_difference(stored.get(name), value)}); use the same "
                "to resume it, or another folder"
            )
    config.check_resumable(stored["config"])
    return True


def write_run(folder: str | os.PathLike, config: Settings, description: Mapping[str, Any]) -> None:
    """Write run.json atomically, creating the folder if needed; raise StorageError if it cannot be written."""
    file = Path(folder) / RUN_FILE
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"format": FORMAT, **description, "config": config.to_dict()}, indent=2) + "\n")


def read_run(folder: str | os.PathLike) -> dict[str, Any]:
    """Return the contents of a folder's ``run.json``: model, head, data and config.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    file = Path(folder).expanduser() / RUN_FILE
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {str(file)!r}: {first_line(error)}; give the folder of a training run"
        ) from None


def first_line(error: Exception) -> str:
    """Return the first line of an error's message (its type if empty), at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _difference(stored: Any, now: Any) -> str:
    if isinstance(stored, dict) and isinstance(now, dict):
        names = [name for name in {**stored, **now} if stored.get(name) != now.get(name)]
        return ", ".join(f"{name}: stored {stored.get(name)!r}, now {now.get(name)!r}" for name in names)
    return f"stored {stored!r}, now {now!r}"
