"""``duonlp questions``: what a file of questions holds, what it shares with training data, and the same as SQuAD's JSON."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from duonlp.cli.common import Debug, Json, cli_option, print_json
from duonlp.cli.training import DataConfig, Encoding, Quoting
from duonlp.errors import InputError
from duonlp.util.console import plain_console
from duonlp.util.frameworks import quiet_stdout
from duonlp.util.suggestions import choice

if TYPE_CHECKING:
    from duonlp.data import CleaningReport, Exploration, Leakage

UNITS = ("words", "characters")


def questions(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="SQuAD JSON, SubjQA, a table, a folder or a Hub id (required).")
    ] = "",
    split: Annotated[str, cli_option(help="Split of the data: train, validation or test, if it has several.")] = "",
    against: Annotated[str, cli_option(help="Training data: count what FILE shares with it.")] = "",
    against_split: Annotated[str, cli_option(help="Split of the training data, if it has several.")] = "",
    unit: Annotated[str, cli_option(help="Unit of lengths: words or characters (default words).")] = "",
    tokenizer: Annotated[str, cli_option(help="Checkpoint in whose tokens to measure lengths instead.")] = "",
    plot: Annotated[str, cli_option(help="Plot types and lengths to a .png, .svg or .pdf file.")] = "",
    output: Annotated[str, cli_option(help="Write the questions as SQuAD 2.0 JSON: a .json or .json.gz file.")] = "",
    limit: Annotated[int, cli_option(help="Use at most N questions, evenly spaced (default: all).")] = 0,
    config: DataConfig = None,
    encoding: Encoding = None,
    quoting: Quoting = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Describe questions on contexts: types, lengths, answerable share, unusable rows and leaks from training data."""
    from duonlp.data import CleaningReport, explore, leakage, read_questions, write_squad
    from duonlp.util.pictures import check_picture_file, require_matplotlib

    if not file:
        raise InputError("no questions given; name SQuAD JSON, SubjQA, or a table with SQuAD's columns")
    if against_split and not against:
        raise InputError(
            f"--against-split is {against_split!r}, but there is no --against; pass the training data with it"
        )
    choice("--unit", unit or UNITS[0], UNITS)
    if unit and tokenizer:
        raise InputError(f"--unit is {unit!r}, but --tokenizer measures lengths in tokens; leave one of them out")
    if limit < 0:
        raise InputError(f"--limit is {limit}; it must be at least 0")
    if plot:
        check_picture_file(Path(plot))
        require_matplotlib("questions are plotted")
    report = CleaningReport()
    with quiet_stdout():
        data = read_questions(
            file, split or None, config=config, limit=limit or None, encoding=encoding, quoting=quoting, report=report
        )
        exploration = explore(data, unit=unit or UNITS[0], tokenizer=load_tokenizer(tokenizer) if tokenizer else None)
        leaks = None
        if against:
            train = read_questions(against, against_split or None, encoding=encoding, report=CleaningReport())
            leaks = leakage(train, data)
        if plot:
            exploration.plot(plot, f"{Path(file).name} {split}".strip())
        if output:
            write_squad(data, output)
    if as_json:
        print_json(summary(exploration, report, leaks))
    else:
        print_summary(exploration, report, leaks, sys.stdout)


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer of a checkpoint, a folder in Hugging Face layout or a Hub id."""
    from duonlp.checkpoints import open_checkpoint

    return open_checkpoint(name).tokenizer()


def summary(exploration: "Exploration", report: "CleaningReport", leaks: "Leakage | None") -> dict[str, Any]:
    """Return the report that --json prints, in which "dropped" has the first examples of each reason."""
    return {
        **exploration.to_dict(),
        "dropped": report.to_dict()["dropped"],
        **({"leakage": leaks.to_dict()} if leaks else {}),
    }


def print_summary(exploration: "Exploration", report: "CleaningReport", leaks: "Leakage | None", out: TextIO) -> None:
    """Print the tables, and the first examples of each reason for which rows were dropped."""
    console = plain_console(file=out)
    console.print(exploration.table())
    for reason, entry in report.dropped.items():
        console.print(f"\ndropped rows, {reason}: {entry.documents:,}")
        for example in entry.examples:
            console.print(f"  {example}", soft_wrap=True)
    if leaks is not None:
        console.print()
        console.print(leaks.table())
