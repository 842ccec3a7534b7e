"""`duonlp tune`: a search for the settings of a distillation or a fine-tuning, from a TOML file."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from duonlp.cli.common import Debug, Framework, Json, SettingsOption, print_json, remedies
from duonlp.cli.settings import merged
from duonlp.cli.training import STOPPED
from duonlp.errors import InputError
from duonlp.training.settings_file import build
from duonlp.util.frameworks import chosen_framework, load_package, quiet_stdout


def tune(
    config: Annotated[
        str,
        typer.Option("--config", "-c", help="A TOML file: the settings of a run, [search] and [tune]. See the guide."),
    ] = "",
    output: Annotated[str, typer.Option(help="The search's folder; the same search in it goes on.")] = "",
    framework: Framework = "",
    data: Annotated[str, typer.Option("--data", "-d", help="Labelled texts: a file, a folder, or a Hub id.")] = "",
    trials: Annotated[
        int | None, typer.Option(help="Trials in total, earlier ones included; 20 by default.", show_default=False)
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="MIN", help="Begin no trial after so many minutes.")] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(help="accuracy, another metric, latency, bytes, ...; repeat it for a Pareto front."),
    ] = None,
    run: Annotated[str, typer.Option(help="distill or finetune; by default distill where there is a teacher.")] = "",
    seed: Annotated[int | None, typer.Option(help="Of the proposals; the runs have their own.")] = None,
    prune: Annotated[
        bool | None, typer.Option("--prune/--no-prune", help="Stop trials worse than the median.", show_default=False)
    ] = None,
    keep_all: Annotated[
        bool | None, typer.Option("--keep-all", help="Keep the models of all trials, not of the best alone.")
    ] = None,
    option: SettingsOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search for the best alpha, temperature, learning rate, ... of a distillation or a fine-tuning, with Optuna."""
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
    table = merged(config, flags, option or [])
    search, options = _part(table, "search"), build(TuneSettings, _part(table, "tune"), "duonlp tune", "tune.")
    folder = table.get("output")
    if not folder or not isinstance(folder, str):
        raise InputError("output is empty; give --output, the folder of the search")
    require_optuna()
    require(chosen_framework(table.get("framework", "")))
    RunSearch(table, search, options, folder)  # mistakes are found before a framework is loaded
    with quiet_stdout(), remedies():
        package, name = load_package(table.get("framework", ""), trains=True)
        result = tune_runs(package, {**table, "framework": name}, search, folder, options)
    models = [str(trial_folder(Path(folder), trial.number) / BEST) for trial in result.best]
    report = {"framework": name, "output": folder, **result.to_dict(), "models": models}
    if as_json:
        print_json(report)
    else:
        show(report, sys.stdout)
    if result.interrupted:
        print(f"duonlp: stopped after {len(result.trials)} trials; the same command goes on", file=sys.stderr)
        raise typer.Exit(STOPPED)


def _part(table: dict[str, Any], name: str) -> dict[str, Any]:
    part = table.pop(name, {})
    if not isinstance(part, dict):
        raise InputError(f"{name} is {part!r}; it must be a table, [{name}]")
    return part


def show(report: Mapping[str, Any], out: TextIO) -> None:
    """The best trial or the front as a table, and where everything is."""
    from rich.console import Console
    from rich.table import Table

    from duonlp.tuning.progress import short

    console, names = Console(file=out), [each["name"] for each in report["objectives"]]
    states = ", ".join(f"{report[state]} {state}" for state in ("complete", "pruned", "failed"))
    console.print(f"{report['finished']} trials: {states}", highlight=False)
    if report["best"]:
        parameters = list(report["best"][0]["parameters"])
        last = [name.rpartition(".")[2] for name in parameters]  # enough to tell a setting by, as in [search]
        headers = [short if last.count(short) == 1 else name for short, name in zip(last, parameters, strict=True)]
        table = Table("trial", *names, *headers, box=None, pad_edge=False, header_style="bold")
        for trial in report["best"]:
            cells = [trial["results"][name] for name in names] + [trial["parameters"][name] for name in parameters]
            table.add_row(str(trial["number"]), *(short(cell) for cell in cells))
        console.print(table)
    for objective, shares in report["importance"].items():
        text = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        console.print(f"what {objective} depends on: {text}", highlight=False, markup=False, soft_wrap=True)
    for note in report["notes"]:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    if report["models"]:
        name = "the best model" if len(report["models"]) == 1 else "their models"
        console.print(f"{name}: {', '.join(report['models'])}", highlight=False, markup=False, soft_wrap=True)
    where = f"{report['output']}: {', '.join(Path(file).name for file in report['files'].values())}"
    console.print(where, highlight=False, markup=False, soft_wrap=True)
