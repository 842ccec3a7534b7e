"""Learning curves: scores against the number of labeled texts, one line per method, over several seeds."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.errors import InputError
from duonlp.tasks.base import check_choice, describe

if TYPE_CHECKING:
    from rich.table import Table

SCORES = ("micro_f1", "macro_f1")
INTERVALS = ("range", "t")
WIDTH = 80
"""Columns of a terminal, and of what is written to a pipe."""

MARKERS = "os^Dv*PX"

T_QUANTILES = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314,
    2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
"""97.5% quantiles of Student's t with 1, 2 ... 30 degrees of freedom."""

NORMAL = 1.959964
"""The limit of T_QUANTILES."""


@dataclass(frozen=True)
class CurvePoint:
    """A score of one method at one size, over seeds.

    Attributes:
        size: Number of labeled texts.
        mean: Mean over seeds.
        low: Lower end of the interval, equal to the mean with one seed.
        high: Upper end of the interval.
        std: Sample standard deviation (n - 1 in the denominator), 0 with one seed.
        seeds: Number of seeds.
    """

    size: int
    mean: float
    low: float
    high: float
    std: float
    seeds: int


def learning_curves(
    records: Iterable[Mapping[str, Any]], score: str = "macro_f1", *, interval: str = "range"
) -> dict[str, list[CurvePoint]]:
    """Return the points of each method, by ascending size.

    Args:
        records: Results of runs, each with "method", "size" (the number of labeled texts; 0 for a method that needs none),
            "seed", and scores by name. A record without the score, or with None for it, is left out.
        score: Name of the score.
        interval: "range", from the lowest to the highest score of the seeds; or "t", the 95% confidence interval of the mean by
            Student's t, which assumes that scores are normally distributed and is wide for few seeds: the mean plus or minus
            2.5 standard deviations with three.

    Returns:
        {method: points}, methods in the order of their first records.

    Raises:
        InputError: No record has the score, a record is invalid, or two have the same method, size and seed.
    """
    check_choice("interval", interval, INTERVALS)
    values: dict[str, dict[int, list[float]]] = {}
    seen: set[tuple[Any, ...]] = set()
    for number, record in enumerate(records):
        run = _run_of(record, number)
        value = record.get(score)
        if value is None:
            continue
        is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise InputError(
                f"{score} of record {number} is {describe(value)}; it must be a finite number, or None to skip it"
            )
        if run in seen:
            raise InputError(f"two records have method {run[0]!r}, size {run[1]} and seed {run[2]}; give each run once")
        seen.add(run)
        values.setdefault(run[0], {}).setdefault(run[1], []).append(float(value))
    if not values:
        raise InputError(f"no record has a score {score!r}; give at least one, such as {_EXAMPLE}")
    return {
        method: [_point(size, np.array(sizes[size]), interval) for size in sorted(sizes)]
        for method, sizes in values.items()
    }


_EXAMPLE = {"method": "naive-bayes", "size": 8, "seed": 0, "macro_f1": 0.2}


def _run_of(record: Mapping[str, Any], number: int) -> tuple[str, int, Any]:
    """Return the method, the size and the seed of a record."""
    if not isinstance(record, Mapping) or not {"method", "size", "seed"} <= set(record):
        raise InputError(f"record {number} is {describe(record)}; give objects such as {_EXAMPLE}")
    method, size, seed = record["method"], record["size"], record["seed"]
    if not isinstance(method, str) or not method:
        raise InputError(f"method of record {number} is {describe(method)}; it must be a name")
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 0:
        raise InputError(
            f"size of record {number} is {describe(size)}; it must be a number of labeled texts, 0 or more"
        )
    if not isinstance(seed, (int, np.integer, str, type(None))):
        raise InputError(f"seed of record {number} is {describe(seed)}; it must be an integer")
    return method, int(size), seed


def _point(size: int, values: np.ndarray, interval: str) -> CurvePoint:
    count, mean = len(values), float(values.mean())
    std = float(values.std(ddof=1)) if count > 1 else 0.0
    low, high = float(values.min()), float(values.max())
    if interval == "t":
        half = _t_quantile(count - 1) * std / math.sqrt(count) if count > 1 else 0.0
        low, high = mean - half, mean + half
    return CurvePoint(size, mean, min(low, mean), max(high, mean), std, count)


def _t_quantile(freedom: int) -> float:
    """Return the 97.5% quantile of Student's t, beyond the table by two terms of its Cornish-Fisher expansion."""
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    z = NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def summarize_runs(records: Iterable[Mapping[str, Any]], scores: Sequence[str] = SCORES) -> list[dict[str, Any]]:
    """Return the mean and the spread of each score by method and size.

    Args:
        records: As for :func:`learning_curves`.
        scores: Names of the scores.

    Returns:
        Rows with "method", "size", and for each score {"mean", "std", "min", "max", "seeds"} under its name, None for a score
        that no run has.

    Raises:
        InputError: As for :func:`learning_curves`.
    """
    records = list(records)
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for record in (_run_of(record, number) for number, record in enumerate(records)):
        rows.setdefault(record[:2], {"method": record[0], "size": record[1]} | dict.fromkeys(scores))
    for score in scores:
        for method, points in learning_curves(records, score).items():
            for point in points:
                rows[method, point.size][score] = {
                    "mean": point.mean, "std": point.std, "min": point.low, "max": point.high, "seeds": point.seeds,
                }  # fmt: skip
    order = {method: place for place, (method, _) in enumerate(dict.fromkeys((key[0], None) for key in rows))}
    return [rows[key] for key in sorted(rows, key=lambda key: (order[key[0]], key[1]))]


def learning_curve_scores(records: Iterable[Mapping[str, Any]], score: str = "macro_f1") -> "Table":
    """Return a rich table of a score with a row per method and a column per size: mean ± standard deviation over seeds.

    Where that would be wider than 80 columns, the deviation is below the mean.

    Args:
        records: As for :func:`learning_curves`.
        score: Name of the score.

    Raises:
        InputError: As for :func:`learning_curves`.
    """
    from rich.table import Table
    from rich.text import Text

    curves = learning_curves(records, score)
    sizes = sorted({point.size for points in curves.values() for point in points})
    longest = max(map(len, [*curves, _heading(score)]))
    is_wide = longest + len(sizes) * len("  0.500 ± 0.500") > WIDTH
    between = "\n±" if is_wide else " ± "
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(_heading(score), overflow="fold", min_width=min(longest, WIDTH // 3))
    for size in sizes:
        table.add_column(f"{size:,}", justify="right", no_wrap=True)
    for method, points in curves.items():
        cells = {point.size: f"{point.mean:.3f}" + f"{between}{point.std:.3f}" * (point.seeds > 1) for point in points}
        table.add_row(Text(method), *(cells.get(size, "") for size in sizes))
    return table


def _heading(score: str) -> str:
    return score.replace("_", " ").replace("f1", "F1")


def learning_curve_plot(
    records: Iterable[Mapping[str, Any]],
    file: str | os.PathLike,
    *,
    scores: Sequence[str] = SCORES,
    interval: str = "range",
    title: str = "",
) -> None:
    """Plot scores against the number of labeled texts, with a panel per score and a line per method.

    The axis of sizes is logarithmic, with a tick at each size. Lines are means over seeds and shaded areas their intervals. A
    method that has only runs of size 0, which needs no labeled texts, is a dashed horizontal line.

    Args:
        records: As for :func:`learning_curves`.
        file: A .png, .svg or .pdf file in an existing folder.
        scores: Names of the scores; a panel for each, side by side.
        interval: "range" or "t", as for :func:`learning_curves`.
        title: Title above the figure.

    Raises:
        InputError: The records are invalid, or the file format is unsupported, or the folder does not exist.
        MissingExtraError: matplotlib is not installed.
    """
    from duonlp.util.pictures import COLOURS, check_picture_file, picture, require_matplotlib

    file, records = Path(file), list(records)
    check_picture_file(file)
    if isinstance(scores, str) or not scores:
        raise InputError(f"scores is {scores!r}; give a list of names, such as {list(SCORES)}")
    panels = {score: learning_curves(records, score, interval=interval) for score in scores}
    require_matplotlib("learning curves are plotted")
    styles = {
        method: {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number // len(COLOURS) % len(MARKERS)]}
        for number, method in enumerate(dict.fromkeys(method for curves in panels.values() for method in curves))
    }
    with picture(file, 5.2 * len(panels), 4.6 + 0.2 * (len(styles) // 4)) as figure:
        handles: dict[str, Any] = {}
        for axes, (score, curves) in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items()
        ):
            for method, points in curves.items():
                handles.setdefault(method, _draw_method(axes, points, styles[method]))
            _scale_sizes(axes, sorted({point.size for points in curves.values() for point in points if point.size}))
            axes.set(xlabel="labeled texts", ylabel=_heading(score))
        # matplotlib hides labels with a leading underscore
        names = [f" {method}" if method.startswith("_") else method for method in handles]
        figure.legend(
            handles.values(), names, loc="outside lower center", ncols=min(len(names), 4), fontsize=9, frameon=False
        )
        if title:
            figure.suptitle(title, fontsize=12)


def _draw_method(axes: Any, points: Sequence[CurvePoint], style: Mapping[str, Any]) -> Any:
    """Draw the line of a method and its interval, and return what the legend shows."""
    color, sized = style["color"], [point for point in points if point.size]
    if not sized:  # a method without labeled texts
        axes.axhspan(points[0].low, points[0].high, color=color, alpha=0.12, linewidth=0)
        return axes.axhline(points[0].mean, color=color, linestyle="--", linewidth=1.6)
    sizes = [point.size for point in sized]
    axes.fill_between(
        sizes, [point.low for point in sized], [point.high for point in sized], color=color, alpha=0.15, linewidth=0
    )
    return axes.plot(sizes, [point.mean for point in sized], linewidth=1.8, markersize=5, **style)[0]


def _scale_sizes(axes: Any, sizes: Sequence[int]) -> None:
    """Make the axis of sizes logarithmic to base 2, with a tick at each size that has room for its number."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    if sizes:
        axes.set_xscale("log", base=2)
        shown = [size for size, after in zip(sizes, [*sizes[1:], math.inf]) if after / size > 1.15]
        axes.xaxis.set_major_locator(FixedLocator(shown))
        axes.xaxis.set_major_formatter(FixedFormatter([f"{size:,}" for size in shown]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
        axes.tick_params(axis="x", labelsize=9, rotation=45 if len(shown) > 8 else 0)
    else:
        axes.set_xticks([])
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
