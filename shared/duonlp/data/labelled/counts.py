"""Count labels per split or slice of labeled texts, as a table and as a plot."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.data.labelled.splits import indicators
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError
from duonlp.util.pictures import COLOURS, check_picture_file, picture, require_matplotlib, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

MOST_PLOTTED = 40
"""Labels in a plot, the most frequent ones."""


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """How often each label occurs in parts of the data. `rich.print` shows it as a table.

    Attributes:
        parts: Names of the parts, such as "train".
        label_names: Names of the labels, the most frequent in all parts together first.
        counts: Number of texts with each label, int64 [parts, C].
        texts: Number of texts of each part, int64 [parts].
        without: Number of texts of each part to which no label applies, int64 [parts].
    """

    parts: tuple[str, ...]
    label_names: tuple[str, ...]
    counts: np.ndarray
    texts: np.ndarray
    without: np.ndarray

    @property
    def cardinality(self) -> np.ndarray:
        """Mean number of labels of a text, float64 [parts]."""
        return self.counts.sum(1) / np.maximum(self.texts, 1)

    def missing(self) -> dict[str, list[str]]:
        """Return the labels that do not occur in a part but in another, by part; only parts with such labels."""
        names = np.array(self.label_names, object)
        rows = {part: names[(counts == 0) & (self.counts.sum(0) > 0)] for part, counts in zip(self.parts, self.counts)}
        return {part: missing.tolist() for part, missing in rows.items() if len(missing)}

    def to_dict(self) -> dict[str, Any]:
        """Return {part: {"texts", "without_label", "cardinality", "counts": {label: texts}}} for JSON."""
        return {
            part: {
                "texts": int(self.texts[row]),
                "without_label": int(self.without[row]),
                "cardinality": float(self.cardinality[row]),
                "counts": dict(zip(self.label_names, self.counts[row].tolist())),
            }
            for row, part in enumerate(self.parts)
        }

    def table(self) -> "Table":
        """Return a rich table with a row for each label and a column for each part."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("label", overflow="fold")
        for part in self.parts:
            table.add_column(Text(part), justify="right", no_wrap=True)
        for name, counts in zip(self.label_names, self.counts.T):
            table.add_row(Text(name), *(f"{count:,}" for count in counts))
        table.add_section()
        if self.without.any():
            table.add_row("no label applies", *(f"{count:,}" for count in self.without))
        table.add_row("texts", *(f"{count:,}" for count in self.texts))
        table.add_row("labels a text", *(f"{mean:.2f}" for mean in self.cardinality))
        return table

    def __rich__(self) -> "Table":
        return self.table()

    def plot(self, path: str | os.PathLike, title: str = "") -> None:
        """Plot the number of texts with each label, on a logarithmic axis, and each label's share of the texts of a part.

        Args:
            path: A .png, .svg or .pdf file in an existing folder.
            title: Title above the figure.

        Raises:
            InputError: The file format is unsupported, or the folder does not exist.
            MissingExtraError: matplotlib is not installed.
        """
        path = Path(path)
        check_picture_file(path)
        require_matplotlib("label counts are plotted")
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

        shown = min(len(self.label_names), MOST_PLOTTED)
        with picture(path, 12, max(3.5, 1.5 + 0.28 * shown), dpi=120) as figure:
            counts_axes, share_axes = figure.subplots(1, 2, sharey=True)
            self._draw(counts_axes, self.counts[:, :shown].astype(float))
            most = max(2.0, 1.15 * float(self.counts.max(initial=0)))
            counts_axes.set_xscale("log")
            counts_axes.set_xlim(0.8, most)
            counts_axes.xaxis.set_major_locator(FixedLocator(ticks(0.8, most)))
            counts_axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            counts_axes.xaxis.set_minor_locator(NullLocator())
            counts_axes.legend(frameon=False, loc="lower right", fontsize="small")
            counts_axes.set_xlabel("texts")
            self._draw(share_axes, 100 * self.counts[:, :shown] / np.maximum(self.texts, 1)[:, None])
            share_axes.set_xlim(left=0)
            share_axes.set_xlabel("% of the texts of a part")
            counts_axes.set_yticks(np.arange(shown), self.label_names[:shown])
            counts_axes.invert_yaxis()
            more = f", the {shown} most frequent" if shown < len(self.label_names) else ""
            figure.suptitle(title or f"{len(self.label_names)} labels{more}")

    def _draw(self, axes: "Axes", values: np.ndarray) -> None:
        """Draw a row of points for each label, one for each part."""
        offsets = np.linspace(-0.3, 0.3, len(self.parts)) if len(self.parts) > 1 else [0.0]
        for part, row, offset, number in zip(self.parts, values, offsets, range(len(self.parts))):
            size = f"{self.texts[number]:,} texts"
            present = row > 0
            axes.scatter(
                row[present], np.flatnonzero(present) + offset, s=18, color=COLOURS[number % len(COLOURS)],
                label=size if part == f"{self.texts[number]}" else f"{part}: {size}",
            )  # fmt: skip
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)


def label_counts(parts: Mapping[str, LabelledTexts] | LabelledTexts) -> LabelCounts:
    """Count the labels of parts of the data.

    Args:
        parts: Texts by name of their split or slice, all with the same label names; or the texts of one part.

    Raises:
        InputError: There are no parts, or they have different label names.
    """
    named = {"texts": parts} if isinstance(parts, LabelledTexts) else dict(parts)
    if not named:
        raise InputError("there are no parts to count labels of; give at least one")
    names = next(iter(named.values())).label_names
    for part, texts in named.items():
        if texts.label_names != names:
            raise InputError(
                f"the part {part!r} has other label names than the first; read all with the same label_names"
            )
    marks = [indicators(texts) for texts in named.values()]
    counts = np.stack([mark.sum(0) for mark in marks]).astype(np.int64)
    order = np.argsort(-counts.sum(0), kind="stable")
    return LabelCounts(
        tuple(named), tuple(names[index] for index in order), counts[:, order],
        np.array([len(texts) for texts in named.values()]), np.array([int((~mark.any(1)).sum()) for mark in marks]),
    )  # fmt: skip
