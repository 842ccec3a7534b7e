"""The sandboxed side of `duonlp.evaluation.sandbox`: run a program in one process and its tests in another.

The parent starts the supervisor (`main`) with `python -I -S`. It forks a guard for the judge and one for the candidate; each
guard enters new namespaces and forks the process itself, the first one there, which shuts itself in. The candidate gets the
program and two pipes, over which the judge calls its functions, see `sandbox_values`; it never sees the tests, and has no
descriptor of the report that the parent reads. Imports only the standard library.

The report consists of dicts: {"setup", "number"} if a step failed, {"judge", "protection"} and {"candidate", "protection"}
before a side begins, {"verdict", "error", "denied"} of the judge, and {"exit"} with the candidate's exit status or -signal.
"""

import ctypes
import gc
import os
import signal
import site
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from duonlp.evaluation import sandbox_kernel as kernel
from duonlp.evaluation.sandbox_programs import ENDED, judge, run_candidate
from duonlp.evaluation.sandbox_seccomp import install_filter
from duonlp.evaluation.sandbox_values import receive, send

THREADS = 64
Settings = dict[str, Any]
Side = Callable[[list[str]], int]


def main() -> None:
    """Read the settings and the program from standard input, supervise both sides, and end when the judge has."""
    settings, program = receive(0), sys.stdin.buffer.read()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.umask(0o022)
    sys.dont_write_bytecode = True  # from here on
    sys.path += settings["packages"]
    site.setquit()  # the rest of `site`, which -S leaves out, is not needed
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        kernel.end_with_parent(libc)
        if os.getppid() != settings["parent"]:
            os._exit(1)
        supervise(libc, settings, program)
    except Exception as error:
        report_setup_error(settings, error)
    finally:
        os._exit(0)


def report(settings: Settings, **fields: Any) -> None:
    """Tell the parent."""
    send(settings["report"], fields)


def report_setup_error(settings: Settings, error: BaseException) -> None:
    """Tell the parent which step of the setup failed."""
    if isinstance(error, kernel.SetupError):
        report(settings, setup=error.step, number=error.number)
    else:
        report(settings, setup=f"prepare ({type(error).__name__}: {error})", number=getattr(error, "errno", None) or 0)


def supervise(libc: ctypes.CDLL, settings: Settings, program: bytes) -> None:
    """Start both sides, wait for the judge, and then end the candidate."""
    if hasattr(libc, "prctl"):
        libc.prctl(kernel.SUBREAPER, 1, 0, 0, 0)  # so that no process is left to a container's init, which may not wait
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    gc.freeze()
    calls, call = os.pipe()
    answers, answer = os.pipe()
    shared = (0, 1, 2, settings["report"])
    tests, names = settings["tests"], settings["names"]
    guards = []
    try:
        for name, descriptors, side in (
            ("judge", (call, answers, tests), lambda _: judge(settings["report"], tests, call, answers)),
            (
                "candidate",
                (calls, answer),
                lambda layers: run_candidate(program, names, calls, answer, "seccomp" in layers),
            ),
        ):
            guards.append(start(libc, settings, name, (*shared, *descriptors), side))
        for descriptor in (calls, call, answers, answer, tests):
            os.close(descriptor)
        _, status = os.waitpid(guards[0], 0)
        if os.waitstatus_to_exitcode(status) == ENDED:
            os.waitpid(guards[1], 0)  # how the candidate ended decides
    finally:
        for guard in guards:
            try:
                os.kill(guard, signal.SIGKILL)  # its child has asked to die with it
            except ProcessLookupError:
                continue
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            pass


def start(libc: ctypes.CDLL, settings: Settings, name: str, descriptors: Iterable[int], side: Side) -> int:
    """Fork the guard of a side and, if programs are isolated, map the ids of its user namespace.

    Args:
        libc: The C library.
        settings: Settings of the run.
        name: Name of the side, for the report.
        descriptors: What the side keeps open.
        side: Runs in the innermost process, with the active layers of protection; the process exits with what it returns.

    Returns:
        The guard's process number.
    """
    maps, user, group = kernel.choose_ids()
    if not settings["isolated"] and "setgroups" in maps:  # there is no other user to become
        user, group = os.geteuid(), os.getegid()
    unshared, tell_unshared = os.pipe()
    mapped, tell_mapped = os.pipe()
    guard = os.fork()
    if not guard:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            kernel.end_with_parent(libc)
            close_all_but([*descriptors, tell_unshared, mapped])
            if settings["isolated"]:
                kernel.unshare(libc)
                os.write(tell_unshared, b"1")
                if not os.read(mapped, 1):
                    os._exit(1)
            close_all_but(descriptors)
            run_guard(libc, settings, name, (user, group), side)
        except BaseException as error:
            report_setup_error(settings, error)
        finally:
            os._exit(1)
    os.close(tell_unshared)
    os.close(mapped)
    try:
        if settings["isolated"] and os.read(unshared, 1):
            kernel.map_ids(guard, maps)
            os.write(tell_mapped, b"1")
    finally:
        os.close(unshared)
        os.close(tell_mapped)
    return guard


def close_all_but(descriptors: Iterable[int]) -> None:
    """Close every other descriptor."""
    previous = -1
    for descriptor in [*sorted(descriptors), os.sysconf("SC_OPEN_MAX")]:
        if previous + 1 < descriptor:  # closerange(0, 0) closes all of them
            os.closerange(previous + 1, descriptor)
        previous = descriptor


def run_guard(libc: ctypes.CDLL, settings: Settings, name: str, ids: tuple[int, int], side: Side) -> NoReturn:
    """Fork the side, wait for it, and report how the candidate ended."""
    try:
        child = os.fork()
    except OSError as error:
        raise kernel.SetupError("fork into the namespaces", error.errno or 0) from error
    if not child:
        run_side(libc, settings, name, ids, side)
    close_all_but((settings["report"],))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if name == "candidate":
        report(settings, exit=code)
    os._exit(code if code >= 0 else 128)


def run_side(libc: ctypes.CDLL, settings: Settings, name: str, ids: tuple[int, int], side: Side) -> NoReturn:
    """Shut this process in, tell the parent so, and run the side."""
    try:
        kernel.end_with_parent(libc)
        protection = shut_in(libc, settings, ids)
        report(settings, **{name: "ready"}, protection=protection)
        if name == "candidate":
            os.close(settings["report"])
    except BaseException as error:
        report_setup_error(settings, error)
        os._exit(1)
    code = 1
    try:
        code = side(protection)
    finally:
        os._exit(code)


def shut_in(libc: ctypes.CDLL, settings: Settings, ids: tuple[int, int]) -> list[str]:
    """Give up everything that the programs do not need; return the layers of protection that are active.

    Where programs are not isolated, those that the system lacks are left out.
    """
    isolated, readable, protection = settings["isolated"], settings["readable"], []
    if isolated:
        kernel.build_root(libc, settings["folder"], readable, 4 * settings["file_size"])
        protection.append("namespaces")
    else:
        os.chdir(settings["folder"])
    if settings["root"] and ids[0] == kernel.NOBODY:
        if not isolated:
            os.chown(settings["folder"], *ids)
        protection.append("user nobody")
    kernel.become(libc, *ids, readable=os.path.dirname(os.__file__))
    kernel.end_with_parent(libc)  # cleared by the change of user
    kernel.set_limits(settings["seconds"], settings["memory"], settings["file_size"], THREADS if isolated else 0)
    if sys.platform.startswith("linux"):
        if kernel.restrict_paths(libc, [*readable, *(["/proc"] if isolated else [])], "."):
            protection.append("Landlock")
        number = install_filter(libc)
        if not number:
            protection.append("seccomp")
        elif isolated:
            raise kernel.SetupError("install a seccomp filter (x86_64 and aarch64)", number)
    return [*protection, "resource limits"]
