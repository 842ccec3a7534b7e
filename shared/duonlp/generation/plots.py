"""Plots of a next-token distribution: all its probabilities, the tokens that top-k and top-p keep, and the temperature."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.generation.choices import TokenNames, log_softmax, token_label
from duonlp.typing import Array
from duonlp.util.pictures import check_picture_file, picture, require_matplotlib

BARS = 20
"""Number of tokens in the bar chart."""

HISTOGRAM_BINS = 50

LEAST_PROBABILITY = 1e-30
"""Smaller probabilities are counted in the lowest bin of the histogram."""

KEPT_COLOR, CUT_COLOR = "#1f4e8c", "#c3cad5"
CUTOFF_COLORS = ("#c1440e", "#2e8b57")
TEMPERATURE_COLORS = ("#1f4e8c", "#c1440e", "#2e8b57", "#8a5fb0", "#b8860b", "#5f6b7a")


def plot_next_token(
    logits: Array,
    path: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    temperatures: Sequence[float] = (0.5, 1.0, 2.0),
    top_k: int | None = None,
    top_p: float | None = None,
    title: str = "",
) -> None:
    """Plot the distribution of one next token in four panels and save the figure.

    The panels show the most likely tokens, colored by whether top-k and top-p keep them; a histogram of the
    probabilities of all tokens, above their cumulative probability over ranks, with the cutoffs; and the sorted
    probabilities at each temperature. As in Transformers, top-p applies to the distribution that top-k leaves.

    The two panels in the middle are those of figure 5-6 of "Natural Language Processing with Transformers" (Tunstall,
    von Werra and Wolf 2022).

    Args:
        logits: float [vocab]; -inf marks a token that was ruled out.
        path: A .png, .svg or .pdf file in an existing folder.
        tokenizer: Tokenizer that provides the tokens' texts; without one, ids are shown.
        temperatures: Temperatures of the third panel, above 0; the other panels use temperature 1.
        top_k: As in `generate`, to show what it cuts; None for no cutoff.
        top_p: As in `generate`, to show what it cuts; None for no cutoff.
        title: Title of the figure.

    Raises:
        InputError: A value is out of range, the file type is unsupported, or the folder does not exist.
        MissingExtraError: matplotlib is not installed.
    """
    path = Path(path)
    logits = np.asarray(logits)
    check_arguments(logits, path, temperatures, top_k, top_p)
    require_matplotlib("distributions are plotted")

    probabilities = np.exp(log_softmax(logits, "the next token"))
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    kept = count_kept(ranked, top_k, top_p)
    names = TokenNames(tokenizer)
    labels = [printable_label(token_label(names[i], i)) for i in order[:BARS].tolist()]
    cuts = top_k is not None or top_p is not None
    with picture(path, 15, 6.4, dpi=120) as figure:
        grid = figure.add_gridspec(2, 3, width_ratios=(1.1, 1, 1), height_ratios=(2, 3))
        places = grid[:, 0], grid[0, 1], grid[1, 1], grid[:, 2]
        panels = [figure.add_subplot(place) for place in places]
        draw_bars(panels[0], ranked, labels, kept, cuts)
        draw_histogram(panels[1], ranked, kept if cuts else None)
        draw_cumulative(panels[2], ranked, kept, top_k, top_p)
        draw_temperatures(panels[3], logits, temperatures)
        for axes in panels:
            axes.spines[["top", "right"]].set_visible(False)
        if title:
            figure.suptitle(title, fontsize=13)


def check_arguments(
    logits: np.ndarray, path: Path, temperatures: Sequence[float], top_k: int | None, top_p: float | None
) -> None:
    """Raise InputError for arguments that plot_next_token cannot plot, or a path it cannot save to."""
    if logits.ndim != 1 or not logits.size:
        raise InputError(
            f"logits has shape {logits.shape}; pass those of one next token, [vocab], such as logits[0, -1]"
        )
    check_picture_file(path)
    if isinstance(temperatures, (int, float)) or not len(temperatures):
        raise InputError(f"temperatures={temperatures!r} must be a list of at least one number above 0")
    for temperature in temperatures:
        if not (np.isfinite(temperature) and temperature > 0):
            raise InputError(f"temperature {temperature!r} must be a finite number above 0")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)) or top_k < 1):
        raise InputError(f"top_k={top_k!r} must be a positive integer or None")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p={top_p!r} must be above 0 and at most 1, or None")


def count_kept(ranked: np.ndarray, top_k: int | None, top_p: float | None) -> int:
    """Return how many of the most likely tokens top-k, and then top-p, keep; ranked: probabilities in descending order."""
    kept = int(np.count_nonzero(ranked))  # tokens that were ruled out have probability 0
    if top_k is not None:
        kept = min(kept, top_k)
    if top_p is not None and top_p < 1:
        mass = np.cumsum(ranked[:kept]) / ranked[:kept].sum()
        kept = min(kept, int(np.searchsorted(mass, top_p)) + 1)
    return kept


def draw_bars(axes: Any, ranked: np.ndarray, labels: list[str], kept: int, cuts: bool) -> None:
    """Draw the most likely tokens, colored by whether they are kept."""
    from matplotlib.patches import Patch

    shown = len(labels)
    colors = [KEPT_COLOR if rank < kept else CUT_COLOR for rank in range(shown)]
    bars = axes.barh(np.arange(shown), ranked[:shown], color=colors)
    axes.bar_label(bars, [f"{value:.1%}" for value in ranked[:shown]], padding=3, fontsize=8, color="#444444")
    axes.set_yticks(np.arange(shown), labels, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15, y=0.02)
    axes.set(title="most likely next tokens" if len(ranked) > shown else "next tokens", xlabel="probability")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if ranked[0] > 0.05 else f"{value:.1%}")
    if cuts:
        counts = (f"kept: {kept:,}", f"cut: {len(ranked) - kept:,}")
        patches = [Patch(color=color, label=label) for color, label in zip((KEPT_COLOR, CUT_COLOR), counts)]
        axes.legend(handles=patches, loc="lower right", frameon=False)


def draw_histogram(axes: Any, ranked: np.ndarray, kept: int | None) -> None:
    """Draw a histogram of the probabilities of all tokens that were not ruled out, in bins of equal width in logarithm.

    Args:
        axes: Axes to draw on.
        ranked: float64 [vocab], probabilities in descending order.
        kept: Number of tokens that a cutoff keeps; None without one.
    """
    positive = np.maximum(ranked[ranked > 0], LEAST_PROBABILITY)
    low, high = np.log10(positive[-1]), np.log10(positive[0])
    edges = np.logspace(low, max(high, low + 0.1), HISTOGRAM_BINS + 1)
    edges[0], edges[-1] = min(edges[0], positive[-1]), max(edges[-1], positive[0])  # despite rounding
    counts, _, _ = axes.hist(positive, edges, color=KEPT_COLOR)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.7, 2 * counts.max())
    if kept is not None:
        least = positive[min(kept, len(positive)) - 1]
        axes.axvline(least, color=CUTOFF_COLORS[1], linestyle="--", linewidth=1.3, label=f"kept: {least:.2g} and more")
        axes.set_ylim(0.7, 2 * counts.max() ** 1.3)  # room for the legend
        axes.legend(loc="upper left", frameon=False)
    axes.set(title=f"probabilities of all {len(positive):,} tokens", xlabel="probability", ylabel="tokens")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
    axes.grid(alpha=0.25)


def draw_cumulative(axes: Any, ranked: np.ndarray, kept: int, top_k: int | None, top_p: float | None) -> None:
    """Draw the cumulative probability over ranks, with the cutoffs of top-k and top-p."""
    ranks = np.arange(1, len(ranked) + 1)
    mass = np.cumsum(ranked)
    axes.plot(ranks, mass, color=KEPT_COLOR, linewidth=1.8, marker="." if len(ranked) <= 2 * BARS else "")
    axes.set_ylim(0, 1.03)
    after_k = 1.0
    if top_k is not None:
        after_k = float(mass[min(top_k, len(mass)) - 1])
        axes.axvline(
            top_k, color=CUTOFF_COLORS[0], linestyle="--", linewidth=1.3, label=f"top-k = {top_k:,}: {after_k:.1%}"
        )
    if top_p is not None:
        # top-p of the probability that top-k leaves is a smaller share of the total
        of_rest = " of top-k" if top_k is not None else ""
        label = f"top-p = {top_p:g}{of_rest}: {kept:,} token{'s' * (kept != 1)}"
        axes.axhline(top_p * after_k, color=CUTOFF_COLORS[1], linestyle="--", linewidth=1.3, label=label)
        axes.plot(kept, mass[kept - 1], "o", color=CUTOFF_COLORS[1])
    if top_k is not None or top_p is not None:
        axes.axvspan(1, kept, color=KEPT_COLOR, alpha=0.07, linewidth=0)
        axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
    axes.set(title="cumulative probability", xlabel="rank")
    axes.grid(alpha=0.25)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    format_rank_axis(axes, len(ranked))


def draw_temperatures(axes: Any, logits: np.ndarray, temperatures: Sequence[float]) -> None:
    """Draw the sorted probabilities at each temperature."""
    ordered = np.sort(np.asarray(logits).astype(np.float64))[::-1]
    ranks = np.arange(1, len(ordered) + 1)
    for i, temperature in enumerate(temperatures):
        values = np.exp(log_softmax(ordered / temperature, "the next token"))
        positive = values > 1e-12  # smaller values would only stretch the axis
        axes.plot(
            ranks[positive],
            values[positive],
            color=TEMPERATURE_COLORS[i % len(TEMPERATURE_COLORS)],
            linewidth=1.8,
            marker="." if len(ordered) <= 2 * BARS else "",
            label=f"temperature {temperature:g}",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(title="sorted probabilities", xlabel="rank", ylabel="probability")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", frameon=True, framealpha=0.9, edgecolor="none")
    format_rank_axis(axes, len(ordered))


def format_rank_axis(axes: Any, count: int) -> None:
    """Use integer ticks for few ranks and a log scale for many, labeled 1, 10, 100 rather than as powers."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    if count <= 2 * BARS:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")


def printable_label(label: str) -> str:
    """Shorten a label, and escape characters that the font lacks."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    label = label if len(label) <= 24 else f"{label[:20]}...{label[-1]}"
    return "".join(c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in label)
