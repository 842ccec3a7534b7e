"""``duonlp tune``: a hyperparameter search over distillations or fine-tunings."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from duonlp.cli.common import Debug, Framework, Json, SettingsOption, cli_option, print_json
from duonlp.cli.settings import merged
from duonlp.cli.training import STOPPED
from duonlp.errors import InputError
from duonlp.util.console import plain_console
from duonlp.util.frameworks import chosen_framework, load_package, quiet_stdout


def tune(
    config: Annotated[
        str,
        cli_option("--config", "-c", help="TOML file: a run's settings and the tables search and tune (required)."),
    ] = "",
    output: Annotated[str, cli_option(help="Folder of the search (required); the same search in it is resumed.")] = "",
    framework: Framework = "",
    data: Annotated[str, cli_option("--data", "-d", help="Labeled texts: a file, a folder or a Hub id.")] = "",
    trials: Annotated[
        int | None, cli_option(help="Total number of trials, finished ones included (default 20).")
    ] = None,
    timeout: Annotated[
        float | None, cli_option(metavar="MIN", help="Start no trial after this many minutes (default: no limit).")
    ] = None,
    objective: Annotated[
        list[str] | None,
        cli_option(help="Metric, latency or bytes; repeat for a Pareto front (default accuracy)."),
    ] = None,
    run: Annotated[str, cli_option(help="distill or finetune (default: distill if a teacher is set).")] = "",
    seed: Annotated[int | None, cli_option(help="Seed of the search; runs have their own (default 0).")] = None,
    prune: Annotated[
        bool | None, cli_option("--prune/--no-prune", help="Stop trials that are worse than the median (default: yes).")
    ] = None,
    keep_all: Annotated[
        bool | None, cli_option("--keep-all", help="Keep the models of all trials (default: the best only).")
    ] = None,
    option: SettingsOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search the hyperparameters of a distillation or fine-tuning with Optuna."""
    from duonlp.runs.folder import BEST
    from duonlp.tuning.runs import RunSearch, TuneSettings, tune_runs
    from duonlp.tuning.search import trial_folder
    from duonlp.tuning.study import require_optuna
    from duonlp.util.frameworks import require

    flags = {
        "tune.trials": trials, "tune.minutes": timeout, "tune.objective": objective or None, "tune.run": run or None,
        "tune.seed": seed, "tune.prune": prune, "tune.keep_all": keep_all, "output": output or None,
        "framework": framework or None, "data": data or None,
    }  # fmt: skip
    from duonlp.training.settings_file import build

    table = merged(config, flags, option or [])
    search, options = (
        _pop_table(table, "search"),
        build(TuneSettings, _pop_table(table, "tune"), "duonlp tune", "tune."),
    )
    folder = table.get("output")
    if not folder or not isinstance(folder, str):
        raise InputError("output is empty; give --output with the folder of the search")
    require_optuna()
    require(chosen_framework(table.get("framework", "")))
    RunSearch(table, search, options, folder)  # raises for invalid settings before a framework is loaded
    with quiet_stdout():
        package, name = load_package(table.get("framework", ""), trains=True)
        result = tune_runs(package, {**table, "framework": name}, search, folder, options)
    models = [str(trial_folder(Path(folder), trial.number) / BEST) for trial in result.best]
    report = {"framework": name, "output": folder, **result.to_dict(), "models": models}
    if as_json:
        print_json(report)
    else:
        print_result(report, sys.stdout)
    if result.interrupted:
        print(f"duonlp: stopped after {len(result.trials)} trials; run the same command to resume", file=sys.stderr)
        raise typer.Exit(STOPPED)


def _pop_table(settings: dict[str, Any], name: str) -> dict[str, Any]:
    table = settings.pop(name, {})
    if not isinstance(table, dict):
        raise InputError(f"{name} is {table!r}; it must be a table, [{name}]")
    return table


def print_result(report: Mapping[str, Any], out: TextIO) -> None:
    """Print the best trial or the Pareto front as a table, and the files of the search."""
    from rich.table import Table

    from duonlp.tuning.progress import short

    console, names = plain_console(file=out), [objective["name"] for objective in report["objectives"]]
    states = ", ".join(f"{report[state]} {state}" for state in ("complete", "pruned", "failed"))
    console.print(f"{report['finished']} trials: {states}")
    if report["best"]:
        parameters = list(report["best"][0]["parameters"])
        last = [name.rpartition(".")[2] for name in parameters]  # short names, where they are unique
        headers = [short if last.count(short) == 1 else name for short, name in zip(last, parameters, strict=True)]
        table = Table("trial", *names, *headers, box=None, pad_edge=False, header_style="bold")
        for trial in report["best"]:
            cells = [trial["results"][name] for name in names] + [trial["parameters"][name] for name in parameters]
            table.add_row(str(trial["number"]), *(short(cell) for cell in cells))
        console.print(table)
    for objective, shares in report["importance"].items():
        text = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        console.print(f"importance for {objective}: {text}", soft_wrap=True)
    for note in report["notes"]:
        console.print(note, soft_wrap=True)
    if report["models"]:
        name = "best model" if len(report["models"]) == 1 else "models"
        console.print(f"{name}: {', '.join(report['models'])}", soft_wrap=True)
    files = f"{report['output']}: {', '.join(Path(file).name for file in report['files'].values())}"
    console.print(files, soft_wrap=True)
