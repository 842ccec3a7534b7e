"""Benchmark records and comparisons for people: tables on a terminal, in Markdown, and the picture of accuracy and latency."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duonlp.benchmark.comparison import BETTER, WORSE, BenchmarkComparison, Difference
from duonlp.benchmark.record import BenchmarkRecord
from duonlp.errors import InputError

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
"""Packages whose versions do not matter to a model of another framework."""

UNITS = "recall %", "%", "ms", "MB"

THROUGHPUT = "examples/s"

LARGEST_CIRCLE = 3600.0
"""Points squared of the largest model's circle; the areas of the others are in proportion."""


def rows_of(records: Sequence[BenchmarkRecord]) -> tuple[list[str], list[list[str]]]:
    """Titles and texts of a table of records; a column that no record has is left out."""
    columns: list[tuple[str, list[str]]] = [("model", [each.name for each in records])]
    for score, title in SCORE_TITLES.items():
        if score != "macro_f1" or not any("in_scope_accuracy" in each.scores for each in records):
            columns.append((title, [_percent(each.scores.get(score)) for each in records]))
    for key in ("p50", "p95", "p99", "mean", "std"):
        columns.append((f"{key} ms", [_number(getattr(each.latency, key)) for each in records]))
    sizes = sorted({each.batch_size for each in records if each.batch_size is not None})
    batch = f" (batch {' or '.join(map(str, sizes))})" if sizes else ""
    columns += [
        (f"{THROUGHPUT}{batch}", [_number(each.throughput) for each in records]),
        ("MB on disk", [_number(each.size, MEGABYTE) for each in records]),
        ("parameters", [_number(each.parameters, 1e6, "M") for each in records]),
        ("peak MB", [_number(each.memory.peak if each.memory else None, MEGABYTE) for each in records]),
        ("of the model MB", [_number(each.memory.growth if each.memory else None, MEGABYTE) for each in records]),
    ]
    columns = [(title, texts) for title, texts in columns if any(texts)]
    return [title for title, _ in columns], [list(row) for row in zip(*(texts for _, texts in columns), strict=True)]


def rows_of_comparison(comparison: BenchmarkComparison) -> tuple[list[str], list[list[str]]]:
    """Titles and texts of a table of differences."""
    titles = ["model", "metric", "before", "after", "difference", "interval or p", ""]
    rows, previous = [], None
    for each in comparison.differences:
        shown = "" if each.name == previous else each.name
        previous = each.name
        rows.append([shown, _title(each), *_values(each), _doubt(each), each.verdict])
    return titles, rows


def _title(each: Difference) -> str:
    if each.metric in SCORE_TITLES:
        return SCORE_TITLES[each.metric]
    return f"{each.metric} {({'bytes': 'MB'}).get(each.unit, each.unit)}".strip()


def _values(each: Difference) -> list[str]:
    if each.metric in SCORE_TITLES:
        return [_percent(each.before), _percent(each.after), f"{100 * (each.after - each.before):+.2f}"]
    unit, suffix = (MEGABYTE, "") if each.unit == "bytes" else (1e6, "M") if each.metric == "parameters" else (1.0, "")
    ratio = "" if each.ratio is None else f"x {each.ratio:.3f}"
    return [_number(each.before, unit, suffix), _number(each.after, unit, suffix), ratio]


def _doubt(each: Difference) -> str:
    if each.p_value is not None:
        return f"p = {each.p_value:.3f}" if each.p_value >= 0.001 else "p < 0.001"
    return "" if each.low is None else f"{each.low:.3f} to {each.high:.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _number(value: float | None, unit: float = 1.0, suffix: str = "") -> str:
    """Three figures or so, in units."""
    if value is None:
        return ""
    scaled = value / unit
    return f"{scaled:,.{2 if abs(scaled) < 10 else 1 if abs(scaled) < 1000 else 0}f}{suffix}"


def footer(records: Sequence[BenchmarkRecord]) -> list[str]:
    """What the figures depend on, a line for each machine and software that they came from."""
    lines = []
    for each in records:
        m = each.machine
        others = [name for other, names in FRAMEWORKS.items() if other != each.framework for name in names]
        versions = ", ".join(
            f"{name} {version}"
            for name, version in m.get("versions", {}).items()
            if each.framework not in FRAMEWORKS or name not in others
        )
        environment = "".join(f"; {name}={value}" for name, value in m.get("environment", {}).items())
        latency = each.latency
        times = "" if latency.repeats == 1 else f", each {latency.repeats} times"
        lines.append(
            f"{each.examples} texts; latency of one text at a time over {latency.queries} of them{times}; "
            f"{m.get('cores')} cores of {m.get('processor')}, load {m.get('load')}; {each.framework or 'framework not known'}; "
            f"Python {m.get('python')}; {versions}{environment}; {each.date}"
        )
    return list(dict.fromkeys(lines))


def busy(records: Sequence[BenchmarkRecord]) -> list[str]:
    """A note for each machine that had other work when the clock started: more processes that want to run than cores."""
    found = []
    for each in records:
        cores, load = each.machine.get("cores"), each.machine.get("load")
        if cores and load and load > cores + 1:  # one is this process
            found.append(
                f"the load was {load} on {cores} cores ({each.date}): times are longer than on an idle machine"
            )
    return list(dict.fromkeys(found))


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown; the first columns are on the left."""
    lines = [[each.replace("|", "\\|") for each in row] for row in [titles, *rows]]
    lines.insert(1, ["---" if i < left else "---:" for i in range(len(titles))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_markdown(found: Sequence[BenchmarkRecord] | BenchmarkComparison) -> str:
    """Records or a comparison as a Markdown table, with what they depend on below."""
    if isinstance(found, BenchmarkComparison):
        return "\n".join([markdown(*rows_of_comparison(found), left=2), *(f"\n{note}" for note in found.notes)])
    return "\n".join([markdown(*rows_of(found)), *(f"\n{line}" for line in footer(found))])


def print_records(records: Sequence[BenchmarkRecord], console: Any = None) -> None:
    """Two tables on the terminal, scores and latency, then the rest, with what the figures depend on below."""
    console = console or _console()
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
        console.print(line, style="dim", markup=False, highlight=False)
    for each in busy(records):
        console.print(f"Note: {each}.", style="yellow", markup=False, highlight=False)


def print_comparison(comparison: BenchmarkComparison, console: Any = None) -> None:
    """A table on the terminal for each pair of models, with notes below."""
    console = console or _console()
    titles, rows = rows_of_comparison(comparison)
    colours = {BETTER: "green", WORSE: "bold red"}
    starts = [i for i, row in enumerate(rows) if row[0]] + [len(rows)]
    for start, end in itertools.pairwise(starts):
        console.print(rows[start][0], style="bold", markup=False, highlight=False)
        console.print(_table(titles[1:], [row[1:] for row in rows[start:end]], left=1, colours=colours))
        console.print()
    for note in comparison.notes:
        console.print(f"Note: {note}.", style="yellow", markup=False, highlight=False)


def _console():
    from rich.console import Console

    return Console()


def _table(titles, rows, left: int, colours=None):
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for number, title in enumerate(titles):
        for unit in UNITS:  # below the rest of the title: 80 columns are enough then
            title = title.removesuffix(f" {unit}") + f"\n{unit}" if title.endswith(f" {unit}") else title
        table.add_column(escape(title), justify="left" if number < left else "right", no_wrap=number >= left)
    for row in rows:
        colour = (colours or {}).get(row[-1])
        shown = [escape(text) for text in row]
        table.add_row(*shown[:-1], f"[{colour}]{shown[-1]}[/]" if colour else shown[-1])
    return table


def plot_records(
    records: Sequence[BenchmarkRecord],
    file: str | os.PathLike,
    *,
    title: str = "",
    score: str = "accuracy",
    reference: str | None = None,
) -> None:
    """Draws accuracy against median latency, each model a circle whose area is its size on disk, and saves the picture.

    After ``plot_metrics`` of the book's chapter 8. A thin line goes from the median to the 95th percentile.

    Args:
        file: a .png, .svg or .pdf file in a folder that is there.
        score: which of the scores.
        reference: the name of a record whose circle is dashed.

    Raises:
        InputError: no record, a score or a reference that they do not have, or a file that no picture can be saved to.
        MissingExtraError: matplotlib is not installed.
    """
    from duonlp.util.pictures import check_picture_file, picture, require_matplotlib

    file = Path(file)
    check_picture_file(file)
    names = [each.name for each in records]
    if not records:
        raise InputError("there is no record to draw; measure a model first")
    if reference is not None and reference not in names:
        raise InputError(f"the reference {reference!r} is not among the records: {', '.join(names)}")
    for each in records:
        if score not in each.scores:
            raise InputError(f"{each.name!r} has no {score!r}; it has {', '.join(each.scores)}")
    require_matplotlib("records are drawn")

    from duonlp.util.pictures import COLOURS

    largest = max((each.size or 0 for each in records), default=0)
    with picture(file, 8, 4.8) as figure:
        axes = figure.add_subplot()
        # the smallest circle in front, so that it is not hidden
        for number, each in sorted(enumerate(records), key=lambda pair: -(pair[1].size or 0)):
            colour = COLOURS[number % len(COLOURS)]
            x, y, area = each.latency.p50, 100 * each.scores[score], LARGEST_CIRCLE * (each.size or 0) / (largest or 1)
            axes.plot([x, each.latency.p95], [y, y], color=colour, linewidth=1, alpha=0.6, zorder=1)
            dashed = each.name == reference
            axes.scatter(
                [x], [y], s=max(area, 30), facecolor="none" if dashed else colour, alpha=1 if dashed else 0.45,
                edgecolor=colour, linestyle="--" if dashed else "-", linewidth=1.4, zorder=2,
            )  # fmt: skip
            axes.plot([x], [y], ".", color=colour, markersize=4, zorder=3)
            size = f"\n{_number(each.size, MEGABYTE)} MB" if each.size else ""
            above = (max(area, 30) ** 0.5) / 2 + 4  # points from the centre to beyond the circle
            axes.annotate(
                f"{each.name}{size}", (x, y), (0, above), textcoords="offset points", ha="center", va="bottom",
                fontsize=9, color=colour, zorder=4,
            )  # fmt: skip
        _scale(axes, records, score)
        if title:
            axes.set_title(title, fontsize=12)


def _scale(axes, records: Sequence[BenchmarkRecord], score: str) -> None:
    """Limits that leave room for circles and their names, and units."""
    highest = max(each.latency.p95 for each in records)
    values = [100 * each.scores[score] for each in records]
    room = max(max(values) - min(values), 2.0)
    axes.set_xlim(0, highest * 1.15)
    axes.set_ylim(min(values) - 0.35 * room, max(values) + 0.6 * room)
    axes.set_xlabel("latency of one text, ms: median, and line to the 95th percentile")
    axes.set_ylabel(f"{score.replace('_', ' ')}, %")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
