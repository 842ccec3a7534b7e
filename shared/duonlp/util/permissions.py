"""Explain why a file or folder cannot be read or written: whose it is, who asks, and what to do."""

import errno
import os
import stat
from pathlib import Path

DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Error numbers of missing permissions."""


def explain_denied(path: str | os.PathLike[str], action: str = "read") -> str:
    """Return a sentence on a permission that this process lacks, naming the folder on the way if that is the obstacle.

    Args:
        path: File or folder that could not be used.
        action: "read" or "written".
    """
    path = Path(os.path.abspath(path))
    obstacle = next((folder for folder in reversed(path.parents) if not _may(folder, os.X_OK)), path)
    if action == "written" and obstacle == path:
        obstacle = next(place for place in (path, *path.parents) if os.path.lexists(place))
    what = str(path) if obstacle == path else f"{path} (in {obstacle})"
    try:
        status, read_only = os.stat(obstacle), _on_read_only_system(obstacle)
    except OSError:
        return f"{what} cannot be {action}: permission denied; ask its owner for access"
    if read_only and action == "written":
        return f"{what} cannot be {action}: its file system is read-only; choose another folder"
    kind = "folder" if stat.S_ISDIR(status.st_mode) else "file"
    return (
        f"{what} cannot be {action}: permission denied; the {kind} belongs to {_user(status.st_uid)} with mode "
        f"{stat.S_IMODE(status.st_mode):04o}, and this process runs as {_user(_own_id())}: change its mode or owner, or run as "
        "its owner"
    )


def _may(path: Path, mode: int) -> bool:
    effective = os.access in os.supports_effective_ids
    return not os.path.lexists(path) or os.access(path, mode, effective_ids=effective)


def _on_read_only_system(path: Path) -> bool:
    return hasattr(os, "statvfs") and bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _own_id() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _user(number: int) -> str:
    try:
        import pwd

        return pwd.getpwuid(number).pw_name
    except (ImportError, KeyError):  # Windows, or a user without a name
        return f"user {number}"
