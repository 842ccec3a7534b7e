"""Find text files below a folder, and split documents by a hash of their names."""

import hashlib
import os
import sysconfig
from collections.abc import Callable
from pathlib import Path

from duonlp.errors import InputError
from duonlp.util.files import may_read, unreadable

# Tests, lookup tables and Tk's call lists are large and unlike hand-written code; site-packages is not
# part of the library.
STANDARD_LIBRARY_SKIPS = frozenset(
    {"__pycache__", "encodings", "ensurepip", "idle_test", "idlelib", "lib2to3", "pydoc_data", "site-packages"}
    | {"test", "tests", "tkinter", "turtledemo"}
)


def text_files(
    root: str | Path,
    pattern: str = "*.py",
    skip: frozenset[str] = frozenset(),
    on_error: Callable[[OSError], None] | None = None,
) -> list[Path]:
    """Return the files below `root` whose names match `pattern`, sorted by path.

    Args:
        root: Folder to search recursively.
        pattern: Glob for the file name.
        skip: Names of folders to leave out at any depth below `root`.
        on_error: Called with the error of each folder that cannot be read; by default it is raised.

    Raises:
        InputError: If `root` is not a folder, no file matches, or a folder cannot be read.
    """
    root = Path(root)
    if not may_read(root) or not root.is_dir():
        raise InputError(f"corpus root {str(root)!r} is not a folder; give an existing folder of text files")

    def raise_or_note(error: OSError) -> None:
        if on_error is None:
            raise unreadable(error.filename, error) from error
        on_error(error)

    for _, folders, _ in os.walk(root, onerror=raise_or_note):  # rglob passes over what it cannot read
        folders[:] = [name for name in folders if name not in skip]
    files = [
        path for path in root.rglob(pattern) if path.is_file() and not skip.intersection(path.relative_to(root).parts)
    ]
    if not files:
        raise InputError(f"no file under {str(root)!r} matches {pattern!r}; give another folder or another pattern")
    return sorted(files)


def standard_library_folder() -> Path:
    """Return the folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def is_held_out(name: str, held_out: float = 0.05, salt: str = "") -> bool:
    """Return whether the document with this name belongs to the held-out part.

    Only the SHA-256 of the salted name decides, so adding or removing documents never moves another one.

    Args:
        name: Path relative to the corpus root, or `Document.name`.
        held_out: Expected fraction of documents to hold out, in (0, 1).
        salt: Change it to get a different split.

    Raises:
        InputError: If `held_out` is not between 0 and 1.
    """
    if not 0 < held_out < 1:
        raise InputError(f"held_out is {held_out}; it must be a fraction between 0 and 1, such as 0.05")
    digest = hashlib.sha256((salt + name).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < held_out * 2**64
