"""Draw docs/speed.png from the tables of docs/performance.md: speed relative to Transformers on PyTorch.

    python -m benchmarks plot

The plot has no figures of its own, so it cannot disagree with the tables.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
REFERENCE = "PyTorch"
CONTESTANTS = {"tfnlp": "#e07b00", "jaxnlp": "#2f6fb3", "keras-hub, TensorFlow": "#c9b8a0", "keras-hub, JAX": "#a9b9c9"}
NAMES = {
    "transformers-torch": REFERENCE, "Transformers, PyTorch": REFERENCE, "tfnlp-xla": "tfnlp",
    "keras-hub-jax": "keras-hub, JAX", "keras-hub-tensorflow": "keras-hub, TensorFlow",
}  # fmt: skip
SECTIONS = {
    "The forward pass of an encoder": "Forward pass: {}",
    "Encoder-decoders": "Summarize with 4 beams: {}",
    "Text generation": "Generate with GPT-2: {}",
    "A fine-tuning step": "Fine-tune MiniLM: {}",
    "A training step": "Pretrain a small GPT-2: {}",
}
"""Heading of a section -> label of its bars."""


def rows(section: str) -> Iterator[tuple[str, str, float]]:
    """Yield (setting, contestant, ratio to PyTorch's time) of a section's table.

    A table has one row per setting and contestant, with the column "ratio to PyTorch", or one row per setting whose ratios
    are in columns named after the contestants.
    """
    lines = [[cell.strip() for cell in line.split("|")] for line in section.splitlines() if line.startswith("|")]
    header, setting = lines[0], ""
    for cells in lines[2:]:
        if "ratio to PyTorch" in header:
            setting = cells[1] or setting
            yield setting, NAMES.get(cells[2], cells[2]), float(cells[header.index("ratio to PyTorch")])
        else:
            for name in CONTESTANTS.keys() & set(header):
                yield f"{cells[1]}, {cells[2]}", name, float(cells[header.index(name)])


def speeds(page: str) -> dict[str, dict[str, float]]:
    """Return {label: {contestant: speed relative to PyTorch}} of every section, in the page's order."""
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    bars: dict[str, dict[str, float]] = {}
    for heading, label in SECTIONS.items():
        for setting, contestant, ratio in rows(sections[heading]):
            bars.setdefault(label.format(setting), {})[contestant] = (
                1 / ratio
            )  # tfnlp-xla replaces tfnlp: `fit` uses XLA
    return bars


def main(options: list[str]) -> None:
    """Draw the plot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    argparse.ArgumentParser(prog="python -m benchmarks plot", description=__doc__).parse_args(options)
    bars = speeds((DOCS / "performance.md").read_text(encoding="utf-8"))
    figure = Figure(figsize=(9, 0.62 * len(bars) + 1.2), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    height = 0.8 / len(CONTESTANTS)
    for row, values in enumerate(bars.values()):
        for slot, (name, color) in enumerate(CONTESTANTS.items()):
            if name in values:
                y = row + (slot - (len(CONTESTANTS) - 1) / 2) * height
                axes.barh(y, values[name], height, color=color)
                axes.text(values[name] + 0.03, y, f"{values[name]:.2f}", va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.text(1, -0.75, "PyTorch", ha="center", fontsize=9)
    axes.set_yticks(range(len(bars)), bars)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlabel("speed relative to Transformers on PyTorch (longer is faster)")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [axes.barh(0, 0, color=color) for color in CONTESTANTS.values()]
    axes.legend(handles, CONTESTANTS, loc="lower right", frameon=False, fontsize=9)
    figure.savefig(DOCS / "speed.png")


if __name__ == "__main__":
    main([])
