"""Search the settings of `duonlp distill` and `duonlp finetune`: each trial is a run in its own folder.

The TOML file of a search is that of the run plus two tables: ``[search]``, ranges and choices by setting, and ``[tune]``, the
fields of TuneSettings. Settings are named by their path; ``alpha`` is enough for ``distillation.alpha`` if unambiguous.
"""

import gc
import importlib
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from duonlp.errors import CheckpointError, InputError
from duonlp.names import merge_named
from duonlp.runs.folder import BEST, RUN_MARKERS, SETTINGS_FILE, framework_name
from duonlp.training.settings_file import as_table, build, set_path, to_toml
from duonlp.tuning.search import Interrupted, Report, TuningResult, tune
from duonlp.tuning.search_space import Space, read_objectives, read_space
from duonlp.tuning.study import TRIALS, TrialRecord, trial_folder
from duonlp.typing import Engine
from duonlp.util.files import locked_folder, write_text
from duonlp.util.suggestions import nearest

RUNS = {"distill": "DistillSettings", "finetune": "FinetuneSettings"}
"""Kind of run to the class of its settings in duonlp.runs."""

MODULES = {"distill": "distillation", "finetune": "finetuning"}
"""Kind of run to its module in duonlp.runs."""

NOT_SEARCHED = (
    "task", "data", "output", "framework", "config", "validation_split", "text_column", "label_column", "encoding", "quoting",
    "limit", "out_of_scope",
    "cache", "tensorboard", "cache_teacher_logits", "evaluate_teacher", "fit.best_metric", "fit.greater_is_better",
    "fit.evaluate_every", "fit.save_every", "fit.log_every", "fit.keep_last",
)  # fmt: skip
"""Settings that cannot improve a model, or would make trials incomparable."""

MEASURED = ("latency", "latency_p95", "bytes", "parameters", "seconds")
"""Results besides the metrics: latency in ms (median, 95th percentile), bytes on disk, parameters, training seconds."""

RECORDS = (
    SETTINGS_FILE,
    *(name for name in RUN_MARKERS if name.endswith((".json", ".jsonl")) and name != "config.json"),
)
"""Files kept for every trial."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """Settings of a search.

    Attributes:
        run: "distill" or "finetune"; "" means distill if there is a teacher.
        trials: Total number of trials to finish, including those of earlier calls.
        minutes: Start no further trial after this time in one call; None for no limit.
        objective: Names of validation metrics or of :data:`MEASURED`; several for a Pareto front.
        seed: Seed of the proposals. (The runs have their own seed.)
        prune: Prune trials worse than the median at the same evaluation; ignored with several objectives.
        keep_all: Keep the model of every trial instead of only the best ones.
        queries: Validation texts for measuring the latency.
        repeats: Timed calls per query.
    """

    run: str = ""
    trials: int = 20
    minutes: float | None = None
    objective: tuple[str, ...] = ("accuracy",)
    seed: int = 0
    prune: bool = True
    keep_all: bool = False
    queries: int = 200
    repeats: int = 3

    def __post_init__(self) -> None:
        if self.run not in ("", *RUNS):
            raise InputError(f"run is {self.run!r}; it must be {' or '.join(RUNS)}{nearest(self.run, RUNS)}")
        for name in ("trials", "minutes", "queries", "repeats"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; it must be positive")
        read_objectives(self.objective)


class RunSearch:
    """A search over runs: the fixed settings of the run, and the space of the others.

    Args:
        table: The run's settings, as in its TOML file, without ``search`` and ``tune``.
        search: The search space, whose names may omit the table they are in.
        options: Settings of the search.
        folder: Folder of the search.

    Raises:
        InputError: A name is not a searchable setting, the space is invalid, the run rejects a value at an end of the
            space, or the run has no validation.
    """

    def __init__(self, table: Mapping[str, Any], search: Mapping[str, Any], options: TuneSettings, folder: str | Path):
        self.run = options.run or ("distill" if "teacher" in table else "finetune")
        self.module = importlib.import_module(f"duonlp.runs.{MODULES[self.run]}")
        self.cls = getattr(self.module, RUNS[self.run])
        self.options, self.folder = options, Path(folder).expanduser()
        self.objectives = read_objectives(options.objective)
        self.table = _copied({**table, "output": str(self.folder / "again")})
        metrics = [objective for objective in self.objectives if objective.name not in MEASURED]
        fit = self.table.get("fit", {})  # if it is not a table, build raises
        # select each trial's best model by the search's objective
        if metrics and isinstance(fit, Mapping) and "best_metric" not in fit:
            set_path(self.table, "fit.best_metric", metrics[0].name)
            set_path(self.table, "fit.greater_is_better", metrics[0].greater)
        self.space = self._space(search)
        first = {name: dimension.examples()[0] for name, dimension in self.space.items()}
        self.base = self.settings(first)
        for name, dimension in self.space.items():
            for value in dimension.examples():
                try:
                    self.settings({**first, name: value})
                except InputError as error:
                    raise InputError(f"search.{name} has {value!r}: {error}") from error
        if not self.base.validation_split or not self.base.fit.evaluate_every:
            raise InputError(
                "the run has no validation, so trials cannot be compared; set validation_split, and fit.evaluate_every to 'epoch'"
            )

    def _space(self, search: Mapping[str, Any]) -> Space:
        known, real, whole = setting_paths(self.cls)
        space: Space = {}
        for name, dimension in read_space(search).items():
            path = full_path(name, known)
            if path in NOT_SEARCHED:
                raise InputError(f"search has {name!r}, which would make trials incomparable; remove it from [search]")
            if path in space:
                raise InputError(f"search has {path!r} twice; remove one of them")
            set_path(self.table, path, None)  # the run no longer fixes it
            space |= read_space({path: dimension.to_dict()}, real, whole)
        return space

    def settings(self, parameters: Mapping[str, Any]) -> Any:
        """Return the settings of a run with all runs parameters, given by path."""
        table = _copied(self.table)
        for path, value in parameters.items():
            set_path(table, path, value)
        return build(self.cls, table, self.cls.program)

    def describe(self, framework: str) -> dict[str, Any]:
        """Return everything besides the parameters that determines the results, after reading and checking data and models.

        Raises:
            InputError: As a run would raise before training.
            CheckpointError: As a run would raise before training.
        """
        first = {name: dimension.examples()[0] for name, dimension in self.space.items()}
        data = self.module.plan(self.trial_settings(first, self.folder), framework)["data"]
        if not data["validation"]:
            raise InputError(
                f"{self.base.data!r} is a single table without validation data, so trials cannot be compared; give a folder with "
                "one file per split, such as train.csv and validation.csv"
            )
        # check discrete settings, such as the number of layers; the ends of a continuous range are never proposed, and
        # a plan does not depend on fit
        discrete = [d for name, d in self.space.items() if d.size < math.inf and not name.startswith("fit.")]
        for name, value in [(d.name, value) for d in discrete for value in d.examples()[1:]]:
            try:
                self.module.plan(self.trial_settings({**first, name: value}, self.folder), framework)
            except (InputError, CheckpointError) as error:
                raise type(error)(f"search.{name} has {value!r}: {error}") from error
        table = as_table(replace(self.base, framework=framework))
        for path in (*self.space, *self.base.may_change):
            set_path(table, path, None)
        description = {"run": self.run, **table, "data": data}  # the contents of the data matter, not its location
        if any(objective.name.startswith("latency") for objective in self.objectives):
            description |= {"queries": self.options.queries, "repeats": self.options.repeats}
        return description

    def trial_settings(self, parameters: Mapping[str, Any], folder: Path) -> Any:
        """Return the settings of a trial, which shares cached values with the others."""
        settings = self.settings(parameters)
        shared: dict[str, Any] = {"output": str(folder), "cache": settings.cache or str(self.folder / "cache")}
        # no checkpoints: an interrupted trial restarts, so that its results equal those of an uninterrupted one
        shared["fit"] = replace(settings.fit, save_every=0)
        if self.run == "distill":
            # other losses need more than the teacher's logits, so the teacher runs anyway
            shared |= {"evaluate_teacher": False, "cache_teacher_logits": not settings.distillation.losses}
        return replace(settings, **shared)

    def write_best(self, best: Sequence[TrialRecord]) -> dict[str, Path]:
        """Write best.toml, and best-0007.toml for each trial of a front: settings for `duonlp distill --config`."""
        files = {}
        for place, trial in enumerate(best):
            results = ", ".join(f"{o.name} {trial.results[o.name]:.6g}" for o in self.objectives)
            for name in [
                *(["best.toml"] if place == 0 else []),
                *([f"best-{trial.number:04d}.toml"] if len(best) > 1 else []),
            ]:
                file = self.folder / name
                heading = (
                    f"Trial {trial.number} of `duonlp tune`: {results}\n"
                    f"Model: {trial_folder(self.folder, trial.number) / BEST}\n"
                    f"Repeat: duonlp {self.run} --config {file}"
                )
                write_text(file, to_toml(self.settings(trial.parameters), heading))
                files[name] = file
        for old in self.folder.glob("best-[0-9]*.toml"):
            if old.name not in files:
                old.unlink()
        return files


def tune_runs(
    package: Engine,
    table: Mapping[str, Any],
    search: Mapping[str, Any],
    folder: str | Path,
    options: TuneSettings | None = None,
    *,
    latency: Callable[[Any, Path], Mapping[str, float]] | None = None,
    console: bool = True,
) -> TuningResult:
    """Search the settings of a distillation or a fine-tuning.

    Besides the files of :func:`tune`, it writes best.toml, and in trials/0007/ each trial's settings, metrics and results,
    with the model of the best trial (or of all trials on the front).

    Args:
        package: tfnlp or jaxnlp.
        table: The run's settings, as in the TOML file of `duonlp distill` or `duonlp finetune`; the output is ignored.
        search: The search space, {"alpha": {"low": 0.0, "high": 1.0}, ...}; see :func:`read_space`.
        folder: Folder of the search; if it holds the same search, the search resumes.
        options: Settings of the search.
        latency: ``(settings, model folder) -> results``; by default PerformanceBenchmark on validation texts.
        console: Show progress on standard error.

    Raises:
        InputError: As :class:`RunSearch`, :func:`tune`, or a run.
        CheckpointError: A checkpoint cannot be read.
        MissingExtraError: Optuna is not installed.
    """
    options = TuneSettings() if options is None else options
    runs = RunSearch(table, search, options, folder)
    names = [objective.name for objective in runs.objectives]
    run = getattr(runs.module, runs.run)
    latency = latency or (lambda settings, model: measure_latency(package, settings, model, options))

    def objective(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
        settings, done = runs.trial_settings(parameters, report.folder), 0

        def on_evaluation(step: int, results: Mapping[str, float]) -> None:
            nonlocal done
            done += 1
            if names[0] in results:
                report(done, results[names[0]])

        try:
            outcome = run(package, settings, on_evaluation=on_evaluation, console=False)
            if outcome["preempted"]:  # its results are incomplete
                raise Interrupted("SIGTERM")
            measured = {name: outcome[name] for name in ("parameters", "bytes", "seconds")}
            results = merge_named(outcome["metrics"], measured, "the metrics and the run")
            if any(name.startswith("latency") for name in names):
                results = merge_named(results, latency(settings, Path(outcome["model"])), "the run and the latency")
            return results
        finally:
            free_memory()

    def on_trial(_: TrialRecord, best: Sequence[TrialRecord]) -> None:
        runs.write_best(best)
        if not options.keep_all:
            clear_trials(runs.folder, [trial.number for trial in best])

    with locked_folder(runs.folder, "runs"):
        result = tune(
            objective, runs.space, runs.folder, objectives=options.objective, trials=options.trials,
            seconds=None if options.minutes is None else options.minutes * 60, seed=options.seed, prune=options.prune,
            settings=runs.describe(framework_name(package)), on_trial=on_trial, console=console,
        )  # fmt: skip
        return replace(result, files={**result.files, **runs.write_best(result.best)})


def measure_latency(package: Engine, settings: Any, model: Path, options: TuneSettings) -> dict[str, float]:
    """Measure the latency of single validation texts in ms: {"latency": the median, "latency_p95"}."""
    from duonlp.benchmark.performance import PerformanceBenchmark
    from duonlp.runs.labelled import read_texts

    texts = read_texts(settings).validation
    assert texts is not None  # describe() has checked that there is validation data
    # the labels do not matter for latency, and the benchmark rejects multi-label ones
    texts = replace(texts, labels=np.zeros(len(texts.texts), np.int32))
    pipeline = package.pipeline(  # truncates texts like the run
        "text-classification", str(model), dtype=settings.dtype, progress=False,
        truncation=True, max_length=settings.max_length,
    )  # fmt: skip
    benchmark = PerformanceBenchmark(
        pipeline, texts, model.parent.name, queries=options.queries, repeats=options.repeats, batch_size=None
    )  # fmt: skip
    latency = benchmark.time_pipeline()
    return {"latency": latency.p50, "latency_p95": latency.p95}


def clear_trials(folder: Path, best: Sequence[int]) -> None:
    """Delete the large files of the trials: the models of all but the best trials, and all checkpoints."""
    for trial in (folder / TRIALS).iterdir():
        if not trial.name.isdigit() or trial.is_symlink() or not trial.is_dir():
            continue
        keep = (*RECORDS, BEST) if int(trial.name) in best else RECORDS
        for entry in trial.iterdir():
            if entry.name in keep:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def free_memory() -> None:
    """Free the programs that a framework has compiled for a trial, without importing any framework."""
    gc.collect()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    if "keras" in sys.modules:
        sys.modules["keras"].backend.clear_session()


def setting_paths(cls: Any, prefix: str = "") -> tuple[list[str], list[str], list[str]]:
    """Return the paths of all settings of a dataclass, of the float ones, and of the integer ones."""
    hints = get_type_hints(cls)
    known: list[str] = []
    real: list[str] = []
    whole: list[str] = []
    for setting in fields(cls):
        if not setting.init:
            continue
        hint = hints[setting.name]
        kinds = get_args(hint) or (hint,)
        if len(kinds) == 1 and is_dataclass(hint):
            for paths, inner in zip((known, real, whole), setting_paths(hint, f"{prefix}{setting.name}."), strict=True):
                paths += inner
            continue
        known.append(prefix + setting.name)
        if float in kinds and int not in kinds:
            real.append(prefix + setting.name)
        if set(kinds) - {type(None)} == {int}:
            whole.append(prefix + setting.name)
    return known, real, whole


def full_path(name: str, known: Sequence[str]) -> str:
    """Return the full path of a setting that may omit its table: "alpha" is "distillation.alpha".

    Args:
        name: Path, or its last component.
        known: Paths of all settings.

    Raises:
        InputError: No setting matches, or several do.
    """
    if name in known:
        return name
    matches = [path for path in known if path.endswith(f".{name}")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(f"search has {name!r}, which is ambiguous; write {' or '.join(matches)}")
    shorts = {path.rpartition(".")[2]: path for path in known} | {path: path for path in known}
    near = nearest(name, shorts)  # listing all of them would fill a screen
    raise InputError(f"search has the unknown setting {name!r}{near or '; available are ' + ', '.join(known)}")


def _copied(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in table.items()}
