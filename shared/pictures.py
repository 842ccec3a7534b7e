"""Pictures on disk: what their files may be called, and saving them whole or not at all."""

import os
from pathlib import Path

from shared.errors import InputError

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
