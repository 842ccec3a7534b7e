"""Pictures of a search: how it went, which settings mattered, where they were good, and the front of several objectives.

Drawn here rather than by Optuna, whose pictures change matplotlib's style for the whole process and leave pruned trials out.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from duonlp.errors import InputError
from duonlp.tuning.search_space import Objective, Space
from duonlp.tuning.study import COMPLETE, FAILED, PRUNED, TrialRecord
from duonlp.util.pictures import COLOURS, check_picture_file, picture, ticks

BLUE, ORANGE, GREY = COLOURS[0], COLOURS[1], COLOURS[5]
UNITS = {"latency": "latency (ms)", "latency_p95": "latency, 95th percentile (ms)", "seconds": "training (s)"}


def plot_history(trials: Sequence[TrialRecord], objectives: Sequence[Objective], file: str | Path) -> None:
    """Each trial's result, in the order of the trials, and the best up to there; a panel for each objective.

    Pruned trials are at their last evaluation, failed ones at the bottom.

    Raises:
        InputError: no trial is complete, or a file that no picture can be saved to.
    """
    complete = _complete(trials)
    with _figure(file, 8, 1 + 3.2 * len(objectives)) as figure:
        for panel, each in enumerate(objectives):
            axes = figure.add_subplot(len(objectives), 1, panel + 1)
            values = [t.results[each.name] for t in complete]
            axes.plot([t.number for t in complete], values, "o", color=BLUE, alpha=0.6, markersize=5, label="complete")
            best, line = None, []
            for value in values:
                best = value if best is None else max(best, value) if each.greater else min(best, value)
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
            _label(axes, "trial", named(each.name))
            axes.legend(fontsize=9, framealpha=0.85, edgecolor="none")


def plot_importance(importance: Mapping[str, Mapping[str, float]], file: str | Path) -> None:
    """How much each setting decided whether a trial was among the best, as bars; a colour for each objective.

    Args:
        importance: {objective: {setting: share}}, as TuningResult has it.

    Raises:
        InputError: there is none, or a file that no picture can be saved to.
    """
    if not importance:
        raise InputError("there are no importances to draw; they need more complete trials")
    first = next(iter(importance.values()))
    names = sorted(first, key=lambda name: sum(shares[name] for shares in importance.values()))
    with _figure(file, 8, 1.4 + 0.5 * len(names) * len(importance) ** 0.5) as figure:
        axes = figure.add_subplot()
        height = 0.8 / len(importance)
        for number, (objective, shares) in enumerate(importance.items()):
            places = [place + 0.4 - height * (number + 0.5) for place in range(len(names))]
            bars = axes.barh(
                places, [shares[n] for n in names], height * 0.92, color=COLOURS[number], label=f"for {objective}"
            )
            axes.bar_label(bars, [f"{shares[name]:.0%}" for name in names], padding=3, fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlim(0, 1.1 * max(max(shares.values()) for shares in importance.values()) or 1)
        _label(axes, "importance for being among the best (PED-ANOVA)", "")
        axes.grid(visible=False, axis="y")
        axes.legend(fontsize=9, loc="lower right", framealpha=0.85, edgecolor="none")


def plot_slices(trials: Sequence[TrialRecord], objectives: Sequence[Objective], space: Space, file: str | Path) -> None:
    """Results against each setting, one panel each, a row for each objective; later trials are darker.

    Raises:
        InputError: no trial is complete, or a file that no picture can be saved to.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    complete = _complete(trials)
    columns = min(len(space), 4)
    rows = math.ceil(len(space) / columns)
    with _figure(file, 0.8 + 2.9 * columns, 0.6 + 2.7 * rows * len(objectives)) as figure:
        for row, each in enumerate(objectives):
            values = [t.results[each.name] for t in complete]
            first = None
            for place, (name, searched) in enumerate(space.items()):
                axes = figure.add_subplot(
                    rows * len(objectives), columns, row * rows * columns + place + 1, sharey=first
                )
                first = first or axes
                settings = [t.parameters[name] for t in complete]
                if hasattr(searched, "choices"):
                    labels = [str(searched.label(choice)) for choice in searched.choices]
                    settings = [labels.index(str(searched.label(setting))) for setting in settings]
                    axes.set_xticks(range(len(labels)), labels, fontsize=8)
                    axes.set_xlim(-0.5, len(labels) - 0.5)
                elif searched.log:
                    axes.set_xscale("log")
                    axes.xaxis.set_major_locator(FixedLocator(ticks(searched.low, searched.high, most=4)))
                    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
                    axes.xaxis.set_minor_locator(NullLocator())
                    axes.set_xlim(searched.low / 1.2, searched.high * 1.2)
                elif searched.whole:
                    axes.xaxis.get_major_locator().set_params(integer=True)
                drawn = axes.scatter(
                    settings, values, c=[t.number for t in complete], cmap="Blues", vmin=-len(trials) / 3,
                    vmax=max(1, len(trials) - 1), s=28,
                    edgecolors=BLUE, linewidths=0.6, zorder=2,
                )  # fmt: skip
                best = (max if each.greater else min)(range(len(values)), key=values.__getitem__)
                axes.plot(settings[best], values[best], "o", color=ORANGE, markersize=7, zorder=3)
                _label(axes, name, named(each.name) if place % columns == 0 else "")
                axes.tick_params(labelleft=place % columns == 0)
        bar = figure.colorbar(drawn, ax=figure.axes, label="trial", shrink=0.8)
        bar.ax.yaxis.get_major_locator().set_params(integer=True)
        bar.ax.set_ylim(0, max(1, len(trials) - 1))


def plot_pareto(
    trials: Sequence[TrialRecord], best: Sequence[TrialRecord], objectives: Sequence[Objective], file: str | Path
) -> None:
    """The first objective against the second, and the front of those that nothing beats in everything.

    Raises:
        InputError: there are fewer than two objectives, no trial is complete, or a file that no picture can be saved to.
    """
    if len(objectives) < 2:
        raise InputError(f"a front has at least two objectives; there is {objectives[0].name}")
    complete = _complete(trials)
    upward, across = objectives[0], objectives[1]
    chosen = {trial.number for trial in best}
    with _figure(file, 7.5, 5) as figure:
        axes = figure.add_subplot()
        rest = [t for t in complete if t.number not in chosen]
        axes.plot(
            [t.results[across.name] for t in rest], [t.results[upward.name] for t in rest], "o", color=BLUE, alpha=0.35,
            markersize=5, label="complete",
        )  # fmt: skip
        edge = sorted(best, key=lambda t: (t.results[across.name], t.results[upward.name]))
        points = [t.results[across.name] for t in edge], [t.results[upward.name] for t in edge]
        line = "o-" if len(objectives) == 2 else "o"  # of more than two, the front is no line in this plane
        axes.plot(*points, line, color=ORANGE, linewidth=1.2, markersize=6, drawstyle="default", label="front")
        for trial in edge:
            at = trial.results[across.name], trial.results[upward.name]
            axes.annotate(str(trial.number), at, xytext=(4, 5), textcoords="offset points", fontsize=8, color=ORANGE)
        _label(axes, named(across.name), named(upward.name))
        axes.legend(fontsize=9, framealpha=0.85, edgecolor="none")


def named(objective: str) -> str:
    """An objective with its unit."""
    return UNITS.get(objective, objective)


def _figure(file: str | Path, width: float, height: float):
    check_picture_file(Path(file))
    return picture(Path(file), width, height)


def _short(value: float) -> str:
    """5e-4 for what would take the room of two marks, written out."""
    digits, power = f"{value:.2e}".split("e")
    return f"{value:g}" if value >= 0.001 else f"{float(digits):g}e{int(power)}"


def _label(axes, across: str, upward: str) -> None:
    axes.set(xlabel=across, ylabel=upward)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _complete(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    found = [trial for trial in trials if trial.state == COMPLETE]
    if not found:
        raise InputError(f"none of {len(trials)} trials is complete; there is nothing to draw")
    return found
