"""The loss of one or more runs against the tokens they saw, as a picture."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.training.log.metrics_file import EVALUATION, STEP, read_metrics
from duonlp.util.pictures import COLOURS, check_picture_file, picture, require_matplotlib, ticks

Run = str | os.PathLike | Sequence[Mapping[str, Any]]
"""A metrics.jsonl, the folder it is in, or its records."""


def plot_loss(
    runs: Run | Sequence[Run] | Mapping[str, Run],
    file: str | os.PathLike,
    *,
    title: str = "",
    smoothing: float = 0.1,
    log_axes: bool = True,
    evaluation: str | None = None,
) -> None:
    """Draws loss against tokens, both on logarithmic axes, and saves the picture.

    Each run has its steps, faint; their mean over a span of tokens that is the same width everywhere on the axis; and
    its held-out evaluations as points. The right-hand axis has the perplexity. Losses that are not finite are marked
    with crosses below.

    Args:
        runs: a metrics.jsonl, the folder it is in, or records as :func:`read_metrics` gives them; several as a list,
            named after their folders, or by name.
        file: a .png, .svg or .pdf file in a folder that is there.
        title: above the picture.
        smoothing: the curve is the mean of the steps whose tokens are within this share of its own, either way; 0 for
            no curve.
        log_axes: False for linear ones.
        evaluation: the "name" of the evaluations to draw; None for those that have none.

    Raises:
        InputError: a run without a step that can be drawn, an unknown kind of file, or a folder that is not there.
        MissingExtraError: matplotlib is not installed.
    """
    file, runs = Path(file), named(runs)
    check_picture_file(file)
    if not 0 <= smoothing < 1:
        raise InputError(f"smoothing is {smoothing}; it must be a share from 0 to below 1")
    require_matplotlib("losses are plotted")

    curves = {name: Points(name, run, evaluation, log_axes) for name, run in runs.items()}
    with picture(file, 8, 4.8) as figure:
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(curves.items()):
            draw(axes, points, name, COLOURS[number % len(COLOURS)], smoothing, only=len(curves) == 1)
        scale(axes, curves.values(), log_axes)
        if title:
            axes.set_title(title, fontsize=12)
        axes.legend(fontsize=9, loc="upper right", framealpha=0.85, edgecolor="none")


class Points:
    """What is drawn of one run: float arrays of tokens and losses of its steps and of its evaluations."""

    def __init__(self, name: str, run: Run, evaluation: str | None, log_axes: bool):
        records = read_metrics(run) if isinstance(run, (str, os.PathLike)) else list(run)
        least = 0.0 if log_axes else -math.inf

        def columns(kind: str, label: str | None):
            pairs = [
                (record["tokens"], record["loss"])
                for record in records
                if record.get("kind", STEP) == kind and record.get("name") == label
                and "loss" in record and record.get("tokens", 0) > 0
            ]  # fmt: skip
            array = np.array(pairs, float).reshape(-1, 2)
            return array[np.argsort(array[:, 0], kind="stable")].T

        tokens, losses = columns(STEP, None)
        drawable = np.isfinite(losses) & (losses > least)
        self.tokens, self.losses, self.broken = tokens[drawable], losses[drawable], tokens[~np.isfinite(losses)]
        tokens, losses = columns(EVALUATION, evaluation)
        drawable = np.isfinite(losses) & (losses > least)
        self.held_out_tokens, self.held_out = tokens[drawable], losses[drawable]
        if not self.tokens.size and not self.held_out.size:
            raise InputError(f"the run {name!r} has no loss that can be drawn in its {len(records)} records")


def named(runs: Run | Sequence[Run] | Mapping[str, Run]) -> dict[str, Run]:
    """Runs by name: files by their folder's, records without one by their number."""
    if isinstance(runs, Mapping):
        found = dict(runs)
    else:
        one = isinstance(runs, (str, os.PathLike)) or (len(runs) and isinstance(runs[0], Mapping))
        found = {}
        for number, run in enumerate([runs] if one else runs, 1):
            name = f"run {number}"
            if isinstance(run, (str, os.PathLike)):
                path = Path(run).absolute()
                name = path.name if path.is_dir() else path.parent.name
            while name in found:
                name += f" ({number})"
            found[name] = run
    if not found:
        raise InputError("there is no run to draw; give at least one metrics.jsonl")
    return found


def smooth(tokens: np.ndarray, losses: np.ndarray, share: float) -> np.ndarray:
    """At each point, the mean of the losses from `tokens * (1 - share)` to `tokens / (1 - share)`. float [n] -> [n]."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    low = np.searchsorted(tokens, tokens * (1 - share), side="left")
    high = np.searchsorted(tokens, tokens / (1 - share), side="right")
    return (sums[high] - sums[low]) / (high - low)


def draw(axes, points: Points, name: str, colour: str, smoothing: float, only: bool) -> None:
    """One run: its steps, their mean, its evaluations, and where its loss was no number."""
    tokens, losses = points.tokens, points.losses
    name = f" {name}" if name.startswith("_") else name  # matplotlib hides what starts with an underscore
    label = "training" if only else name
    if tokens.size:
        axes.plot(
            tokens, losses, ".", color=colour, alpha=0.22, markersize=3, markeredgewidth=0, zorder=1,
            label=None if smoothing else label, rasterized=True,
        )  # fmt: skip
        if smoothing:
            axes.plot(tokens, smooth(tokens, losses, smoothing), color=colour, linewidth=1.8, zorder=2, label=label)
    if points.held_out.size:
        last = f"held out: {points.held_out[-1]:.3f} at the end"
        axes.plot(
            points.held_out_tokens, points.held_out, "o", color=COLOURS[1] if only else colour, markersize=5,
            markeredgecolor="white", markeredgewidth=0.8, zorder=3, label=last if only else f"{name}, {last}",
        )  # fmt: skip
    if points.broken.size:
        axes.plot(
            points.broken, np.full(points.broken.shape, 0.02), "x", color=colour, markersize=5,
            transform=axes.get_xaxis_transform(), label="loss not finite" if only else f"{name}, loss not finite",
        )  # fmt: skip


def scale(axes, curves: Iterable[Points], log_axes: bool) -> None:
    """Axes, their ticks and their units."""
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
    axes.xaxis.set_major_formatter(lambda value, _: counted(value))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="tokens seen", ylabel="loss (nats per token)")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines["top"].set_visible(False)
    # The same heights, read as a perplexity.
    right = axes.twinx()
    right.set(yscale=axes.get_yscale(), ylim=axes.get_ylim(), ylabel="perplexity (per token)")
    low, high = axes.get_ylim()
    marks = [mark for mark in ticks(math.exp(max(min(low, 100), 0)), math.exp(min(high, 100))) if mark > 1]
    right.yaxis.set_major_locator(FixedLocator([math.log(mark) for mark in marks]))
    right.yaxis.set_minor_locator(NullLocator())
    right.yaxis.set_major_formatter(lambda value, _: counted(math.exp(value)))
    right.spines["top"].set_visible(False)


def counted(value: float) -> str:
    """A count with its unit: 500, 20K, 1.5M, 3B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size * 0.9999:
            return f"{value / size:.4g}{unit}"
    return f"{value:.3g}"
