"""Storage of a study in memory, written through to the SQLite file that resumes it. Imported only where Optuna is installed.

Optuna's own storage reads the study from the file again for every parameter that it proposes, and writes through SQLAlchemy.
Here proposals read memory, and a trial writes three short transactions: its parameters before it runs, its results, its state.
"""

import math
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from duonlp.util.json_text import to_json

SCHEMA = 12
"""Version of the tables that :class:`TrialWriter` writes, Optuna's since 3.2."""


class TrialWriter:
    """Writes trials to the tables of Optuna's storage, each call in a transaction of its own.

    Args:
        connection: Connection to the file.

    Raises:
        ValueError: The tables are those of another version of Optuna.
    """

    def __init__(self, connection: sqlite3.Connection):
        (version,) = connection.execute("SELECT schema_version FROM version_info").fetchone()
        if version != SCHEMA:
            raise ValueError(f"the tables have version {version}; only {SCHEMA} can be written")
        self.connection = connection

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial) -> int:
        """Write a running trial with its number and parameters, and return its id."""
        trial = template_trial
        with self.connection as connection:
            row = trial.number, study_id, trial.state.name, _text(trial.datetime_start)
            new = connection.execute(
                "INSERT INTO trials (number, study_id, state, datetime_start) VALUES (?, ?, ?, ?)", row
            ).lastrowid
            rows = [
                (new, name, distribution.to_internal_repr(trial.params[name]), distribution_to_json(distribution))
                for name, distribution in trial.distributions.items()
            ]
            connection.executemany(
                "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) VALUES (?, ?, ?, ?)",
                rows,
            )
        assert new is not None
        return new

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write an attribute."""
        with self.connection as connection:
            connection.execute(
                "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?) "
                "ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json",
                (trial_id, key, to_json(value, allow_nan=True)),
            )

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Write a reported value."""
        with self.connection as connection:
            connection.execute(
                "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) "
                "VALUES (?, ?, ?, ?) ON CONFLICT (trial_id, step) DO UPDATE SET "
                "intermediate_value = excluded.intermediate_value, intermediate_value_type = excluded.intermediate_value_type",
                (trial_id, step, *_typed(intermediate_value)),
            )

    def finish(self, trial_id: int, state: TrialState, values: Sequence[float] | None, ended: datetime) -> None:
        """Write the state and the values of a trial that has ended."""
        with self.connection as connection:
            connection.executemany(
                "INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (?, ?, ?, ?)",
                [(trial_id, number, *_typed(value)) for number, value in enumerate(values or ())],
            )
            connection.execute(
                "UPDATE trials SET state = ?, datetime_complete = ? WHERE trial_id = ?",
                (state.name, _text(ended), trial_id),
            )


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(" ", "microseconds")


def _typed(value: float) -> tuple[float | None, str]:
    """Return a number as Optuna stores it: NULL and a name for one that is not finite."""
    if math.isfinite(value):
        return float(value), "FINITE"
    return None, "NAN" if math.isnan(value) else "INF_POS" if value > 0 else "INF_NEG"


class WriteThroughStorage(InMemoryStorage):
    """A study in memory that is also written to an SQLite file, first to the file and then to memory.

    A new trial is in memory alone until :meth:`write_started`, or until it gets its first value or attribute.

    Args:
        file: Storage of the file, which has the study and which only this process writes.
        study_name: Name of the study.
        connection: Another connection to the file, for writing the trials that run.

    Attributes:
        file: Storage of the file.
    """

    def __init__(self, file: RDBStorage, study_name: str, connection: sqlite3.Connection):
        super().__init__()
        try:
            self._writer: TrialWriter | RDBStorage = TrialWriter(connection)
        except (ValueError, TypeError):  # slower
            self._writer = file
        self.file, self._file_study = file, file.get_study_id_from_name(study_name)
        study = super().create_new_study(file.get_study_directions(self._file_study), study_name)
        for name, value in file.get_study_user_attrs(self._file_study).items():
            super().set_study_user_attr(study, name, value)
        for name, value in file.get_study_system_attrs(self._file_study).items():
            super().set_study_system_attr(study, name, value)
        self._file_trials: dict[int, int] = {}  # id of a trial in memory -> id in the file
        for trial in file.get_all_trials(self._file_study, deepcopy=False):
            self._file_trials[super().create_new_trial(study, trial)] = trial._trial_id

    def write_started(self, trial_id: int) -> int:
        """Write a running trial with its parameters, unless it is in the file; return its id there."""
        if trial_id not in self._file_trials:
            trial = super().get_trial(trial_id)
            self._file_trials[trial_id] = self._writer.create_new_trial(self._file_study, trial)
        return self._file_trials[trial_id]

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write an attribute of the study."""
        self.file.set_study_user_attr(self._file_study, key, value)
        super().set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write an attribute of the study that Optuna uses."""
        self.file.set_study_system_attr(self._file_study, key, value)
        super().set_study_system_attr(study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a trial; only one from a template is written at once."""
        if template_trial is None:
            return super().create_new_trial(study_id)
        stored = self.file.create_new_trial(self._file_study, template_trial)
        trial_id = super().create_new_trial(study_id, template_trial)
        self._file_trials[trial_id] = stored
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter of a trial, and write it if the trial is in the file."""
        if trial_id in self._file_trials:
            self.file.set_trial_param(self._file_trials[trial_id], param_name, param_value_internal, distribution)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Write a new state and values of a trial."""
        stored, writer, ended = self.write_started(trial_id), self._writer, datetime.now()
        if isinstance(writer, TrialWriter) and state.is_finished():
            writer.finish(stored, state, values, ended)
            changed, started = super().set_trial_state_values(trial_id, state, values), None
        else:
            self.file.set_trial_state_values(stored, state, values)
            changed, trial = super().set_trial_state_values(trial_id, state, values), self.file.get_trial(stored)
            started, ended = trial.datetime_start, trial.datetime_complete
        trial = super().get_trial(trial_id)  # not a copy: memory has the times of the file
        trial.datetime_start, trial.datetime_complete = started or trial.datetime_start, ended
        return changed

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Write a reported value."""
        self._writer.set_trial_intermediate_value(self.write_started(trial_id), step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write an attribute of a trial."""
        self._writer.set_trial_user_attr(self.write_started(trial_id), key, value)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute that Optuna uses, and write it if the trial is in the file."""
        if trial_id in self._file_trials:
            self.file.set_trial_system_attr(self._file_trials[trial_id], key, value)
        super().set_trial_system_attr(trial_id, key, value)
