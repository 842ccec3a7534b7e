"""Draw scores of several systems side by side, as bars with confidence intervals."""

import os
from collections.abc import Mapping
from pathlib import Path

from duonlp.errors import InputError
from duonlp.metrics.bootstrap import Score


def plot_bars(
    systems: Mapping[str, Mapping[str, Score]], file: str | os.PathLike, *, title: str = "", caption: str = "",
    highest: float = 100.0,
) -> None:  # fmt: skip
    """Plot a group of bars per score, with one bar per system, its value above it and its interval as a line.

    Args:
        systems: {system: {score: Score}}; all systems have the same scores. A bound of None draws no interval.
        file: A .png, .svg or .pdf file in an existing folder.
        title: Title above the figure.
        caption: Label of the value axis, such as "percent, 95% intervals".
        highest: Best possible score, where the axis ends at the latest.

    Raises:
        InputError: There is nothing to plot, the file format is unsupported, or the folder does not exist.
        MissingExtraError: matplotlib is not installed.
    """
    from duonlp.util.pictures import COLOURS, check_picture_file, picture, require_matplotlib

    file = Path(file)
    check_picture_file(file)
    require_matplotlib("scores are plotted")
    names = list(next(iter(systems.values()), {}))
    if not names:
        raise InputError("there are no scores to plot; give at least one system with one score")
    width = 0.82 / len(systems)
    with picture(file, 1.8 + len(names) * max(1.1, 0.62 * len(systems)), 4.2) as figure:
        axes = figure.add_subplot()
        for number, (system, scores) in enumerate(systems.items()):
            places = [place - 0.41 + width * (number + 0.5) for place in range(len(names))]
            values = [scores[name].value for name in names]
            errors = [[_distance(scores[name], side) for name in names] for side in (0, 2)]
            bars = axes.bar(
                places, values, width * 0.9, yerr=errors, capsize=3, color=COLOURS[number % len(COLOURS)], label=system,
                error_kw={"elinewidth": 1, "ecolor": "#333333"},
            )  # fmt: skip
            axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=2, fontsize=8)
        axes.set_xticks(range(len(names)), names)
        tops = [score.value if score.high is None else score.high for row in systems.values() for score in row.values()]
        axes.set_ylim(0, min(1.25 * max(tops) or highest, 1.08 * highest))
        axes.set_ylabel(caption, fontsize=9)
        axes.grid(axis="y", alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=min(len(systems), 3), fontsize=9, frameon=False)
        if title:
            axes.set_title(title, fontsize=12)


def _distance(score: Score, side: int) -> float:
    """Return how far the lower (0) or upper (2) bound of the interval is from the value; 0 without an interval."""
    bound = score[side]
    return 0.0 if bound is None else abs(bound - score.value)
