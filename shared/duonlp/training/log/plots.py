"""Plots of the loss over training tokens, for one or more runs."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from duonlp.errors import InputError
from duonlp.training.log.metrics_file import EVALUATION, STEP, read_metrics
from duonlp.util.pictures import COLOURS, check_picture_file, picture, require_matplotlib, ticks

Run: TypeAlias = str | os.PathLike | Sequence[Mapping[str, Any]]
"""A metrics.jsonl, the folder that contains it, or its records."""


def plot_loss(
    runs: Run | Sequence[Run] | Mapping[str, Run],
    file: str | os.PathLike,
    *,
    title: str = "",
    smoothing: float = 0.1,
    log_axes: bool = True,
    evaluation: str | None = None,
) -> None:
    """Plot the loss over tokens on logarithmic axes and save the figure.

    Each run has its steps as faint points, their moving average, and its held-out evaluations as points. The right-hand axis
    shows the perplexity. Crosses at the bottom mark non-finite losses.

    Args:
        runs: A metrics.jsonl, the folder that contains it, or records from :func:`read_metrics`; several as a list (named
            after their folders) or as a mapping by name.
        file: Output file: .png, .svg or .pdf, in an existing folder.
        title: Title of the plot.
        smoothing: Width of the moving average: each point averages the steps whose token counts are within this share of its
            own, either way. 0 for no curve.
        log_axes: Whether the axes are logarithmic rather than linear.
        evaluation: "name" of the evaluations to plot; None for those without a name.

    Raises:
        InputError: A run has nothing to plot, or `file` or `smoothing` is invalid.
        MissingExtraError: matplotlib is not installed.
    """
    file, runs = Path(file), name_runs(runs)
    check_picture_file(file)
    if not 0 <= smoothing < 1:
        raise InputError(f"smoothing is {smoothing}; it must be in [0, 1)")
    require_matplotlib("losses are plotted")

    curves = {name: Points(name, run, evaluation, log_axes) for name, run in runs.items()}
    with picture(file, 8, 4.8) as figure:
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(curves.items()):
            draw_run(axes, points, name, COLOURS[number % len(COLOURS)], smoothing, only=len(curves) == 1)
        scale_axes(axes, curves.values(), log_axes)
        if title:
            axes.set_title(title, fontsize=12)
        axes.legend(fontsize=9, loc="upper right", framealpha=0.85, edgecolor="none")


class Points:
    """The points of one run to plot.

    Args:
        name: Name of the run, for error messages.
        run: A metrics.jsonl, the folder that contains it, or its records.
        evaluation: "name" of the evaluations; None for those without a name.
        log_axes: Whether only positive losses can be plotted.

    Attributes:
        tokens: float [n], tokens at the steps with a finite loss.
        losses: float [n], their losses.
        broken: float [m], tokens at the steps with a non-finite loss.
        held_out_tokens: float [k], tokens at the evaluations.
        held_out: float [k], their losses.

    Raises:
        InputError: There is nothing to plot.
    """

    def __init__(self, name: str, run: Run, evaluation: str | None, log_axes: bool):
        records = read_metrics(run) if isinstance(run, (str, os.PathLike)) else list(run)
        lower_bound = 0.0 if log_axes else -math.inf

        def columns(kind: str, label: str | None) -> np.ndarray:
            pairs = [
                (record["tokens"], record["loss"])
                for record in records
                if record.get("kind", STEP) == kind and record.get("name") == label
                and "loss" in record and record.get("tokens", 0) > 0
            ]  # fmt: skip
            array = np.array(pairs, float).reshape(-1, 2)
            return array[np.argsort(array[:, 0], kind="stable")].T  # [2, records]

        tokens, losses = columns(STEP, None)
        drawable = np.isfinite(losses) & (losses > lower_bound)
        self.tokens, self.losses, self.broken = tokens[drawable], losses[drawable], tokens[~np.isfinite(losses)]
        tokens, losses = columns(EVALUATION, evaluation)
        drawable = np.isfinite(losses) & (losses > lower_bound)
        self.held_out_tokens, self.held_out = tokens[drawable], losses[drawable]
        if not self.tokens.size and not self.held_out.size:
            raise InputError(f"the run {name!r} has no loss to plot in its {len(records)} records")


def name_runs(runs: Run | Sequence[Run] | Mapping[str, Run]) -> dict[str, Run]:
    """Return runs by name: files are named after their folders, records without a file by their number.

    Raises:
        InputError: There are no runs.
    """
    if isinstance(runs, Mapping):
        named = dict(runs)
    else:
        is_single = isinstance(runs, (str, os.PathLike)) or (len(runs) and isinstance(runs[0], Mapping))
        named: dict[str, Run] = {}
        for number, run in enumerate(cast(Sequence[Run], [runs] if is_single else runs), 1):
            name = f"run {number}"
            if isinstance(run, (str, os.PathLike)):
                path = Path(run).absolute()
                name = path.name if path.is_dir() else path.parent.name
            while name in named:
                name += f" ({number})"
            named[name] = run
    if not named:
        raise InputError("there are no runs to plot; give at least one metrics.jsonl")
    return named


def smooth(tokens: np.ndarray, losses: np.ndarray, share: float) -> np.ndarray:
    """Return the moving average of losses over tokens.

    Args:
        tokens: float [n], ascending.
        losses: float [n].
        share: Each window is from ``tokens * (1 - share)`` to ``tokens / (1 - share)``.

    Returns:
        float [n].
    """
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    low = np.searchsorted(tokens, tokens * (1 - share), side="left")
    high = np.searchsorted(tokens, tokens / (1 - share), side="right")
    return (sums[high] - sums[low]) / (high - low)


def draw_run(axes: Any, points: Points, name: str, color: str, smoothing: float, only: bool) -> None:
    """Draw one run: its steps, their moving average, its evaluations, and marks at non-finite losses.

    Args:
        axes: matplotlib axes.
        points: Points of the run.
        name: Name of the run in the legend.
        color: Color of the run.
        smoothing: As for :func:`plot_loss`.
        only: Whether it is the only run, so that its name is not shown.
    """
    tokens, losses = points.tokens, points.losses
    name = f" {name}" if name.startswith("_") else name  # matplotlib hides labels with a leading underscore
    label = "training" if only else name
    if tokens.size:
        axes.plot(
            tokens, losses, ".", color=color, alpha=0.22, markersize=3, markeredgewidth=0, zorder=1,
            label=None if smoothing else label, rasterized=True,
        )  # fmt: skip
        if smoothing:
            axes.plot(tokens, smooth(tokens, losses, smoothing), color=color, linewidth=1.8, zorder=2, label=label)
    if points.held_out.size:
        last = f"held-out: {points.held_out[-1]:.3f} at the end"
        axes.plot(
            points.held_out_tokens, points.held_out, "o", color=COLOURS[1] if only else color, markersize=5,
            markeredgecolor="white", markeredgewidth=0.8, zorder=3, label=last if only else f"{name}, {last}",
        )  # fmt: skip
    if points.broken.size:
        axes.plot(
            points.broken, np.full(points.broken.shape, 0.02), "x", color=color, markersize=5,
            transform=axes.get_xaxis_transform(), label="non-finite loss" if only else f"{name}, non-finite loss",
        )  # fmt: skip


def scale_axes(axes: Any, curves: Iterable[Points], log_axes: bool) -> None:
    """Set the scales, limits, ticks and labels of the axes, and add the perplexity axis.

    Args:
        axes: matplotlib axes.
        curves: Points of all runs.
        log_axes: Whether the axes are logarithmic.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    curves = list(curves)
    tokens = np.concatenate([part for points in curves for part in (points.tokens, points.held_out_tokens)])
    losses = np.concatenate([part for points in curves for part in (points.losses, points.held_out)])
    if log_axes:
        axes.set(xscale="log", yscale="log")
        for axis, values in ((axes.xaxis, tokens), (axes.yaxis, losses)):
            low, high = float(values.min()), float(values.max())
            margin = (high / low) ** 0.03 if high > low else 1.2
            axis.axes.set(**{f"{axis.axis_name}lim": (low / margin, high * margin)})
            axis.set_major_locator(FixedLocator(ticks(low / margin, high * margin)))
            axis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: format_count(value))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="tokens seen", ylabel="loss (nats per token)")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines["top"].set_visible(False)
    # The same scale, labeled as perplexity.
    right = axes.twinx()
    right.set(yscale=axes.get_yscale(), ylim=axes.get_ylim(), ylabel="perplexity (per token)")
    low, high = axes.get_ylim()
    marks = [mark for mark in ticks(math.exp(max(min(low, 100), 0)), math.exp(min(high, 100))) if mark > 1]
    right.yaxis.set_major_locator(FixedLocator([math.log(mark) for mark in marks]))
    right.yaxis.set_minor_locator(NullLocator())
    right.yaxis.set_major_formatter(lambda value, _: format_count(math.exp(value)))
    right.spines["top"].set_visible(False)


def format_count(value: float) -> str:
    """Format a count with its unit: 500, 20K, 1.5M, 3B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size * 0.9999:
            return f"{value / size:.4g}{unit}"
    return f"{value:.3g}"
