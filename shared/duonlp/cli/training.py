"""What `duonlp finetune` and `duonlp distill` have in common: their flags, the run, and the table of its results."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from duonlp.cli.common import print_json, remedies
from duonlp.cli.settings import settings_from
from duonlp.errors import InputError
from duonlp.util.frameworks import calm_frameworks, chosen_framework, load_package, quiet_stdout

Data = Annotated[str, typer.Option("--data", "-d", help="Labelled texts: a file, a folder, or a Hub id.")]
Output = Annotated[str, typer.Option(help="The run's folder; a run of the same settings in it goes on.")]
Epochs = Annotated[int | None, typer.Option(help="Times that all texts are seen; 4 by default.")]
Steps = Annotated[int | None, typer.Option(help="Stop after so many steps, however many epochs that is.")]
LearningRate = Annotated[float | None, typer.Option(help="Its peak; 2e-4 by default.")]
BatchSize = Annotated[int | None, typer.Option(help="Texts in a step; 48 by default.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens of a text at most; what the model reads by default.")]
Dtype = Annotated[str | None, typer.Option(help="What is computed in: float32 or bfloat16.")]
Seed = Annotated[int | None, typer.Option(help="Of the order of the texts, of dropout and of new parameters.")]
Limit = Annotated[int | None, typer.Option(help="Only so many texts of each split, spread evenly over it.")]
TrainSplit = Annotated[str | None, typer.Option(help="Name of the split to train on.")]
ValidationSplit = Annotated[str | None, typer.Option(help='Name of the split to validate on; "" for none.')]
TextColumn = Annotated[str | None, typer.Option(help="Column of the texts.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the labels.")]
DataConfig = Annotated[str | None, typer.Option(help="Configuration of a dataset of the Hub, such as plus.")]
OutOfScope = Annotated[
    str | None, typer.Option(help='The label for what is out of scope; oos by default where it is there; "" for none.')
]
Patience = Annotated[int | None, typer.Option(help="Stop after so many evaluations without a better model.")]
TensorBoard = Annotated[
    bool | None, typer.Option("--tensorboard/--no-tensorboard", help="Write event files, too.", show_default=False)
]
Plot = Annotated[str, typer.Option(help="Draw the losses and scores: .png, .svg or .pdf.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Read and check everything, say what would be done, and end.")]

FLAGS = {
    "data": "data", "output": "output", "framework": "framework", "epochs": "fit.epochs", "steps": "fit.steps",
    "learning_rate": "fit.learning_rate", "batch_size": "batch_size", "max_length": "max_length", "dtype": "dtype",
    "limit": "limit", "train_split": "train_split", "validation_split": "validation_split", "text_column": "text_column",
    "label_column": "label_column", "data_config": "config", "out_of_scope": "out_of_scope", "patience": "fit.patience",
    "tensorboard": "tensorboard",
}  # fmt: skip
"""Names of flags to paths of settings."""

STOPPED = 130
"""The exit status after Ctrl-C, as shells have it; what was asked for is not done."""

MAY_BE_EMPTY = ("validation_split", "out_of_scope")
SCORES_FIRST = ("accuracy", "in_scope_accuracy", "out_of_scope_recall", "out_of_scope_precision", "out_of_scope_f1")


def settings_of(cls, config: str, given: Mapping[str, Any], option: Sequence[str] | None, more: Mapping[str, str]):
    """The settings of a run from a TOML file, flags, and options.

    Args:
        given: values of flags by their names in Python; those of FLAGS and of `more` are taken, and "seed", which sets both.
        more: names of further flags to paths.

    Raises:
        InputError: as of settings_from.
    """
    flags = {
        path: given[name]
        for name, path in {**FLAGS, **more}.items()
        if given.get(name) is not None and (given[name] != "" or name in MAY_BE_EMPTY)
    }
    if given.get("seed") is not None:
        flags |= {"seed": given["seed"], "fit.seed": given["seed"]}
    return settings_from(cls, config, flags, option or [], what=cls.program)


def carry_out(
    training: ModuleType, run: Callable, settings, *, plot: str = "", dry_run: bool = False, as_json: bool = False
) -> None:
    """Does a run and shows what came of it, or shows what it would be.

    Args:
        training: duonlp.runs.finetuning or duonlp.runs.distillation, for its ``plan``.
        run: what does it: ``(package, settings) -> report``.

    Raises:
        typer.Exit: of status STOPPED, when the run was stopped before its end.
    """
    if plot:
        from duonlp.training.log.curves import check_plot

        check_plot(plot)
        if not settings.fit.log_every:
            raise InputError("fit.log_every is 0, so that there is nothing to plot; leave out --plot or set it to 10")
    calm_frameworks()
    try:
        with quiet_stdout(), remedies():
            if dry_run:
                report = training.plan(settings, chosen_framework(settings.framework))
            else:
                package, _ = load_package(settings.framework, trains=True)
                report = run(package, settings)
    except KeyboardInterrupt:
        print("duonlp: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    with quiet_stdout():
        if plot and not dry_run:
            from duonlp.training.log.curves import plot_run

            plot_run(settings.folder, plot, title=Path(report["output"]).name)
    if as_json:
        print_json(report)
    elif dry_run:
        show_plan(report)
    else:
        show(report)
    if report.get("preempted"):
        raise typer.Exit(STOPPED)


def show(report: Mapping[str, Any]) -> None:
    """The results as a table, and a few lines."""
    from rich.console import Console
    from rich.table import Table

    columns = {"best model": report["metrics"]}
    if report["at_threshold"]:
        columns[f"at threshold {report['at_threshold']['threshold']:.3f}"] = report["at_threshold"]
    if report.get("teacher", {}).get("metrics"):
        columns["teacher"] = report["teacher"]["metrics"]
    console = Console()
    found = dict.fromkeys(name for scores in columns.values() for name in scores if name != "threshold")
    names = sorted(found, key=lambda name: SCORES_FIRST.index(name) if name in SCORES_FIRST else len(SCORES_FIRST))
    if names:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("validation", no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        for name in names:
            table.add_row(name, *(f"{scores[name]:.4f}" if name in scores else "" for scores in columns.values()))
        console.print(table)
    rate = report["examples_per_second"]
    lines = [
        f"{report['steps']} steps, {report['examples']} texts in {report['seconds']:.1f} s"
        + (f", {rate:.0f} a second" if rate else "")
        + (f"; best after step {report['best']['step']}" if report["best"] else "; nothing was evaluated"),
        f"{report['parameters'] / 1e6:.1f}M parameters, {report['bytes'] / 1e6:.1f} MB: {report['model']}",
    ]
    if report["stopped_early"]:
        lines.insert(0, "stopped early: no better model for long enough")
    if report["preempted"]:
        lines.insert(0, "stopped when it was asked to; the same command goes on")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_plan(plan: Mapping[str, Any]) -> None:
    """What a run would do, in a few lines."""
    data, settings = plan["data"], plan["settings"]
    scope = f", of which {plan['out_of_scope']!r} is out of scope" if plan["out_of_scope"] else ""
    print(f"{data['train']} texts to train on, {data['validation']} to validate on, {data['labels']} labels{scope}")
    print(f"{plan['steps']} steps, {plan['batches_an_epoch']} an epoch, of {settings['batch_size']} texts")
    if "teacher_parameters" in plan:
        print(f"teacher: {plan['teacher_layers']} layers, {plan['teacher_parameters'] / 1e6:.1f}M parameters")
        print(f"student: {plan['student_layers']} layers, {plan['parameters'] / 1e6:.1f}M parameters")
    else:
        print(f"{plan['parameters'] / 1e6:.1f}M parameters")
    print(f"to {settings['output']}")
