"""The record of a search: Optuna's study in an SQLite file that one process writes, and its trials as plain values."""

import contextlib
import importlib.util
import json
import logging
import shutil
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from duonlp.errors import InputError, MissingExtraError
from duonlp.tuning.search_space import Objective, Space

TRIALS = "trials"
"""The folder of the trials' own folders, trials/0007 and so on."""

STUDY_FILE = "study.db"
STUDY_NAME = "duonlp"
DESCRIPTION = "description"
COMPLETE, PRUNED, FAILED, INTERRUPTED = "complete", "pruned", "failed", "interrupted"
FINISHED = (COMPLETE, PRUNED, FAILED)
MOST_ATTEMPTS = 3
"""Times that the same trial may have been running when its process was killed; it may be what killed it."""


@dataclass(frozen=True)
class TrialRecord:
    """A trial.

    number: from 0, as in the study. state: "complete", "pruned", "failed" or "interrupted". reason: of another than complete.
    parameters: by name. results: what the objective returned. evaluations: what it reported, by epoch.
    same_as: the number of an earlier trial with the same parameters, whose results these are; None for a trial that ran.
    """

    number: int
    state: str
    parameters: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[int, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    started: str = ""
    same_as: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def require_optuna():
    """Optuna, imported.

    Raises:
        MissingExtraError: it is not installed.
    """
    if not importlib.util.find_spec("optuna"):
        raise MissingExtraError('settings are searched with Optuna, which is missing; pip install "duonlp[search]"')
    import optuna

    return optuna


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keeps Optuna's lines off the screen meanwhile, and its notes on what may change of the few parts used here."""
    optuna = require_optuna()
    level = optuna.logging.get_verbosity()
    alembic = logging.getLogger("alembic")
    alembic_level = alembic.level
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    alembic.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
        alembic.setLevel(alembic_level)


@contextmanager
def open_study(folder: Path, space: Space, objectives: Sequence[Objective], seed: int, settings: Mapping[str, Any]):
    """The study of a folder, new or gone on with, as (study, its storage); lets go of the file at the end.

    Another search of which no trial has finished makes room for this one: that is how a mistake in it is mended.

    Raises:
        InputError: it is of another search (what differs is named), or the file is no study.
    """
    import sqlalchemy.exc

    optuna = require_optuna()
    file = folder / STUDY_FILE
    description = plain(
        {
            "objectives": [each.to_dict() for each in objectives],
            "search": {name: each.to_dict() for name, each in space.items()},
            "seed": seed,
            "settings": dict(settings),
        }
    )
    storage = None
    try:
        try:
            # by a connection of ours, for a path in a URL may hold no ? or #
            engine = {"creator": lambda: _connect(file)}
            storage = optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs=engine)
            study = _create(storage, objectives)
            stored = study.user_attrs.get(DESCRIPTION)
            if stored is not None and _differences(stored, description) and not finished(study, {}):
                for trial in study.get_trials(deepcopy=False):  # numbers begin anew, too
                    shutil.rmtree(trial_folder(folder, trial.number), ignore_errors=True)
                optuna.delete_study(study_name=STUDY_NAME, storage=storage)
                study, stored = _create(storage, objectives), None
            if stored is None and not study.get_trials(deepcopy=False):
                study.set_metric_names([each.name for each in objectives])
                study.set_user_attr(DESCRIPTION, description)
                stored = description
        except (sqlalchemy.exc.DatabaseError, sqlite3.DatabaseError, RuntimeError) as error:
            why = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise InputError(
                f"{str(file)!r} is no study that can be gone on with ({why}); use another folder"
            ) from error
        if stored is None:
            raise InputError(f"the study in {str(file)!r} was not begun by `duonlp tune`; use another folder")
        differences = _differences(stored, description)
        if differences:
            raise InputError(
                f"the search in {str(folder)!r} is another one: {'; '.join(differences)}; go on with what it was begun with, "
                "or use another folder for a new one"
            )
        yield study, storage
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()


def _create(storage, objectives: Sequence[Objective]):
    """The study in a storage, made if there is none."""
    return require_optuna().create_study(
        storage=storage, study_name=STUDY_NAME, load_if_exists=True,
        directions=[each.direction for each in objectives],
    )  # fmt: skip


def trial_folder(folder: Path, number: int) -> Path:
    """The folder of a trial in that of the search."""
    return folder / TRIALS / f"{number:04d}"


def _connect(file: Path) -> sqlite3.Connection:
    """A connection that appends to a log (study.db-wal) and waits for no disk: whole after a kill or a power failure.

    After the latter the last trial may be missing, which is run again.
    """
    connection = sqlite3.connect(file, timeout=60, check_same_thread=False)
    with contextlib.suppress(sqlite3.OperationalError):  # a file system without shared memory: the plain way, slower
        connection.execute("PRAGMA journal_mode=WAL").fetchone()
        connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def close_running(study, storage, reason: str) -> int:
    """Marks the trials that were running when their process ended as failed, and has them tried again. How many there were.

    One that was running for the last of :data:`MOST_ATTEMPTS` processes that were killed is not tried again, and counts.
    """
    optuna = require_optuna()
    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    for trial in running:
        again = plain(dict(trial.user_attrs))
        attempt = again.get("attempt", 1)
        outcome = {"outcome": INTERRUPTED, "reason": reason}
        if reason == KILLED and attempt >= MOST_ATTEMPTS:
            outcome = {"outcome": FAILED, "reason": f"the process was killed {attempt} times while it ran"}
        elif trial.params:
            # before the mark: a process killed in between leaves it twice, and the second is not run
            study.enqueue_trial(dict(trial.params), user_attrs={"attempt": attempt + (reason == KILLED)})
        for key, value in outcome.items():
            storage.set_trial_user_attr(trial._trial_id, key, value)
        storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
    return len(running)


KILLED, STOPPED = "the process was killed", "stopped"


def records(study, space: Space) -> list[TrialRecord]:
    """All trials that have ended, in their order."""
    return [record_of(trial, space) for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def finished(study, space: Space) -> list[TrialRecord]:
    """Those of them that count: not the ones that were interrupted."""
    return [record for record in records(study, space) if record.state in FINISHED]


def record_of(trial, space: Space) -> TrialRecord:
    """A trial of Optuna's as plain values."""
    state = {"COMPLETE": COMPLETE, "PRUNED": PRUNED, "FAIL": INTERRUPTED}.get(trial.state.name, "running")
    attributes = trial.user_attrs
    evaluations = attributes.get("evaluations") or trial.intermediate_values
    begun, ended = trial.datetime_start, trial.datetime_complete
    return TrialRecord(
        trial.number,
        attributes.get("outcome", state),
        {name: space[name].value(value) for name, value in trial.params.items() if name in space},
        attributes.get("results", {}),
        {int(epoch): value for epoch, value in evaluations.items()},
        attributes.get("reason", ""),
        (ended - begun).total_seconds() if begun and ended else 0.0,
        begun.isoformat(timespec="seconds") if begun else "",
        attributes.get("same_as"),
    )


def plain(value: Any) -> Any:
    """NumPy, paths and tuples as JSON has them."""
    return json.loads(json.dumps(value, default=_jsonable))


def _jsonable(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _differences(stored: Any, now: Any, path: str = "") -> list[str]:
    """What differs between two descriptions, in words; 1 is neither 1.0, of which another range is made, nor true."""
    if isinstance(stored, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*stored, *now]))
        return [
            each
            for key in keys
            for each in _differences(stored.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    shown = ["nothing" if value is None else json.dumps(value) for value in (stored, now)]
    same = json.dumps(stored, sort_keys=True) == json.dumps(now, sort_keys=True)
    return [] if same else [f"{path} was {shown[0]}, now {shown[1]}"]
