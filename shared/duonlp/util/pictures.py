"""Check names of figure files, and save matplotlib figures atomically."""

import importlib.util
import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from duonlp.errors import InputError, MissingExtraError
from duonlp.util.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")

COLOURS = ("#1f4e8c", "#c1440e", "#2e8b57", "#8a5fb0", "#b8860b", "#5f6b7a", "#c2477f", "#3a9fb5")

FINE = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)
FINER = (1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9)
"""First digits of ticks on a logarithmic axis that spans few powers of ten, or less than one."""


def check_picture_file(path: Path) -> None:
    """Raise InputError for a file that a figure cannot be saved to; call it before computing what is plotted."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{str(path)!r} ends in {path.suffix!r}; give a file that ends in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise InputError(f"the folder {str(path.parent)!r} of {path.name!r} does not exist; create it first")
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder; give a file in it")


def save_picture(figure: "Figure", path: Path) -> None:
    """Save a matplotlib figure atomically; raise StorageError if it cannot be written."""
    with replacing(path) as stream:
        figure.savefig(stream, format=path.suffix[1:].lower())


def require_matplotlib(what: str) -> None:
    """Raise MissingExtraError if matplotlib is not installed.

    Args:
        what: What it is for, such as "losses are plotted".
    """
    if not importlib.util.find_spec("matplotlib"):
        raise MissingExtraError(f'{what} with matplotlib, which is not installed; pip install "duonlp[bench]"')


@contextmanager
def picture(path: Path, width: float, height: float, dpi: int = 150) -> Generator["Figure", None, None]:
    """Yield a matplotlib figure and save it at the end, without touching matplotlib's global state.

    Args:
        path: The file, as :func:`check_picture_file` allows it.
        width: Width in inches.
        height: Height in inches.
        dpi: Pixels per inch of a .png file.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # embed text as text, so that the labels of an SVG or PDF stay searchable
    with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42, "text.parse_math": False}):
        figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure
        save_picture(figure, path)


def ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Return round tick values from `low` to `high`: logarithmic, or linear if the range is narrow.

    Args:
        low: Lower end of the axis, above 0.
        high: Upper end of the axis.
        most: Maximum number of logarithmic ticks.
    """
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
