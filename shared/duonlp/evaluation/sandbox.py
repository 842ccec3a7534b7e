"""Run untrusted Python programs in a separate, restricted process.

Layers of protection, from the outside in; a Result's `protection` lists those that were active:

- "user nobody": if the caller is root, the program runs as nobody (unless nobody cannot read the interpreter).
- "namespaces" (Linux, if the kernel allows unprivileged user namespaces): a network without interfaces, a separate process
  table that is killed as a whole, read-only file systems, and a size-limited working folder in memory.
- "resource limits": address space, CPU time, file size, open files and core dumps; also the number of processes, if the
  program runs in namespaces or as nobody.
- "audit hook" (PEP 578): denies sockets, other processes, writes outside the working folder and access to the
  interpreter's internals. It sees Python's calls, not machine code; without namespaces it is all that separates the
  program from the network.
- Always: a fresh `python -I`, no environment variables, an empty temporary folder, empty standard input, no inherited open
  files, and a session of its own that is killed at the time limit.

The sandbox stops accidents and simple malice, such as language models write. It is not a virtual machine: the program can
read whatever the user can read (but not send it anywhere), and a program written to defeat this file may succeed.
"""

import contextlib
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from duonlp.errors import InputError

CHILD = Path(__file__).with_name("sandbox_child.py")
PROCESSES = 64
STARTUP_SECONDS = 10.0
"""Seconds, in addition to the program's, for the interpreter to start and restrict itself on a busy machine."""

STATUSES = {
    "passed": "the program ran to its end, tests included",
    "failed": "an exception, such as a failed assertion or a syntax error",
    "exited early": "the program exited before its end, with any status",
    "timed out": "the time limit was exceeded",
    "memory": "the memory limit was exceeded",
    "file size": "the size limit of a file or of the folder was exceeded",
    "output limit": "the program printed more than the output limit",
    "network": "the program was denied a connection",
    "forbidden": "the program was denied another process, a write outside its folder, or access to the interpreter",
    "crashed": "the program was killed by a signal, or never reported back",
}
"""Possible values of a Result's status, with their meanings."""

_namespaces_fail = False  # determined once per process: the kernel's policy does not change


@dataclass(frozen=True)
class Result:
    """Outcome of a program.

    Attributes:
        status: One of STATUSES.
        error: The exception, or what stopped the program.
        output: What it printed, standard error included, truncated at the limit.
        seconds: Duration, including the start of the interpreter.
        protection: Active layers of protection, see the module's documentation.
        denied: Audit events that were denied; a program may catch the error and pass nonetheless.
    """

    status: str
    error: str
    output: str
    seconds: float
    protection: tuple[str, ...]
    denied: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the program ran to its end."""
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
) -> Result:
    """Run a Python program, tests included, in the sandbox that the module describes.

    The program passes if it reaches its last line: only then is a random token written to a pipe. A program that exits
    early, even with status 0, does not pass. The token lives in the program's process, so code that searches the interpreter
    for it may find it; none does so by accident.

    Args:
        program: Source code, tests included.
        seconds: Time limit, counted from the start of the program, after which all its processes are killed.
        memory: Limit of the address space, in bytes.
        file_size: Limit of the size of a file, in bytes. In namespaces, the whole folder may hold four times as much.
        output_size: Limit of the printed output, in bytes; a program that prints more is killed.
        namespaces: Whether to try namespaces.

    Raises:
        InputError: A limit is not positive, or the system is not POSIX.
    """
    for name, value in (
        ("seconds", seconds),
        ("memory", memory),
        ("file_size", file_size),
        ("output_size", output_size),
    ):
        if not value > 0:
            raise InputError(f"{name} is {value}; it must be positive")
    if os.name != "posix":
        raise InputError(f"the sandbox does not support {os.name!r} systems; use Linux or macOS")
    global _namespaces_fail
    limits = {"seconds": seconds, "memory": int(memory), "file_size": int(file_size), "processes": PROCESSES}
    if namespaces and not _namespaces_fail:
        result = _run(program, limits | {"namespaces": True}, output_size)
        if result.protection or result.status != "crashed" or result.error:
            return result  # also if it was killed before the program began, which says nothing about the kernel
        _namespaces_fail = True  # setting up the namespaces failed half-way, before the program began
    return _run(program, limits | {"namespaces": False}, output_size)


def _run(program: str, settings: dict[str, Any], output_size: int) -> Result:
    token, started = secrets.token_hex(16), time.monotonic()
    reader, writer = os.pipe()
    folder = tempfile.mkdtemp(prefix="program-")
    settings = settings | {"token": token, "report": writer, "folder": folder, "parent": os.getpid()}
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-X", "utf8", str(CHILD)], cwd=folder, env={}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=(writer,), start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        os.close(writer)
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(settings).encode() + b"\n" + program.encode(errors="surrogatepass"))
            output, report, limit = _read_until_exit(
                process, process.stdout.fileno(), reader, settings["seconds"], output_size
            )
        finally:
            _kill_session(process)
            process.stdout.close()
    finally:
        os.close(reader)
        with contextlib.suppress(RecursionError):
            shutil.rmtree(folder, ignore_errors=True)
    return _result(token, output, report, limit, process.returncode, time.monotonic() - started)


def _read_until_exit(
    process: subprocess.Popen[bytes], stdout: int, reader: int, seconds: float, output_size: int
) -> tuple[bytes, bytes, str]:
    """Read output and report until the process ends or exceeds a limit.

    Args:
        process: The sandboxed process.
        stdout: Descriptor of its output.
        reader: Descriptor of its report.
        seconds: Time limit, counted from the first line of the report.
        output_size: Limit of output and of report, in bytes.

    Returns:
        The output, the report, and the status of the exceeded limit or "".
    """
    output, report, limit = bytearray(), bytearray(), ""
    deadline, begun = time.monotonic() + seconds + STARTUP_SECONDS, False
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ, output)
        selector.register(reader, selectors.EVENT_READ, report)
        while selector.get_map() and not limit:
            events = selector.select(max(0.0, deadline - time.monotonic()))
            for key, _ in events:
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fd)
                elif len(key.data) <= output_size:
                    key.data.extend(chunk)
            if not begun and b"\n" in report:
                begun, deadline = True, time.monotonic() + seconds
            if len(output) > output_size or len(report) > output_size:
                limit = "output limit"
            elif time.monotonic() >= deadline:
                limit = "timed out"
    if not limit:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            limit = "timed out"
    return bytes(output[:output_size]), bytes(report), limit


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its group, which spans its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


def _result(token: str, output: bytes, report: bytes, limit: str, code: int, seconds: float) -> Result:
    """Return the outcome from the report's lines: JSON objects, and the token if the program reached its end."""
    passed, fields = False, {}
    for line in report.decode(errors="replace").splitlines():
        if secrets.compare_digest(line.encode(), token.encode()):
            passed = True
        else:
            with contextlib.suppress(ValueError, TypeError):
                fields |= json.loads(line)
    status, error = fields.get("status", "crashed"), str(fields.get("error", ""))
    if passed:
        status, error = "passed", ""
    elif limit:
        status, error = limit, STATUSES[limit]
    elif code == -signal.SIGXCPU:
        status, error = "timed out", "the CPU time limit was exceeded"
    elif code < 0:
        status, error = "crashed", f"killed by {signal.Signals(-code).name}"
    elif status == "started":
        status, error = "exited early", f"the process exited with status {code} before the end of the program"
    elif status not in STATUSES or status == "passed":
        status, error = "crashed", "the report was not written by the sandbox"
    text = output.decode(errors="replace")
    protection, denied = fields.get("protection", ()), fields.get("denied", ())
    return Result(status, error, text, seconds, tuple(protection), tuple(denied))
