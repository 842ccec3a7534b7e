"""A fine-tuning or distillation as a picture: its losses, and what its evaluations found, against the steps."""

import os
from pathlib import Path

from duonlp.errors import InputError
from duonlp.training.log.metrics_file import EVALUATION, STEP, read_metrics
from duonlp.util.pictures import COLOURS, check_picture_file, picture, require_matplotlib


def check_plot(file: str | os.PathLike) -> None:
    """Raises InputError for a file that no picture can be saved to, and MissingExtraError without matplotlib."""
    check_picture_file(Path(file))
    require_matplotlib("curves are plotted")


def plot_run(run: str | os.PathLike, file: str | os.PathLike, title: str = "") -> None:
    """Draws the losses of a run, on the left, and the other scores of its evaluations, on the right.

    Args:
        run: a metrics.jsonl, or the folder it is in.
        file: a .png, .svg or .pdf file in a folder that is there.
        title: above the picture.

    Raises:
        InputError: there is nothing to draw, or as check_plot.
        MissingExtraError: as check_plot.
    """
    check_plot(file)
    from matplotlib.ticker import MaxNLocator

    records = read_metrics(run)
    steps = [each for each in records if each.get("kind", STEP) == STEP]
    evaluations = [each for each in records if each.get("kind") == EVALUATION]
    if not steps and not evaluations:
        raise InputError(f"the run {str(run)!r} has no records to draw")
    names = dict.fromkeys(name for each in evaluations for name in each)
    names = [name for name in names if name not in ("kind", "name", "step", "examples", "loss")]
    with picture(Path(file), 9, 4) as figure:
        losses, scores = figure.subplots(1, 2)
        at = [each["step"] for each in steps]
        losses.plot(
            at, [each["loss"] for each in steps], color=COLOURS[0], label="training"
        )  # means since the one before
        held_out = [(each["step"], each["loss"]) for each in evaluations if "loss" in each]
        if held_out:
            losses.plot(*zip(*held_out), "o-", color=COLOURS[1], label="validation", markeredgecolor="white")
        losses.set_ylabel("loss")
        for number, name in enumerate(names):
            points = [(each["step"], each[name]) for each in evaluations if name in each]
            colour = COLOURS[number % len(COLOURS)]
            scores.plot(
                *zip(*points), "o-", color=colour, label=f"{name}: {points[-1][1]:.3f}", markeredgecolor="white"
            )
        scores.set_ylabel("validation scores")
        for axes in (losses, scores):
            axes.set_xlabel("steps")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8, framealpha=0.85, edgecolor="none")
        if title:
            figure.suptitle(title, fontsize=12)
