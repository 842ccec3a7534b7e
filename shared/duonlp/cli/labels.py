"""``duonlp labels``: what labels a file has, how to split it so that they are spread evenly, and files of the parts."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from duonlp.cli import training as flags
from duonlp.cli.common import Debug, Json, cli_option, print_json, with_line_ends
from duonlp.errors import InputError
from duonlp.util.console import plain_console
from duonlp.util.frameworks import quiet_stdout

if TYPE_CHECKING:
    from duonlp.data import LabelCounts, LabelledTexts, PreparedTexts

PARTS = ("train", "validation", "test")
MOST_LISTED = 10


def labels(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="Texts, all or some with labels: a table, folder or Hub id (required)."),
    ] = "",
    from_split: Annotated[str, cli_option(help="Split of the data to read, if it has several, such as train.")] = "",
    text_column: flags.TextColumn = None,
    text_template: flags.TextTemplate = None,
    label_column: flags.LabelColumn = None,
    label_separator: flags.LabelSeparator = None,
    label_map: flags.LabelMap = None,
    most_frequent: flags.MostFrequent = None,
    class_names: flags.ClassNames = None,
    column_names: flags.ColumnNames = None,
    unlabelled: Annotated[
        str,
        cli_option(
            "--unlabeled",
            help="Rows without a label: separate (kept apart), negative (no label applies) or error (default separate).",
        ),
    ] = "separate",
    keep_duplicates: Annotated[
        bool, cli_option("--keep-duplicates", help="Keep texts that occur again (default: the first of each).")
    ] = False,
    limit: Annotated[int | None, cli_option(help="Use at most N labeled texts, evenly spaced (default: all).")] = None,
    split: Annotated[
        str, cli_option(metavar="SHARES", help="Split into train, validation and test, such as 0.7,0.15,0.15.")
    ] = "",
    slices: Annotated[
        str, cli_option(metavar="SIZES", help="Nested slices of the training texts, such as 8,16,32,64,all.")
    ] = "",
    seed: Annotated[int, cli_option(help="Seed of the split and the slices (default 0).")] = 0,
    output: Annotated[str, cli_option(help="New folder for the parts, the slices and unlabeled texts, as JSONL.")] = "",
    plot: Annotated[str, cli_option(help="Plot the label counts to a .png, .svg or .pdf file.")] = "",
    encoding: flags.Encoding = None,
    quoting: flags.Quoting = None,
    config: flags.DataConfig = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Count labels, unlabeled texts and duplicates; split texts evenly by label; write the parts."""
    from duonlp.data import CleaningReport, label_counts, prepare_labels
    from duonlp.data.labelled.writing import check_new_folder, write_label_folder
    from duonlp.util.pictures import check_picture_file, require_matplotlib

    if not file:
        raise InputError("no texts given; name a file, a folder or a dataset on the Hub with texts and labels")
    shares, sizes = _shares(split), _sizes(slices)
    if plot:
        check_picture_file(Path(plot))
        require_matplotlib("label counts are plotted")
    if output:
        check_new_folder(output)
    report = CleaningReport()
    with quiet_stdout():
        prepared = prepare_labels(
            file, from_split or None, unlabelled=unlabelled, duplicates="keep" if keep_duplicates else "drop", config=config,
            text_column=text_column, text_template=None if text_template is None else with_line_ends(text_template),
            label_column=label_column, label_separator=label_separator, label_map=label_map, most_frequent=most_frequent,
            class_names=class_names, column_names=column_names, limit=limit, encoding=encoding, quoting=quoting, report=report,
        )  # fmt: skip
        parts, named_slices = _parts(prepared.labelled, shares, sizes, seed)
        part_counts = label_counts(parts if shares else {"texts": prepared.labelled})
        slice_counts = label_counts(named_slices) if named_slices else None
        if plot:
            (slice_counts or part_counts).plot(plot, f"{Path(file).name} {from_split}".strip())
        written = []
        if output:
            written = write_label_folder(output, parts, named_slices, prepared.unlabelled, prepared.unlabelled_ids)
    if as_json:
        examples = {reason: entry.examples for reason, entry in report.dropped.items()}
        print_json(
            _summary(prepared, part_counts, slice_counts, bool(shares), output, written) | {"examples": examples}
        )
    else:
        _print(prepared, part_counts, slice_counts, report, output, sys.stdout)


def _shares(text: str) -> list[float]:
    """Parse the shares of parts: "0.8,0.2" -> [0.8, 0.2]."""
    try:
        shares = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        shares = [0.0]
    if shares and not 2 <= len(shares) <= len(PARTS):
        raise InputError(
            f"--split is {text!r}; give two or three shares: train, validation and test, such as 0.7,0.15,0.15"
        )
    return shares


def _sizes(text: str) -> list[int | str]:
    """Parse the sizes of slices: "8,16,all" -> [8, 16, "all"]."""
    sizes: list[int | str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part != "all" and not part.isdecimal():
            raise InputError(f"--slices is {text!r}; give numbers of texts, or all, such as 8,16,32,all")
        sizes.append("all" if part == "all" else int(part))
    return sizes


def _parts(
    texts: "LabelledTexts", shares: list[float], sizes: list[int | str], seed: int
) -> tuple[dict[str, "LabelledTexts"], dict[str, "LabelledTexts"]]:
    """Return the parts and the slices by name; without shares, all texts are for training."""
    from duonlp.data import nested_slices, stratified_split

    parts = dict(zip(PARTS, stratified_split(texts, shares, seed))) if shares else {"train": texts}
    slices = nested_slices(parts["train"], sizes, seed) if sizes else []
    return parts, {str(size): part for size, part in zip(sizes, slices)}


def _summary(
    prepared: "PreparedTexts",
    parts: "LabelCounts",
    slices: "LabelCounts | None",
    is_split: bool,
    output: str,
    written: list[str],
) -> dict[str, Any]:
    """Return the report that --json prints."""
    return {
        **prepared.report.to_dict(),
        "label_names": list(prepared.labelled.label_names),
        "multi_label": prepared.labelled.multi_label,
        "counts": prepared.labelled.counts(),
        "splits": parts.to_dict() if is_split else None,
        "slices": slices.to_dict() if slices is not None else None,
        "output": output or None,
        "files": written,
    }


def _print(
    prepared: "PreparedTexts",
    parts: "LabelCounts",
    slices: "LabelCounts | None",
    report: Any,
    output: str,
    out: TextIO,
) -> None:
    """Print the tables, then what deserves attention."""
    console = plain_console(file=out)
    console.print(prepared.report.table())
    for counts in (parts, slices):
        if counts is not None:
            console.print()
            console.print(counts.table())
    for counts in (parts, slices):
        for part, names in ({} if counts is None else counts.missing()).items():
            more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
            console.print(f"{part} lacks {len(names)} labels: {', '.join(names[:MOST_LISTED])}{more}", soft_wrap=True)
    for conflict in prepared.report.conflict_examples:
        console.print(f"same text, other labels: {conflict}", soft_wrap=True)
    for reason, entry in report.dropped.items():
        for example in entry.examples:
            console.print(f"dropped, {reason}: {example}", soft_wrap=True)
    if output:
        console.print(f"wrote {output}", soft_wrap=True)
        if parts.without.any():
            console.print(
                "texts without a label are written as such: read them with --unlabeled negative", soft_wrap=True
            )
