"""Files of text: found below a folder, and split by their names into those to train on and those held out."""

import hashlib
import sysconfig
from pathlib import Path

from duonlp.errors import InputError

# Tests, tables and Tk's long lists of calls are large and unlike the code that people write; `site-packages` is not the
# library.
STANDARD_LIBRARY_SKIPS = frozenset(
    {"__pycache__", "encodings", "ensurepip", "idle_test", "idlelib", "lib2to3", "pydoc_data", "site-packages"}
    | {"test", "tests", "tkinter", "turtledemo"}
)


def text_files(root: str | Path, pattern: str = "*.py", skip: frozenset[str] = frozenset()) -> list[Path]:
    """Returns every file below `root` that matches `pattern`, sorted by path.

    Args:
        root: the folder to search, with all its subfolders.
        pattern: a glob for the file's name.
        skip: names of folders that are left out, wherever below `root` they are.

    Raises:
        InputError: `root` is not a folder, or nothing in it matches.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"corpus root {str(root)!r} is not a folder; give an existing folder of text files")
    found = [
        path for path in root.rglob(pattern) if path.is_file() and not skip.intersection(path.relative_to(root).parts)
    ]
    if not found:
        raise InputError(f"no file under {str(root)!r} matches {pattern!r}; give another folder or another pattern")
    return sorted(found)


def standard_library_folder() -> Path:
    """Returns the folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def is_held_out(name: str, held_out: float = 0.05, salt: str = "") -> bool:
    """Whether the file, or the document, of this name is held out: a matter of its name's hash alone.

    Args:
        name: a path below the corpus' root, or a `Document.name`.
        held_out: the expected share of files to hold out, in (0, 1).
        salt: another salt gives another split.

    Raises:
        InputError: `held_out` is not between 0 and 1.
    """
    if not 0 < held_out < 1:
        raise InputError(f"held_out is {held_out}; it must be a share between 0 and 1, such as 0.05")
    digest = hashlib.sha256((salt + name).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < held_out * 2**64
