"""The sandboxed side: run by `python -I` as a script, it restricts its own process and then runs one program.

Reads a line of JSON settings and the program from standard input, and imports only the standard library. See
`duonlp.evaluation.sandbox`, which starts it, for the guarantees.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import sys
import types
from typing import Any, NoReturn

NEW_USER, NEW_NET, NEW_PID, NEW_MOUNT, NEW_IPC = 0x10000000, 0x40000000, 0x20000000, 0x00020000, 0x08000000  # sched.h
RECURSIVE, PRIVATE, NO_SET_UID, NO_DEVICES = 1 << 14, 1 << 18, 2, 4  # sys/mount.h
MOUNT_SETATTR, AT_RECURSIVE, READ_ONLY = 442, 0x8000, 1  # linux/mount.h; the same number on every architecture
PARENT_DEATH, DUMPABLE, NO_NEW_PRIVILEGES = 1, 4, 38  # sys/prctl.h
NOBODY = 65534

NETWORK = {
    "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
    "socket.gethostbyaddr", "socket.getnameinfo",
}  # fmt: skip
PROCESSES = {
    "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.startfile", "os.kill", "os.killpg",
    "subprocess.Popen", "pty.spawn", "signal.pthread_kill",
}  # fmt: skip
INSPECTION = {
    "gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys._current_frames", "sys._current_exceptions",
    "resource.prlimit", "resource.setrlimit", "sys.settrace", "sys.setprofile",
    "ctypes.dlsym", "ctypes.dlsym/handle", "ctypes.call_function", "ctypes.string_at", "ctypes.wstring_at", "ctypes.cdata",
}  # fmt: skip
CHANGES = {
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate",
    "os.utime", "os.mkfifo", "os.mknod", "os.setxattr", "os.removexattr", "os.chflags", "os.lockf", "shutil.rmtree",
    "shutil.move", "shutil.chown", "sqlite3.connect",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def set_limits(settings: dict[str, Any], alone: bool) -> None:
    """Limit memory, CPU time, file size and open files, and disable core dumps.

    Args:
        settings: Settings of the run: seconds, memory, file_size, processes.
        alone: Whether the user has no other processes, so that the number of processes can be limited too.
    """
    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": int(settings["seconds"]) + 2,  # in case the parent, which enforces the time limit, is gone
        "RLIMIT_AS": settings["memory"],
        "RLIMIT_FSIZE": settings["file_size"],
        "RLIMIT_NOFILE": 128,
    }
    if alone:  # the limit counts threads of all the user's processes, which could exceed it already
        limits["RLIMIT_NPROC"] = settings["processes"]
    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            _, hard = resource.getrlimit(kind)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            try:
                resource.setrlimit(kind, (value, value))
            except (ValueError, OSError):
                continue  # macOS cannot limit the address space


def drop_root(folder: str) -> bool:
    """Switch from root to nobody, since the process limit does not apply to root; return whether it was done.

    Does nothing if nobody cannot read the interpreter.

    Args:
        folder: Working folder, which is handed to nobody.
    """
    if os.geteuid() != 0:
        return False
    libraries = [path for path in sys.path if os.path.isdir(path)]
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    readable = all(os.access(path, os.R_OK | os.X_OK, effective_ids=True) for path in libraries)
    os.seteuid(0)
    os.setegid(0)
    if not readable:
        os.setgroups(groups)
        return False
    os.chown(folder, NOBODY, NOBODY)
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return True


def enter_namespaces(libc: ctypes.CDLL, folder: str, file_size: int) -> bool:
    """Enter new user, network, process, mount and IPC namespaces: no network, and an in-memory folder as the only writable one.

    Returns in the first process of the new process namespace; when it ends, the kernel kills the others in the namespace.

    Args:
        libc: The C library.
        folder: Working folder, which is replaced by an empty one in memory.
        file_size: Size limit of a file in bytes; the folder may hold four times as much.

    Returns:
        False if the kernel does not allow this; nothing has changed then.
    """
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(NEW_USER | NEW_NET | NEW_PID | NEW_MOUNT | NEW_IPC):
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    child = os.fork()
    if child:
        os.close(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):  # exit like the program
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) != signal.SIGKILL else None
            os.kill(os.getpid(), os.WTERMSIG(status))
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    libc.prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
    raise_on_error(libc.mount(None, b"/", None, RECURSIVE | PRIVATE, None))
    flags = NO_SET_UID | NO_DEVICES
    if libc.mount(b"proc", b"/proc", b"proc", flags, None):
        raise_on_error(
            libc.mount(b"none", b"/proc", b"tmpfs", flags, b"size=4k")
        )  # a container may not mount /proc again
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY, 0, 0, 0)
    raise_on_error(libc.syscall(MOUNT_SETATTR, -100, b"/", AT_RECURSIVE, attributes, ctypes.sizeof(attributes)))
    for hidden in (b"/run", b"/dev/shm"):  # services' sockets and shared memory
        libc.mount(b"none", hidden, b"tmpfs", flags, b"size=4k")
    raise_on_error(
        libc.mount(b"none", os.fsencode(folder), b"tmpfs", flags, f"size={4 * file_size},nr_inodes=4096".encode())
    )
    os.chdir(folder)
    # Drop the capabilities over the new namespaces, and never regain any.
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    raise_on_error(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    raise_on_error(libc.capset(header, nothing))
    return True


def raise_on_error(status: int) -> None:
    """Raise OSError if a call of the C library failed."""
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def install_audit_hook(folder: str, denied: list[str]) -> None:
    """Install an audit hook (PEP 578) that denies the network, other processes and writes outside a folder.

    Args:
        folder: The only writable folder.
        denied: Receives the names of the denied events.
    """
    home = os.path.realpath(folder)
    own = f"/proc/{os.getpid()}"
    reasons = dict.fromkeys(NETWORK, "no network in the sandbox")
    reasons |= dict.fromkeys(PROCESSES, "no other processes in the sandbox")
    reasons |= dict.fromkeys(INSPECTION, "no access to the interpreter in the sandbox")
    # Bound now, so that the program cannot replace them.
    realpath, fsdecode, string, path_like = os.path.realpath, os.fsdecode, (str, bytes), os.PathLike

    def is_inside(path: Any) -> bool:
        if isinstance(path, path_like):
            path = path.__fspath__()
        if not isinstance(path, string):
            return True  # a descriptor of an open file
        path = realpath(fsdecode(path))
        return path == home or path.startswith(home + "/") or path == "/dev/null"

    def deny(event: str, reason: str) -> NoReturn:
        denied.append(event)
        raise PermissionError(errno.EPERM, reason)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in reasons:
            deny(event, reasons[event])
        elif event == "open":
            path, _, flags = arguments
            if flags & WRITING:
                if not is_inside(path):
                    deny("open to write", f"no writes outside the working folder: {path!r}")
            elif isinstance(path, string) and fsdecode(path)[:1] in "/.":
                real = realpath(fsdecode(path))
                other = real.startswith("/proc/") and real[6:7].isdigit() and not real.startswith(own + "/")
                if other or (real.endswith(("/environ", "/mem")) and real.startswith("/proc/")):
                    deny("open of a process", "no other processes in the sandbox")
        elif event in CHANGES:
            if not all(map(is_inside, arguments)):
                deny(event, "no changes outside the working folder")
        elif event == "socket.__new__":
            if arguments[1] != 1:  # AF_UNIX: asyncio's socket pairs lead nowhere
                deny("socket.socket", "no network in the sandbox")
        elif event == "ctypes.dlopen" and arguments[0] is not None:
            name = fsdecode(arguments[0]) if isinstance(arguments[0], string) else ""
            if not name.startswith(sys.base_prefix):
                deny(event, "no other libraries in the sandbox")

    sys.addaudithook(hook)
    import _posixsubprocess  # subprocess is built on it, and it raises no audit event

    def deny_process(*_: Any) -> NoReturn:
        deny("subprocess.Popen", "no other processes in the sandbox")

    _posixsubprocess.fork_exec = deny_process


def run_program(program: str, token: bytes, report: int, protection: list[str], folder: str) -> None:
    """Run the program, report its status, and write the token only if its last line is reached.

    Args:
        program: Source code.
        token: Random line that proves that the program reached its end.
        report: Descriptor of the pipe to the parent.
        protection: Active layers of protection, to report.
        folder: Working folder.
    """
    # Bound now, so that the program cannot replace them.
    write, leave, encode, any_error = os.write, os._exit, json.dumps, BaseException
    denied: list[str] = []

    def send(status: str, **fields: Any) -> None:
        write(report, (encode({"status": status, "denied": sorted(set(denied))[:20], **fields}) + "\n").encode())

    send("started", protection=protection)
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses, for example, look up their module
    sys.modules["__main__"] = types.ModuleType("__main__")
    install_audit_hook(folder, denied)
    try:
        exec(compile(program, "program.py", "exec"), module.__dict__)
        write(report, token)
        status, error = "passed", ""  # without the token it has no effect
    except SystemExit as exit:
        status, error = "exited early", f"the program exited with status {exit.code!r} before its end"
    except MemoryError:
        status, error = "memory", "MemoryError"
    except any_error as raised:
        status, error = "failed", f"{type(raised).__name__}: {str(raised)[:1000]}".removesuffix(": ")
        number = getattr(raised, "errno", None)
        if isinstance(raised, OSError) and number in (errno.EFBIG, errno.ENOSPC):
            status = "file size"
        elif isinstance(raised, PermissionError) and denied:
            status = "network" if denied[-1].startswith("socket.") else "forbidden"
        elif isinstance(raised, OSError) and number in (errno.ENETUNREACH, errno.ENETDOWN):
            status = "network"
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except any_error:
        pass
    send(status, error=error)
    leave(0)


def main() -> None:
    """Read settings and program, drop all privileges that the program does not need, and run it."""
    data = sys.stdin.buffer.read()
    line, _, program = data.partition(b"\n")
    settings = json.loads(line)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.chdir(settings["folder"])
    folder, protection, linux = os.getcwd(), [], sys.platform.startswith("linux")
    os.umask(0o077)
    libc = ctypes.CDLL(None, use_errno=True)
    if drop_root(folder):
        protection.append("user nobody")
    if linux:
        libc.prctl(DUMPABLE, 1, 0, 0, 0)  # cleared by the change of user; /proc/self would belong to root
        libc.prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != settings["parent"]:
            os._exit(1)
    if linux and settings["namespaces"] and enter_namespaces(libc, folder, settings["file_size"]):
        protection.append("namespaces")
    set_limits(settings, alone=bool(protection))
    protection += ["resource limits", "audit hook"]
    run_program(program.decode(), f"{settings['token']}\n".encode(), settings["report"], protection, folder)


if __name__ == "__main__":
    main()
