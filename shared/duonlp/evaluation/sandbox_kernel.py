"""Shut a process in with what the Linux kernel offers: namespaces, a root of its own, another user, Landlock, limits.

Each function does one step and raises SetupError, which names it, if the kernel refuses. Imports only the standard library,
because the sandboxed processes load it.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
from collections.abc import Sequence

# sched.h: user, mount, process, network, IPC, host name and cgroup namespaces.
NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
READ_ONLY, NO_SET_UID, NO_DEVICES, NO_EXECUTION, BIND, RECURSIVE, PRIVATE = (
    1,
    2,
    4,
    8,
    1 << 12,
    1 << 14,
    1 << 18,
)  # sys/mount.h
DETACH, MOUNT_SETATTR, AT_CWD, AT_RECURSIVE = 2, 442, -100, 0x8000  # sys/mount.h, linux/mount.h
PARENT_DEATH, DUMPABLE, SUBREAPER, NO_NEW_PRIVILEGES = 1, 4, 36, 38  # sys/prctl.h
NOBODY = 65534
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
WORK = "/tmp"
"""The only writable folder in the new root."""

# linux/landlock.h; the numbers of the system calls are the same on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
WRITE_FILE, READ_FILE, READ_FOLDER, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
FOLDER_CHANGES = 0b11111111110000  # create, remove and, from version 2, move entries
HANDLED = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}


class SetupError(Exception):
    """A step that the kernel refused.

    Attributes:
        step: What was attempted.
        number: Its error number, or 0.
    """

    def __init__(self, step: str, number: int = 0):
        super().__init__(step, number)
        self.step, self.number = step, number


def check(status: int, step: str) -> None:
    """Raise SetupError if a call of the C library failed."""
    if status:
        raise SetupError(step, ctypes.get_errno())


class attempt:
    """Raise SetupError, which names the step, in place of OSError."""

    def __init__(self, step: str):
        self.step = step

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, OSError):
            step = f"{self.step}: {error.filename}" if error.filename else self.step
            raise SetupError(step, error.errno or 0) from error


def unshare(libc: ctypes.CDLL) -> None:
    """Leave the parent's namespaces, for new ones; children are in the new process namespace."""
    check(libc.unshare(NAMESPACES), "create namespaces (unshare)")


def choose_ids() -> tuple[dict[str, str], int, int]:
    """Return the id maps of a new user namespace, and the user and group to run programs as; never root.

    Root maps all ids, builds the new root as root and becomes nobody; anyone else is only mapped to themselves.

    Returns:
        What to write to which of the namespace's files, in order, and the user and the group inside.
    """
    user, group = os.geteuid(), os.getegid()
    if user:
        return {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}, user, group
    maps, has_nobody, is_root = {}, True, False
    for name in ("uid_map", "gid_map"):
        with attempt(f"read {name}"), open(f"/proc/self/{name}") as file:
            extents = [tuple(map(int, line.split())) for line in file]
        maps[name] = "\n".join(f"{first} {first} {count}" for first, _, count in extents)
        has_nobody &= any(first <= NOBODY < first + count for first, _, count in extents)
        is_root |= name == "uid_map" and any(first == outside == 0 for first, outside, _ in extents)
    if has_nobody:
        return maps, NOBODY, NOBODY
    if is_root:
        raise SetupError(f"run as user {NOBODY} instead of root: this user namespace does not map that id")
    # Root of a rootless container is an ordinary user outside.
    return {"setgroups": "deny", "uid_map": f"{NOBODY} 0 1", "gid_map": f"{NOBODY} {group} 1"}, NOBODY, NOBODY


def map_ids(process: int, maps: dict[str, str]) -> None:
    """Write the id maps of a process in a new user namespace, from the namespace above."""
    with attempt("map user ids"):
        for name, text in maps.items():
            with open(f"/proc/{process}/{name}", "w") as file:
                file.write(text)


def mount(libc: ctypes.CDLL, source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system, or bind a file or folder."""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode() or None, flags, options.encode() or None)
    check(libc.mount(*arguments), f"mount {kind or source} on {target}")


def build_root(libc: ctypes.CDLL, folder: str, readable: Sequence[str], size: int) -> None:
    """Replace the file system: the readable paths, four devices, /proc of this namespace, and an empty /tmp in memory.

    Everything but /tmp is read-only, and nothing else of the old root can be reached. Must run in the first process of the new
    namespaces.

    Args:
        libc: The C library.
        folder: Any folder; the new root is mounted there before it takes the old one's place.
        readable: Folders and files to bind at the same paths; those that do not exist are ignored.
        size: Size limit of /tmp in bytes.
    """
    mount(libc, "none", "/", "", RECURSIVE | PRIVATE)
    mount(libc, "root", folder, "tmpfs", NO_SET_UID | NO_DEVICES, "size=1m,mode=755")
    bound: list[str] = []
    with attempt("build a root"):
        for path in [*sorted(set(readable)), *DEVICES]:
            if not os.path.exists(path) or any(path.startswith(f"{other}/") for other in bound):
                continue
            target = folder + path
            os.makedirs(os.path.dirname(target), exist_ok=True)
            bound.append(path)
            real = os.path.realpath(path)
            if os.path.islink(path) and real in readable:  # relative: an absolute one would lead out of the folder
                os.symlink(os.path.relpath(real, os.path.dirname(path)), target)
                continue
            if os.path.isdir(path):
                os.makedirs(target, exist_ok=True)
            else:
                os.close(os.open(target, os.O_CREAT, 0o444))
            mount(libc, path, target, "", BIND | RECURSIVE)
        for name in ("/proc", WORK):
            os.makedirs(folder + name, exist_ok=True)
    flags = NO_SET_UID | NO_DEVICES | NO_EXECUTION
    libc.mount(b"proc", os.fsencode(f"{folder}/proc"), b"proc", flags, b"subset=pid")  # stays empty in some containers
    attributes = struct.pack("<QQQQ", READ_ONLY | NO_SET_UID, 0, 0, 0)
    status = libc.syscall(MOUNT_SETATTR, AT_CWD, os.fsencode(folder), AT_RECURSIVE, attributes, len(attributes))
    check(status, "make the root read-only (mount_setattr, Linux 5.12 or later)")
    mount(libc, "work", folder + WORK, "tmpfs", flags, f"size={size},nr_inodes=4096,mode=1777")
    with attempt("enter the new root"):
        os.chdir(folder)
    check(libc.pivot_root(b".", b"."), "replace the root (pivot_root)")
    check(libc.umount2(b".", DETACH), "detach the old root (umount)")
    with attempt("enter the new root"):
        os.chdir(WORK)


def become(libc: ctypes.CDLL, user: int, group: int, readable: str) -> None:
    """Switch to a user and give up all capabilities, for ever.

    Args:
        libc: The C library.
        user: User to become.
        group: Its only group.
        readable: A folder that the user must be able to read.
    """
    with attempt(f"become user {user}"):
        if (os.getuid(), os.geteuid(), os.getgid(), os.getegid()) != (user, user, group, group):
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
    if hasattr(libc, "prctl"):
        check(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "give up new privileges (prctl)")
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        check(libc.capset(header, nothing), "give up all capabilities (capset)")
        check(libc.prctl(DUMPABLE, 0, 0, 0, 0), "hide the memory (prctl)")
    if not os.access(readable, os.R_OK | os.X_OK):
        raise SetupError(f"read {readable!r} as user {user}, who may not", errno.EACCES)


def restrict_paths(libc: ctypes.CDLL, readable: Sequence[str], writable: str) -> bool:
    """Deny with Landlock all access to files but these, TCP, and, from Linux 6.12, signals and abstract sockets.

    Args:
        libc: The C library.
        readable: Folders and files to read; those that do not exist are ignored.
        writable: Folder to read and write.

    Returns:
        False if the kernel has no Landlock.
    """
    version = libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    handled = HANDLED[min(version, 5)]
    size = 8 if version < 4 else 16 if version < 6 else 24
    attributes = struct.pack("<QQQ", handled, 0b11, 0b11)[:size]
    rules = libc.syscall(CREATE_RULESET, attributes, size, 0)
    if rules < 0:
        raise SetupError("create a Landlock ruleset", ctypes.get_errno())
    rights = dict.fromkeys(readable, READ_FILE | READ_FOLDER)
    rights |= dict.fromkeys(DEVICES, READ_FILE | WRITE_FILE | TRUNCATE)
    rights[writable] = WRITE_FILE | READ_FILE | READ_FOLDER | TRUNCATE | FOLDER_CHANGES
    for path, right in rights.items():
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not os.path.isdir(path):
            right &= READ_FILE | WRITE_FILE | TRUNCATE
        rule = struct.pack("<Qi", right & handled, descriptor)
        check(libc.syscall(ADD_RULE, rules, 1, rule, 0), f"allow {path} (Landlock)")
        os.close(descriptor)
    check(libc.syscall(RESTRICT_SELF, rules, 0), "restrict paths (Landlock)")
    os.close(rules)
    return True


def set_limits(seconds: float, memory: int, file_size: int, threads: int) -> None:
    """Limit memory, CPU time, file size and open files, and disable core dumps.

    Args:
        seconds: Time limit, enforced by the parent; the CPU time is limited in case it is gone.
        memory: Limit of the address space in bytes.
        file_size: Limit of a file in bytes.
        threads: Limit of the user's threads, or 0 if the user has others, which would count.
    """
    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": int(seconds) + 2,
        "RLIMIT_AS": memory,
        "RLIMIT_FSIZE": file_size,
        "RLIMIT_NOFILE": 128,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_MEMLOCK": 0,
    }
    if threads:
        limits["RLIMIT_NPROC"] = threads
    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            _, hard = resource.getrlimit(kind)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            try:
                resource.setrlimit(kind, (value, value))
            except (ValueError, OSError):  # macOS cannot limit the address space
                continue


def end_with_parent(libc: ctypes.CDLL) -> None:
    """Have the kernel kill this process when its parent ends."""
    if hasattr(libc, "prctl"):
        check(libc.prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0), "end with the parent (prctl)")
