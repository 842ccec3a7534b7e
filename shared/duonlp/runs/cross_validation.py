"""Cross-validate a fine-tuning: one run per fold, each in a folder of its own, and the mean and spread of their scores."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.runs import finetuning, question_answering
from duonlp.runs import folder as run_folder
from duonlp.runs.question_answering import QuestionAnsweringSettings
from duonlp.training.settings_file import as_table, write_toml
from duonlp.typing import Engine
from duonlp.util.files import locked_folder, may_read, write_text
from duonlp.util.json_text import to_json
from duonlp.util.reading import read_json_object


def is_cross_validation(settings: Any) -> bool:
    """Return whether settings ask for all folds rather than for one run."""
    return getattr(settings, "folds", None) is not None and settings.fold is None


def cross_validate(package: Engine, settings: QuestionAnsweringSettings, *, console: Any = True) -> dict[str, Any]:
    """Train and evaluate a model per fold.

    Called again with the same settings, it skips finished folds and resumes an interrupted one.

    Args:
        package: tfnlp or jaxnlp.
        settings: Settings with ``folds`` and without ``fold``.
        console: As for :func:`duonlp.runs.finetune`.

    Returns:
        The report that is also written to results.json: "metrics" and "at_threshold", each with the "mean", "std" (of the
        sample), "min" and "max" of every score over the folds, and its "values"; "folds" (the number of training and
        validation questions, model, best and seconds of each), "data", "settings", "framework", "output", "preempted".

    Raises:
        InputError: As for :func:`duonlp.runs.finetune`, or there are fewer groups than folds.
        CheckpointError: The checkpoint cannot be read.
        NonFiniteLossError: The loss of a fold became non-finite.
    """
    framework = run_folder.framework_name(package)
    run_folder.check_output(settings, framework)
    question_answering.read_splits(_fold(settings, 1))  # raises for data that cannot be divided
    settings = replace(settings, framework=framework)
    log = run_folder.make_printer(console)
    heading = f"Repeat or resume this cross-validation: {settings.program} --config {settings.folder / run_folder.SETTINGS_FILE}"
    reports: list[dict[str, Any]] = []
    with locked_folder(settings.folder, "run"):
        run_folder.check_output(settings, framework)
        write_toml(settings.folder / run_folder.SETTINGS_FILE, settings, heading)
        assert settings.folds is not None
        for number in range(1, settings.folds + 1):
            log(f"fold {number} of {settings.folds}")
            fold = _fold(settings, number)
            reports.append(_finished(fold, framework) or finetuning.finetune(package, fold, console=console))
            if reports[-1]["preempted"]:
                break
        report = _summarize(settings, framework, reports)
        write_text(settings.folder / run_folder.RESULTS_FILE, to_json(report, indent=2) + "\n")
    return report


def plan(settings: QuestionAnsweringSettings, framework: str) -> dict[str, Any]:
    """Return what a cross-validation would do: the plan of its first fold, which the others resemble.

    Args:
        settings: Settings with ``folds`` and without ``fold``.
        framework: "tf" or "jax".

    Raises:
        InputError: As for :func:`cross_validate`.
        CheckpointError: As for :func:`cross_validate`.
    """
    run_folder.check_output(settings, framework)
    first = finetuning.plan(_fold(settings, 1), framework)
    return {
        **first, "summary": f"{settings.folds} folds by {settings.fold_by}; the first: {first['summary']}",
        "settings": as_table(settings),
    }  # fmt: skip


def _fold(settings: QuestionAnsweringSettings, number: int) -> QuestionAnsweringSettings:
    return replace(settings, fold=number, output=str(settings.folder / f"fold-{number}"))


def _finished(settings: QuestionAnsweringSettings, framework: str) -> dict[str, Any] | None:
    """Return the report of a fold that is complete, else None."""
    file: Path = settings.folder / run_folder.RESULTS_FILE
    if not may_read(file):
        return None
    run_folder.check_output(settings, framework)
    report = read_json_object(file, advice="delete it to evaluate the fold again")
    return None if report.get("preempted") else report


def _summarize(
    settings: QuestionAnsweringSettings, framework: str, reports: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "framework": framework,
        "output": str(settings.folder),
        "metrics": spread([report["metrics"] for report in reports]),
        "at_threshold": spread([report["at_threshold"] or {} for report in reports]),
        "folds": [
            {name: report[name] for name in ("data", "model", "best", "steps", "seconds", "metrics", "at_threshold")}
            for report in reports
        ],
        "seconds": sum(report["seconds"] for report in reports),
        "preempted": any(report["preempted"] for report in reports),
        "settings": as_table(settings),
    }


def spread(scores: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Return {score: {"mean", "std", "min", "max", "values"}} over runs; scores that a run lacks are left out.

    The standard deviation is that of a sample (divisor n - 1), NaN for one run.
    """
    table: dict[str, dict[str, Any]] = {}
    for name in scores[0]:
        if all(name in row for row in scores):
            values = [float(row[name]) for row in scores]
            table[name] = {
                "mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"),
                "min": min(values), "max": max(values), "values": values,
            }  # fmt: skip
    return table
