"""``run.json``, which identifies the run in a folder so that it cannot be resumed as a different one."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duonlp.errors import CheckpointError, InputError
from duonlp.schema import check, integer, table
from duonlp.training.settings import Settings
from duonlp.util.files import may_read, storage_errors, write_text
from duonlp.util.json_text import to_json
from duonlp.util.reading import parse_json, why_unreadable

RUN_FILE = "run.json"

FORMAT = 2
"""Format of run.json and of the checkpoints beside it. Files without a number have format 1."""

SCHEMA = {"format": integer(1, 1000), "config": table({})}

KEPT = ("generation_config",)
"""Parts of a description that a run keeps for later and that do not identify it."""


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
        if name not in KEPT and stored.get(name) != value:
            raise InputError(
                f"{str(folder)!r} holds a run with different {name} ({_difference(stored.get(name), value)}); use the same "
                "to resume it, or another folder"
            )
    if "config" not in stored:
        raise CheckpointError(f"{str(folder / RUN_FILE)!r} has no config; give the folder of a training run")
    config.check_resumable(stored["config"])
    return True


def write_run(folder: str | os.PathLike, config: Settings, description: Mapping[str, Any]) -> None:
    """Write run.json atomically, creating the folder if needed; raise StorageError if it cannot be written."""
    file = Path(folder) / RUN_FILE
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, to_json({"format": FORMAT, **description, "config": config.to_dict()}, indent=2) + "\n")


def read_run(folder: str | os.PathLike) -> dict[str, Any]:
    """Return the contents of a folder's ``run.json``: model, head, data and config.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    file = Path(folder).expanduser() / RUN_FILE
    try:
        stored = parse_json(file.read_bytes(), unique=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {str(file)!r}: {why_unreadable(error)}; give the folder of a training run"
        ) from None
    check("cannot read", {str(file): stored}, {str(file): table(SCHEMA)}, CheckpointError)
    return stored


def _difference(stored: Any, now: Any) -> str:
    if isinstance(stored, dict) and isinstance(now, dict):
        names = [name for name in {**stored, **now} if stored.get(name) != now.get(name)]
        return ", ".join(f"{name}: stored {stored.get(name)!r}, now {now.get(name)!r}" for name in names)
    return f"stored {stored!r}, now {now!r}"
