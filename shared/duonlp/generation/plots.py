"""The distribution of the next token as a picture: what top-k and top-p keep, and what the temperature does."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from duonlp.errors import InputError
from duonlp.generation.choices import TokenNames, log_softmax, token_label
from duonlp.util.pictures import check_picture_file, picture, require_matplotlib

BARS = 20
"""Tokens shown by name."""

KEPT, CUT = "#1f4e8c", "#c3cad5"
LINES = ("#c1440e", "#2e8b57")
TEMPERATURES = ("#1f4e8c", "#c1440e", "#2e8b57", "#8a5fb0", "#b8860b", "#5f6b7a")


def plot_next_token(
    logits: np.ndarray,
    path: str | os.PathLike,
    *,
    tokenizer=None,
    temperatures: Sequence[float] = (0.5, 1.0, 2.0),
    top_k: int | None = None,
    top_p: float | None = None,
    title: str = "",
) -> None:
    """Draws the distribution of one next token in three panels, and saves it.

    The first has the most likely tokens, those that top-k and top-p keep in another colour than those they cut; the
    second the cumulative probability over ranks, and where it is cut; the third the sorted probabilities at each
    temperature. As in Transformers, top-p counts what top-k has left.

    Args:
        logits: float [vocab]; -inf is a token that was ruled out.
        path: a .png, .svg or .pdf file in a folder that is there.
        tokenizer: names the tokens; without one their ids are shown.
        temperatures: above 0, for the third panel; the others are at temperature 1.
        top_k, top_p: None or as in `generate`, to show what they cut.
        title: above the panels.

    Raises:
        InputError: a value that is not allowed, an unknown kind of file, or a folder that is not there.
        MissingExtraError: matplotlib is not installed.
    """
    path = Path(path)
    logits = np.asarray(logits)
    check(logits, path, temperatures, top_k, top_p)
    require_matplotlib("distributions are plotted")

    probabilities = np.exp(log_softmax(logits, "the next token"))
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    kept = kept_ranks(ranked, top_k, top_p)
    names = TokenNames(tokenizer)
    labels = [legible(token_label(names[i], i)) for i in order[:BARS].tolist()]
    with picture(path, 15, 5.2, dpi=120) as figure:
        bars, cumulative, sorted_ = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
        draw_bars(bars, ranked, labels, kept, top_k is not None or top_p is not None)
        draw_cumulative(cumulative, ranked, kept, top_k, top_p)
        draw_temperatures(sorted_, logits, temperatures)
        for axes in (bars, cumulative, sorted_):
            axes.spines[["top", "right"]].set_visible(False)
        if title:
            figure.suptitle(title, fontsize=13)


def check(
    logits: np.ndarray, path: Path, temperatures: Sequence[float], top_k: int | None, top_p: float | None
) -> None:
    """Raises InputError for a value that plot_next_token cannot draw or a path it cannot save to."""
    if logits.ndim != 1 or not logits.size:
        raise InputError(
            f"logits have shape {logits.shape}; give those of one next token, [vocab], as in logits[0, -1]"
        )
    check_picture_file(path)
    if isinstance(temperatures, (int, float)) or not len(temperatures):
        raise InputError(f"temperatures={temperatures!r} must be a list of at least one number above 0")
    for temperature in temperatures:
        if not (np.isfinite(temperature) and temperature > 0):
            raise InputError(f"temperature {temperature!r} is not allowed; give numbers above 0")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)) or top_k < 1):
        raise InputError(f"top_k={top_k!r} must be a whole number of at least 1, or None")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p={top_p!r} must be above 0 and at most 1, or None")


def kept_ranks(ranked: np.ndarray, top_k: int | None, top_p: float | None) -> int:
    """How many of the most likely tokens top-k, and then top-p, keep."""
    kept = int(np.count_nonzero(ranked))  # a token that was ruled out is nobody's choice
    if top_k is not None:
        kept = min(kept, top_k)
    if top_p is not None and top_p < 1:
        mass = np.cumsum(ranked[:kept]) / ranked[:kept].sum()
        kept = min(kept, int(np.searchsorted(mass, top_p)) + 1)
    return kept


def draw_bars(axes, ranked: np.ndarray, labels: list[str], kept: int, cuts: bool) -> None:
    """The first panel: the most likely tokens, those kept in another colour than those cut."""
    from matplotlib.patches import Patch

    shown = len(labels)
    colours = [KEPT if rank < kept else CUT for rank in range(shown)]
    drawn = axes.barh(np.arange(shown), ranked[:shown], color=colours)
    axes.bar_label(drawn, [f"{value:.1%}" for value in ranked[:shown]], padding=3, fontsize=8, color="#444444")
    axes.set_yticks(np.arange(shown), labels, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15, y=0.02)
    axes.set(title="most likely next tokens" if len(ranked) > shown else "next tokens", xlabel="probability")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if ranked[0] > 0.05 else f"{value:.1%}")
    if cuts:
        counts = (f"kept: {kept:,}", f"cut: {len(ranked) - kept:,}")
        patches = [Patch(color=colour, label=label) for colour, label in zip((KEPT, CUT), counts)]
        axes.legend(handles=patches, loc="lower right", frameon=False)


def draw_cumulative(axes, ranked: np.ndarray, kept: int, top_k: int | None, top_p: float | None) -> None:
    """The second panel: the cumulative probability over ranks, and where top-k and top-p cut it."""
    ranks = np.arange(1, len(ranked) + 1)
    mass = np.cumsum(ranked)
    axes.plot(ranks, mass, color=KEPT, linewidth=1.8, marker="." if len(ranked) <= 2 * BARS else "")
    axes.set_ylim(0, 1.03)
    after_k = 1.0
    if top_k is not None:
        after_k = float(mass[min(top_k, len(mass)) - 1])
        axes.axvline(top_k, color=LINES[0], linestyle="--", linewidth=1.3, label=f"top-k = {top_k:,}: {after_k:.1%}")
    if top_p is not None:
        # top-p of what top-k has left is less of the whole
        of_rest = " of top-k" if top_k is not None else ""
        label = f"top-p = {top_p:g}{of_rest}: {kept:,} token{'s' * (kept != 1)}"
        axes.axhline(top_p * after_k, color=LINES[1], linestyle="--", linewidth=1.3, label=label)
        axes.plot(kept, mass[kept - 1], "o", color=LINES[1])
    if top_k is not None or top_p is not None:
        axes.axvspan(1, kept, color=KEPT, alpha=0.07, linewidth=0)
        axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
    axes.set(title="cumulative probability", xlabel="rank")
    axes.grid(alpha=0.25)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    scale_ranks(axes, len(ranked))


def draw_temperatures(axes, logits: np.ndarray, temperatures: Sequence[float]) -> None:
    """The third panel: the sorted probabilities at each temperature."""
    ordered = np.sort(np.asarray(logits).astype(np.float64))[::-1]
    ranks = np.arange(1, len(ordered) + 1)
    for i, temperature in enumerate(temperatures):
        values = np.exp(log_softmax(ordered / temperature, "the next token"))
        positive = values > 1e-12  # below, a line would stretch the panel for nothing
        axes.plot(
            ranks[positive],
            values[positive],
            color=TEMPERATURES[i % len(TEMPERATURES)],
            linewidth=1.8,
            marker="." if len(ordered) <= 2 * BARS else "",
            label=f"temperature {temperature:g}",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(title="sorted probabilities", xlabel="rank", ylabel="probability")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", frameon=True, framealpha=0.9, edgecolor="none")
    scale_ranks(axes, len(ordered))


def scale_ranks(axes, count: int) -> None:
    """A few ranks one by one, many on a log scale; as 1, 10, 100 rather than powers."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    if count <= 2 * BARS:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")


def legible(label: str) -> str:
    """A label that the font has the characters for: others are escaped, and a long one is cut."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    label = label if len(label) <= 24 else f"{label[:20]}...{label[-1]}"
    return "".join(c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in label)
