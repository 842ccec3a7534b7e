"""Measure documents and summaries in tokens, and how many of them a length limit would truncate."""

import itertools
import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.data.pairs.collator import token_ids
from duonlp.data.pairs.summaries import Pair
from duonlp.errors import InputError
from duonlp.util.pictures import check_picture_file, picture, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase

PAIRS_PER_CHUNK = 1024
PERCENTILES = (50, 90, 95, 99)
MAX_BINS = 60

BARS, MARKS, LIMITS = "#1f4e8c", "#20242c", ("#c1440e", "#2e8b57", "#8a5fb0", "#b8860b")


@dataclass(frozen=True)
class Lengths:
    """Lengths of texts in tokens, special tokens included.

    Attributes:
        values: int64 [texts], in increasing order.
        limits: Length limits to report on.
    """

    values: np.ndarray
    limits: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean length in tokens."""
        return float(self.values.mean())

    @property
    def longest(self) -> int:
        """Length of the longest text in tokens."""
        return int(self.values[-1])

    def percentile(self, share: float) -> int:
        """Return the smallest length that `share` percent of the texts do not exceed."""
        return int(np.percentile(self.values, share, method="inverted_cdf"))

    def cut(self, limit: int) -> float:
        """Return the fraction of texts that are longer than `limit`."""
        return float((self.values > limit).mean())

    def lost(self, limit: int) -> float:
        """Return the fraction of all tokens that lie beyond `limit`."""
        return float(np.maximum(self.values - limit, 0).sum() / self.values.sum())

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as plain values for JSON."""
        return {
            "count": len(self),
            "mean": self.mean,
            **{f"p{share}": self.percentile(share) for share in PERCENTILES},
            "max": self.longest,
            "limits": {
                str(limit): {"texts_cut": self.cut(limit), "tokens_lost": self.lost(limit)} for limit in self.limits
            },
        }


@dataclass(frozen=True)
class LengthReport:
    """Lengths of documents and of their summaries. `rich.print` shows it as a table.

    Attributes:
        sources: Lengths of the documents.
        targets: Lengths of the summaries.
    """

    sources: Lengths
    targets: Lengths

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as plain values for JSON."""
        return {"sources": self.sources.to_dict(), "targets": self.targets.to_dict()}

    def table(self) -> "Table":
        """Return the statistics as a table with a column for sources and one for targets."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("tokens")
        for column in ("sources", "targets"):
            table.add_column(column, justify="right")
        sides = self.sources, self.targets
        table.add_row("count", *(f"{len(lengths):,}" for lengths in sides))
        table.add_row("mean", *(f"{lengths.mean:,.1f}" for lengths in sides))
        for share in PERCENTILES:
            table.add_row(f"p{share}", *(f"{lengths.percentile(share):,}" for lengths in sides))
        table.add_row("max", *(f"{lengths.longest:,}" for lengths in sides))
        for limit in sorted({*self.sources.limits, *self.targets.limits}):
            cells = (f"{lengths.cut(limit):.1%}" if limit in lengths.limits else "" for lengths in sides)
            table.add_row(f"longer than {limit:,}", *cells)
        return table

    def __rich__(self) -> "Table":
        return self.table()

    def plot(self, path: str | os.PathLike, title: str = "") -> None:
        """Plot histograms of both side by side, with the median, the 95th percentile and the limits.

        Args:
            path: A .png, .svg or .pdf file in an existing folder.
            title: Title above the figure.

        Raises:
            InputError: The file format is unsupported, or the folder does not exist.
            MissingExtraError: matplotlib is not installed.
        """
        path = Path(path)
        check_picture_file(path)
        require_matplotlib("lengths are plotted")

        with picture(path, 11, 4.2, dpi=120) as figure:
            for axes, lengths, name in zip(
                figure.subplots(1, 2), (self.sources, self.targets), ("documents", "summaries"), strict=True
            ):
                _draw(axes, lengths, name)
            if title:
                figure.suptitle(title)


def length_report(
    pairs: Iterable[Pair],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    source_limits: int | Sequence[int] = (),
    target_limits: int | Sequence[int] = (),
    prefix: str = "",
) -> LengthReport:
    """Measure pairs in tokens, tokenized as by `PairCollator` but without truncation.

    Args:
        pairs: Pairs such as those from `read_pairs`; iterated over once. Every summary of a pair counts.
        tokenizer: A `transformers` tokenizer.
        source_limits: Length limits, or one, for which to report how many documents they would truncate.
        target_limits: The same for summaries.
        prefix: Text to prepend to every document.

    Raises:
        InputError: There are no pairs, or a limit is not a positive integer.
    """
    limits = _check_limits("source_limits", source_limits), _check_limits("target_limits", target_limits)
    sources: list[int] = []
    targets: list[int] = []
    pairs = iter(pairs)
    while chunk := list(itertools.islice(pairs, PAIRS_PER_CHUNK)):
        sources += map(len, token_ids(tokenizer, [prefix + pair.document for pair in chunk]))
        summaries = [summary for pair in chunk for summary in pair.summaries]
        targets += map(len, token_ids(tokenizer, summaries, targets=True))
    if not sources or not targets:
        raise InputError("there are no pairs to measure; check the source and the split")
    return LengthReport(Lengths(np.sort(sources), limits[0]), Lengths(np.sort(targets), limits[1]))


def _check_limits(name: str, values: int | Sequence[int]) -> tuple[int, ...]:
    try:
        limits = tuple(map(operator.index, values if isinstance(values, Iterable) else [values]))
    except TypeError:
        limits = (0,)
    if any(limit < 1 for limit in limits):
        raise InputError(f"{name} is {values!r}; give positive integers, such as (512, 1024)")
    return tuple(sorted(set(limits)))


def _draw(axes: "Axes", lengths: Lengths, name: str) -> None:
    """Draw one histogram. Bins are whole tokens wide, so that no bin is empty for lack of an integer in it."""
    width = -(-(lengths.longest + 1) // MAX_BINS)
    edges = np.arange(0, lengths.longest + 1 + width, width)
    axes.hist(lengths.values, edges.tolist(), color=BARS)
    for share, style in ((50, "-"), (95, "--")):
        length = lengths.percentile(share)
        axes.axvline(length, color=MARKS, linestyle=style, linewidth=1.2, label=f"p{share}: {length:,}")
    off_scale = []
    for limit, color in zip(lengths.limits, itertools.cycle(LIMITS)):
        label = f"limit {limit:,}: cuts {lengths.cut(limit):.1%}"
        if limit > 1.5 * edges[-1]:  # drawing it would squeeze the bars into a corner
            off_scale.append(label)
        else:
            axes.axvline(limit, color=color, linewidth=1.6, label=label)
    for label in off_scale:
        axes.plot([], [], " ", label=label)
    axes.set_title(f"{len(lengths):,} {name}, {lengths.mean:,.1f} tokens on average")
    axes.set_xlabel("tokens")
    axes.set_ylabel(name)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(facecolor="white", edgecolor="none", framealpha=0.9)
