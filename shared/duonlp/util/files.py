"""Files and folders that other processes look at, too: written whole or not at all, and locked."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from duonlp.errors import InputError


def write_text(file: str | os.PathLike, text: str) -> None:
    """A whole file or none: written to a temporary name, and renamed."""
    file = Path(file)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with open(unfinished, "w", encoding="utf-8") as writing:
            writing.write(text)
            writing.flush()
            os.fsync(writing.fileno())
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Holds a lock on a folder, which the system takes back however the process ends.

    Raises:
        InputError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{str(folder)!r} is being written by another process; wait for it or stop it") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)
