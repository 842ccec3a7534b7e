"""The search over runs of `duonlp distill` and `duonlp finetune`: each trial is such a run, in a folder of its own.

A search's TOML file is that of the run with two tables more: ``[search]``, ranges and choices by setting, and ``[tune]``, the
fields of TuneSettings. Settings are named by their path; ``alpha`` is enough for ``distillation.alpha`` where it is the only one.
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
from duonlp.runs.folder import BEST, RUN_MARKERS, SETTINGS_FILE, framework_name
from duonlp.training.settings_file import as_table, build, set_path, to_toml
from duonlp.tuning.search import Interrupted, Report, TuningResult, tune
from duonlp.tuning.search_space import Space, read_objectives, read_space
from duonlp.tuning.study import TRIALS, TrialRecord, trial_folder
from duonlp.util.files import write_text
from duonlp.util.suggestions import nearest

RUNS = {"distill": "DistillSettings", "finetune": "FinetuneSettings"}
"""Kinds of runs, and their settings in duonlp.runs."""

MODULES = {"distill": "distillation", "finetune": "finetuning"}
"""Kinds of runs, and their modules in duonlp.runs."""

NOT_SEARCHED = (
    "data", "output", "framework", "config", "validation_split", "text_column", "label_column", "limit", "out_of_scope",
    "cache", "tensorboard", "cache_teacher_logits", "evaluate_teacher", "fit.best_metric", "fit.greater_is_better",
    "fit.evaluate_every", "fit.save_every", "fit.log_every", "fit.keep_last",
)  # fmt: skip
"""Settings that do not make a better model, or that make two trials incomparable."""

MEASURED = ("latency", "latency_p95", "bytes", "parameters", "seconds")
"""Results beside the metrics: ms of the median and of the 95th percentile query, size on disk, weights, time of training."""

RECORDS = (SETTINGS_FILE, *(name for name in RUN_MARKERS if name.endswith((".json", ".jsonl")) and name != "config.json"))
"""What is kept of every trial."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How a search goes.

    run: "distill" or "finetune"; "": distill where there is a teacher.
    trials: to be finished in total, those of earlier calls included.
    minutes: no further trial is begun after so many, in one call; None for no limit.
    objective: names of metrics of the validation texts, or of :data:`MEASURED`; several for a Pareto front.
    seed: of the proposals. (The runs have their own.)
    prune: whether trials worse than the median at the same evaluation are stopped; never with several objectives.
    keep_all: whether every trial's model is kept, rather than those of the best.
    queries, repeats: validation texts that the latency is measured with, and how often each.
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

    def __post_init__(self):
        if self.run not in ("", *RUNS):
            raise InputError(f"run is {self.run!r}; it must be {' or '.join(RUNS)}{nearest(self.run, RUNS)}")
        for name in ("trials", "minutes", "queries", "repeats"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; it must be positive")
        read_objectives(self.objective)


class RunSearch:
    """What a search over runs is made of: settings of the run, with places for those that are searched.

    Args:
        table: of the run, as in its TOML file; without ``search`` and ``tune``.
        search: the space, whose names may leave out the table they are in.
        options: of the search.
        folder: of the search.

    Raises:
        InputError: a name that is no setting or not one to search, a space that makes no sense, a value at one of its ends that
            the run does not take, or a run that nothing validates.
    """

    def __init__(self, table: Mapping[str, Any], search: Mapping[str, Any], options: TuneSettings, folder: str | Path):
        self.run = options.run or ("distill" if "teacher" in table else "finetune")
        self.module = importlib.import_module(f"duonlp.runs.{MODULES[self.run]}")
        self.cls = getattr(self.module, RUNS[self.run])
        self.options, self.folder = options, Path(folder).expanduser()
        self.objectives = read_objectives(options.objective)
        self.table = _copied({**table, "output": str(self.folder / "again")})
        metrics = [each for each in self.objectives if each.name not in MEASURED]
        fit = self.table.get("fit", {})  # of another kind than a table: build says so
        # what the search wants of a trial's best model
        if metrics and isinstance(fit, Mapping) and "best_metric" not in fit:
            set_path(self.table, "fit.best_metric", metrics[0].name)
            set_path(self.table, "fit.greater_is_better", metrics[0].greater)
        self.space = self._space(search)
        first = {name: each.examples()[0] for name, each in self.space.items()}
        self.base = self.settings(first)
        for name, each in self.space.items():
            for value in each.examples():
                try:
                    self.settings({**first, name: value})
                except InputError as error:
                    raise InputError(f"search.{name} has {value!r}: {error}") from error
        if not self.base.validation_split or not self.base.fit.evaluate_every:
            raise InputError(
                "nothing is validated, and there is nothing to search by; set validation_split, and fit.evaluate_every to 'epoch'"
            )

    def _space(self, search: Mapping[str, Any]) -> Space:
        known, real, whole = paths(self.cls)
        space: Space = {}
        for name, each in read_space(search).items():
            path = full_path(name, known)
            if path in NOT_SEARCHED:
                raise InputError(
                    f"search has {name!r}, by which trials could not be compared; leave it out of [search]"
                )
            if path in space:
                raise InputError(f"search has {path!r} twice; leave one out")
            set_path(self.table, path, None)  # one value is no more the run's
            space |= read_space({path: each.to_dict()}, real, whole)
        return space

    def settings(self, parameters: Mapping[str, Any]):
        """The settings of a run with those parameters, by path: all that are searched."""
        table = _copied(self.table)
        for path, value in parameters.items():
            set_path(table, path, value)
        return build(self.cls, table, self.cls.program)

    def describe(self, framework: str) -> dict[str, Any]:
        """What decides the results besides the parameters; the data and the models are read for that, and checked.

        Raises:
            InputError, CheckpointError: what a run would raise before its training.
        """
        first = {name: each.examples()[0] for name, each in self.space.items()}
        data = self.module.plan(self.trial_settings(first, self.folder), framework)["data"]
        if not data["validation"]:
            raise InputError(
                f"{self.base.data!r} is a single table, of which nothing is validated, and there is nothing to search by; give a "
                "folder with a file for each split, such as train.csv and validation.csv"
            )
        # Such as the numbers of layers; the ends of a continuous range are never drawn, and fit's are no business of a plan's.
        tried = [each for name, each in self.space.items() if each.size < math.inf and not name.startswith("fit.")]
        for name, value in [(each.name, value) for each in tried for value in each.examples()[1:]]:
            try:
                self.module.plan(self.trial_settings({**first, name: value}, self.folder), framework)
            except (InputError, CheckpointError) as error:
                raise type(error)(f"search.{name} has {value!r}: {error}") from error
        table = as_table(replace(self.base, framework=framework))
        for path in (*self.space, *self.base.may_change):
            set_path(table, path, None)
        found = {"run": self.run, **table, "data": data}  # where the data is does not matter, what it is does
        if any(each.name.startswith("latency") for each in self.objectives):
            found |= {"queries": self.options.queries, "repeats": self.options.repeats}
        return found

    def trial_settings(self, parameters: Mapping[str, Any], folder: Path):
        """Those of a trial: it shares with the others what can be computed once."""
        settings = self.settings(parameters)
        shared: dict[str, Any] = {"output": str(folder), "cache": settings.cache or str(self.folder / "cache")}
        # a trial that is tried again starts anew, as an uninterrupted one would have
        shared["fit"] = replace(settings.fit, save_every=0)
        if self.run == "distill":
            # further losses read more of the teacher than its logits, so that it runs anyway
            shared |= {"evaluate_teacher": False, "cache_teacher_logits": not settings.distillation.losses}
        return replace(settings, **shared)

    def write_best(self, best: Sequence[TrialRecord]) -> dict[str, Path]:
        """best.toml, and best-0007.toml for each trial of a front: settings for `duonlp distill --config`."""
        files = {}
        for place, trial in enumerate(best):
            results = ", ".join(f"{each.name} {trial.results[each.name]:.6g}" for each in self.objectives)
            for name in [
                *(["best.toml"] if place == 0 else []),
                *([f"best-{trial.number:04d}.toml"] if len(best) > 1 else []),
            ]:
                file = self.folder / name
                heading = (
                    f"Trial {trial.number} of `duonlp tune`: {results}\n"
                    f"Its model: {trial_folder(self.folder, trial.number) / BEST}\n"
                    f"Again: duonlp {self.run} --config {file}"
                )
                write_text(file, to_toml(self.settings(trial.parameters), heading))
                files[name] = file
        for old in self.folder.glob("best-[0-9]*.toml"):
            if old.name not in files:
                old.unlink()
        return files


def tune_runs(
    package,
    table: Mapping[str, Any],
    search: Mapping[str, Any],
    folder: str | Path,
    options: TuneSettings | None = None,
    *,
    latency: Callable[[Any, Path], Mapping[str, float]] | None = None,
    console: bool = True,
) -> TuningResult:
    """Searches for the settings of a distillation or a fine-tuning.

    Besides what :func:`duonlp.tuning.tune` writes there are best.toml and, in trials/0007/, each trial's settings, metrics and
    results, and the model of the best (of all of the front).

    Args:
        package: tfnlp or jaxnlp.
        table: the run's settings, as in the TOML file of `duonlp distill` or `duonlp finetune`; its output is not used.
        search: {"alpha": {"low": 0.0, "high": 1.0}, ...}, as :func:`duonlp.tuning.read_space` has it.
        folder: of the search; with the same search in it, it goes on.
        options: of the search.
        latency: ``(settings, folder of a model) -> results``; by default PerformanceBenchmark's, over validation texts.
        console: whether to show what goes on, on the standard error.

    Raises:
        InputError: as of RunSearch and :func:`duonlp.tuning.tune`, or what a run raises.
        CheckpointError: a checkpoint cannot be read.
        MissingExtraError: Optuna is not installed.
    """
    options = TuneSettings() if options is None else options
    searched = RunSearch(table, search, options, folder)
    names = [each.name for each in searched.objectives]
    run = getattr(searched.module, searched.run)
    latency = latency or (lambda settings, model: measured_latency(package, settings, model, options))

    def objective(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
        settings, done = searched.trial_settings(parameters, report.folder), 0

        def on_evaluation(step: int, results: Mapping[str, float]) -> None:
            nonlocal done
            done += 1
            if names[0] in results:
                report(done, results[names[0]])

        try:
            found = run(package, settings, on_evaluation=on_evaluation, console=False)
            if found["preempted"]:  # what it found is not what it would have
                raise Interrupted("asked to stop")
            results = {**found["metrics"], **{name: found[name] for name in ("parameters", "bytes", "seconds")}}
            if any(name.startswith("latency") for name in names):
                results |= latency(settings, Path(found["model"]))
            return results
        finally:
            free_memory()

    def on_trial(_, best: Sequence[TrialRecord]) -> None:
        searched.write_best(best)
        if not options.keep_all:
            clear_trials(searched.folder, [trial.number for trial in best])

    result = tune(
        objective, searched.space, searched.folder, objectives=options.objective, trials=options.trials,
        seconds=None if options.minutes is None else options.minutes * 60, seed=options.seed, prune=options.prune,
        settings=searched.describe(framework_name(package)), on_trial=on_trial, console=console,
    )  # fmt: skip
    return replace(result, files={**result.files, **searched.write_best(result.best)})


def measured_latency(package, settings, model: Path, options: TuneSettings) -> dict[str, float]:
    """Milliseconds of one text's answer by a pipeline, over validation texts: {"latency": the median, "latency_p95"}."""
    from duonlp.benchmark.performance import PerformanceBenchmark
    from duonlp.runs.labelled import read_texts

    _, texts = read_texts(settings)
    # Labels are of no interest here, and of multi-label texts the benchmark takes none.
    texts = replace(texts, labels=np.zeros(len(texts.texts), np.int32))
    pipeline = package.pipeline(  # which cuts texts as the run did
        "text-classification", str(model), dtype=settings.dtype, progress=False,
        truncation=True, max_length=settings.max_length,
    )  # fmt: skip
    benchmark = PerformanceBenchmark(
        pipeline, texts, model.parent.name, queries=options.queries, repeats=options.repeats, batch_size=None
    )  # fmt: skip
    found = benchmark.time_pipeline()
    return {"latency": found.p50, "latency_p95": found.p95}


def clear_trials(folder: Path, best: Sequence[int]) -> None:
    """Removes what takes space of the trials: the models of all but the best, the checkpoints of all."""
    for each in (folder / TRIALS).iterdir():
        if not each.name.isdigit() or each.is_symlink() or not each.is_dir():
            continue
        kept = (*RECORDS, BEST) if int(each.name) in best else RECORDS
        for inside in each.iterdir():
            if inside.name in kept:
                continue
            if inside.is_dir() and not inside.is_symlink():
                shutil.rmtree(inside)
            else:
                inside.unlink()


def free_memory() -> None:
    """Lets go of what a framework has compiled for a trial, which the next one has no use for; none is imported for that."""
    gc.collect()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    if "keras" in sys.modules:
        sys.modules["keras"].backend.clear_session()


def paths(cls, prefix: str = "") -> tuple[list[str], list[str], list[str]]:
    """(the paths of all settings of a dataclass, those of them that are real numbers, those that are whole ones)."""
    hints, known, real, whole = get_type_hints(cls), [], [], []
    for each in fields(cls):
        if not each.init:
            continue
        kinds = get_args(hints[each.name]) or (hints[each.name],)
        inner = next((kind for kind in kinds if is_dataclass(kind)), None)
        if inner is not None and hints[each.name] is inner:
            found = paths(inner, f"{prefix}{each.name}.")
            known, real, whole = known + found[0], real + found[1], whole + found[2]
            continue
        known.append(prefix + each.name)
        if float in kinds and int not in kinds:
            real.append(prefix + each.name)
        if set(kinds) - {type(None)} == {int}:
            whole.append(prefix + each.name)
    return known, real, whole


def full_path(name: str, known: Sequence[str]) -> str:
    """The path of a setting that may have been named without its table: "alpha" is "distillation.alpha".

    Raises:
        InputError: there is none, or there are several.
    """
    if name in known:
        return name
    found = [path for path in known if path.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"search has {name!r}, which may be {' or '.join(found)}; write the one that is meant")
    shorts = {path.rpartition(".")[2]: path for path in known} | {path: path for path in known}
    near = nearest(name, shorts)  # all of them fill a screen
    raise InputError(f"search has {name!r}, which is no setting{near or '; there are ' + ', '.join(known)}")


def _copied(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in table.items()}
