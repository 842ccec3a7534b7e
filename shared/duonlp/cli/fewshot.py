"""``duonlp fewshot``: compare methods of learning from few labels on slices of growing size."""

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from duonlp.cli import training as flags
from duonlp.cli.common import (
    Debug,
    Framework,
    Json,
    SettingsFile,
    SettingsOption,
    cli_option,
    print_json,
    with_line_ends,
)
from duonlp.cli.settings import merged
from duonlp.errors import InputError
from duonlp.util.console import plain_console
from duonlp.util.frameworks import calm_frameworks, chosen_framework, load_package, quiet_stdout

WHAT = "duonlp fewshot"


def fewshot(
    data: Annotated[
        str, cli_option("--data", "-d", help="Labeled texts: a file, a folder or a Hub id (required).")
    ] = "",
    unlabeled: Annotated[str, cli_option(help="Further unlabeled texts: a file, a folder or a Hub id.")] = "",
    output: Annotated[
        str, cli_option(help="Folder of the comparison (required); what is finished there is not repeated.")
    ] = "",
    methods: Annotated[
        str, cli_option(help="Methods, such as naive-bayes,setfit (default naive-bayes,lookup,setfit,fine-tune).")
    ] = "",
    sizes: Annotated[str, cli_option(help="Numbers of training texts (default 8,16,32,64,128,all).")] = "",
    per_label: Annotated[str, cli_option(help="Instead of --sizes: numbers of training texts of each label.")] = "",
    seeds: Annotated[int | None, cli_option(help="Number of seeds, each with slices of its own (default 3).")] = None,
    labels: Annotated[int | None, cli_option(help="Keep the N most frequent labels (default: all).")] = None,
    framework: Framework = "",
    model: Annotated[str, cli_option("--model", "-m", help="Checkpoint of all methods that have one.")] = "",
    config: SettingsFile = "",
    max_length: Annotated[int | None, cli_option(help="Truncate texts to this many tokens, in all methods.")] = None,
    batch_size: Annotated[int | None, cli_option(help="Texts per batch, in all methods.")] = None,
    dtype: flags.Dtype = None,
    validation: Annotated[
        float | None, cli_option(help="Share or number of labeled texts to validate on (default 0.15).")
    ] = None,
    test: Annotated[
        float | None, cli_option(help="Share or number of labeled texts to test on (default 0.25).")
    ] = None,
    test_data: Annotated[str, cli_option(help="Labeled texts to test on instead.")] = "",
    test_split: Annotated[str, cli_option(help="Split of the data to test on instead.")] = "",
    train_split: Annotated[str, cli_option(help="Split of the data with the other labeled texts.")] = "",
    split_seed: Annotated[int | None, cli_option(help="Seed of the split (default 0).")] = None,
    text_column: flags.TextColumn = None,
    text_template: flags.TextTemplate = None,
    label_column: flags.LabelColumn = None,
    label_map: flags.LabelMap = None,
    label_separator: flags.LabelSeparator = None,
    class_names: flags.ClassNames = None,
    column_names: flags.ColumnNames = None,
    encoding: flags.Encoding = None,
    quoting: flags.Quoting = None,
    data_config: flags.DataConfig = None,
    descriptions: Annotated[
        str, cli_option(help="JSON or TOML file with a description of each label: further training texts.")
    ] = "",
    keep_models: Annotated[str, cli_option(help="all or none: which classifiers to save (default all).")] = "",
    option: SettingsOption = None,
    dry_run: flags.DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare methods of learning from few labels, by number of labeled texts."""
    given = dict(locals())
    from duonlp.fewshot.comparison import compare, plan

    settings = read_settings(given)
    calm_frameworks()
    with quiet_stdout():
        if dry_run:
            report = plan(settings)
        else:
            report = compare(settings, lambda: load_package(settings.framework, trains=True)[0])
    if as_json:
        print_json(report)
    elif dry_run:
        print_plan(report)
    else:
        from duonlp.fewshot.comparison.report import print_report

        print_report(report, plain_console(file=sys.stdout))
    if report.get("interrupted"):
        print("duonlp: stopped; run the same command to resume", file=sys.stderr)
        raise typer.Exit(flags.STOPPED)
    if report.get("failed"):
        raise typer.Exit(1)


def read_settings(given: Mapping[str, Any]) -> Any:
    """Return the settings of a command's arguments, with those of methods by their names.

    Args:
        given: The arguments by name.

    Raises:
        InputError: A setting is unknown or invalid.
    """
    from duonlp.fewshot.comparison import ComparisonSettings
    from duonlp.fewshot.methods import METHODS
    from duonlp.training.settings_file import build

    names = (
        "data", "output", "framework", "seeds", "labels", "model", "max_length", "batch_size", "dtype", "validation", "test",
        "test_data", "test_split", "train_split", "split_seed", "text_column", "label_column", "label_map", "label_separator",
        "class_names", "column_names", "encoding", "quoting", "keep_models", "descriptions",
    )  # fmt: skip
    values = {name: given[name] for name in names} | {
        "unlabelled": given["unlabeled"], "config": given["data_config"],
        "text_template": with_line_ends(given["text_template"] or ""),
        "methods": _listed(given["methods"]), "sizes": parse_sizes("--sizes", given["sizes"]),
        "per_label": parse_sizes("--per-label", given["per_label"]),
    }  # fmt: skip
    values = {name: value for name, value in values.items() if value not in (None, "", ())}
    table = merged(given["config"], values, given["option"] or [])
    options = dict(table.pop("options", {}))
    for key in list(table):
        if key.replace("_", "-") in METHODS:
            own = table.pop(key)
            if not isinstance(own, Mapping):
                raise InputError(f"{key} is {own!r}; write --option {key}.NAME=VALUE, or a table [{key}] in the file")
            name = key.replace("_", "-")
            options[name] = {**options.get(name, {}), **own}
    table["options"] = options
    if isinstance(table.get("data"), str) and isinstance(table.get("output"), str):
        table["framework"] = _framework(table, METHODS)
    return build(ComparisonSettings, table, WHAT)


def parse_sizes(flag: str, value: str) -> tuple[int | str, ...]:
    """Parse sizes: "8,16,all" -> (8, 16, "all").

    Raises:
        InputError: A part is neither a positive integer nor "all".
    """
    sizes: list[int | str] = []
    for part in _listed(value):
        if part != "all" and not (part.isdecimal() and int(part) > 0):
            raise InputError(f"{flag} is {value!r}; give positive numbers of texts, such as 8,16,32,all")
        sizes.append(part if part == "all" else int(part))
    return tuple(sizes)


def _framework(table: Mapping[str, Any], methods: Mapping[str, str]) -> str:
    """Return the framework of a comparison: the one given, or the installed one; "" if no method needs any."""
    from duonlp.fewshot.methods import method_class

    names = table.get("methods", ("setfit",))
    needs = any(name in methods and method_class(name).needs_engine for name in names)
    given = table.get("framework", "")
    return chosen_framework(given) if needs or given else ""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def print_plan(report: Mapping[str, Any]) -> None:
    """Print the numbers of texts and labels, and the cells that would run."""
    from rich.table import Table

    console, counts = plain_console(file=sys.stdout), report["data"]
    console.print(", ".join(f"{count:,} {name}" for name, count in counts["texts"].items()) + " texts")
    table = Table("label", *counts["labels"], box=None, pad_edge=False, header_style="bold")
    for label in counts["labels"]["train"]:
        table.add_row(label, *(f"{part[label]:,}" for part in counts["labels"].values()))
    console.print(table)
    console.print(f"\n{len(report['finished'])} cells are finished, {len(report['to_run'])} would run:")
    for cell in report["to_run"]:
        console.print(cell)
