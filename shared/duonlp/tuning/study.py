"""Storage of a search: an Optuna study in an SQLite file with a single writer, and its trials as plain values."""

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
from types import ModuleType
from typing import Any

from duonlp.errors import InputError, MissingExtraError
from duonlp.tuning.search_space import Objective, Space
from duonlp.util.files import storage_error
from duonlp.util.reading import first_line

TRIALS = "trials"
"""Folder of the trials' own folders, trials/0007 and so on."""

STUDY_FILE = "study.db"
STUDY_NAME = "duonlp"
DESCRIPTION = "description"
COMPLETE, PRUNED, FAILED, INTERRUPTED = "complete", "pruned", "failed", "interrupted"
FINISHED = (COMPLETE, PRUNED, FAILED)
MOST_ATTEMPTS = 3
"""Attempts at a trial whose process is killed each time: the trial may be the cause."""


@dataclass(frozen=True)
class TrialRecord:
    """A trial of a search.

    Attributes:
        number: Number in the study, from 0.
        state: "complete", "pruned", "failed" or "interrupted".
        parameters: Parameters by name.
        results: Results of the objective.
        evaluations: Reported values by epoch.
        reason: Why the trial is not complete, or "".
        seconds: Duration.
        started: Start time, ISO 8601.
        same_as: Number of an earlier trial with the same parameters, whose results were copied; None for a trial that ran.
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
        """Return the trial as a dict for JSON."""
        return asdict(self)


def require_optuna() -> ModuleType:
    """Import Optuna.

    Raises:
        MissingExtraError: Optuna is not installed.
    """
    if not importlib.util.find_spec("optuna"):
        raise MissingExtraError(
            'hyperparameter search needs Optuna, which is not installed; pip install "duonlp[search]"'
        )
    import optuna

    return optuna


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's log and its warnings about experimental features."""
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
def open_study(
    folder: Path, space: Space, objectives: Sequence[Objective], seed: int, settings: Mapping[str, Any]
) -> Iterator[tuple[Any, Any]]:
    """Open or create the study of a folder, as (study, storage), and close the file at the end.

    The study is in memory, and every change is written to the file at once.

    A different search without any finished trial is replaced, so that a typo in the settings can be fixed.

    Raises:
        InputError: The folder holds a different search (the differences are named), or the file is not a study.
    """
    optuna = require_optuna()
    from duonlp.tuning.storage import WriteThroughStorage

    file = folder / STUDY_FILE
    description = plain(
        {
            "objectives": [objective.to_dict() for objective in objectives],
            "search": {name: dimension.to_dict() for name, dimension in space.items()},
            "seed": seed,
            "settings": dict(settings),
        }
    )
    storage, connections = None, []
    try:
        try:
            # connect ourselves: a path in a URL must not contain ? or #
            engine = {"creator": lambda: connections.append(_connect(file)) or connections[-1]}
            storage = optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs=engine)
            study = _create(storage, objectives)
            stored = study.user_attrs.get(DESCRIPTION)
            if stored is not None and _differences(stored, description) and not finished(study, {}):
                for trial in study.get_trials(deepcopy=False):  # trial numbers restart too
                    shutil.rmtree(trial_folder(folder, trial.number), ignore_errors=True)
                optuna.delete_study(study_name=STUDY_NAME, storage=storage)
                study, stored = _create(storage, objectives), None
            if stored is None and not study.get_trials(deepcopy=False):
                study.set_metric_names([objective.name for objective in objectives])
                study.set_user_attr(DESCRIPTION, description)
                stored = description
            connections.append(_connect(file))
            memory = WriteThroughStorage(storage, STUDY_NAME, connections[-1])
            study = optuna.load_study(study_name=STUDY_NAME, storage=memory)
            finished(study, space)  # raises if a value in the file is damaged
        except Exception as error:  # a damaged value can raise anything, in SQLite, SQLAlchemy, Optuna or here
            why = first_line(getattr(error, "orig", None) or error)
            raise InputError(f"cannot resume the study {str(file)!r} ({why}); use another folder") from error
        if stored is None:
            raise InputError(f"the study in {str(file)!r} was not created by `duonlp tune`; use another folder")
        differences = _differences(stored, description)
        if differences:
            raise InputError(
                f"{str(folder)!r} holds a different search: {'; '.join(differences)}; use the same settings to resume it, "
                "or another folder for a new search"
            )
        yield study, memory
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()
        for connection in connections:  # one that a damaged file kept from closing would lock the file
            connection.close()


@contextmanager
def study_errors(folder: Path) -> Iterator[None]:
    """Turn an error of writing the study, such as of a full disk, into a StorageError."""
    import sqlalchemy.exc

    optuna = require_optuna()
    try:
        yield
    except (sqlalchemy.exc.OperationalError, sqlite3.OperationalError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        raise storage_error(folder / STUDY_FILE, getattr(cause, "orig", None) or cause) from error


def _create(storage: Any, objectives: Sequence[Objective]) -> Any:
    """Load the study from a storage, or create it."""
    return require_optuna().create_study(
        storage=storage, study_name=STUDY_NAME, load_if_exists=True,
        directions=[objective.direction for objective in objectives],
    )  # fmt: skip


def trial_folder(folder: Path, number: int) -> Path:
    """Return the folder of a trial."""
    return folder / TRIALS / f"{number:04d}"


def _connect(file: Path) -> sqlite3.Connection:
    """Connect in WAL mode without waiting for the disk, which survives a kill or a power failure.

    After a power failure the last trial may be missing; it is repeated.
    """
    connection = sqlite3.connect(file, timeout=60, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL").fetchone()
        connection.execute("PRAGMA synchronous=NORMAL")
    except sqlite3.OperationalError:  # a file system without shared memory: the default journal, slower
        pass
    except BaseException:  # a damaged file, which would stay locked as long as the error is kept
        connection.close()
        raise
    return connection


def close_running(study: Any, storage: Any, reason: str) -> int:
    """Mark the trials that were running when their process ended as interrupted, and enqueue them again.

    A trial whose process was killed :data:`MOST_ATTEMPTS` times fails and is not repeated.

    Returns:
        Number of trials that were running.
    """
    optuna = require_optuna()
    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    for trial in running:
        attempt = plain(dict(trial.user_attrs)).get("attempt", 1)
        outcome = {"outcome": INTERRUPTED, "reason": reason}
        if reason == KILLED and attempt >= MOST_ATTEMPTS:
            outcome = {"outcome": FAILED, "reason": f"the process was killed {attempt} times while it ran"}
        elif trial.params:
            # enqueue before marking: a kill in between leaves a duplicate, which is not run
            study.enqueue_trial(dict(trial.params), user_attrs={"attempt": attempt + (reason == KILLED)})
        for key, value in outcome.items():
            storage.set_trial_user_attr(trial._trial_id, key, value)
        storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
    return len(running)


KILLED, STOPPED = "the process was killed", "stopped"


def records(study: Any, space: Space) -> list[TrialRecord]:
    """Return all trials that have ended, in order."""
    return [record_of(trial, space) for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def finished(study: Any, space: Space) -> list[TrialRecord]:
    """Return the trials that count toward the total: all but interrupted ones."""
    return [record for record in records(study, space) if record.state in FINISHED]


def record_of(trial: Any, space: Space) -> TrialRecord:
    """Convert an Optuna trial to a record."""
    state = {"COMPLETE": COMPLETE, "PRUNED": PRUNED, "FAIL": INTERRUPTED}.get(trial.state.name, "running")
    attributes = trial.user_attrs
    evaluations = attributes.get("evaluations") or trial.intermediate_values
    start, end = trial.datetime_start, trial.datetime_complete
    return TrialRecord(
        trial.number,
        attributes.get("outcome", state),
        {name: space[name].value(value) for name, value in trial.params.items() if name in space},
        attributes.get("results", {}),
        {int(epoch): value for epoch, value in evaluations.items()},
        attributes.get("reason", ""),
        (end - start).total_seconds() if start and end else 0.0,
        start.isoformat(timespec="seconds") if start else "",
        attributes.get("same_as"),
    )


def plain(value: Any) -> Any:
    """Convert NumPy values, paths and tuples to plain JSON values."""
    return json.loads(json.dumps(value, default=_jsonable))


def _jsonable(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _differences(stored: Any, now: Any, path: str = "") -> list[str]:
    """List the differences between two descriptions; 1, 1.0 (a continuous range) and true are different."""
    if isinstance(stored, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*stored, *now]))
        return [
            difference
            for key in keys
            for difference in _differences(stored.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    values = ["nothing" if value is None else json.dumps(value) for value in (stored, now)]
    same = json.dumps(stored, sort_keys=True) == json.dumps(now, sort_keys=True)
    return [] if same else [f"{path} was {values[0]}, now {values[1]}"]
