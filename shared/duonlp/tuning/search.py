"""Resumable hyperparameter search with Optuna over any function of settings.

Settings are proposed by the tree-structured Parzen estimator (Bergstra et al. 2011, Watanabe 2023); a trial that is worse than
the median of the others at the same epoch is pruned (Golovin et al. 2017). The search is stored in one SQLite file, so a killed
search resumes at the trial it was running.
"""

import csv
import hashlib
import importlib.util
import io
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duonlp.errors import InputError, NonFiniteLossError
from duonlp.tuning.progress import TuningProgress
from duonlp.tuning.search_space import Objective, Space, front, read_objectives, read_space
from duonlp.tuning.study import (
    COMPLETE,
    FAILED,
    KILLED,
    PRUNED,
    STOPPED,
    TrialRecord,
    close_running,
    finished,
    open_study,
    plain,
    quiet_optuna,
    record_of,
    records,
    require_optuna,
    study_errors,
    trial_folder,
)  # fmt: skip
from duonlp.util.files import locked_folder, write_text
from duonlp.util.json_text import to_json

STARTUP_TRIALS = 10
"""Random trials before the estimator starts (Optuna's default)."""

STARTUP_PRUNING = 5
"""Completed trials before any is pruned (Optuna's default)."""


LEAST_FOR_IMPORTANCE = 8
"""Completed trials below which importances would be noise."""


class Interrupted(Exception):
    """Raise it in an objective to interrupt the search like Ctrl-C: the trial is repeated on resuming."""


class Report:
    """Reports intermediate values of a running trial: ``report(epoch, value)``, the value of the first objective.

    With one objective, a call raises ``optuna.TrialPruned`` if the trial should stop; do not catch it. With several, no
    trial is pruned: Optuna does not support it, since no single value orders two trials.

    Attributes:
        number: Number of the trial.
        folder: The trial's own folder, existing and empty, for its files.
    """

    def __init__(
        self, trial: Any, folder: Path, objectives: Sequence[Objective], prune: bool, progress: TuningProgress
    ):
        self.number, self.folder = trial.number, folder
        self._trial, self._objectives, self._prune, self._progress = trial, objectives, prune, progress
        self._evaluations: dict[str, float] = {}

    def __call__(self, epoch: int, value: float) -> None:
        epoch, value, name = int(epoch), float(value), self._objectives[0].name
        if epoch < 1:
            raise InputError(f"epoch {epoch} was reported; count epochs from 1")
        self._evaluations[str(epoch)] = value
        self._progress.evaluation(self.number, epoch, name, value)
        if len(self._objectives) > 1:
            self._trial.set_user_attr("evaluations", self._evaluations)
            return
        self._trial.report(value, epoch)
        if self._prune and self._trial.should_prune():
            raise require_optuna().TrialPruned(f"after epoch {epoch}, {name} {value:.4g} is worse than the median")


@dataclass(frozen=True)
class TuningResult:
    """Result of a search.

    Attributes:
        best: The best trial, or the Pareto front of several objectives, sorted by the first one. Empty before the first
            trial completes.
        trials: All finished trials: complete, pruned and failed.
        objectives: The objectives.
        interrupted: Whether Ctrl-C interrupted the search, which resumes when called again.
        seconds: Duration of this call.
        importance: For each objective, the share of each setting in deciding whether a trial is among the best, summing to
            1 (PED-ANOVA, Watanabe et al. 2023). Empty with too few trials.
        files: Written files by name.
        notes: Files that were not written, and why.
    """

    best: list[TrialRecord]
    trials: list[TrialRecord]
    objectives: tuple[Objective, ...]
    interrupted: bool
    seconds: float
    importance: dict[str, dict[str, float]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dict for JSON."""
        counts = {state: sum(t.state == state for t in self.trials) for state in (COMPLETE, PRUNED, FAILED)}
        return {
            "objectives": [objective.to_dict() for objective in self.objectives], "finished": len(self.trials), **counts,
            "interrupted": self.interrupted, "best": [trial.to_dict() for trial in self.best],
            "importance": self.importance, "files": {name: str(file) for name, file in self.files.items()},
            "notes": self.notes,
        }  # fmt: skip


def tune(
    objective: Callable[[dict[str, Any], Report], Mapping[str, Any]],
    space: Mapping[str, Any],
    folder: str | Path,
    *,
    objectives: Sequence[str] | str = "accuracy",
    trials: int = 20,
    seconds: float | None = None,
    seed: int = 0,
    prune: bool = True,
    settings: Mapping[str, Any] | None = None,
    on_trial: Callable[[TrialRecord, list[TrialRecord]], None] | None = None,
    console: bool = True,
) -> TuningResult:
    """Search for the settings with the best results.

    Called again with the folder of a search, it resumes: finished trials are not repeated, and the trial that was running
    restarts. The proposals are the same as without an interruption.

    Args:
        objective: ``(parameters, report) -> results`` runs one trial. Parameters are named as in the space; ``report`` is a
            :class:`Report`. A NonFiniteLossError or an out-of-memory error fails the trial, and the search continues; any
            other error ends the search.
        space: The search space, see :func:`read_space`.
        folder: Folder for study.db, trials.json, trials.csv, plots, and one folder per trial, trials/0000, ...
        objectives: Name of one result, or of several for a Pareto front. Results are maximized, except for losses, errors,
            times and sizes, and for "minimize:NAME".
        trials: Total number of trials to finish, including those of earlier calls.
        seconds: Start no further trial after this time in this call; a running trial is not interrupted.
        seed: Seed of the proposals.
        prune: Prune trials that are worse than the median of the completed ones at the same epoch, after the first
            :data:`STARTUP_PRUNING`. Ignored with several objectives.
        settings: Other values that determine the results, for JSON; a search cannot be resumed with different ones.
        on_trial: ``(trial, best)``, called after each trial.
        console: Show progress on standard error.

    Raises:
        InputError: The space, the objectives or a number is invalid, the results lack an objective, or the folder holds a
            different search or is in use by another process or thread.
        StorageError: The study cannot be written, for example because the disk is full; call again to resume.
        MissingExtraError: Optuna is not installed.
    """
    optuna = require_optuna()
    dimensions, targets, folder = read_space(space), read_objectives(objectives), Path(folder).expanduser()
    for name, value in (("trials", trials), ("seconds", seconds)):
        if value is not None and not value > 0:
            raise InputError(f"{name} is {value}; it must be positive")
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed is {seed!r}; it must be a non-negative integer")
    start, interrupted = time.monotonic(), False
    with ExitStack() as stack:
        stack.enter_context(locked_folder(folder, "search"))
        stack.enter_context(quiet_optuna())
        stack.enter_context(study_errors(folder))
        study, storage = stack.enter_context(open_study(folder, dimensions, targets, seed, settings or {}))
        progress = stack.enter_context(TuningProgress(trials, targets, console))
        # n_warmup_steps=1: epochs count from 1, so the first evaluation may already be pruned
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_PRUNING, n_warmup_steps=1)
        interrupted_trials = close_running(study, storage, KILLED)
        done = finished(study, dimensions)
        best, files = best_of(done, targets), _TrialFiles(folder, study, dimensions, targets)
        progress.begin(done, best, interrupted_trials)
        try:
            while len(done) < trials and (seconds is None or time.monotonic() - start < seconds):
                record = _trial(study, storage, objective, dimensions, targets, folder, seed, prune, done, progress)
                done.append(record)
                best = best_of([*best, record], targets)
                files.write_if_due(best)
                progress.trial(record, best)
                if on_trial is not None:
                    on_trial(record, best)
        except (KeyboardInterrupt, Interrupted):
            interrupted = True
            close_running(study, storage, STOPPED)
        finally:
            files.write(best)
        importance, notes = importances(study, targets, len(done))
        plots = _plot(folder, done, best, targets, dimensions, importance, notes)
    return TuningResult(
        best, done, targets, interrupted, time.monotonic() - start, importance, files.paths | plots, notes
    )  # fmt: skip


def best_of(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Return the best trial, the first among equals; or the Pareto front, sorted by the first objective."""
    ran = [trial for trial in trials if trial.state == COMPLETE and trial.same_as is None]
    points = [[trial.results[objective.name] for objective in objectives] for trial in ran]
    indices = front(points, objectives)
    sign = -1 if objectives[0].greater else 1
    best = sorted((ran[index] for index in indices), key=lambda t: (sign * t.results[objectives[0].name], t.number))
    return best[:1] if len(objectives) == 1 else best


def _trial(
    study: Any,
    storage: Any,
    objective: Callable[[dict[str, Any], Report], Mapping[str, Any]],
    space: Space,
    objectives: Sequence[Objective],
    folder: Path,
    seed: int,
    prune: bool,
    done: Sequence[TrialRecord],
    progress: TuningProgress,
) -> TrialRecord:
    """Run one trial and return its record. Errors that end the search are raised after the trial is stored."""
    optuna = require_optuna()
    # one seed per trial, so that a resumed search makes the same proposals
    study.sampler = optuna.samplers.TPESampler(seed=_seed(seed, len(done)), n_startup_trials=STARTUP_TRIALS)
    trial = study.ask({name: dimension.distribution() for name, dimension in space.items()})
    storage.write_started(trial._trial_id)  # so that it is repeated if the process is killed
    parameters = {name: dimension.value(trial.params[name]) for name, dimension in space.items()}
    twin = next((old for old in done if old.parameters == parameters and old.same_as is None), None)
    progress.start(trial.number, parameters, twin)
    states, values = optuna.trial.TrialState, None
    outcome: dict[str, Any] = {}
    try:
        if twin is not None:  # runs are deterministic: reuse the results
            outcome = {"same_as": twin.number, "reason": twin.reason, "results": twin.results}
            state = states.COMPLETE if twin.state == COMPLETE else states.PRUNED
            outcome |= {} if twin.state != FAILED else {"outcome": FAILED}
        else:
            own_folder = trial_folder(folder, trial.number)
            own_folder.mkdir(parents=True, exist_ok=True)
            results = objective(dict(parameters), Report(trial, own_folder, objectives, prune, progress))
            outcome["results"] = plain(dict(results))
            state = states.COMPLETE
        if state == states.COMPLETE:
            values = _values(outcome["results"], objectives)
    except optuna.TrialPruned as error:
        state, outcome["reason"] = states.PRUNED, str(error)
    except Exception as error:
        if not (isinstance(error, (NonFiniteLossError, MemoryError)) or _is_out_of_memory(error)):
            if not isinstance(error, Interrupted):
                # repeated when the search resumes, after the cause is fixed
                close_running(study, storage, _reason(error))
            if isinstance(error, InputError):
                values_text = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
                message = f"{error.message} (trial {trial.number}: {values_text})"
                raise type(error)(message, remedy=error.remedy, argument=error.argument) from error
            raise
        # stored as pruned, so that the estimator avoids this region
        state, outcome = states.PRUNED, {"outcome": FAILED, "reason": _reason(error)}
    for key, value in outcome.items():
        trial.set_user_attr(key, value)
    study.tell(trial, values, state=state)
    return record_of(storage.get_trial(trial._trial_id), space)


def _values(results: Mapping[str, Any], objectives: Sequence[Objective]) -> list[float]:
    """Return the values of the objectives from a trial's results."""
    missing = [o.name for o in objectives if not isinstance(results.get(o.name), (int, float))]
    if missing:
        numbers = [name for name, value in results.items() if isinstance(value, (int, float))]
        raise InputError(
            f"the results lack the objective {', '.join(missing)}; available are {', '.join(numbers) or 'none'}"
        )
    for o in objectives:
        if not math.isfinite(results[o.name]):
            raise NonFiniteLossError(f"{o.name} is {results[o.name]}")
    return [float(results[o.name]) for o in objectives]


def _seed(seed: int, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:4], "little")


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _is_out_of_memory(error: Exception) -> bool:
    """Recognize JAX's and TensorFlow's out-of-memory errors, whose classes cannot be imported here."""
    return type(error).__name__ == "ResourceExhaustedError" or "RESOURCE_EXHAUSTED" in str(error)


def importances(
    study: Any, objectives: Sequence[Objective], count: int
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return PED-ANOVA importances by objective, and a note if there are too few trials.

    The best trials are the top tenth, at least five (fewer are unstable), but at most half.

    Args:
        study: The Optuna study.
        objectives: The objectives.
        count: Number of finished trials, for the note.
    """
    optuna = require_optuna()
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < LEAST_FOR_IMPORTANCE:
        return {}, [
            f"importances need {LEAST_FOR_IMPORTANCE} completed trials; {len(complete)} of {count} are complete"
        ]
    library = require_optuna().importance
    evaluator = library.PedAnovaImportanceEvaluator(target_quantile=max(0.1, min(0.5, 5 / len(complete))))
    importance = {}
    for index, target in enumerate(objectives):
        sign = -1 if target.greater else 1
        with warnings.catch_warnings():
            # it warns that it assumes minimization, which the sign provides
            warnings.filterwarnings("ignore", message=".*computes the importances of params to achieve low.*")
            warnings.filterwarnings("ignore", message=".*Parameter importances will be equal.*")
            shares = library.get_param_importances(
                study, evaluator=evaluator, target=lambda trial, i=index, s=sign: s * trial.values[i]
            )
        importance[target.name] = {name: float(share) for name, share in shares.items()}
    return importance, []


class _TrialFiles:
    """The files trials.json and trials.csv, each written atomically.

    They repeat what the study has, so they may be behind: writing them takes at most a twentieth of the time of a search.
    """

    def __init__(self, folder: Path, study: Any, space: Space, objectives: Sequence[Objective]):
        self.folder, self.study, self.space, self.objectives = folder, study, space, objectives
        self.paths = {name: folder / name for name in ("trials.json", "trials.csv")}
        self._due = 0.0

    def write_if_due(self, best: Sequence[TrialRecord]) -> None:
        """Write the files unless that would take too large a share of the time."""
        if (began := time.perf_counter()) >= self._due:
            self.write(best)
            ended = time.perf_counter()
            self._due = ended + 20 * (ended - began)

    def write(self, best: Sequence[TrialRecord]) -> None:
        """Write the files."""
        rows = records(self.study, self.space)
        report = {
            "objectives": [objective.to_dict() for objective in self.objectives],
            "search": {name: dimension.to_dict() for name, dimension in self.space.items()},
            "best": [trial.number for trial in best],
            "trials": [trial.to_dict() for trial in rows],
        }
        write_text(self.paths["trials.json"], to_json(report, indent=2) + "\n")
        results = list(dict.fromkeys(name for row in rows for name, value in row.results.items() if _is_cell(value)))
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["number", "state", "seconds", *self.space, *results, "epochs reported", "same as", "reason"])
        for row in rows:
            cells = [row.parameters.get(name, "") for name in self.space] + [
                row.results.get(name, "") for name in results
            ]
            same = "" if row.same_as is None else row.same_as
            table.writerow(
                [row.number, row.state, f"{row.seconds:.1f}", *cells, len(row.evaluations), same, row.reason]
            )
        write_text(self.paths["trials.csv"], text.getvalue())


def _is_cell(value: Any) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)


def _plot(
    folder: Path,
    done: Sequence[TrialRecord],
    best: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    space: Space,
    importance: Mapping[str, Mapping[str, float]],
    notes: list[str],
) -> dict[str, Path]:
    """Draw the plots for which there is data, and append notes on the others."""
    if not importlib.util.find_spec("matplotlib"):
        notes.append('no plots: matplotlib is not installed; pip install "duonlp[search]", then run this again')
        return {}
    if not any(trial.state == COMPLETE for trial in done):
        notes.append("no plots: no trial is complete")
        return {}
    from duonlp.tuning.plots import plot_history, plot_importance, plot_pareto, plot_slices

    files: dict[str, Path] = {}

    def draw(name: str, plot: Callable[..., None], *values: Any) -> None:
        plot(*values, folder / name)
        files[name] = folder / name

    draw("history.png", plot_history, done, objectives)
    draw("slices.png", plot_slices, done, objectives, space)
    if importance:
        draw("importance.png", plot_importance, importance)
    if len(objectives) > 1:
        draw("pareto.png", plot_pareto, done, best, objectives)
    return files
