"""Temporary folders that are locked while their process lives, so that what a killed one leaves can be told apart."""

import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from duonlp.errors import CheckpointError
from duonlp.util.files import fsync_folder, try_lock, unlock

SECONDS = 30.0
"""Seconds to wait for another process that is moving files."""

UNLOCKED_SECONDS = 2.0
"""Seconds to wait where the file system has no locks, so that it is unknown whether the other process is alive."""

ABANDONED_SECONDS = 86400.0
"""Age in seconds after which a temporary folder of another host is removed: not all file systems share locks."""


def is_temporary(name: str, prefix: str) -> bool:
    """Return whether a name is that of a temporary folder with a prefix; those of earlier versions do not name their host."""
    return re.fullmatch(re.escape(prefix) + r"-([0-9a-f]{8}-)?[a-z0-9_]{8}", name) is not None


def temporary_folders(parent: Path, prefix: str) -> list[Path]:
    """Return the temporary folders with a prefix."""
    try:
        with os.scandir(parent) as entries:
            found = [entry for entry in entries if is_temporary(entry.name, prefix)]
            return sorted(Path(entry) for entry in found if entry.is_dir(follow_symlinks=False))
    except (OSError, ValueError):
        return []


def remove_if_dead(folder: Path) -> None:
    """Remove a temporary folder whose process has ended, as its lock shows."""
    with suppress(OSError):
        age = time.time() - folder.stat().st_mtime
        if f"-{_host()}-" not in folder.name and age < ABANDONED_SECONDS:
            return
        descriptor, free = _lock(folder)
        if free and _is_at(folder, descriptor):
            remove_folder(folder)
        unlock(descriptor)


def make_locked_folder(parent: Path, prefix: str) -> tuple[Path, int | None]:
    """Create a temporary folder and lock it; return it and the descriptor to pass to unlock."""
    while True:
        path = parent / f"{prefix}-{_host()}-{secrets.token_hex(4)}"
        path.mkdir()
        with suppress(FileNotFoundError):
            descriptor, free = _lock(path)
            if free is not False and _is_at(path, descriptor):
                return path, descriptor
            unlock(descriptor)  # another process took it for a leftover before it was locked


def _lock(path: Path) -> tuple[int | None, bool | None]:
    """Lock a folder; return a descriptor to unlock, and whether it is locked: False if by another, None without locks."""
    if os.name == "nt":  # which opens no folders
        return None, None
    descriptor = os.open(path, os.O_RDONLY)
    return descriptor, try_lock(descriptor)


def _is_at(path: Path, descriptor: int | None) -> bool:
    """Return whether a path still names the folder that was opened."""
    try:
        return descriptor is None or os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def when_unlocked(path: Path, act: Callable[[], None]) -> None:
    """Call `act` while holding the lock of a folder, after waiting for its holder; do nothing if the folder is gone by then."""
    start = time.monotonic()
    while True:
        try:
            descriptor, free = _lock(path)
        except FileNotFoundError:
            return
        waited = time.monotonic() - start
        try:
            if (free or (free is None and waited > UNLOCKED_SECONDS)) and _is_at(path, descriptor):
                act()
                return
        finally:
            unlock(descriptor)
        if waited > SECONDS:
            raise CheckpointError(f"another process has been saving to {path.parent} for {SECONDS:.0f} s; wait for it")
        time.sleep(0.01)


def fsync_files(folder: Path) -> None:
    """Make the new files of a folder durable, and the folder itself; links to existing files are durable already."""
    for parent, _, names in os.walk(folder):
        for file in (Path(parent, name) for name in names):
            if not file.is_symlink() and file.stat().st_nlink == 1:
                with open(file, "r+b" if os.name == "nt" else "rb") as stream:  # Windows needs the right to write
                    os.fsync(stream.fileno())
        fsync_folder(Path(parent))


def remove_folder(folder: Path, itself: bool = True) -> None:
    """Remove a folder as far as permissions allow, or only what is in it."""
    for parent, names, _ in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if not path.is_symlink() and not os.access(path, os.W_OK | os.X_OK):
                with suppress(OSError):
                    path.chmod(0o700)  # a read-only folder keeps its files
    for path in (folder,) if itself else tuple(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@functools.cache
def _host() -> str:
    """Return a short name of this machine for file names."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
