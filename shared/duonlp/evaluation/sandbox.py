"""Run untrusted Python programs isolated by the kernel, and judge their functions from another process.

What judges a program is never in its process. `check_solution` runs the program in one process and the tests in another: the
tests' calls reach the program's functions over a pipe, and what comes back is read as plain data, so a program passes only if its
functions return what the tests expect. `check_program` runs no separate tests; its status "passed" is not verified.

Python cannot contain Python, so both processes are contained by Linux. A Result's `protection` lists what was active:

- "namespaces": user, mount, process, network, IPC, host name and cgroup namespaces. The program sees the interpreter's libraries,
  read-only, four devices, an empty folder in memory of limited size, no other process, and no network interface that is up.
- "user nobody": programs of root run as nobody. Those of others run as the caller, whose files they cannot see.
- "Landlock" (where the kernel has it): the same paths once more, no TCP, no signals to other processes.
- "seccomp": a list of allowed system calls. No other process, hence limits that hold for the whole program; no sockets
  but pairs, no tracing, no mounts, no namespaces, nothing new.
- "resource limits": address space, CPU time, file size, open files, threads; no core dumps.
- Always: a fresh `python -I`, no environment variables, empty standard input, and an end with the time limit or the caller.

Where the kernel cannot isolate programs, nothing runs, unless the caller passes `unsafe=True`: then they run with whichever
of the layers are left, but with the user's rights, and could reach the user's files, network, processes, and the judge.
"""

import contextlib
import functools
import os
import selectors
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from duonlp.errors import InputError
from duonlp.evaluation.sandbox_values import UnsupportedValueError, send, split

FOLDER = Path(__file__).parent
STARTUP_SECONDS = 20.0
"""Seconds, before the program's begin, for the interpreter to start and restrict itself on a busy machine."""
ATTEMPTS = 3
"""How often a sandbox is set up before its failure is an error: a busy machine may run out of processes for a moment."""

STATUSES = {
    "passed": "the tests passed; without tests, the program says that it ran to its end",
    "failed": "an exception, such as a failed assertion or a syntax error",
    "exited early": "the program exited before its end, with any status",
    "timed out": "the time limit was exceeded",
    "memory": "the memory limit was exceeded",
    "file size": "the size limit of a file or of the folder was exceeded",
    "output limit": "the program printed more than the output limit",
    "network": "the program was denied a connection",
    "forbidden": "the program was denied another process, a write outside its folder, or another system call",
    "unsupported": "an argument or a result is not plain data, which the tests in another process cannot use",
    "crashed": "the program was killed by a signal, or did not answer in the sandbox's format",
}
"""Possible values of a Result's status, with their meanings."""

UNSAFE = "programs then run with your rights: nothing reliable protects your files, network, processes and the verdicts"
SYSTEM_LIBRARIES = (
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
)
STORES = ("/nix/store", "/gnu/store")


class IsolationError(InputError):
    """The kernel refused a step of a sandbox's setup."""


@dataclass(frozen=True)
class Result:
    """Outcome of a program.

    Attributes:
        status: One of STATUSES.
        error: The exception, or what stopped the program.
        output: What program and tests printed, standard error included, truncated at the limit.
        seconds: Duration, including the start of the interpreter.
        protection: Active layers of protection, see the module's documentation.
        denied: What the program was denied, as far as it tells; it may catch the error and pass nonetheless.
    """

    status: str
    error: str
    output: str
    seconds: float
    protection: tuple[str, ...]
    denied: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the tests passed."""
        return self.status == "passed"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        return asdict(self) | {"protection": list(self.protection), "denied": list(self.denied)}


def check_program(
    program: str,
    *,
    seconds: float = 3.0,
    memory: int = 1 << 30,
    file_size: int = 16 << 20,
    output_size: int = 1 << 20,
    namespaces: bool = True,
    unsafe: bool = False,
) -> Result:
    """Run a whole Python program in the sandbox that the module describes.

    The kernel enforces the isolation and the limits. The status "passed" is not verified: the program reports it after its last
    line, and a malicious program can report it, too. Use `check_solution` to judge programs.

    Args:
        program: Source code.
        seconds: Time limit, counted from the start of the program, after which all its processes are killed.
        memory: Limit of the address space, in bytes; the program is a single process.
        file_size: Limit of the size of a file, in bytes. The whole folder may hold four times as much.
        output_size: Limit of the printed output, in bytes; a program that prints more is killed.
        namespaces: Whether to isolate the program; False needs `unsafe`.
        unsafe: Whether to run the program even where the kernel cannot isolate it; it can then reach everything that you can.

    Raises:
        InputError: A limit is not positive, or the system is not POSIX.
        IsolationError: The kernel cannot isolate programs, and `unsafe` is False. An InputError.
    """
    limits = {"seconds": seconds, "memory": memory, "file_size": file_size, "output_size": output_size}
    return _check(program, "", "", (), limits, namespaces, unsafe)


def check_solution(
    solution: str,
    test: str,
    names: Sequence[str],
    *,
    prompt: str = "",
    seconds: float = 3.0,
    memory: int = 1 << 30,
    file_size: int = 16 << 20,
    output_size: int = 1 << 20,
    namespaces: bool = True,
    unsafe: bool = False,
) -> Result:
    """Run a solution in one sandbox and the tests of its functions in another, which judges it.

    It passes if the tests raise nothing, and the solution cannot reach them: its functions are called over a pipe, with copies of
    the arguments, and return copies of built-in values: None, bool, int, float, complex, str, bytes, range, list, tuple, set,
    frozenset, dict. Built-in exceptions are raised in the tests as in the solution, others as their built-in base class. A list,
    dict or set that a function changes is changed in the tests. Other arguments and results end the run as "unsupported".

    Args:
        solution: Source code, untrusted.
        test: Source code that raises an exception if a function is wrong, such as lines of `assert add(1, 2) == 3`. Trusted.
        names: The functions that the tests call. Other names come from the prompt and from the tests.
        prompt: Source code that the tests may use, ending with the header of an unfinished function or not. Trusted.
        seconds: Time limit, counted from the start of the solution.
        memory: Limit of the address space of each of the two processes, in bytes.
        file_size: Limit of the size of a file, in bytes. The whole folder may hold four times as much.
        output_size: Limit of the printed output, in bytes; a program that prints more is killed.
        namespaces: Whether to isolate the program; False needs `unsafe`.
        unsafe: Whether to run the solution even where the kernel cannot isolate it; it can then reach everything that you can.

    Raises:
        InputError: A limit is not positive, no name is given, or the system is not POSIX.
        IsolationError: The kernel cannot isolate programs, and `unsafe` is False. An InputError.
    """
    if isinstance(names, str) or not names:
        raise InputError(f"names is {names!r}; give a list of the functions that the tests call")
    limits = {"seconds": seconds, "memory": memory, "file_size": file_size, "output_size": output_size}
    return _check(solution, prompt, test, names, limits, namespaces, unsafe)


def _check(
    program: str, prompt: str, test: str, names: Sequence[str], limits: dict[str, float], namespaces: bool, unsafe: bool
) -> Result:
    for name, value in limits.items():
        if not 0 < value < 1 << 62:
            raise InputError(f"{name} is {value}; it must be positive, and finite")
    isolated = require_isolation(namespaces, unsafe)
    task = {"prompt": prompt, "test": test, "names": list(names)}
    try:
        return _set_up_and_run(program, task, limits, isolated)
    except UnsupportedValueError as error:
        raise InputError(f"prompt and tests cannot be passed on: {error}; give shorter ones") from None


def _set_up_and_run(program: str, task: dict[str, Any], limits: dict[str, float], isolated: bool) -> Result:
    """Run a program once, after another attempt to set the sandbox up if that failed."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return _run(program, task, limits, isolated)
        except IsolationError:
            time.sleep(0.1 * 4**attempt)
    return _run(program, task, limits, isolated)


def require_isolation(namespaces: bool = True, unsafe: bool = False) -> bool:
    """Return whether programs will be isolated.

    Args:
        namespaces: As in `check_program`.
        unsafe: As in `check_program`.

    Raises:
        InputError: The system is not POSIX, or `namespaces` is False and `unsafe` is not True.
        IsolationError: The kernel cannot isolate programs, and `unsafe` is False.
    """
    if os.name != "posix":
        raise InputError(f"the sandbox does not support {os.name!r} systems; use Linux")
    remedy = f"or pass unsafe=True: {UNSAFE}"
    if not namespaces:
        if not unsafe:
            raise InputError("namespaces=False turns the isolation off", remedy=f"omit it, {remedy}", argument="unsafe")
        return False
    reason = isolation_error()
    if reason and not unsafe:
        raise IsolationError(reason, remedy=remedy, argument="unsafe")
    return not reason


@functools.cache
def isolation_error() -> str:
    """Return why the kernel cannot isolate programs, or "" if it can; determined once, with a program of our own."""
    if not sys.platform.startswith("linux"):
        return f"programs can only be isolated on Linux, not on {sys.platform!r}"
    limits = {"seconds": 30.0, "memory": 1 << 30, "file_size": 1 << 20, "output_size": 1 << 20}
    task: dict[str, Any] = {"prompt": "", "test": "", "names": []}
    try:
        result = _set_up_and_run("", task, limits, True)
    except IsolationError as error:
        return error.message
    detail = result.output.strip().rpartition("\n")[2] or result.error
    return "" if result.passed else f"an empty program cannot run isolated here ({result.status}): {detail}"


@functools.cache
def readable_paths() -> tuple[str, ...]:
    """Return the folders and files that a Python program needs: the interpreter's libraries, and those of the system."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    paths = {os.path.join(prefix, name) for prefix in prefixes for name in ("lib", "lib64")}
    paths |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {*site.getsitepackages(), *SYSTEM_LIBRARIES}
    paths |= {store for store in STORES if sys.base_prefix.startswith(store)}
    paths |= {os.path.realpath(path) for path in paths}
    return tuple(sorted(path for path in paths if os.path.isabs(path) and path != "/" and os.path.exists(path)))


def _run(program: str, task: dict[str, Any], limits: dict[str, float], isolated: bool) -> Result:
    """Run a program once.

    Raises:
        IsolationError: The kernel refused a step of the setup, or it took too long, before the program began.
    """
    started, folder, size = time.monotonic(), tempfile.mkdtemp(prefix="program-"), int(limits["output_size"])
    reader, writer = os.pipe()
    try:
        with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as tests:
            settings = {name: int(value) for name, value in limits.items()} | {
                "isolated": isolated, "folder": os.path.realpath(folder), "readable": readable_paths(), "names": task["names"],
                "packages": site.getsitepackages(), "report": writer, "tests": tests.fileno(), "parent": os.getpid(),
                "root": os.geteuid() == 0,
            }  # fmt: skip
            send(source.fileno(), settings)
            source.write(program.encode(errors="surrogatepass"))
            source.flush()
            send(tests.fileno(), task)
            source.seek(0)
            tests.seek(0)
            options = ["-I", "-S", *(["-B"] if sys.dont_write_bytecode else []), "-X", "utf8"]
            process = subprocess.Popen(
                [sys.executable, *options, "-c", start_code(str(FOLDER))], cwd=folder, env={}, stdin=source,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=(writer, tests.fileno()), start_new_session=True,
            )  # fmt: skip
        os.close(writer)
        writer = -1
        assert process.stdout is not None
        with process.stdout:
            try:
                output, report, limit = _read_until_exit(process.stdout.fileno(), reader, limits["seconds"], size)
            finally:
                _end_session(process)
            output = (output + _drain(process.stdout.fileno(), size))[:size]
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
        with contextlib.suppress(RecursionError):
            shutil.rmtree(folder, ignore_errors=True)
    return _result(output, report, limit, isolated, time.monotonic() - started)


def start_code(folder: str) -> str:
    """Return the code that starts the supervisor: it imports modules of this package without running the package's own code."""
    return (
        "import sys, types\n"
        f"for name, path in (('duonlp', []), ('duonlp.evaluation', [{folder!r}])):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "    sys.modules[name].__path__ = path\n"
        "from duonlp.evaluation.sandbox_child import main\n"
        "for name in [name for name in sys.modules if name.startswith('duonlp')]:\n"
        "    del sys.modules[name]\n"
        "main()\n"
    )


def _read_until_exit(stdout: int, reader: int, seconds: float, output_size: int) -> tuple[bytes, bytes, str]:
    """Read output and report until the report ends, with all processes that may write it, or a limit is exceeded.

    Args:
        stdout: Descriptor of the output.
        reader: Descriptor of the report.
        seconds: Time limit, counted from when the report says that the program begins.
        output_size: Limit of the output, in bytes.

    Returns:
        The output, the report, and the status of the exceeded limit or "".
    """
    output, report, limit = bytearray(), bytearray(), ""
    deadline, begun = time.monotonic() + STARTUP_SECONDS, False
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ, output)
        selector.register(reader, selectors.EVENT_READ, report)
        while reader in selector.get_map() and not limit:
            events = selector.select(max(0.0, deadline - time.monotonic()))
            for key, _ in events:
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fd)
                key.data.extend(chunk)
            if not begun and {"judge", "candidate"} <= read_report(bytes(report)).keys():
                begun, deadline = True, time.monotonic() + seconds
            if len(output) > output_size or len(report) > 1 << 20:
                limit = "output limit"
            elif time.monotonic() >= deadline:
                limit = "timed out"
    return bytes(output), bytes(report), limit


def _drain(stdout: int, size: int) -> bytes:
    """Return what is left in the pipe of processes that were killed."""
    output = bytearray()
    os.set_blocking(stdout, False)
    with contextlib.suppress(BlockingIOError):
        while len(output) <= size and (chunk := os.read(stdout, 1 << 16)):
            output += chunk
    return bytes(output)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Have the supervisor kill and await its processes, and then kill whatever is left of its session."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        if process.wait(1.0) == 0 and sys.platform.startswith("linux"):
            return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _result(output: bytes, report: bytes, limit: str, isolated: bool, seconds: float) -> Result:
    """Return the outcome from the report, see `sandbox_child`."""
    fields = read_report(report)
    if "setup" in fields:
        raise IsolationError(explain_setup_error(fields["setup"], fields["number"], isolated))
    if limit == "timed out" and not {"judge", "candidate"} <= fields.keys():
        raise IsolationError(f"the sandbox did not start within {STARTUP_SECONDS:g} s; run fewer programs at once")
    status, code, error = fields.get("verdict"), fields.get("exit", 0), fields.get("error", "")
    if status == "passed":
        error = ""
    elif limit:
        status, error = limit, STATUSES[limit]
    elif code == -signal.SIGXCPU:
        status, error = "timed out", "the CPU time limit was exceeded"
    elif status == "ended" and code < 0:
        status, error = "crashed", f"killed by {signal_name(-code)}"
    elif status == "ended":
        status, error = "exited early", f"the process exited with status {code} before the end of the program"
    elif status not in STATUSES:
        status, error = "crashed", "the judge ended without a verdict"
    texts = [printable(text) for text in fields.get("denied", ())]
    return Result(
        status,
        printable(error),
        output.decode(errors="replace"),
        seconds,
        tuple(fields.get("protection", ())),
        tuple(texts),
    )


def read_report(report: bytes) -> dict[str, Any]:
    """Return the fields of a report whose values have the types that `sandbox_child` gives them; the last of a name counts."""
    kinds = dict.fromkeys(("setup", "judge", "candidate", "verdict", "error"), str)
    kinds |= {"number": int, "exit": int, "protection": list, "denied": list}
    fields: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        for values in split(report):
            if type(values) is dict:
                fields |= {name: value for name, value in values.items() if type(value) is kinds.get(name)}
    return fields


def printable(text: str) -> str:
    """Return a text with lone surrogates, which cannot be written as UTF-8, escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def signal_name(number: int) -> str:
    """Return the name of a signal, which real-time signals lack."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def explain_setup_error(step: str, number: int, isolated: bool) -> str:
    """Return a message for a step of the setup that failed."""
    reason = f": {os.strerror(number)} (errno {number})" if number else ""
    message = f"the sandbox cannot {'isolate' if isolated else 'run'} programs here: cannot {step}{reason}"
    if step.startswith(("create namespaces", "map user ids", "mount ")):
        message += (
            "; allow user namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns, or the container's seccomp profile)"
        )
    elif step.startswith("read "):
        message += "; make it readable for others, or do not run this as root"
    return message
