"""Pictures on disk: what their files may be called, and saving them whole or not at all."""

import importlib.util
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from duonlp.errors import InputError, MissingExtraError

FORMATS = (".png", ".svg", ".pdf")

COLOURS = ("#1f4e8c", "#c1440e", "#2e8b57", "#8a5fb0", "#b8860b", "#5f6b7a", "#c2477f", "#3a9fb5")

FINE = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)
FINER = (1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9)
"""First digits of ticks on a logarithmic axis that has few or less than one power of ten."""


def check_picture_file(path: Path) -> None:
    """Raises InputError for a file that no picture can be saved to; to be called before anything is drawn."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{str(path)!r} ends in {path.suffix!r}; name a file that ends in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise InputError(f"the folder {str(path.parent)!r} of {path.name!r} is not there; make it first")
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder; give a file in it")


def save_picture(figure, path: Path) -> None:
    """Saves a matplotlib figure; never half a picture is under the name, whatever happens."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(unfinished, format=path.suffix[1:].lower())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def require_matplotlib(what: str) -> None:
    """Raises MissingExtraError without matplotlib. what: is done with it, such as "losses are plotted"."""
    if not importlib.util.find_spec("matplotlib"):
        raise MissingExtraError(f'{what} with matplotlib, which is missing; pip install "duonlp[bench]"')


@contextmanager
def picture(path: Path, width: float, height: float, dpi: int = 150) -> Iterator:
    """A matplotlib figure of so many inches, saved at the end; nothing of matplotlib's own state is changed."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # text as text keeps the labels of an SVG or PDF searchable
    with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42, "text.parse_math": False}):
        figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure
        save_picture(figure, path)


def ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round numbers from `low` to `high`, above 0: those of a logarithmic axis, or of a linear one in a narrow range."""
    from matplotlib.ticker import MaxNLocator

    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    best: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), FINE, FINER):
        marks = [digit * 10.0**power for power in powers for digit in digits]
        marks = [mark for mark in marks if low <= mark <= high]
        if len(marks) > most:
            break
        best = marks
    if len(best) >= 4:
        return best
    locator = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    return [float(mark) for mark in locator.tick_values(low, high) if low <= mark <= high]
