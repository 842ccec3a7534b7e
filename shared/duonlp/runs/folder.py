"""The folder of a run on labelled texts: whether it may be used, what is written there, and the run itself.

It has ``settings.toml`` (``--config`` takes it again), ``run.json``, ``metrics.jsonl`` and the checkpoints to resume from, which
``fit`` writes, ``best/`` (the model with its tokenizer and label names), and ``results.json``.
"""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from duonlp.errors import InputError
from duonlp.metrics.classification import ClassificationScorer
from duonlp.runs.labelled import LabelledData, LabelledRunSettings
from duonlp.training.best import Best
from duonlp.training.fit_loop import evaluates, total_steps, try_out
from duonlp.training.log.metrics_file import EVALUATION, FILE, read_metrics
from duonlp.training.settings_file import as_table, read_toml, write_toml
from duonlp.util.files import locked_folder, write_text
from duonlp.util.frameworks import PACKAGES

SETTINGS_FILE, RESULTS_FILE, BEST = "settings.toml", "results.json", "best"
OTHERS = ("run.json", FILE, RESULTS_FILE, BEST, "checkpoints", "config.json", "model.safetensors")
"""What tells that there is a run, or a model, in a folder already."""


def check_output(settings: LabelledRunSettings, framework: str) -> None:
    """Raises InputError where the folder holds another run than this one, which would be resumed; nothing is written.

    Args:
        framework: "tf" or "jax": that this run is in.
    """
    folder = settings.folder
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        raise InputError(f"output {str(folder)!r}: {str(there)!r} is a file; give a folder")
    file = folder / SETTINGS_FILE
    if not file.is_file():
        found = [name for name in OTHERS if (folder / name).exists()]
        if found:
            raise InputError(
                f"output {str(folder)!r} holds another run or a model already ({', '.join(found)}); give another folder"
            )
        return
    table, new = read_toml(file), as_table(replace(settings, framework=framework))
    changed = [name for name in {**table, **new} if name not in ("fit", *settings.may_change)]
    changed = [name for name in changed if not _same(table.get(name), new.get(name), name in table and name in new)]
    stored_fit, fit = table.get("fit", {}), new["fit"]
    changed += [f"fit.{name}" for name in settings.fit.curve if not _same(stored_fit.get(name), fit[name], True)]
    if changed:
        raise InputError(
            f"output {str(folder)!r} holds a run with another {', '.join(changed[:4])}; give the same settings to resume it "
            f"(--config {file}), or another folder"
        )


def _same(stored: Any, now: Any, in_both: bool) -> bool:
    """As TOML has it: None is not written, or as "none"."""
    if now is None:
        return stored in (None, "none")
    return in_both and _dense(stored) == _dense(now)


def _dense(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _dense(each) for key, each in value.items() if each is not None}
    return [_dense(each) for each in value] if isinstance(value, (list, tuple)) else value


def framework_of(package) -> str:
    """ "tf" for tfnlp, "jax" for jaxnlp."""
    return {name: framework for framework, name in PACKAGES.items()}.get(package.__name__, package.__name__)


def training_of(package):
    """Its ``training``, imported."""
    return getattr(package, "training", None) or importlib.import_module(f"{package.__name__}.training")


def evaluations(folder: Path) -> list[dict[str, float]]:
    """What each evaluation of a run found, with its "step", those before a resumption too."""
    if not (folder / FILE).is_file():
        return []
    records = [record for record in read_metrics(folder) if record.get("kind") == EVALUATION]
    return [{key: value for key, value in record.items() if key not in ("kind", "name")} for record in records]


def planned(settings: LabelledRunSettings, data: LabelledData, parameters: int) -> dict[str, Any]:
    """What a run would do.

    Raises:
        InputError: its settings and its validation do not go together, which fit would find.
    """
    batches, fit, scorer = len(data.batches), settings.fit, None
    if data.validation is not None:
        scorer = ClassificationScorer(data.validation, predict=None, out_of_scope=data.out_of_scope)
    steps = total_steps(data.batches, fit, data.validation, scorer)
    if evaluates(fit, data.validation, scorer):
        try_out(scorer, None, Best(fit.best_metric, fit.greater_is_better), has_loss=True)
    return {
        "data": data.describe(),
        "parameters": parameters,
        "batches_an_epoch": batches,
        "steps": steps,
        "out_of_scope": data.out_of_scope,
        "settings": as_table(settings),
    }


def carried_out(
    package,
    settings: LabelledRunSettings,
    data: LabelledData,
    tokenizer,
    train: Callable,
    *,
    on_evaluation=None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains, evaluates and reports; writes all of the run's files.

    Args:
        package: tfnlp or jaxnlp.
        settings: of the run, whose output was checked.
        train: ``(evaluate, **options of fit) -> FitResult``.
        more: of the report.

    Returns:
        The report that results.json has.

    Raises:
        InputError: another process has this run in hand; or what `train` raises.
    """
    from duonlp.util.machine_info import machine

    framework = framework_of(package)
    settings = replace(settings, framework=framework)
    scorer = data.scorer(package)
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    heading = f"{settings.what}\nduonlp {type(settings).command} --config {folder / SETTINGS_FILE}"
    with locked_folder(folder):
        write_toml(folder / SETTINGS_FILE, settings, heading)
        result = train(
            scorer,
            on_evaluation=on_evaluation,
            # the scorer has the loss, too; fit asks for batches where the best model is told by it
            validation=data.validation if settings.fit.best_metric == "loss" else None,
            tokenizer=tokenizer,
        )
    best = folder / BEST
    if result.best is None:  # nothing was evaluated
        result.model.save_pretrained(best, tokenizer)
    history = evaluations(folder) or list(result.history)
    scores = next((each for each in history if result.best and each["step"] == result.best["step"]), None)
    threshold = None
    if scorer is not None and result.best is not None:
        last = result.history[-1]["step"] if result.history else None
        if last != result.best["step"] or scores is None:  # the best is an earlier one: what was written is read
            scores = scorer(package.AutoModelForSequenceClassification.from_pretrained(best, dtype=settings.dtype))
        threshold = threshold_of(scorer)
    report = {
        "framework": framework,
        "output": str(folder),
        "model": str(best),
        "metrics": {name: value for name, value in (scores or {}).items() if name not in ("step", "examples")},
        "at_threshold": threshold,
        "best": result.best,
        "steps": result.steps,
        "examples": result.examples,
        "seconds": result.seconds,
        "examples_per_second": result.examples / result.seconds if result.seconds else None,
        "loss": result.loss,
        "stopped_early": result.stopped_early,
        "preempted": result.preempted,
        "history": history,
        "data": data.describe(),
        "parameters": result.model.num_parameters(),
        "bytes": weight_bytes(best),
        **(more or {}),
        "settings": as_table(settings),
        "machine": machine(),
    }
    write_text(folder / RESULTS_FILE, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def threshold_of(scorer: ClassificationScorer) -> dict[str, float] | None:
    """Scores of the last predictions at a threshold chosen on them; None where none can be chosen."""
    if scorer.out_of_scope is None:
        return None
    try:
        return scorer.at_threshold()
    except InputError:  # the texts are of one kind alone
        return None


def weight_bytes(folder: Path) -> int:
    """The size of a model's weights on disk."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def speaker(console: Any) -> Callable[[str], None]:
    """A function that says a line on the console: a rich Console, True for standard error, or False for nowhere."""
    if not console:
        return lambda line: None
    from rich.console import Console

    where = console if isinstance(console, Console) else Console(stderr=True)
    return lambda line: where.print(line, markup=False, highlight=False)
