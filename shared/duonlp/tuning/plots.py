"""Plots of a search: history, importance of the settings, results by setting, and the Pareto front.

Optuna's own plots change matplotlib's style for the whole process and omit pruned trials.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from duonlp.errors import InputError
from duonlp.tuning.search_space import Choices, Objective, Space
from duonlp.tuning.study import COMPLETE, FAILED, PRUNED, TrialRecord
from duonlp.util.pictures import COLOURS, check_picture_file, picture, ticks

BLUE, ORANGE, GREY = COLOURS[0], COLOURS[1], COLOURS[5]
UNITS = {"latency": "latency (ms)", "latency_p95": "latency, 95th percentile (ms)", "seconds": "training (s)"}


def plot_history(trials: Sequence[TrialRecord], objectives: Sequence[Objective], file: str | Path) -> None:
    """Plot the results in order of the trials, and the best result so far; one panel per objective.

    Pruned trials are shown at their last evaluation, failed ones at the bottom.

    Args:
        trials: Finished trials.
        objectives: The objectives.
        file: A .png, .svg or .pdf file in an existing folder.

    Raises:
        InputError: No trial is complete, or the file cannot be written.
    """
    complete = _complete(trials)
    with _figure(file, 8, 1 + 3.2 * len(objectives)) as figure:
        for panel, objective in enumerate(objectives):
            axes = figure.add_subplot(len(objectives), 1, panel + 1)
            values = [t.results[objective.name] for t in complete]
            axes.plot([t.number for t in complete], values, "o", color=BLUE, alpha=0.6, markersize=5, label="complete")
            best, line = None, []
            for value in values:
                best = value if best is None else max(best, value) if objective.greater else min(best, value)
                line.append(best)
            numbers = [t.number for t in complete] + [max(t.number for t in trials)]
            axes.step(numbers, [*line, best], where="post", color=ORANGE, linewidth=1.6, label=f"best: {best:.4g}")
            pruned = [t for t in trials if t.state == PRUNED and t.evaluations and panel == 0]
            if pruned:
                last = [t.evaluations[max(t.evaluations)] for t in pruned]
                axes.plot([t.number for t in pruned], last, "x", color=GREY, markersize=5, label="pruned, last value")
            failed = [t.number for t in trials if t.state == FAILED]
            if failed:
                axes.plot(
                    failed, [0.03] * len(failed), "v", color=ORANGE, markersize=6, label="failed",
                    transform=axes.get_xaxis_transform(),
                )  # fmt: skip
            axes.xaxis.get_major_locator().set_params(integer=True)
            _label(axes, "trial", axis_label(objective.name))
            axes.legend(fontsize=9, framealpha=0.85, edgecolor="none")


def plot_importance(importance: Mapping[str, Mapping[str, float]], file: str | Path) -> None:
    """Plot the importance of each setting as bars, one color per objective.

    Args:
        importance: {objective: {setting: share}}, see :class:`TuningResult`.
        file: A .png, .svg or .pdf file in an existing folder.

    Raises:
        InputError: There are no importances, or the file cannot be written.
    """
    if not importance:
        raise InputError("no importances to plot; they need more completed trials")
    first = next(iter(importance.values()))
    names = sorted(first, key=lambda name: sum(shares[name] for shares in importance.values()))
    with _figure(file, 8, 1.4 + 0.5 * len(names) * len(importance) ** 0.5) as figure:
        axes = figure.add_subplot()
        height = 0.8 / len(importance)
        for number, (name, shares) in enumerate(importance.items()):
            places = [place + 0.4 - height * (number + 0.5) for place in range(len(names))]
            bars = axes.barh(
                places,
                [shares[setting] for setting in names],
                height * 0.92,
                color=COLOURS[number],
                label=f"for {name}",
            )
            axes.bar_label(bars, [f"{shares[setting]:.0%}" for setting in names], padding=3, fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlim(0, 1.1 * max(max(shares.values()) for shares in importance.values()) or 1)
        _label(axes, "importance for being among the best (PED-ANOVA)", "")
        axes.grid(visible=False, axis="y")
        axes.legend(fontsize=9, loc="lower right", framealpha=0.85, edgecolor="none")


def plot_slices(trials: Sequence[TrialRecord], objectives: Sequence[Objective], space: Space, file: str | Path) -> None:
    """Plot the results against each setting, one panel per setting and one row per objective; later trials are darker.

    Args:
        trials: Finished trials.
        objectives: The objectives.
        space: The search space.
        file: A .png, .svg or .pdf file in an existing folder.

    Raises:
        InputError: No trial is complete, or the file cannot be written.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    complete = _complete(trials)
    columns = min(len(space), 4)
    rows = math.ceil(len(space) / columns)
    drawn: Any = None
    with _figure(file, 0.8 + 2.9 * columns, 0.6 + 2.7 * rows * len(objectives)) as figure:
        for row, objective in enumerate(objectives):
            values = [t.results[objective.name] for t in complete]
            first = None
            for place, (name, dimension) in enumerate(space.items()):
                axes = figure.add_subplot(
                    rows * len(objectives), columns, row * rows * columns + place + 1, sharey=first
                )
                first = first or axes
                settings = [t.parameters[name] for t in complete]
                if isinstance(dimension, Choices):
                    labels = [str(dimension.label(choice)) for choice in dimension.choices]
                    settings = [labels.index(str(dimension.label(setting))) for setting in settings]
                    axes.set_xticks(range(len(labels)), labels, fontsize=8)
                    axes.set_xlim(-0.5, len(labels) - 0.5)
                elif dimension.log:
                    axes.set_xscale("log")
                    axes.xaxis.set_major_locator(FixedLocator(ticks(dimension.low, dimension.high, most=4)))
                    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
                    axes.xaxis.set_minor_locator(NullLocator())
                    axes.set_xlim(dimension.low / 1.2, dimension.high * 1.2)
                elif dimension.whole:
                    axes.xaxis.get_major_locator().set_params(integer=True)
                drawn = axes.scatter(
                    settings, values, c=[t.number for t in complete], cmap="Blues", vmin=-len(trials) / 3,
                    vmax=max(1, len(trials) - 1), s=28,
                    edgecolors=BLUE, linewidths=0.6, zorder=2,
                )  # fmt: skip
                best = (max if objective.greater else min)(range(len(values)), key=values.__getitem__)
                axes.plot(settings[best], values[best], "o", color=ORANGE, markersize=7, zorder=3)
                _label(axes, name, axis_label(objective.name) if place % columns == 0 else "")
                axes.tick_params(labelleft=place % columns == 0)
        bar = figure.colorbar(drawn, ax=figure.axes, label="trial", shrink=0.8)
        bar.ax.yaxis.get_major_locator().set_params(integer=True)
        bar.ax.set_ylim(0, max(1, len(trials) - 1))


def plot_pareto(
    trials: Sequence[TrialRecord], best: Sequence[TrialRecord], objectives: Sequence[Objective], file: str | Path
) -> None:
    """Plot the first objective against the second, with the Pareto front.

    Args:
        trials: Finished trials.
        best: Trials of the front.
        objectives: At least two objectives.
        file: A .png, .svg or .pdf file in an existing folder.

    Raises:
        InputError: There are fewer than two objectives, no trial is complete, or the file cannot be written.
    """
    if len(objectives) < 2:
        raise InputError(f"a Pareto front needs at least two objectives, got only {objectives[0].name}")
    complete = _complete(trials)
    y, x = objectives[0], objectives[1]
    on_front = {trial.number for trial in best}
    with _figure(file, 7.5, 5) as figure:
        axes = figure.add_subplot()
        rest = [t for t in complete if t.number not in on_front]
        axes.plot(
            [t.results[x.name] for t in rest], [t.results[y.name] for t in rest], "o", color=BLUE, alpha=0.35,
            markersize=5, label="complete",
        )  # fmt: skip
        edge = sorted(best, key=lambda t: (t.results[x.name], t.results[y.name]))
        points = [t.results[x.name] for t in edge], [t.results[y.name] for t in edge]
        line = (
            "o-" if len(objectives) == 2 else "o"
        )  # with more than two objectives the front is not a line in this plane
        axes.plot(*points, line, color=ORANGE, linewidth=1.2, markersize=6, drawstyle="default", label="front")
        for trial in edge:
            at = trial.results[x.name], trial.results[y.name]
            axes.annotate(str(trial.number), at, xytext=(4, 5), textcoords="offset points", fontsize=8, color=ORANGE)
        _label(axes, axis_label(x.name), axis_label(y.name))
        axes.legend(fontsize=9, framealpha=0.85, edgecolor="none")


def axis_label(objective: str) -> str:
    """Return the axis label of an objective, with its unit."""
    return UNITS.get(objective, objective)


def _figure(file: str | Path, width: float, height: float) -> AbstractContextManager[Any]:
    check_picture_file(Path(file))
    return picture(Path(file), width, height)


def _short(value: float) -> str:
    """Format a tick label; small numbers in scientific notation without padding, such as 5e-4."""
    digits, power = f"{value:.2e}".split("e")
    return f"{value:g}" if value >= 0.001 else f"{float(digits):g}e{int(power)}"


def _label(axes: Any, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _complete(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    complete = [trial for trial in trials if trial.state == COMPLETE]
    if not complete:
        raise InputError(f"none of {len(trials)} trials is complete; there is nothing to plot")
    return complete
