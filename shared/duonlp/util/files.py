"""Write files atomically, lock folders, and say why a file cannot be read or written."""

import contextlib
import errno
import glob
import os
import secrets
import shutil
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from duonlp.errors import DuonlpError, InputError, StorageError
from duonlp.util.permissions import DENIED, explain_denied
from duonlp.util.reading import first_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl: Any = None

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exceeded quota and a limit on the size of a file."""

FULL_MESSAGES = ("No space left", "disk is full", "were full", "too large", " written")
"""Parts of the messages of libraries that do not pass on the number: SQLite, ArrayRecord, tokenizers, NumPy."""

UNFINISHED = ".part"
"""Suffix of the temporary files and folders of :func:`unfinished`."""


def write_text(file: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 file atomically, by renaming a temporary file.

    Raises:
        StorageError: The file cannot be written; an existing one is unchanged.
    """
    with replacing(file) as stream:
        stream.write(text.encode("utf-8"))


@contextmanager
def replacing(file: str | os.PathLike) -> Generator[IO[bytes], None, None]:
    """Yield a binary stream whose contents replace a file atomically and durably if no error occurs.

    Any number of processes may write the same file at once: each has its own temporary file, and the last one to finish wins.

    Raises:
        StorageError: The file cannot be written; an existing one is unchanged.
    """
    file = Path(file)
    with storage_errors(file), unfinished(file) as partial:
        with open(partial, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
        fsync_folder(file.parent)


@contextmanager
def unfinished(path: Path, *, folder: bool = False) -> Generator[Path, None, None]:
    """Yield a new file, or folder, beside a path, which is removed at the end unless it was renamed.

    It is locked meanwhile, so that a later call for the same path can tell which ones a killed process left behind, and removes
    them.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{UNFINISHED}"):
        _remove_if_dead(leftover)
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}{UNFINISHED}")
        if folder:
            partial.mkdir()
        else:
            partial.open("xb").close()
        try:
            descriptor = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:  # another process cleaned up before it was locked
            continue
        if try_lock(descriptor) is not False and partial.exists():
            break
        os.close(descriptor)
    try:
        yield partial
    finally:
        _remove(partial)
        unlock(descriptor)


def _remove_if_dead(path: Path) -> None:
    """Remove an unfinished file or folder whose writer has ended."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if try_lock(descriptor):
                _remove(path)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file or folder; return False if another holder has it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return None
    return True


def unlock(descriptor: int | None) -> None:
    """Release a lock and close its descriptor, of which a child that has just been forked may still hold a copy.

    Args:
        descriptor: The descriptor; None where folders cannot be locked.
    """
    if descriptor is None:
        return
    with contextlib.suppress(OSError):
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Make renames in a folder durable; do nothing where folders cannot be synchronized."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def storage_errors(path: str | os.PathLike) -> Generator[None, None, None]:
    """Turn errors of writing a file, or the files in a folder, into a StorageError that names it.

    Errors of other files pass through.
    """
    try:
        yield
    except DuonlpError:
        raise
    except OSError as error:
        own, other = Path(os.path.abspath(path)), error.filename
        if isinstance(other, (str, os.PathLike)):
            other = Path(os.path.abspath(other))
            partial = other.parent == own.parent and other.name.startswith(f".{own.name}.")  # see unfinished
            if not (partial or own in (other, other.parent) or other == own.parent):
                raise
        elif type(error) is not OSError and error.errno is None:  # such as gzip's BadGzipFile, from reading
            raise
        raise storage_error(path, error) from error


def storage_error(path: str | os.PathLike, error: BaseException) -> StorageError:
    """Return the StorageError for an error of any type that kept a file from being written."""
    reason = getattr(error, "strerror", None) or first_line(error)
    result = StorageError(f"cannot write {os.fspath(path)!r}: {reason}; {storage_remedy(error)}, or use another folder")
    result.errno = getattr(error, "errno", None)
    return result


def storage_remedy(error: BaseException) -> str:
    """Return what to do about an error of writing a file."""
    number, message = getattr(error, "errno", None), str(error)
    if number in FULL or any(words in message for words in FULL_MESSAGES):
        return "free disk space"
    return "change the permissions" if number in DENIED or "denied" in message else "check the disk"


def may_read(path: str | os.PathLike) -> bool:
    """Return whether a file or folder exists, after checking that it can be read.

    Raises:
        InputError: It exists but cannot be read, or a folder on the way to it cannot be entered.
    """
    path = Path(path)
    try:
        if path.is_dir():
            os.scandir(path).close()
            os.stat(path / ".")  # a folder that can be listed, but not entered
        elif path.is_file():  # opening a pipe would take what is in it
            open(path, "rb").close()
        else:
            return path.exists()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unreadable(path, error) from None
    return True


def unreadable(path: str | os.PathLike, error: OSError) -> InputError:
    """Return the InputError for a file or folder that exists but cannot be read."""
    if error.errno in DENIED:
        return InputError(explain_denied(path))
    what, reason = "folder" if os.path.isdir(path) else "file", error.strerror or str(error) or type(error).__name__
    return InputError(f"the {what} {os.fspath(path)!r} cannot be read: {reason}")


class _Held(threading.local):
    """The locks of a thread: (device, inode) -> (descriptor, uses)."""

    def __init__(self) -> None:
        self.locks: dict[tuple[int, int], tuple[int, list[str]]] = {}


_HELD = _Held()
_DESCRIPTORS: set[int] = set()  # of all threads


def _forget_locks() -> None:
    """Close the descriptors that a forked child inherits, which would keep its parent's locks after the parent has ended."""
    for descriptor in _DESCRIPTORS:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _DESCRIPTORS.clear()
    _HELD.locks = {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


@contextmanager
def locked_folder(folder: str | os.PathLike, use: str = "") -> Generator[None, None, None]:
    """Hold the lock of a folder to write; the operating system releases it however the process ends.

    The folder is created if it is missing, and removed again if it is still empty at the end. Systems and file systems without
    locks are not an error.

    Args:
        folder: The folder.
        use: What the lock is for. Within the same thread, a call for another use shares the lock: a run locks its folder, then
            ``fit`` does, then its log. A lock without a use is not shared.

    Raises:
        InputError: The lock is held, by another process or thread or for the same use, or the path is a file or an unreadable
            folder.
        StorageError: The folder cannot be created.
    """
    path, locks = Path(folder), _HELD.locks
    created = not os.path.lexists(path)
    if not created and not path.is_dir():
        raise InputError(f"{str(path)!r} is a file; give a folder")
    while True:
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # another process has just removed it
            continue
        except OSError as error:
            raise unreadable(path, error) from None
        status = os.fstat(descriptor)
        key = status.st_dev, status.st_ino
        is_shared = key in locks and {use, ""}.isdisjoint(locks[key][1]) and use != ""
        if not is_shared and (key in locks or try_lock(descriptor) is False):
            os.close(descriptor)
            raise _in_use(path)
        if not is_shared and os.path.isdir(path) and os.path.samestat(os.stat(path), status):
            locks[key] = descriptor, []
            _DESCRIPTORS.add(descriptor)
            break
        os.close(descriptor)  # it is shared, or was removed before it was locked
        if is_shared:
            break
    held, uses = locks[key]
    uses.append(use)
    try:
        yield
    finally:
        uses.remove(use)
        if not uses:
            locks.pop(key, None)
            if held in _DESCRIPTORS:  # not in a forked child, which has closed it
                if created:
                    with contextlib.suppress(OSError):  # it is not empty
                        os.rmdir(path)
                _DESCRIPTORS.discard(held)
                unlock(held)


def _in_use(path: str | os.PathLike) -> InputError:
    return InputError(
        f"{os.fspath(path)!r} is being written by another process or thread; wait for it to finish, or stop it"
    )


@contextmanager
def updating(file: str | os.PathLike) -> Generator[None, None, None]:
    """Wait for the turn to read, change and replace a small file, so that no other process's change is lost.

    Raises:
        StorageError: The folder cannot be written.
    """
    turn = Path(file).with_name(f".{Path(file).name}.turn")
    with storage_errors(file):
        while True:
            descriptor = os.open(turn, os.O_RDWR | os.O_CREAT, 0o666)
            with contextlib.suppress(OSError):  # the file system has no locks
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(turn), os.fstat(descriptor)):
                    break
            os.close(descriptor)  # whoever had its turn before has removed it
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            turn.unlink()
        unlock(descriptor)


@contextmanager
def locked_file(file: str | os.PathLike) -> Generator[None, None, None]:
    """Hold the lock of a file that records are appended to, which is created if it is missing, and removed if it stays empty.

    Raises:
        InputError: Another process or thread holds the lock.
        StorageError: The file cannot be opened for writing.
    """
    created = not os.path.lexists(file)
    with storage_errors(file):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        if try_lock(descriptor) is False:
            raise _in_use(file)
        _DESCRIPTORS.add(descriptor)
        try:
            yield
        finally:
            if created and not os.fstat(descriptor).st_size:
                Path(file).unlink(missing_ok=True)
    finally:
        _DESCRIPTORS.discard(descriptor)
        unlock(descriptor)
