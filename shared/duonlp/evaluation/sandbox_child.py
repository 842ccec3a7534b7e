"""The inner side of the sandbox: run by `python -I` as a script, it shuts itself in and then runs one program.

It reads a line of JSON and the program from standard input, and imports nothing but the standard library. See
`duonlp.evaluation.sandbox`, which starts it, for what is promised.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import sys
import types

NEW_USER, NEW_NET, NEW_PID, NEW_MOUNT, NEW_IPC = 0x10000000, 0x40000000, 0x20000000, 0x00020000, 0x08000000  # sched.h
RECURSIVE, PRIVATE, NO_SET_UID, NO_DEVICES = 1 << 14, 1 << 18, 2, 4  # sys/mount.h
MOUNT_SETATTR, AT_RECURSIVE, READ_ONLY = 442, 0x8000, 1  # linux/mount.h; the number is every architecture's
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


def limit(settings: dict, alone: bool) -> None:
    """Memory, processor seconds, file sizes, open files, no core dump; and processes, of a user who has no others."""
    wanted = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": int(settings["seconds"]) + 2,  # should whoever watches the clock be gone
        "RLIMIT_AS": settings["memory"],
        "RLIMIT_FSIZE": settings["file_size"],
        "RLIMIT_NOFILE": 128,
    }
    if alone:  # threads count too; a person's own other processes would leave no room for any
        wanted["RLIMIT_NPROC"] = settings["processes"]
    for name, value in wanted.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            _, hard = resource.getrlimit(kind)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            try:
                resource.setrlimit(kind, (value, value))
            except (ValueError, OSError):
                continue  # macOS has no limit on addresses


def give_up_root(folder: str) -> bool:
    """From root to nobody, where the interpreter can still be read then: the limit on processes is not for root."""
    if os.geteuid() != 0:
        return False
    libraries = [each for each in sys.path if os.path.isdir(each)]
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    readable = all(os.access(each, os.R_OK | os.X_OK, effective_ids=True) for each in libraries)
    os.seteuid(0)
    os.setegid(0)
    if not readable:
        os.setgroups(groups)
        return False
    os.chown(folder, NOBODY, NOBODY)
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return True


def isolate(libc, folder: str, file_size: int) -> bool:
    """Own user, network, process, mount and IPC namespaces: no network, nothing to write but an empty folder in memory.

    Returns in the first process of the new process namespace: when it ends, the kernel ends all the others in there.
    False where the kernel does not allow this, and nothing has changed then.
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
        if os.WIFSIGNALED(status):  # to end as the program did
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) != signal.SIGKILL else None
            os.kill(os.getpid(), os.WTERMSIG(status))
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    libc.prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
    check(libc.mount(None, b"/", None, RECURSIVE | PRIVATE, None))
    flags = NO_SET_UID | NO_DEVICES
    if libc.mount(b"proc", b"/proc", b"proc", flags, None):
        check(libc.mount(b"none", b"/proc", b"tmpfs", flags, b"size=4k"))  # a container's /proc may not be mounted anew
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY, 0, 0, 0)
    check(libc.syscall(MOUNT_SETATTR, -100, b"/", AT_RECURSIVE, attributes, ctypes.sizeof(attributes)))
    for hidden in (b"/run", b"/dev/shm"):  # sockets and shared memory of services
        libc.mount(b"none", hidden, b"tmpfs", flags, b"size=4k")
    check(libc.mount(b"none", os.fsencode(folder), b"tmpfs", flags, f"size={4 * file_size},nr_inodes=4096".encode()))
    os.chdir(folder)
    # No capability is left over the new namespaces either, nor comes back.
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    check(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    check(libc.capset(header, nothing))
    return True


def check(failed: int) -> None:
    """Raises OSError for a call of the C library that did not work."""
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def guard(folder: str, denied: list[str]):
    """An audit hook (PEP 578) that refuses the network, other processes, and whatever is written outside of a folder."""
    home = os.path.realpath(folder)
    own = f"/proc/{os.getpid()}"
    refused = dict.fromkeys(NETWORK, "no network here")
    refused |= dict.fromkeys(PROCESSES, "no other processes here")
    refused |= dict.fromkeys(INSPECTION, "not in here")
    realpath, fsdecode, string, path_like = os.path.realpath, os.fsdecode, (str, bytes), os.PathLike

    def inside(path) -> bool:
        if isinstance(path, path_like):
            path = path.__fspath__()
        if not isinstance(path, string):
            return True  # a descriptor, of a file that is open
        path = realpath(fsdecode(path))
        return path == home or path.startswith(home + "/") or path == "/dev/null"

    def refuse(event, why):
        denied.append(event)
        raise PermissionError(errno.EPERM, why)

    def hook(event, arguments):
        if event in refused:
            refuse(event, refused[event])
        elif event == "open":
            path, _, flags = arguments
            if flags & WRITING:
                if not inside(path):
                    refuse("open to write", f"nothing is written outside of the working folder: {path!r}")
            elif isinstance(path, string) and fsdecode(path)[:1] in "/.":
                real = realpath(fsdecode(path))
                other = real.startswith("/proc/") and real[6:7].isdigit() and not real.startswith(own + "/")
                if other or (real.endswith(("/environ", "/mem")) and real.startswith("/proc/")):
                    refuse("open of a process", "no other processes here")
        elif event in CHANGES:
            if not all(map(inside, arguments)):
                refuse(event, "nothing is changed outside of the working folder")
        elif event == "socket.__new__":
            if arguments[1] != 1:  # AF_UNIX: a pair of them, as asyncio has, leads nowhere
                refuse("socket.socket", "no network here")
        elif event == "ctypes.dlopen" and arguments[0] is not None:
            name = fsdecode(arguments[0]) if isinstance(arguments[0], string) else ""
            if not name.startswith(sys.base_prefix):
                refuse(event, "no other library here")

    sys.addaudithook(hook)
    import _posixsubprocess  # what subprocess is built on raises no event of its own

    def no_process(*_):
        refuse("subprocess.Popen", "no other processes here")

    _posixsubprocess.fork_exec = no_process


def execute(program: str, token: bytes, report: int, protection: list[str], folder: str) -> None:
    """Runs the program, and writes the token only when its last line was reached."""
    write, leave, encode, end = os.write, os._exit, json.dumps, BaseException
    denied: list[str] = []

    def tell(status: str, **more) -> None:
        write(report, (encode({"status": status, "denied": sorted(set(denied))[:20], **more}) + "\n").encode())

    tell("started", protection=protection)
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses and the like look their module up
    sys.modules["__main__"] = types.ModuleType("__main__")
    guard(folder, denied)
    try:
        exec(compile(program, "program.py", "exec"), module.__dict__)
        write(report, token)
        status, error = "passed", ""  # alone it counts for nothing
    except SystemExit as exit:
        status, error = "exited early", f"the program left with status {exit.code!r} before its end"
    except MemoryError:
        status, error = "memory", "MemoryError"
    except end as raised:
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
    except end:
        pass
    tell(status, error=error)
    leave(0)


def main() -> None:
    """Reads what to do, gives up everything the program does not need, and runs it."""
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
    if give_up_root(folder):
        protection.append("user nobody")
    if linux:
        libc.prctl(DUMPABLE, 1, 0, 0, 0)  # cleared with the user; /proc/self would be root's
        libc.prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != settings["parent"]:
            os._exit(1)
    if linux and settings["namespaces"] and isolate(libc, folder, settings["file_size"]):
        protection.append("namespaces")
    limit(settings, alone=bool(protection))
    protection += ["resource limits", "audit hook"]
    execute(program.decode(), f"{settings['token']}\n".encode(), settings["report"], protection, folder)


if __name__ == "__main__":
    main()
