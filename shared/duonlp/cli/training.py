"""Flags and output that ``duonlp finetune`` and ``duonlp distill`` share."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from duonlp.cli.common import cli_option, print_json, with_line_ends
from duonlp.cli.settings import merged, settings_from
from duonlp.errors import InputError
from duonlp.util.console import plain_console
from duonlp.util.frameworks import calm_frameworks, chosen_framework, load_package, quiet_stdout
from duonlp.util.suggestions import nearest

if TYPE_CHECKING:
    from duonlp.runs.settings import RunSettings

T = TypeVar("T", bound="RunSettings")

Data = Annotated[str, cli_option("--data", "-d", help="Labeled texts: a file, a folder or a Hub id (required).")]
Output = Annotated[
    str, cli_option(help="Folder for the model, scores and settings (required); the same run in it is resumed.")
]
Epochs = Annotated[int | None, cli_option(help="Passes over the training texts (default 4).")]
Steps = Annotated[int | None, cli_option(help="Stop after this many optimizer steps (default: after --epochs).")]
LearningRate = Annotated[float | None, cli_option(help="Peak learning rate (default 2e-4).")]
BatchSize = Annotated[int | None, cli_option(help="Texts per step (default 48).")]
MaxLength = Annotated[int | None, cli_option(help="Truncate texts to this many tokens (default: the model's maximum).")]
Dtype = Annotated[str | None, cli_option(help="Compute dtype: float32 or bfloat16 (default float32).")]
Seed = Annotated[int | None, cli_option(help="Seed for shuffling, dropout and new parameters (default 0).")]
Limit = Annotated[int | None, cli_option(help="Use at most N texts of each split, evenly spaced (default: all).")]
TrainSplit = Annotated[str | None, cli_option(help="Training split (default train).")]
ValidationSplit = Annotated[str | None, cli_option(help='Validation split (default validation); "" for none.')]
TextColumn = Annotated[str | None, cli_option(help="Text column (default: the first with a usual name).")]
TextTemplate = Annotated[
    str | None, cli_option(help="Text made of columns, such as '{title}\\n\\n{body}' (default: the text column).")
]
LabelColumn = Annotated[str | None, cli_option(help="Label column (default: the first with a usual name).")]
LabelSeparator = Annotated[
    str | None,
    cli_option(help="Separator of several labels in one field, or json for lists (default: a field is one label)."),
]
LabelMap = Annotated[
    str | None, cli_option(help="JSON or TOML file of old and new label names; null or an empty name drops a label.")
]
MostFrequent = Annotated[
    int | None, cli_option(metavar="N", help="Keep the N most frequent labels and drop the others (default: all).")
]
ClassNames = Annotated[
    str | None, cli_option(help="File with the name of a class on each line, for labels that are numbers.")
]
ColumnNames = Annotated[
    str | None, cli_option(help="Columns of a CSV or TSV file without a header, such as text,labels,id.")
]
Unlabelled = Annotated[
    str | None,
    cli_option(
        "--unlabeled",
        help="Rows without a label: separate (left out), negative (no label applies) or error (default: separate if a text may "
        "have several labels).",
    ),
]
Encoding = Annotated[str | None, cli_option(help="Encoding of text files, such as cp1252 (default: UTF-8).")]
Quoting = Annotated[
    bool | None,
    cli_option(
        "--quoting/--no-quoting",
        help="Fields of CSV and TSV files may be quoted (default: CSV yes, TSV only if they must be).",
    ),
]
DataConfig = Annotated[str | None, cli_option(help="Configuration of a Hub dataset, such as plus.")]
OutOfScope = Annotated[
    str | None, cli_option(help='Label of out-of-scope texts (default: oos if the data has it); "" for none.')
]
Patience = Annotated[
    int | None, cli_option(help="Stop after this many evaluations without improvement (default: never).")
]
Prune = Annotated[
    float | None,
    cli_option(metavar="SPARSITY", help="Set this share of the weights to zero while training, such as 0.7."),
]
PruneMethod = Annotated[
    str | None, cli_option(help="With --prune: magnitude (the default), movement, or soft-movement without a sparsity.")
]
PruneStructure = Annotated[
    str | None,
    cli_option(help="What is pruned: weights (the default), units (heads and rows), blocks, or N:M such as 2:4."),
]
TensorBoard = Annotated[
    bool | None, cli_option("--tensorboard/--no-tensorboard", help="Also write TensorBoard event files (default: no).")
]
QuantizationAware = Annotated[
    str,
    cli_option(
        metavar="SCHEME",
        help="Train for int8, int8-static, int8-weights or int4, and save the best model quantized as well (default: no).",
    ),
]
Plot = Annotated[str, cli_option(help="Plot the losses and scores to a .png, .svg or .pdf file.")]
DryRun = Annotated[bool, cli_option("--dry-run", help="Check settings and data, print the plan and exit.")]

FLAGS = {
    "data": "data", "output": "output", "framework": "framework", "epochs": "fit.epochs", "steps": "fit.steps",
    "learning_rate": "fit.learning_rate", "batch_size": "batch_size", "max_length": "max_length", "dtype": "dtype",
    "limit": "limit", "train_split": "train_split", "validation_split": "validation_split", "text_column": "text_column",
    "text_template": "text_template", "label_column": "label_column", "label_separator": "label_separator",
    "label_map": "label_map", "most_frequent": "most_frequent", "class_names": "class_names", "column_names": "column_names",
    "unlabelled": "unlabelled",
    "encoding": "encoding", "quoting": "quoting",
    "data_config": "config", "out_of_scope": "out_of_scope", "patience": "fit.patience",
    "tensorboard": "tensorboard", "prune": "fit.pruning.sparsity", "prune_method": "fit.pruning.method",
    "prune_structure": "fit.pruning.structure",
    "quantization_aware": "quantization_aware",
}  # fmt: skip
"""Flag names to paths of settings."""

STOPPED = 130
"""Exit status of an interrupted run, as in shells after Ctrl-C."""

MAY_BE_EMPTY = ("validation_split", "out_of_scope")
"""Flags whose value "" means none, rather than not given."""

SCORES_FIRST = (
    "f1", "exact", "HasAns_f1", "HasAns_exact", "NoAns_f1", "NoAns_exact",
    "accuracy", "in_scope_accuracy", "out_of_scope_recall", "out_of_scope_precision", "out_of_scope_f1",
)  # fmt: skip
"""Scores that come first in the table of results, in this order."""


def task_of(config: str, option: Sequence[str] | None, task: str, allowed: Iterable[str]) -> str:
    """Return the task of a fine-tuning: that of the flag, of --option or of the TOML file, else the first one.

    Raises:
        InputError: The file cannot be read, or there is no such task.
    """
    names = list(allowed)
    name = merged(config, {"task": task or None}, option or []).get("task", names[0])
    if name not in names:
        hint = nearest(name, names) if isinstance(name, str) else ""
        raise InputError(f"task is {name!r}; it must be {' or '.join(names)}{hint}")
    return name


def read_settings(
    cls: type[T],
    config: str,
    values: Mapping[str, Any],
    option: Sequence[str] | None,
    more_flags: Mapping[str, str],
    tasks: Mapping[str, type] | None = None,
) -> T:
    """Build the settings of a run from a TOML file, flags and options.

    Args:
        cls: FinetuneSettings, QuestionAnsweringSettings or DistillSettings.
        config: A TOML file; "" for none.
        values: The command's arguments by name. Those of FLAGS and of `more_flags` are used, and "seed", which sets both
            ``seed`` and ``fit.seed``.
        option: The --option pairs.
        more_flags: Names of further flags to paths of settings.
        tasks: The settings of each task, `cls` among them, if the command has several.

    Raises:
        InputError: A setting belongs to another task, or see :func:`duonlp.cli.settings.settings_from`.
    """
    flags = {
        path: values[name]
        for name, path in {**FLAGS, **more_flags}.items()
        if values.get(name) is not None and (values[name] != "" or name in MAY_BE_EMPTY)
    }
    if "text_template" in flags:
        flags["text_template"] = with_line_ends(flags["text_template"])
    if values.get("seed") is not None:
        flags |= {"seed": values["seed"], "fit.seed": values["seed"]}
    names = {task: {field.name for field in fields(settings)} for task, settings in (tasks or {}).items()}
    own = next((task for task, settings in (tasks or {}).items() if settings is cls), "")
    for key in merged(config, flags, option or []) if tasks else ():
        others = [task for task in names if key in names[task]]
        if others and own not in others:
            raise InputError(
                f"{key!r} is not a setting of {own}, but of {' and '.join(others)}; leave it out, or give --task {others[0]}"
            )
    return settings_from(cls, config, flags, option or [], what=cls.program)


def run_training(
    training: ModuleType,
    run: Callable[..., dict[str, Any]],
    settings: Any,
    *,
    plot: str = "",
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Run a training and print its results, or print its plan.

    Args:
        training: duonlp.runs.finetuning, .cross_validation or .distillation, for its
            ``plan``.
        run: The training: ``(package, settings) -> report``.
        settings: Settings of the run.
        plot: File for the figure of losses and scores; "" for none.
        dry_run: Whether to print the plan only.
        as_json: Whether to print JSON instead of tables.

    Raises:
        InputError: The run has nothing to plot, or the settings or data are invalid.
        typer.Exit: With status STOPPED, if the run was stopped before its end.
    """
    if plot:
        from duonlp.training.log.curves import check_plot

        check_plot(plot)
        if hasattr(training, "cross_validate"):
            raise InputError(
                "--plot shows the losses of one run and --folds makes several; leave it out, then plot a fold with --config "
                "fold-1/settings.toml"
            )
        if not settings.fit.log_every:
            raise InputError("--plot needs logged losses and fit.log_every is 0; set it to 10, or leave out --plot")
    calm_frameworks()
    try:
        with quiet_stdout():
            if dry_run:
                report = training.plan(settings, chosen_framework(settings.framework))
            else:
                package, _ = load_package(settings.framework, trains=True)
                report = run(package, settings)
    except KeyboardInterrupt:
        print("duonlp: stopped; run the same command to resume from the last checkpoint", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    with quiet_stdout():
        if plot and not dry_run:
            from duonlp.training.log.curves import plot_run

            plot_run(settings.folder, plot, title=Path(report["output"]).name)
    if as_json:
        print_json(report)
    elif dry_run:
        print_plan(report)
    elif "folds" in report:
        print_folds(report)
    else:
        print_results(report)
    if report.get("preempted"):
        raise typer.Exit(STOPPED)


def print_results(report: Mapping[str, Any]) -> None:
    """Print the scores as a table, and the run's figures below it."""
    from rich.table import Table

    columns, settings = {"best model": report["metrics"]}, report["settings"]
    if report["at_threshold"]:
        columns[f"at threshold {report['at_threshold']['threshold']:.3f}"] = report["at_threshold"]
    if report.get("at_label_thresholds"):
        columns["threshold per label"] = report["at_label_thresholds"]
    quantized = report.get("quantized")
    if quantized and quantized["metrics"]:
        columns[settings["quantization_aware"]] = quantized["metrics"]
    if report.get("teacher", {}).get("metrics"):
        columns["teacher"] = report["teacher"]["metrics"]
    console = plain_console()
    names = _in_order(name for scores in columns.values() for name in scores if not name.startswith("threshold"))
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
        f"{report['steps']} steps, {report['examples']} {report['row_noun']} in {report['seconds']:.1f} s"
        + (f", {rate:.0f} {report['row_noun']}/s" if rate else "")
        + (f"; best after step {report['best']['step']}" if report["best"] else "; not evaluated"),
        f"{report['parameters'] / 1e6:.1f}M parameters, {report['bytes'] / 1e6:.1f} MB: {report['model']}",
    ]
    if quantized:
        lines.append(f"{settings['quantization_aware']}, {quantized['bytes'] / 1e6:.1f} MB: {quantized['model']}")
    if report["stopped_early"]:
        lines.insert(0, "stopped early: no improvement within fit.patience evaluations")
    if report["preempted"]:
        lines.insert(0, "stopped by a signal; run the same command to resume")
    for line in lines:
        console.print(line, soft_wrap=True)
    if report["learning_curve"]:
        from duonlp.training.log.learning_curve import learning_curve_table

        console.print()
        console.print(learning_curve_table([_losses_of(record) for record in report["learning_curve"]]))


def print_folds(report: Mapping[str, Any]) -> None:
    """Print the mean and spread of each score over the folds of a cross-validation, as they are and at the best thresholds."""
    from rich.table import Table

    console = plain_console()
    for heading, part in (("held-out part", "metrics"), ("at its best threshold", "at_threshold")):
        rows = report[part]
        if not rows:
            continue
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(heading, no_wrap=True)
        for column in ("mean", "std", "min", "max"):
            table.add_column(column, justify="right", no_wrap=True)
        for name in _in_order(rows):
            table.add_row(name, *(f"{rows[name][column]:.4f}" for column in ("mean", "std", "min", "max")))
        console.print(table)
        console.print()
    done = len(report["folds"])
    console.print(
        f"{done} fold{'s' if done > 1 else ''}, {report['seconds']:.1f} s of training: {report['output']}",
        soft_wrap=True,
    )
    if report["preempted"]:
        console.print("stopped by a signal; run the same command to resume", soft_wrap=True)


def _in_order(names: Iterable[str]) -> list[str]:
    """Return names of scores without repetition, those of SCORES_FIRST first."""
    unsorted = dict.fromkeys(names)
    return [
        *(name for name in SCORES_FIRST if name in unsorted),
        *(name for name in unsorted if name not in SCORES_FIRST),
    ]


def _losses_of(record: Mapping[str, Any]) -> dict[str, Any]:
    names = ("epoch", "step", "train_loss", "loss", "accuracy", "f1")
    return {name: value for name, value in record.items() if name in names}


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print what a run would do."""
    settings = plan["settings"]
    print(plan["summary"])
    print(f"{plan['steps']} steps of {settings['batch_size']} {plan['row_noun']}, {plan['batches_an_epoch']} per epoch")
    if "teacher_parameters" in plan:
        print(f"teacher: {plan['teacher_layers']} layers, {plan['teacher_parameters'] / 1e6:.1f}M parameters")
        print(f"student: {plan['student_layers']} layers, {plan['parameters'] / 1e6:.1f}M parameters")
    else:
        print(f"{plan['parameters'] / 1e6:.1f}M parameters")
    print(f"output: {settings['output']}")
