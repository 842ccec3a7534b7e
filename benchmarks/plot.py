"""Draw docs/speed.png from the tables of docs/performance.md: speed relative to Transformers on PyTorch.

    python -m benchmarks plot

All values are read from the tables, so the plot cannot disagree with them.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
REFERENCE = "PyTorch"
RATIO = "ratio to PyTorch"
CONTESTANTS = {"tfnlp": "#e07b00", "jaxnlp": "#2f6fb3", "keras-hub, TensorFlow": "#c9b8a0", "keras-hub, JAX": "#a9b9c9"}
"""Contestant -> color of its bars."""
NAMES = {
    "transformers-torch": REFERENCE, "Transformers, PyTorch": REFERENCE, "tfnlp-xla": "tfnlp",
    "keras-hub-jax": "keras-hub, JAX", "keras-hub-tensorflow": "keras-hub, TensorFlow",
}  # fmt: skip
"""Name in a table -> contestant. A row of tfnlp-xla follows and replaces the one of tfnlp: ``fit`` uses XLA."""
SECTIONS = {
    "The forward pass of an encoder": "Forward pass: {}",
    "Encoder-decoders": "Summarize with 4 beams: {}",
    "Text generation": "Generate with GPT-2: {}",
    "A fine-tuning step": "Fine-tune MiniLM: {}",
    "A training step": "Pretrain a small GPT-2: {}",
}
"""Heading of a section -> label of its bars."""
BAR = 0.2
"""Height of a bar; the groups of bars are 1 apart."""


def rows(section: str) -> Iterator[tuple[str, str, float]]:
    """Yield (setting, contestant, ratio to PyTorch's time) from the table of a section.

    A table has one row per setting and contestant, with the column "ratio to PyTorch", or one row per setting whose ratios
    are in columns named after the contestants.
    """
    lines = [[cell.strip() for cell in line.split("|")] for line in section.splitlines() if line.startswith("|")]
    header, setting = lines[0], ""
    for cells in lines[2:]:
        if RATIO in header:
            setting = cells[1] or setting
            yield setting, NAMES.get(cells[2], cells[2]), float(cells[header.index(RATIO)])
        else:
            for name in CONTESTANTS:
                if name in header:
                    yield f"{cells[1]}, {cells[2]}", name, float(cells[header.index(name)])


def speeds(page: str) -> dict[str, dict[str, float]]:
    """Return {label: {contestant: speed relative to PyTorch}} for the sections of the page, in the order of SECTIONS."""
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    bars: dict[str, dict[str, float]] = {}
    for heading, label in SECTIONS.items():
        for setting, contestant, ratio in rows(sections[heading]):
            bars.setdefault(label.format(setting), {})[contestant] = 1 / ratio
    return bars


def main(arguments: list[str] | None = None) -> None:
    """Draw the plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks plot", description=__doc__.splitlines()[0])
    parser.parse_args(arguments)
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    groups = speeds((DOCS / "performance.md").read_text(encoding="utf-8"))
    figure = Figure(figsize=(9, 0.62 * len(groups) + 1.2), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.axvline(1, color="black", linewidth=1)
    axes.text(1, -0.75, REFERENCE, ha="center", fontsize=9)
    background = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # keeps the line from crossing a number
    for row, values in enumerate(groups.values()):
        present = [name for name in CONTESTANTS if name in values]
        for slot, name in enumerate(present):
            y = row + (slot - (len(present) - 1) / 2) * BAR  # centered on the label
            axes.barh(y, values[name], BAR, color=CONTESTANTS[name])
            axes.text(values[name] + 0.03, y, f"{values[name]:.2f}", va="center", fontsize=7, bbox=background)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlabel("speed relative to Transformers on PyTorch (longer is faster)")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=color, label=name) for name, color in CONTESTANTS.items()]
    axes.legend(handles=handles, loc="lower right", frameon=False, fontsize=9)
    figure.savefig(DOCS / "speed.png")


if __name__ == "__main__":
    main()
