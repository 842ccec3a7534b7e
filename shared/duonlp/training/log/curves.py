"""Plots of a fine-tuning or distillation run: losses and evaluation scores over the steps."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from duonlp.errors import InputError
from duonlp.training.log.learning_curve import read_learning_curve
from duonlp.training.log.metrics_file import EVALUATION, STEP, read_metrics
from duonlp.util.pictures import COLOURS, check_picture_file, picture, require_matplotlib

THRESHOLD = "_thresh"
"""Ending of the names of thresholds among scores, which have another unit."""


def check_plot(file: str | os.PathLike) -> None:
    """Raise InputError if no plot can be saved to `file`, and MissingExtraError without matplotlib."""
    check_picture_file(Path(file))
    require_matplotlib("curves are plotted")


def plot_run(run: str | os.PathLike, file: str | os.PathLike, title: str = "") -> None:
    """Plot the losses of a run (left) and the other scores of its evaluations (right), but no thresholds.

    Args:
        run: A metrics.jsonl, or the folder that contains it.
        file: Output file: .png, .svg or .pdf, in an existing folder.
        title: Title of the plot.

    Raises:
        InputError: The run has no records, or `file` is invalid.
        MissingExtraError: matplotlib is not installed.
    """
    check_plot(file)
    from matplotlib.ticker import MaxNLocator

    records = read_metrics(run)
    steps = [record for record in records if record.get("kind", STEP) == STEP]
    evaluations = [record for record in records if record.get("kind") == EVALUATION]
    if not steps and not evaluations:
        raise InputError(f"the run {str(run)!r} has no records to plot; train it with log_every above 0")
    keys = dict.fromkeys(key for record in evaluations for key in record)
    metrics = [
        key for key in keys if key not in ("kind", "name", "step", "examples", "loss") and not key.endswith(THRESHOLD)
    ]
    with picture(Path(file), 9, 4) as figure:
        losses, scores = figure.subplots(1, 2)
        losses.plot(
            [record["step"] for record in steps],
            [record["loss"] for record in steps],
            color=COLOURS[0],
            label="training",
        )
        validation = [(record["step"], record["loss"]) for record in evaluations if "loss" in record]
        if validation:
            losses.plot(*zip(*validation), "o-", color=COLOURS[1], label="validation", markeredgecolor="white")
        losses.set_ylabel("loss")
        for number, metric in enumerate(metrics):
            points = [(record["step"], record[metric]) for record in evaluations if metric in record]
            color = COLOURS[number % len(COLOURS)]
            scores.plot(
                *zip(*points), "o-", color=color, label=f"{metric}: {points[-1][1]:.3f}", markeredgecolor="white"
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


def plot_learning_curve(
    run: str | os.PathLike | Sequence[Mapping[str, Any]], file: str | os.PathLike, title: str = ""
) -> None:
    """Plot the training loss of a run beside its validation loss, a point for each record of its learning curve.

    Args:
        run: Folder of the run, or the ``learning_curve`` of its result.
        file: Output file: .png, .svg or .pdf, in an existing folder.
        title: Title of the plot.

    Raises:
        InputError: The run has no learning curve, or `file` is invalid.
        MissingExtraError: matplotlib is not installed.
    """
    check_plot(file)
    from matplotlib.ticker import MaxNLocator

    records = read_learning_curve(run) if isinstance(run, (str, os.PathLike)) else list(run)
    if not records:
        raise InputError("the learning curve has no records to plot; train for an epoch")
    with picture(Path(file), 6, 4) as figure:
        axes = figure.add_subplot()
        for name, label, color in (("train_loss", "training", COLOURS[0]), ("loss", "validation", COLOURS[1])):
            points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
            if points:
                axes.plot(*zip(*points), "o-", color=color, label=label, markeredgecolor="white")
        axes.set(xlabel="steps", ylabel="loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, framealpha=0.85, edgecolor="none")
        if title:
            axes.set_title(title, fontsize=12)
