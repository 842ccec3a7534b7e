"""Replace the contents of a folder atomically: whenever a save is killed, a load finds the old contents or the new ones.

Where the folder can be renamed, a new folder is filled beside it and exchanged with it in one system call. Where that call is
missing, two renames take its place, and :func:`finish_save` restores the old folder after a kill between them. Where the folder
cannot be renamed, because it is the current one or a mount point, a new folder is filled inside it. Renaming that to
``.duonlp-saved`` is what decides that the new contents hold; then its files are moved out one by one, by the saving process or,
if that is killed, by :func:`finish_save`.

Temporary folders are locked while their process lives. The next save removes those that are not.
"""

import ctypes
import errno
import functools
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from duonlp.checkpoints.temporary_folders import (
    fsync_files,
    is_temporary,
    make_locked_folder,
    remove_folder,
    remove_if_dead,
    temporary_folders,
    when_unlocked,
)
from duonlp.checkpoints.weight_files import INDEX, is_file_name, weight_files
from duonlp.errors import CheckpointError, InputError
from duonlp.util.files import fsync_folder, unlock
from duonlp.util.json_text import to_json
from duonlp.util.permissions import DENIED, explain_denied
from duonlp.util.reading import parse_json

SAVING, SAVED = ".duonlp-saving", ".duonlp-saved"
"""Names of temporary folders inside the one to save to: unfinished (a prefix), and finished but not yet moved out."""

MANIFEST = ".duonlp-manifest.json"
"""File of a finished folder: names of the weights in it ("new"), and of those to remove ("stale")."""

ATTEMPTS = 20
"""Maximum number of attempts while another process changes the same folder."""

AT_FDCWD, RENAME_EXCHANGE = -100, 2


@contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary folder that replaces ``folder`` when the block ends without an error.

    The temporary folder starts with hard links to the existing files except the weights, so files that are not
    overwritten are kept. If ``folder`` is a symbolic link, its target is replaced.

    Raises:
        InputError: ``folder`` is a file.
        CheckpointError: ``folder`` cannot be written to.
    """
    folder = Path(folder).expanduser().resolve()
    try:
        with _replaced(folder) as new:
            yield new
    except OSError as error:
        place = Path(error.filename or folder)
        if error.errno not in DENIED or isinstance(error, CheckpointError) or not place.is_relative_to(folder.parent):
            raise
        if place.name.startswith((f".{folder.name}.", SAVING)):
            place = place.parent
        raise CheckpointError(explain_denied(place, "written")) from error


@contextmanager
def _replaced(folder: Path) -> Generator[Path]:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file; pass a folder to save to")
    created = [path for path in folder.parents if not path.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    finish_save(folder)
    exists = folder.exists()
    if exists and not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(explain_denied(folder, "written"))
    inside = os.path.ismount(folder) or (exists and not os.access(folder.parent, os.W_OK))
    # Renaming the current directory would leave this process (and the shell) in a deleted one.
    one_by_one = inside or (exists and _holds_current(folder))
    remove_leftovers(folder)
    new, lock = (
        make_locked_folder(folder, SAVING)
        if one_by_one
        else make_locked_folder(folder.parent, f".{folder.name}.saving")
    )
    try:
        if exists and not one_by_one:
            _link_files(folder, new)
        yield new
        fsync_files(new)
        if one_by_one or not _rename(new, folder):
            _move_files(new, folder)
        for path in (folder, *created):
            fsync_folder(path.parent)
    finally:
        remove_folder(new)  # what failed, or the old contents
        unlock(lock)


# -- interrupted saves -----------------------------------------------------------------------------------------------------


def finish_save(folder: Path) -> None:
    """Bring a folder whose last save was killed into the state before or after it; wait for a save that is moving files.

    Raises:
        CheckpointError: This process may not do so, or the other one takes longer than SECONDS.
    """
    try:
        if is_being_finished(folder):
            when_unlocked(folder / SAVED, lambda: _move_out(folder))
        elif not os.path.exists(folder):
            _restore(Path(os.path.realpath(folder)))
    except CheckpointError:
        raise
    except OSError as error:
        denied = explain_denied(error.filename or folder, "written") if error.errno in DENIED else error
        raise CheckpointError(
            f"a save to {folder} was interrupted, and this process cannot finish it: {denied}"
        ) from error


def is_being_finished(folder: Path) -> bool:
    """Return whether a save to a folder has written everything, but not yet moved all of its files."""
    try:
        return (folder / SAVED).is_dir() and not (folder / SAVED).is_symlink()
    except OSError:
        return False


def _restore(folder: Path) -> None:
    """Rename the old folder back that a save killed between its two renames left."""

    def places() -> list[Path]:
        olds = temporary_folders(folder.parent, f".{folder.name}.old")
        return [path for path in olds if (path / folder.name).is_dir()]

    def rename() -> None:
        with suppress(FileNotFoundError):
            os.rename(old / folder.name, folder)
        if folder.exists():
            remove_folder(old)
        fsync_folder(folder.parent)

    for place in places():
        when_unlocked(place, lambda: None)  # the second rename of a process that lives
    if os.path.lexists(folder):
        return
    left = places()
    if len(left) > 1:
        raise CheckpointError(
            f"{folder} is missing after interrupted saves, and its contents are in {' or '.join(map(str, left))}; move one of "
            "them back"
        )
    for old in left:
        when_unlocked(old, rename)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders of killed saves to a folder, beside it and inside it."""
    olds = temporary_folders(folder.parent, f".{folder.name}.old") if folder.exists() else []
    saving = temporary_folders(folder.parent, f".{folder.name}.saving")
    for path in (*saving, *olds, *temporary_folders(folder, SAVING)):
        remove_if_dead(path)


# -- replacing a folder ----------------------------------------------------------------------------------------------------


def exchange(first: Path, second: Path) -> bool:
    """Exchange two folders atomically; return False where the system cannot.

    Raises:
        OSError: The folders cannot be renamed.
    """
    renameat2 = _renameat2()
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):  # an old kernel, or the file system
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))


@functools.cache
def _renameat2() -> Any:
    """Return Linux' renameat2 from the C library, or None."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return function


def _rename(new: Path, folder: Path) -> bool:
    """Replace ``folder`` by ``new``, which is gone or holds the old contents afterwards; return False if it cannot be renamed."""
    for _ in range(ATTEMPTS):
        if not os.path.lexists(folder):
            try:
                os.rename(new, folder)
                return True
            except OSError:
                if not os.path.lexists(folder):  # otherwise, another process has just created it
                    raise
        with suppress(OSError):  # two renames will fail, too, or find the folder gone
            if exchange(new, folder):
                return True
        renamed = _rename_twice(new, folder)
        if renamed is not None:
            return renamed
    raise CheckpointError(f"{folder} is replaced again and again while it is being saved; wait for the other process")


def _rename_twice(new: Path, folder: Path) -> bool | None:
    """Replace ``folder`` by ``new`` without exchanging them.

    Returns:
        Whether ``folder`` can be renamed; None if another process has replaced it between the two renames.
    """
    old, lock = make_locked_folder(folder.parent, f".{folder.name}.old")
    try:
        try:
            os.rename(folder, old / folder.name)
        except FileNotFoundError:  # another process has just renamed it
            pass
        except OSError:  # busy, on another file system, or not permitted
            return False
        try:
            os.rename(new, folder)
        except BaseException as error:
            if getattr(error, "errno", None) in (errno.ENOTEMPTY, errno.EEXIST):
                return None
            with suppress(FileNotFoundError):
                os.rename(old / folder.name, folder)
            raise
        return True
    finally:
        if folder.exists():
            remove_folder(old)
        unlock(lock)


def _link_files(folder: Path, new: Path) -> None:
    """Fill ``new`` with links to the files of ``folder`` except the weights, all of one version."""
    for _ in range(ATTEMPTS):
        before = os.stat(folder)
        skipped = {*weight_files(folder), SAVED}

        def ignored(parent: str, names: list[str], skipped: set[str] = skipped) -> set[str]:
            top = Path(parent) == folder
            return skipped | {name for name in names if is_temporary(name, SAVING)} if top else set()

        try:
            shutil.copytree(folder, new, copy_function=_link, symlinks=True, dirs_exist_ok=True, ignore=ignored)
        except (shutil.Error, FileNotFoundError) as error:
            source = Path(error.args[0][0][0]) if isinstance(error, shutil.Error) else Path(error.filename)
            if os.path.lexists(source):  # otherwise, another process has just moved or removed it
                if not os.access(source, os.R_OK):
                    raise CheckpointError(explain_denied(source)) from error
                raise
        else:
            if folder.exists() and os.path.samestat(before, os.stat(folder)):
                return
        remove_folder(new, itself=False)
    raise CheckpointError(f"{folder} is replaced again and again while it is being saved; wait for the other process")


def _move_files(new: Path, folder: Path) -> None:
    """Move the files of ``new`` into ``folder``, in a way that a kill cannot leave a mixture of old and new ones."""
    lock = None
    if new.parent != folder:
        inside, lock = make_locked_folder(folder, SAVING)
        try:
            os.rename(new, inside)  # keeps the lock of `new`
        except OSError:  # another file system
            shutil.copytree(new, inside, symlinks=True, dirs_exist_ok=True)
            fsync_files(inside)
        new = inside
    try:
        manifest = {"new": weight_files(new), "stale": weight_files(folder)}
        (new / MANIFEST).write_text(to_json(manifest), encoding="utf-8")
        fsync_files(new)
        for attempt in range(ATTEMPTS):
            finish_save(folder)
            try:
                os.rename(new, folder / SAVED)  # from here on, the new contents hold
                break
            except OSError:
                if attempt + 1 == ATTEMPTS or not is_being_finished(folder):
                    raise
        fsync_folder(folder)
        _move_out(folder)
    finally:
        remove_folder(new)  # renamed if it was finished
        unlock(lock)


def _move_out(folder: Path) -> None:
    """Move the files of a finished save into place: weights first, index and config last; remove stale weights.

    It may be called again after a kill at any point.
    """
    saved = folder / SAVED
    stale = _stale_files(saved, folder)
    files = [path.relative_to(saved) for path in saved.rglob("*") if path.is_symlink() or not path.is_dir()]
    parents = {folder}
    for file in sorted(files, key=lambda f: (f.name == "config.json", f.name == INDEX, f.suffix != ".safetensors")):
        if file == Path(MANIFEST):
            continue
        parent = (folder / file).parent
        parents.add(parent)
        if not parent.resolve().is_relative_to(folder.resolve()):  # by a link that a stranger made
            raise CheckpointError(f"{parent} leads out of {folder}; remove {saved}")
        parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process has just moved it
            os.replace(saved / file, folder / file)
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    for parent in parents:
        fsync_folder(parent)
    (saved / MANIFEST).unlink(missing_ok=True)
    remove_folder(saved)
    fsync_folder(folder)


def _stale_files(saved: Path, folder: Path) -> list[str]:
    """Return the names of the weights to remove: those there before the save and now, without the new ones.

    The list may come from a stranger, so that only names of weights count.
    """
    try:
        manifest = parse_json((saved / MANIFEST).read_bytes())
        new, stale = set(manifest["new"]), [*manifest["stale"], *weight_files(folder)]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []
    names = [name for name in stale if isinstance(name, str) and name not in new]
    return [name for name in names if name == INDEX or is_file_name(name)]


def _holds_current(folder: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(folder)
    except FileNotFoundError:  # the current directory was deleted
        return False


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
