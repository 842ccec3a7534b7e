"""The folder of a training run: check it, train in it and write the report.

It holds ``settings.toml`` (accepted by ``--config``), ``run.json``, ``metrics.jsonl`` and checkpoints to resume from (written by
``fit``), ``best/`` (the model with its tokenizer and label names, or what else its pipeline needs), and ``results.json``.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from duonlp.errors import InputError
from duonlp.runs.settings import RunData, RunSettings
from duonlp.training.best import Best
from duonlp.training.fit_config import FitConfig
from duonlp.training.fit_loop import check_evaluation, evaluates, total_steps
from duonlp.training.log.metrics_file import EVALUATION, FILE, read_metrics
from duonlp.training.result import FitResult
from duonlp.training.run_file import RUN_FILE
from duonlp.training.settings_file import as_table, read_toml, without_nones, write_toml
from duonlp.typing import Engine
from duonlp.util.console import plain_console
from duonlp.util.files import locked_folder, may_read, unreadable, write_text
from duonlp.util.frameworks import PACKAGES
from duonlp.util.json_text import to_json

SETTINGS_FILE, RESULTS_FILE, BEST = "settings.toml", "results.json", "best"
RUN_MARKERS = (RUN_FILE, FILE, RESULTS_FILE, BEST, "checkpoints", "config.json", "model.safetensors")
"""Files and folders that show that a folder already holds a run or a model."""


def check_output(settings: RunSettings, framework: str) -> None:
    """Raise InputError if the output folder holds a different run than the one to start or resume; write nothing.

    Args:
        settings: Settings of the run.
        framework: "tf" or "jax".
    """
    folder = settings.folder
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:  # a folder on the way cannot be entered
        raise unreadable(folder, error) from None
    if existing == folder:
        may_read(folder)
    if not existing.is_dir():
        raise InputError(f"output is {str(folder)!r}, but {str(existing)!r} is a file; give a folder")
    file = folder / SETTINGS_FILE
    if not file.is_file():
        markers = [name for name in RUN_MARKERS if (folder / name).exists()]
        if markers:
            raise InputError(
                f"output {str(folder)!r} already holds a run or a model ({', '.join(markers)}); give another folder"
            )
        return
    defaults = {f.name: f.default for f in fields(settings) if f.default is not MISSING}  # a folder of an older version
    stored, current = {**defaults, **read_toml(file)}, as_table(replace(settings, framework=framework))
    names = [name for name in {**stored, **current} if name not in ("fit", *settings.may_change)]
    changed = [
        name
        for name in names
        if not _equal_in_toml(stored.get(name), current.get(name), in_both=name in stored and name in current)
    ]
    # A folder of an older version lacks newer settings; its run.json then says that it cannot be resumed.
    stored_fit, fit = {**FitConfig().to_dict(), **stored.get("fit", {})}, current["fit"]
    changed += [
        f"fit.{name}"
        for name in settings.fit.fixed_on_resume
        if not _equal_in_toml(stored_fit.get(name), fit[name], in_both=True)
    ]
    if changed:
        raise InputError(
            f"output {str(folder)!r} holds a run with different settings ({', '.join(changed[:4])}); use the same ones to "
            f"resume it (--config {file}), or another folder"
        )


def _equal_in_toml(stored: Any, current: Any, in_both: bool) -> bool:
    """Compare a value from TOML, where None is absent or "none", with a current one."""
    if current is None:
        return stored in (None, "none")
    return in_both and without_nones(stored) == without_nones(current)


def framework_name(package: Engine) -> str:
    """Return the framework of an engine: "tf" for tfnlp, "jax" for jaxnlp."""
    return {name: framework for framework, name in PACKAGES.items()}.get(package.__name__, package.__name__)


def training_module(package: Engine) -> Any:
    """Import and return the ``training`` module of an engine."""
    return getattr(package, "training", None) or importlib.import_module(f"{package.__name__}.training")


def read_evaluations(folder: Path) -> list[dict[str, float]]:
    """Return the scores of every evaluation of a run, each with its "step", including those before a resume."""
    if not may_read(folder / FILE):
        return []
    records = [record for record in read_metrics(folder) if record.get("kind") == EVALUATION]
    return [{key: value for key, value in record.items() if key not in ("kind", "name")} for record in records]


def plan_report(settings: RunSettings, data: RunData, parameters: int, framework: str) -> dict[str, Any]:
    """Return what a run would do.

    Args:
        settings: Settings of the run.
        data: Its data.
        parameters: Number of parameters of the model.
        framework: "tf" or "jax".

    Raises:
        InputError: The settings are incompatible with the framework or the validation data, which ``fit`` would find.
    """
    batches, fit, scorer = len(data.batches), settings.fit, data.scorer(None)
    steps = total_steps(data.batches, fit, None, scorer, any_layout=framework == "jax")
    if scorer is not None and evaluates(fit, None, scorer):
        check_evaluation(scorer, None, Best(fit.best_metric, fit.greater_is_better), has_loss=False)
    return {
        "data": data.describe(),
        "parameters": parameters,
        "batches_an_epoch": batches,
        "steps": steps,
        "row_noun": data.row_noun,
        **data.plan(),
        "settings": as_table(settings),
    }


def train_and_report(
    package: Engine,
    settings: RunSettings,
    data: RunData,
    tokenizer: Any,
    train: Callable[..., FitResult],
    *,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train, evaluate the best model and write all files of the run.

    Args:
        package: tfnlp or jaxnlp.
        settings: Settings of the run, whose output folder has been checked.
        data: Its data.
        tokenizer: Tokenizer to save with the model.
        train: ``(evaluate, **options of fit) -> FitResult``.
        on_evaluation: Called with the steps done and the scores at each evaluation.
        extra: Additional entries of the report.

    Returns:
        The report that is also written to results.json.

    Raises:
        InputError: Another process or thread is using the folder, or has started a different run in it. Errors of `train`
            pass through.
        StorageError: A file of the run cannot be written.
    """
    from duonlp.util.machine_info import machine

    framework = framework_name(package)
    settings = replace(settings, framework=framework)
    scorer = data.scorer(package)
    folder = settings.folder
    heading = f"Repeat or resume this run: {settings.program} --config {folder / SETTINGS_FILE}"
    with locked_folder(folder, "run"):
        check_output(settings, framework)  # again, because another process may have started a run since
        write_toml(folder / SETTINGS_FILE, settings, heading)
        result = train(
            scorer,
            on_evaluation=on_evaluation,
            tokenizer=tokenizer,
        )
        best = folder / BEST
        if result.best is None:  # nothing was evaluated, so fit saved no best model
            result.model.save_pretrained(best, tokenizer)
        history = read_evaluations(folder) or list(result.history)
        scores = next((row for row in history if result.best and row["step"] == result.best["step"]), None)
        threshold = label_thresholds = None
        if scorer is not None and result.best is not None:
            last = result.history[-1]["step"] if result.history else None
            if last != result.best["step"] or scores is None:  # the scorer holds another model's predictions
                scores = scorer(getattr(package, data.auto_class).from_pretrained(best, dtype=settings.dtype))
            threshold, label_thresholds = data.at_threshold(scorer), data.at_label_thresholds(scorer)
        data.save_with(best, threshold)
        quantized = _quantize_best(package, settings, data, tokenizer, scorer) if settings.quantization_aware else None
        report = {
            "framework": framework,
            "output": str(folder),
            "model": str(best),
            "metrics": {name: value for name, value in (scores or {}).items() if name not in ("step", "examples")},
            "at_threshold": threshold,
            "at_label_thresholds": label_thresholds,
            "best": result.best,
            "steps": result.steps,
            "examples": result.examples,
            "row_noun": data.row_noun,
            "seconds": result.seconds,
            "examples_per_second": result.examples / result.seconds if result.seconds else None,
            "loss": result.loss,
            "stopped_early": result.stopped_early,
            "preempted": result.preempted,
            "history": history,
            "learning_curve": result.learning_curve,
            "data": data.describe(),
            "parameters": result.model.num_parameters(),
            "bytes": weight_bytes(best),
            "quantized": quantized,
            **(extra or {}),
            "settings": as_table(settings),
            "machine": machine(),
        }
        write_text(folder / RESULTS_FILE, to_json(report, indent=2) + "\n")
        return report


def _quantize_best(
    package: Engine, settings: RunSettings, data: RunData, tokenizer: Any, scorer: Any
) -> dict[str, Any]:
    """Quantize the best model of a quantization-aware run, save it beside that and return its part of the report."""
    best, folder = settings.folder / BEST, settings.folder / f"{BEST}-{settings.quantization_aware}"
    prepared = getattr(package, data.auto_class).from_pretrained(best, dtype=settings.dtype)
    quantized = package.quantize(prepared)
    quantized.save_pretrained(folder, tokenizer)
    scores = {} if scorer is None else scorer(quantized)
    data.save_with(folder, None if scorer is None else data.at_threshold(scorer))
    scores = {name: value for name, value in scores.items() if name not in ("step", "examples")}
    return {"model": str(folder), "metrics": scores, "bytes": weight_bytes(folder)}


def weight_bytes(folder: Path) -> int:
    """Return the size of a model's weights on disk."""
    for pattern in ("*.safetensors", "tf_model*.h5", "flax_model*.msgpack"):
        if files := list(Path(folder).glob(pattern)):
            return sum(file.stat().st_size for file in files)
    return 0


def make_printer(console: Any) -> Callable[[str], None]:
    """Return a function that prints a line on a rich Console, on standard error (True), or nowhere (False)."""
    if not console:
        return lambda line: None
    target = plain_console(stderr=True) if console is True else console
    return lambda line: target.print(line, markup=False, highlight=False, emoji=False)
