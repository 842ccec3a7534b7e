"""``run.json``: what the run in a folder is, so that none goes on as another."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duonlp.errors import CheckpointError, InputError
from duonlp.training.settings import Settings
from duonlp.util.files import write_text

RUN_FILE = "run.json"


def check_run(folder: str | os.PathLike, config: Settings, description: Mapping[str, Any]) -> bool:
    """Whether the folder holds this run already; it may have been ended before its first checkpoint.

    Args:
        config: of the run; those of its settings that the curve depends on must be the stored ones.
        description: whatever else the run is told by: model, head, data.

    Raises:
        InputError: the folder is a file, or holds another run: another model, other data, settings that break the curve.
        CheckpointError: run.json is damaged.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file; give a folder for the run")
    if not (folder / RUN_FILE).exists():
        return False
    stored = read_run(folder)
    for name, value in json.loads(json.dumps(description)).items():
        if stored.get(name) != value:
            raise InputError(
                f"{str(folder)!r} holds a run with another {name}: {_difference(stored.get(name), value)}; give the same to "
                "resume it, or another folder"
            )
    config.check_resumable(stored["config"])
    return True


def write_run(folder: str | os.PathLike, config: Settings, description: Mapping[str, Any]) -> None:
    """Writes run.json, whole or not at all."""
    file = Path(folder) / RUN_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({**description, "config": config.to_dict()}, indent=2) + "\n")


def read_run(folder: str | os.PathLike) -> dict[str, Any]:
    """What ``run.json`` says: model, head, data and config.

    Raises:
        CheckpointError: it is not there, or damaged.
    """
    file = Path(folder).expanduser() / RUN_FILE
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(file)!r} cannot be read: {first_line(error)}; give the folder of a run") from None


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _difference(stored, now) -> str:
    if isinstance(stored, dict) and isinstance(now, dict):
        names = [name for name in {**stored, **now} if stored.get(name) != now.get(name)]
        return ", ".join(f"{name} is {stored.get(name)!r} there and {now.get(name)!r} here" for name in names)
    return f"{stored!r} there and {now!r} here"
