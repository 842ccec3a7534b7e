"""Files that stay open for a whole load, so that it reads one version of a checkpoint whatever happens to the folder."""

import errno
import os
import stat
import threading
from pathlib import Path

from duonlp.errors import CheckpointError
from duonlp.util.permissions import DENIED, explain_denied

Identity = tuple[int, int, int, int]
"""Device, inode, size in bytes and time of the last change in nanoseconds."""


class OpenFile:
    """A file that is open for reading: the same one even after its path names another.

    Any number of threads may read at once. The descriptor is closed by :meth:`close`, or with the last reference.

    Attributes:
        path: Path under which it was opened.
        identity: What it was when it was opened.
    """

    def __init__(self, path: Path, descriptor: int):
        self.path, self._descriptor = path, descriptor
        self.identity = _identity(os.fstat(descriptor))
        self._lock = threading.Lock()  # of the position, where there is no preadv

    @classmethod
    def open(cls, path: Path) -> "OpenFile | None":
        """Open a file; None if there is none at `path`.

        Raises:
            CheckpointError: It may not be read, or it is something else than a file.
        """
        try:
            descriptor = _open(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in DENIED:
                raise CheckpointError(explain_denied(path)) from None
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise CheckpointError(
                    f"{path} cannot be opened: {error.strerror}; raise the limit with `ulimit -n`, or close other files"
                ) from None
            raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from None
        except ValueError:  # a name that no file can have
            return None
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return cls(path, descriptor)
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            return None
        raise CheckpointError(f"{path} is not a regular file; replace it with one")

    def __str__(self) -> str:
        return str(self.path)

    @property
    def size(self) -> int:
        """Size in bytes when it was opened."""
        return self.identity[2]

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` with the bytes from `offset` on; return how many there were.

        Raises:
            CheckpointError: The file is closed, cannot be read, or was overwritten since it was opened.
        """
        count = 0
        try:
            while count < len(view) and (read := self._read(view[count:], offset + count)):
                count += read
            now = _identity(os.fstat(self._descriptor))
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from None
        if now != self.identity:
            raise CheckpointError(f"{self.path} was overwritten while it was being read; load the checkpoint again")
        return count

    def _read(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [view], offset)
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            data = os.read(self._descriptor, len(view))
        view[: len(data)] = data
        return len(data)

    def read_bytes(self, offset: int = 0, count: int | None = None) -> bytes:
        """Return `count` bytes from `offset` on, by default all."""
        data = bytearray(max(0, self.size - offset) if count is None else count)
        return bytes(data[: self.read_into(memoryview(data), offset)])

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the contents as text."""
        return self.read_bytes().decode(encoding)

    def close(self) -> None:
        """Close the descriptor; reading is an error from now on."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()


class OpenFolder:
    """The files of a folder, each opened once; ``is_current`` tells whether they are still the folder's.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, OpenFile | None] = {}

    def open(self, name: str) -> OpenFile | None:
        """Return a file of the folder, the same at every call; None if there was none at the first one."""
        if name not in self._files:
            self._files[name] = OpenFile.open(self.folder / name)
        return self._files[name]

    def is_current(self) -> bool:
        """Return whether every file that was opened, or was missing, still is what its path names."""
        return all(
            _identity_at(self.folder / name) == (None if file is None else file.identity)
            for name, file in self._files.items()
        )

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            if file is not None:
                file.close()


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _identity_at(path: Path) -> Identity | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return None if stat.S_ISDIR(status.st_mode) else _identity(status)


def _open(path: Path) -> int:
    # Not blocking: opening a named pipe would wait for its writer.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        try:
            return os.open(path, flags)
        except OSError as error:
            if error.errno != errno.EMFILE or not _raise_limit():
                raise


def _raise_limit() -> bool:
    """Let this process open more files, up to the hard limit; return whether it may."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = 4 * soft if hard == resource.RLIM_INFINITY else min(4 * soft, hard)
    if more <= soft:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
    except (OSError, ValueError):
        return False
    return True
