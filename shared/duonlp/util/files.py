"""Write files atomically and lock folders."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from duonlp.errors import InputError


def write_text(file: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 file atomically, by renaming a temporary file."""
    file = Path(file)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with open(unfinished, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def locked_folder(folder: Path) -> Generator[None, None, None]:
    """Hold a lock on a folder, which the operating system releases however the process ends.

    Systems and file systems without locks are not an error.

    Raises:
        InputError: Another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{str(folder)!r} is being written by another process; wait for it to finish, or stop it"
            ) from error
        except OSError:  # the file system has no locks
            pass
        yield
    finally:
        os.close(descriptor)
