"""Hyperparameter search with Optuna: any function of some settings, its best found, interrupted and gone on with at will.

Proposals come from the tree-structured Parzen estimator (Bergstra et al. 2011, Watanabe 2023); a trial that is worse than the
median of the others at the same epoch is stopped (Golovin et al. 2017). Everything is in one SQLite file, so a search that was
killed goes on from the trial it was at.
"""

import csv
import hashlib
import importlib.util
import io
import json
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
    records,
    require_optuna,
    trial_folder,
)  # fmt: skip
from duonlp.util.files import locked_folder, write_text

STARTUP_TRIALS = 10
"""Trials with random settings before the estimator has enough to go by (Optuna's own number)."""

STARTUP_PRUNING = 5
"""Trials that must be complete before any is stopped early (Optuna's own number)."""


LEAST_FOR_IMPORTANCE = 8
"""Complete trials below which importances would be chance."""


class Interrupted(Exception):
    """Raised in an objective to end the search as Ctrl-C does: the trial is tried again when it goes on."""


class Report:
    """What an objective tells of a trial while it runs: ``report(epoch, value)``, by the first objective.

    number: of the trial. folder: its own, for whatever it writes; it is there, and empty.

    With one objective the call raises ``optuna.TrialPruned`` when the trial is not worth its time any more; let it through.
    With several none is: Optuna has no pruning for them, since no one number says which of two trials is ahead.
    """

    def __init__(self, trial, folder: Path, objectives: Sequence[Objective], prune: bool, progress: TuningProgress):
        self.number, self.folder = trial.number, folder
        self._trial, self._objectives, self._prune, self._progress = trial, objectives, prune, progress
        self._evaluations: dict[str, float] = {}

    def __call__(self, epoch: int, value: float) -> None:
        epoch, value, name = int(epoch), float(value), self._objectives[0].name
        if epoch < 1:
            raise InputError(f"epoch {epoch} was reported; count from 1")
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
    """What a search found.

    best: the best trial, or the Pareto front of several objectives, the best by the first one first. Empty before one is
        complete.
    trials: all that count: complete, pruned and failed.
    interrupted: whether it was stopped by Ctrl-C, and goes on when it is called again.
    importance: by objective, how much each setting decided whether a trial was among the best; they sum to 1 (PED-ANOVA,
        Watanabe et al. 2023). Empty where there are too few trials.
    files: what was written, by name. notes: what was not, and why.
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
        """For JSON."""
        counts = {state: sum(t.state == state for t in self.trials) for state in (COMPLETE, PRUNED, FAILED)}
        return {
            "objectives": [each.to_dict() for each in self.objectives], "finished": len(self.trials), **counts,
            "interrupted": self.interrupted, "best": [each.to_dict() for each in self.best],
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
    """Searches for the settings with the best results.

    Called again with a folder that has a search, it goes on with it: trials that have finished are not repeated, the one that
    was running is tried again. The proposals are the same as if it had never stopped.

    Args:
        objective: ``(parameters, report) -> results``: runs one trial. Parameters are by name as in the space, ``report`` is a
            :class:`Report`. A NonFiniteLossError, or memory that runs out, fails this trial with that reason and the search
            goes on; every other error ends it.
        space: what to search, as :func:`duonlp.tuning.read_space` has it.
        folder: for study.db, trials.json, trials.csv, pictures, and trials/0000, ..., one folder a trial.
        objectives: one name among the results, or several for a Pareto front; greater is better unless the name speaks of a
            loss, an error, a time or a size, or says so: "minimize:NAME".
        trials: that are to be finished in total, those of earlier calls included.
        seconds: no further trial is begun after this long in this call; one that runs is not cut off.
        seed: of the proposals.
        prune: stop trials that are worse than the median of the complete ones at the same epoch, after the first
            :data:`STARTUP_PRUNING`. Not with several objectives.
        settings: whatever else decides the results, for JSON; a search is not gone on with under others.
        on_trial: ``(trial, best)``, called after each.
        console: whether to show what goes on, on the standard error.

    Raises:
        InputError: a space, objectives or numbers that make no sense, results without an objective's, or a folder with another
            search.
        MissingExtraError: Optuna is not installed.
    """
    optuna = require_optuna()
    space, objectives, folder = read_space(space), read_objectives(objectives), Path(folder).expanduser()
    for name, value in (("trials", trials), ("seconds", seconds)):
        if value is not None and not value > 0:
            raise InputError(f"{name} is {value}; it must be positive")
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed is {seed!r}; it must be a whole number from 0")
    folder.mkdir(parents=True, exist_ok=True)
    began, interrupted = time.monotonic(), False
    with ExitStack() as stack:
        stack.enter_context(locked_folder(folder))
        stack.enter_context(quiet_optuna())
        study, storage = stack.enter_context(open_study(folder, space, objectives, seed, settings or {}))
        progress = stack.enter_context(TuningProgress(trials, objectives, console))
        # after the first epoch at the earliest: evaluations count from 1
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_PRUNING, n_warmup_steps=1)
        again = close_running(study, storage, KILLED)
        done = finished(study, space)
        progress.begin(done, best_of(done, objectives), again)
        try:
            while len(done) < trials and (seconds is None or time.monotonic() - began < seconds):
                record = _trial(study, storage, objective, space, objectives, folder, seed, prune, done, progress)
                done = finished(study, space)
                best = best_of(done, objectives)
                _write_trials(folder, study, space, objectives, best)
                progress.trial(record, best)
                if on_trial is not None:
                    on_trial(record, best)
        except (KeyboardInterrupt, Interrupted):
            interrupted = True
            close_running(study, storage, STOPPED)
            done = finished(study, space)
        best = best_of(done, objectives)
        files = _write_trials(folder, study, space, objectives, best)
        importance, notes = importances(study, objectives, len(done))
        files |= _draw(folder, done, best, objectives, space, importance, notes)
    return TuningResult(best, done, objectives, interrupted, time.monotonic() - began, importance, files, notes)


def best_of(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """The best trial, the first of those alike; or the Pareto front, the best by the first objective first."""
    ran = [trial for trial in trials if trial.state == COMPLETE and trial.same_as is None]
    points = [[trial.results[each.name] for each in objectives] for trial in ran]
    chosen = front(points, objectives)
    sign = -1 if objectives[0].greater else 1
    found = sorted((ran[index] for index in chosen), key=lambda t: (sign * t.results[objectives[0].name], t.number))
    return found[:1] if len(objectives) == 1 else found


def _trial(study, storage, objective, space, objectives, folder, seed, prune, done, progress) -> TrialRecord:
    """Runs one trial to its end, whatever that is; its record. Errors that end the search come after that is written."""
    optuna = require_optuna()
    # A seed for each trial, so that a search that was interrupted proposes what it would have anyway.
    study.sampler = optuna.samplers.TPESampler(seed=_seed(seed, len(done)), n_startup_trials=STARTUP_TRIALS)
    trial = study.ask({name: each.distribution() for name, each in space.items()})
    parameters = {name: each.value(trial.params[name]) for name, each in space.items()}
    twin = next((old for old in done if old.parameters == parameters and old.same_as is None), None)
    progress.start(trial.number, parameters, twin)
    states, outcome, values = optuna.trial.TrialState, {}, None
    try:
        if twin is not None:  # the same again would be the same again
            outcome = {"same_as": twin.number, "reason": twin.reason, "results": twin.results}
            state = states.COMPLETE if twin.state == COMPLETE else states.PRUNED
            outcome |= {} if twin.state != FAILED else {"outcome": FAILED}
        else:
            own = trial_folder(folder, trial.number)
            own.mkdir(parents=True, exist_ok=True)
            results = objective(dict(parameters), Report(trial, own, objectives, prune, progress))
            outcome["results"] = plain(dict(results))
            state = states.COMPLETE
        if state == states.COMPLETE:
            values = _values(outcome["results"], objectives)
    except optuna.TrialPruned as error:
        state, outcome["reason"] = states.PRUNED, str(error)
    except Exception as error:
        if not (isinstance(error, (NonFiniteLossError, MemoryError)) or _is_out_of_memory(error)):
            if not isinstance(error, Interrupted):
                # tried again when the search goes on, its cause mended
                close_running(study, storage, _reason(error))
            if isinstance(error, InputError):
                told = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
                message = f"{error.message} (trial {trial.number}: {told})"
                raise InputError(message, remedy=error.remedy, argument=error.argument) from error
            raise
        # As Optuna's pruned ones are, it is among the bad ones for the estimator, which keeps away from there.
        state, outcome = states.PRUNED, {"outcome": FAILED, "reason": _reason(error)}
    for key, value in outcome.items():
        trial.set_user_attr(key, value)
    study.tell(trial, values, state=state)
    return next(record for record in reversed(records(study, space)) if record.number == trial.number)


def _values(results: Mapping[str, Any], objectives: Sequence[Objective]) -> list[float]:
    """The objectives' values of a trial's results."""
    missing = [each.name for each in objectives if not isinstance(results.get(each.name), (int, float))]
    if missing:
        numbers = [name for name, value in results.items() if isinstance(value, (int, float))]
        raise InputError(
            f"the results have no {', '.join(missing)} to search by; name one of {', '.join(numbers) or 'none'}"
        )
    for each in objectives:
        if not math.isfinite(results[each.name]):
            raise NonFiniteLossError(f"{each.name} is {results[each.name]}")
    return [float(results[each.name]) for each in objectives]


def _seed(seed: int, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:4], "little")


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _is_out_of_memory(error: Exception) -> bool:
    """JAX's and TensorFlow's errors of that kind, which cannot be imported here."""
    return type(error).__name__ == "ResourceExhaustedError" or "RESOURCE_EXHAUSTED" in str(error)


def importances(study, objectives: Sequence[Objective], count: int) -> tuple[dict[str, dict[str, float]], list[str]]:
    """PED-ANOVA's importances by objective, and a note where there are too few trials for them.

    "The best" are a tenth of the trials, or five where a tenth is less (the least that it is stable with), but never more than
    half.
    """
    optuna = require_optuna()
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < LEAST_FOR_IMPORTANCE:
        return {}, [f"importances need {LEAST_FOR_IMPORTANCE} complete trials; there are {len(complete)} of {count}"]
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, min(0.5, 5 / len(complete))))
    found = {}
    for index, each in enumerate(objectives):
        sign = -1 if each.greater else 1
        with warnings.catch_warnings():
            # that lower is taken for better: the sign is for that
            warnings.filterwarnings("ignore", message=".*computes the importances of params to achieve low.*")
            warnings.filterwarnings("ignore", message=".*Parameter importances will be equal.*")
            shares = optuna.importance.get_param_importances(
                study, evaluator=evaluator, target=lambda trial, i=index, s=sign: s * trial.values[i]
            )
        found[each.name] = {name: float(share) for name, share in shares.items()}
    return found, []


def _write_trials(folder: Path, study, space: Space, objectives, best: Sequence[TrialRecord]) -> dict[str, Path]:
    """trials.json and trials.csv, whole or not at all."""
    rows = records(study, space)
    report = {
        "objectives": [each.to_dict() for each in objectives],
        "search": {name: each.to_dict() for name, each in space.items()},
        "best": [trial.number for trial in best],
        "trials": [trial.to_dict() for trial in rows],
    }
    write_text(folder / "trials.json", json.dumps(_finite(report), indent=2, ensure_ascii=False) + "\n")
    results = list(dict.fromkeys(name for row in rows for name, value in row.results.items() if _is_cell(value)))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["number", "state", "seconds", *space, *results, "epochs reported", "same as", "reason"])
    for row in rows:
        cells = [row.parameters.get(name, "") for name in space] + [row.results.get(name, "") for name in results]
        same = "" if row.same_as is None else row.same_as
        table.writerow([row.number, row.state, f"{row.seconds:.1f}", *cells, len(row.evaluations), same, row.reason])
    write_text(folder / "trials.csv", text.getvalue())
    return {"trials.json": folder / "trials.json", "trials.csv": folder / "trials.csv"}


def _is_cell(value: Any) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)


def _finite(value: Any) -> Any:
    """JSON has no number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _draw(folder, done, best, objectives, space, importance, notes: list[str]) -> dict[str, Path]:
    """The pictures that there is something to draw for; notes on the others."""
    if not importlib.util.find_spec("matplotlib"):
        notes.append('there are no pictures without matplotlib; pip install "duonlp[search]", then run this again')
        return {}
    if not any(trial.state == COMPLETE for trial in done):
        notes.append("there are no pictures: no trial is complete")
        return {}
    from duonlp.tuning.plots import plot_history, plot_importance, plot_pareto, plot_slices

    files = {}

    def draw(name, plot, *values):
        plot(*values, folder / name)
        files[name] = folder / name

    draw("history.png", plot_history, done, objectives)
    draw("slices.png", plot_slices, done, objectives, space)
    if importance:
        draw("importance.png", plot_importance, importance)
    if len(objectives) > 1:
        draw("pareto.png", plot_pareto, done, best, objectives)
    return files
