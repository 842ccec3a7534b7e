"""Pictures on disk: what their files may be called, and saving them whole or not at all."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from duonlp.errors import InputError, MissingExtraError

FORMATS = (".png", ".svg", ".pdf")


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
