"""How long documents and summaries are in tokens, and how many of them a limit would cut."""

import itertools
import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.data.pairs.collator import token_ids
from duonlp.data.pairs.summaries import Pair
from duonlp.errors import InputError
from duonlp.util.pictures import check_picture_file, picture, require_matplotlib

TOKENISED_TOGETHER = 1024  # pairs
PERCENTILES = (50, 90, 95, 99)
MOST_BINS = 60

BARS, MARKS, LIMITS = "#1f4e8c", "#20242c", ("#c1440e", "#2e8b57", "#8a5fb0", "#b8860b")


@dataclass(frozen=True)
class Lengths:
    """Lengths of texts in tokens, special ones included.

    values: int64 [texts], the shortest first.
    limits: the limits that were asked about.
    """

    values: np.ndarray
    limits: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        """Tokens of a text on average."""
        return float(self.values.mean())

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self.values[-1])

    def percentile(self, share: float) -> int:
        """The least length that so many percent of the texts do not exceed."""
        return int(np.percentile(self.values, share, method="inverted_cdf"))

    def cut(self, limit: int) -> float:
        """Share of the texts that are longer than a limit."""
        return float((self.values > limit).mean())

    def lost(self, limit: int) -> float:
        """Share of all tokens that lie beyond a limit."""
        return float(np.maximum(self.values - limit, 0).sum() / self.values.sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
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
    """Lengths of the documents (`sources`) and of their summaries (`targets`); printing it with rich prints its table."""

    sources: Lengths
    targets: Lengths

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"sources": self.sources.to_dict(), "targets": self.targets.to_dict()}

    def table(self):
        """Returns a `rich.table.Table`: a column for sources and one for targets."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("tokens")
        for column in ("sources", "targets"):
            table.add_column(column, justify="right")
        both = self.sources, self.targets
        table.add_row("count", *(f"{len(each):,}" for each in both))
        table.add_row("mean", *(f"{each.mean:,.1f}" for each in both))
        for share in PERCENTILES:
            table.add_row(f"p{share}", *(f"{each.percentile(share):,}" for each in both))
        table.add_row("max", *(f"{each.longest:,}" for each in both))
        for limit in sorted({*self.sources.limits, *self.targets.limits}):
            cells = (f"{each.cut(limit):.1%}" if limit in each.limits else "" for each in both)
            table.add_row(f"longer than {limit:,}", *cells)
        return table

    def __rich__(self):
        return self.table()

    def plot(self, path: str | os.PathLike, title: str = "") -> None:
        """Draws a histogram of each, with the median, the 95th percentile and the limits, and saves them side by side.

        Args:
            path: a .png, .svg or .pdf file in a folder that is there.
            title: above the two.

        Raises:
            InputError: an unknown kind of file, or a folder that is not there.
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
    tokenizer,
    *,
    source_limits: int | Sequence[int] = (),
    target_limits: int | Sequence[int] = (),
    prefix: str = "",
) -> LengthReport:
    """Measures pairs in tokens, as `PairCollator` would tokenise them, but cut at nothing.

    Args:
        pairs: read once, as a stream; such as `read_pairs` gives. Every summary of a pair counts.
        tokenizer: of `transformers`.
        source_limits: limits in tokens, or one, to say of how many documents would be cut.
        target_limits: the same of summaries.
        prefix: put before every document.

    Raises:
        InputError: there are no pairs, or a limit is no whole number from 1 on.
    """
    limits = _limits("source_limits", source_limits), _limits("target_limits", target_limits)
    sources: list[int] = []
    targets: list[int] = []
    pairs = iter(pairs)
    while some := list(itertools.islice(pairs, TOKENISED_TOGETHER)):
        sources += map(len, token_ids(tokenizer, [prefix + pair.document for pair in some]))
        targets += map(len, token_ids(tokenizer, [each for pair in some for each in pair.summaries], targets=True))
    if not sources or not targets:
        raise InputError("there are no pairs to measure; look at what was read")
    return LengthReport(
        *(Lengths(np.sort(each), limit) for each, limit in zip((sources, targets), limits, strict=True))
    )


def _limits(name: str, given: int | Sequence[int]) -> tuple[int, ...]:
    try:
        found = tuple(map(operator.index, given if isinstance(given, Iterable) else [given]))
    except TypeError:
        found = (0,)
    if any(limit < 1 for limit in found):
        raise InputError(f"{name} is {given!r}; give whole numbers from 1 on, such as (512, 1024)")
    return tuple(sorted(set(found)))


def _draw(axes, lengths: Lengths, name: str) -> None:
    """One histogram. Its bins are whole numbers of tokens wide, so that none is empty for want of a number in it."""
    width = -(-(lengths.longest + 1) // MOST_BINS)
    edges = np.arange(0, lengths.longest + 1 + width, width)
    axes.hist(lengths.values, edges, color=BARS)
    for share, style in ((50, "-"), (95, "--")):
        at = lengths.percentile(share)
        axes.axvline(at, color=MARKS, linestyle=style, linewidth=1.2, label=f"p{share}: {at:,}")
    beyond = []
    for limit, colour in zip(lengths.limits, itertools.cycle(LIMITS)):
        label = f"limit {limit:,}: cuts {lengths.cut(limit):.1%}"
        if limit > 1.5 * edges[-1]:  # it would squeeze the bars into a corner
            beyond.append(label)
        else:
            axes.axvline(limit, color=colour, linewidth=1.6, label=label)
    for label in beyond:
        axes.plot([], [], " ", label=label)
    axes.set_title(f"{len(lengths):,} {name}, {lengths.mean:,.1f} tokens on average")
    axes.set_xlabel("tokens")
    axes.set_ylabel(name)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(facecolor="white", edgecolor="none", framealpha=0.9)
