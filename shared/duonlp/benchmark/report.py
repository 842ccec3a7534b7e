"""Report benchmark records and comparisons: terminal tables, Markdown, and a plot of accuracy against latency."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duonlp.benchmark.comparison import BETTER, WORSE, BenchmarkComparison, Difference
from duonlp.benchmark.record import BenchmarkRecord
from duonlp.errors import InputError
from duonlp.util.console import plain_console

if TYPE_CHECKING:
    from rich.table import Table

MEGABYTE = 1e6

SCORE_TITLES = {
    "accuracy": "accuracy %",
    "in_scope_accuracy": "in scope %",
    "out_of_scope_recall": "out-of-scope recall %",
    "macro_f1": "macro F1 %",
}
FRAMEWORKS = {
    "tf": ("tensorflow", "tensorflow-cpu", "keras"),
    "jax": ("jax", "jaxlib", "flax"),
    "": ("keras-hub", "torch", "onnxruntime"),
}
"""Packages of each framework, whose versions are irrelevant for models of the others."""

UNITS = "recall %", "%", "ms", "MB"

THROUGHPUT = "examples/s"

LARGEST_CIRCLE = 3600.0
"""Area of the largest model's circle in points squared; the others are proportional."""


def rows_of(records: Sequence[BenchmarkRecord]) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of a table of records, without columns that no record has."""
    columns: list[tuple[str, list[str]]] = [("model", [record.name for record in records])]
    columns.append(("weights", [record.quantization or "" for record in records]))
    for score, title in SCORE_TITLES.items():
        if score != "macro_f1" or not any("in_scope_accuracy" in record.scores for record in records):
            columns.append((title, [_percent(record.scores.get(score)) for record in records]))
    for key in ("p50", "p95", "p99", "mean", "std"):
        columns.append((f"{key} ms", [_number(getattr(record.latency, key)) for record in records]))
    sizes = sorted({record.batch_size for record in records if record.batch_size is not None})
    batch = f" (batch {' or '.join(map(str, sizes))})" if sizes else ""
    columns += [
        (f"{THROUGHPUT}{batch}", [_number(record.throughput) for record in records]),
        ("MB on disk", [_number(record.size, MEGABYTE) for record in records]),
        ("parameters", [_number(record.parameters, 1e6, "M") for record in records]),
        ("peak MB", [_number(record.memory.peak if record.memory else None, MEGABYTE) for record in records]),
        ("of the model MB", [_number(record.memory.growth if record.memory else None, MEGABYTE) for record in records]),
    ]
    columns = [(title, texts) for title, texts in columns if any(texts)]
    return [title for title, _ in columns], [list(row) for row in zip(*(texts for _, texts in columns), strict=True)]


def rows_of_comparison(comparison: BenchmarkComparison) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of a table of differences."""
    titles = ["model", "metric", "before", "after", "difference", "interval or p", ""]
    rows: list[list[str]] = []
    previous = None
    for difference in comparison.differences:
        name = "" if difference.name == previous else difference.name
        previous = difference.name
        rows.append([name, _title(difference), *_values(difference), _significance(difference), difference.verdict])
    return titles, rows


def _title(d: Difference) -> str:
    if d.metric in SCORE_TITLES:
        return SCORE_TITLES[d.metric]
    return f"{d.metric} {({'bytes': 'MB'}).get(d.unit, d.unit)}".strip()


def _values(d: Difference) -> list[str]:
    if d.metric in SCORE_TITLES:
        return [_percent(d.before), _percent(d.after), f"{100 * (d.after - d.before):+.2f}"]
    unit, suffix = (MEGABYTE, "") if d.unit == "bytes" else (1e6, "M") if d.metric == "parameters" else (1.0, "")
    ratio = "" if d.ratio is None else f"x {d.ratio:.3f}"
    return [_number(d.before, unit, suffix), _number(d.after, unit, suffix), ratio]


def _significance(d: Difference) -> str:
    if d.p_value is not None:
        return f"p = {d.p_value:.3f}" if d.p_value >= 0.001 else "p < 0.001"
    return "" if d.low is None else f"{d.low:.3f} to {d.high:.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _number(value: float | None, unit: float = 1.0, suffix: str = "") -> str:
    """Format a number to about three significant digits, in the given unit."""
    if value is None:
        return ""
    scaled = value / unit
    return f"{scaled:,.{2 if abs(scaled) < 10 else 1 if abs(scaled) < 1000 else 0}f}{suffix}"


def footer(records: Sequence[BenchmarkRecord]) -> list[str]:
    """Return the conditions of the measurements, one line per combination of machine and software."""
    lines = []
    for record in records:
        m = record.machine
        others = [name for other, names in FRAMEWORKS.items() if other != record.framework for name in names]
        versions = ", ".join(
            f"{name} {version}"
            for name, version in m.get("versions", {}).items()
            if record.framework not in FRAMEWORKS or name not in others
        )
        environment = "".join(f"; {name}={value}" for name, value in m.get("environment", {}).items())
        latency = record.latency
        times = "" if latency.repeats == 1 else f", each {latency.repeats} times"
        lines.append(
            f"{record.examples} texts; latency of one text at a time over {latency.queries} of them{times}; "
            f"{m.get('cores')} cores of {m.get('processor')}, load {m.get('load')}; {record.framework or 'framework not known'}; "
            f"Python {m.get('python')}; {versions}{environment}; {record.date}"
        )
    return list(dict.fromkeys(lines))


def busy(records: Sequence[BenchmarkRecord]) -> list[str]:
    """Return a note for each machine that was busy when timing started: a load above the number of cores plus one."""
    notes = []
    for record in records:
        cores, load = record.machine.get("cores"), record.machine.get("load")
        if cores and load and load > cores + 1:  # one process is the benchmark itself
            notes.append(
                f"the load was {load} on {cores} cores ({record.date}): times are longer than on an idle machine"
            )
    return list(dict.fromkeys(notes))


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table whose first `left` columns are left-aligned."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in [titles, *rows]]
    lines.insert(1, ["---" if i < left else "---:" for i in range(len(titles))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_markdown(results: Sequence[BenchmarkRecord] | BenchmarkComparison) -> str:
    """Return records or a comparison as a Markdown table, followed by the conditions of the measurements."""
    if isinstance(results, BenchmarkComparison):
        return "\n".join([markdown(*rows_of_comparison(results), left=2), *(f"\n{note}" for note in results.notes)])
    return "\n".join([markdown(*rows_of(results)), *(f"\n{line}" for line in footer(results))])


def print_records(records: Sequence[BenchmarkRecord], console: Any = None) -> None:
    """Print two tables, scores and latency, then the rest, followed by the conditions of the measurements."""
    console = console or plain_console()
    titles, rows = rows_of(records)
    cut = next(
        (i for i, title in enumerate(titles) if title.startswith((THROUGHPUT, "MB", "parameters", "peak"))), None
    )
    console.print(_table(titles[:cut], [row[:cut] for row in rows], left=1))
    if cut is not None:
        console.print()
        console.print(_table([titles[0], *titles[cut:]], [[row[0], *row[cut:]] for row in rows], left=1))
    console.print()
    for line in footer(records):
        console.print(line, style="dim", markup=False, highlight=False, emoji=False)
    for note in busy(records):
        console.print(f"Note: {note}.", style="yellow", markup=False, highlight=False, emoji=False)


def print_comparison(comparison: BenchmarkComparison, console: Any = None) -> None:
    """Print a table for each pair of models, followed by notes."""
    console = console or plain_console()
    titles, rows = rows_of_comparison(comparison)
    colors = {BETTER: "green", WORSE: "bold red"}
    starts = [i for i, row in enumerate(rows) if row[0]] + [len(rows)]
    for start, end in itertools.pairwise(starts):
        console.print(rows[start][0], style="bold", markup=False, highlight=False, emoji=False)
        console.print(_table(titles[1:], [row[1:] for row in rows[start:end]], left=1, colors=colors))
        console.print()
    for note in comparison.notes:
        console.print(f"Note: {note}.", style="yellow", markup=False, highlight=False, emoji=False)


def _table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], left: int, colors: Mapping[str, str] | None = None
) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for number, title in enumerate(titles):
        for unit in UNITS:  # units go on a second line, so that 80 columns are enough
            title = title.removesuffix(f" {unit}") + f"\n{unit}" if title.endswith(f" {unit}") else title
        table.add_column(Text(title), justify="left" if number < left else "right", no_wrap=number >= left)
    for row in rows:
        table.add_row(*map(Text, row[:-1]), Text(row[-1], style=(colors or {}).get(row[-1], "")))
    return table


def plot_records(
    records: Sequence[BenchmarkRecord],
    file: str | os.PathLike,
    *,
    title: str = "",
    score: str = "accuracy",
    reference: str | None = None,
) -> None:
    """Plot accuracy against median latency, each model as a circle whose area is its size on disk.

    Follows ``plot_metrics`` of Tunstall, von Werra and Wolf (2022), chapter 8. A thin line extends from the median to the
    95th percentile.

    Args:
        records: Records to plot.
        file: A .png, .svg or .pdf file in an existing folder.
        title: Title of the plot.
        score: Name of the score to plot.
        reference: Name of a record whose circle is dashed.

    Raises:
        InputError: There is no record, a record lacks the score, the reference is unknown, or the file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    from duonlp.util.pictures import COLOURS, check_picture_file, picture, require_matplotlib

    file = Path(file)
    check_picture_file(file)
    names = [record.name for record in records]
    if not records:
        raise InputError("there are no records to plot; measure a model first")
    if reference is not None and reference not in names:
        raise InputError(f"the reference {reference!r} is not among the records: {', '.join(names)}")
    for record in records:
        if score not in record.scores:
            raise InputError(f"{record.name!r} has no {score!r}; it has {', '.join(record.scores)}")
    require_matplotlib("records are plotted")

    largest = max((record.size or 0 for record in records), default=0)
    with picture(file, 8, 4.8) as figure:
        axes = figure.add_subplot()
        # draw the smallest circle last, so that it is not hidden
        for number, record in sorted(enumerate(records), key=lambda pair: -(pair[1].size or 0)):
            color = COLOURS[number % len(COLOURS)]
            x, y, area = (
                record.latency.p50,
                100 * record.scores[score],
                LARGEST_CIRCLE * (record.size or 0) / (largest or 1),
            )
            axes.plot([x, record.latency.p95], [y, y], color=color, linewidth=1, alpha=0.6, zorder=1)
            dashed = record.name == reference
            axes.scatter(
                [x], [y], s=max(area, 30), facecolor="none" if dashed else color, alpha=1 if dashed else 0.45,
                edgecolor=color, linestyle="--" if dashed else "-", linewidth=1.4, zorder=2,
            )  # fmt: skip
            axes.plot([x], [y], ".", color=color, markersize=4, zorder=3)
            size = f"\n{_number(record.size, MEGABYTE)} MB" if record.size else ""
            above = (max(area, 30) ** 0.5) / 2 + 4  # points from the center to just outside the circle
            axes.annotate(
                f"{record.name}{size}", (x, y), (0, above), textcoords="offset points", ha="center", va="bottom",
                fontsize=9, color=color, zorder=4,
            )  # fmt: skip
        _scale(axes, records, score)
        if title:
            axes.set_title(title, fontsize=12)


def _scale(axes: Any, records: Sequence[BenchmarkRecord], score: str) -> None:
    """Set the limits, with room for circles and names, and the labels of the axes."""
    highest = max(record.latency.p95 for record in records)
    values = [100 * record.scores[score] for record in records]
    room = max(max(values) - min(values), 2.0)
    axes.set_xlim(0, highest * 1.15)
    axes.set_ylim(min(values) - 0.35 * room, max(values) + 0.6 * room)
    axes.set_xlabel("latency of one text, ms: median, with a line to the 95th percentile")
    axes.set_ylabel(f"{score.replace('_', ' ')}, %")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
