"""Running a program that nobody has read, in a process of its own that can do little harm.

What holds it, from the outside in; a Result's `protection` says which of these held:

- "user nobody": when root asks for it, the program runs as nobody (unless nobody could not read the interpreter).
- "namespaces" (Linux, where the kernel lets people make user namespaces): a network without any interface, a process
  table of its own that ends as a whole, every file system read-only, and the working folder in memory and limited.
- "resource limits": address space, processor time, size of a file, open files, no core dump; and the number of processes
  where the program is in namespaces or nobody.
- "audit hook" (PEP 578): sockets, other processes, writing outside of the working folder and Python's ways into its own
  interpreter are refused. It holds what goes through Python, not machine code; without namespaces it is the only thing
  between the program and the network.
- Always: a fresh `python -I`, no environment variables, an empty temporary folder, nothing on standard input, no open
  files of the caller's, and a session of its own that is killed whole at the time limit.

It stops accidents and clumsy malice, of the kind that language models write. It is no virtual machine: files that the
user can read can be read (though not sent anywhere), and a program written to defeat this very file may do so.
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
STARTING = 10.0
"""Seconds more than the program's that the interpreter may take to start and shut itself in, on a busy machine."""

STATUSES = {
    "passed": "the program ran to its end, its checks included",
    "failed": "an exception, such as a failed assertion or a syntax error",
    "exited early": "it left the interpreter before its end, whatever its status",
    "timed out": "the time limit",
    "memory": "the memory limit",
    "file size": "the limit of a file's size, or of the folder's",
    "output limit": "it printed more than is kept",
    "network": "it was refused a connection",
    "forbidden": "it was refused another process, or writing outside of its folder",
    "crashed": "a signal ended it, or it was never heard of",
}
"""What a Result's status may be, and what that means."""

_namespaces_fail = False  # found out once: the kernel will not change its mind


@dataclass(frozen=True)
class Result:
    """What became of a program.

    status: one of STATUSES. error: the exception, or what ended it. output: what it printed, standard error too, cut at
    the limit. seconds: from start to end, the interpreter's start included. protection: what held it; see the module.
    denied: what it was refused, by the audit events' names; a program may pass nonetheless, if it did without.
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
        """Plain values for JSON."""
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
    """Runs a Python program, its checks included, in the sandbox that the module describes.

    It has passed when its last line was reached: then, and only then, a random token is written to a pipe. A program that
    leaves early, with status 0 too, has not passed. The token is in the same process, so code that digs for it in the
    interpreter may find it; nothing does by accident.

    Args:
        program: the source, checks and all.
        seconds: until the process and whatever it started are killed, from the moment the program begins.
        memory: of the process, in bytes of address space.
        file_size: of a file it writes, in bytes; in namespaces the folder may hold four times as much.
        output_size: of what it prints, in bytes; it is killed when it prints more.
        namespaces: try them; False leaves them out, as where the kernel has none.

    Raises:
        InputError: a limit that is not positive, or a system that is not POSIX.
    """
    for name, value in (
        ("seconds", seconds),
        ("memory", memory),
        ("file_size", file_size),
        ("output_size", output_size),
    ):
        if not value > 0:
            raise InputError(f"{name} is {value}; a limit must be positive")
    if os.name != "posix":
        raise InputError(f"programs are run on POSIX systems alone, and this is {os.name!r}; use Linux or macOS")
    global _namespaces_fail
    limits = {"seconds": seconds, "memory": int(memory), "file_size": int(file_size), "processes": PROCESSES}
    if namespaces and not _namespaces_fail:
        result = _run(program, limits | {"namespaces": True}, output_size)
        if result.protection or result.status != "crashed" or result.error:
            return result  # also where it was killed before it had begun: nothing is said about the kernel then
        _namespaces_fail = True  # shutting itself in was refused half-way, before the program had begun
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
        os.close(writer)
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(settings).encode() + b"\n" + program.encode(errors="surrogatepass"))
            output, report, ended = _watch(process, reader, settings["seconds"], output_size)
        finally:
            _kill(process)
            process.stdout.close()
    finally:
        os.close(reader)
        with contextlib.suppress(RecursionError):
            shutil.rmtree(folder, ignore_errors=True)
    return _result(token, output, report, ended, process.returncode, time.monotonic() - started)


def _watch(process, reader: int, seconds: float, output_size: int) -> tuple[bytes, bytes, str]:
    """Reads what is printed and reported until the process ends: (output, report, limit that was met or "")."""
    output, report, ended = bytearray(), bytearray(), ""
    printed = process.stdout.fileno()
    deadline, begun = time.monotonic() + seconds + STARTING, False
    with selectors.DefaultSelector() as selector:
        selector.register(printed, selectors.EVENT_READ, output)
        selector.register(reader, selectors.EVENT_READ, report)
        while selector.get_map() and not ended:
            events = selector.select(max(0.0, deadline - time.monotonic()))
            for key, _ in events:
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    selector.unregister(key.fd)
                elif len(key.data) <= output_size:
                    key.data.extend(piece)
            if not begun and b"\n" in report:
                begun, deadline = True, time.monotonic() + seconds
            if len(output) > output_size or len(report) > output_size:
                ended = "output limit"
            elif time.monotonic() >= deadline:
                ended = "timed out"
    if not ended:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            ended = "timed out"
    return bytes(output[:output_size]), bytes(report), ended


def _kill(process) -> None:
    """Ends the whole process group, which is also the session's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


def _result(token: str, output: bytes, report: bytes, ended: str, code: int, seconds: float) -> Result:
    passed, said = False, {}
    for line in report.decode(errors="replace").splitlines():
        if secrets.compare_digest(line.encode(), token.encode()):
            passed = True
        else:
            with contextlib.suppress(ValueError, TypeError):
                said |= json.loads(line)
    status, error = said.get("status", "crashed"), str(said.get("error", ""))
    if passed:
        status, error = "passed", ""
    elif ended:
        status, error = ended, STATUSES[ended]
    elif code == -signal.SIGXCPU:
        status, error = "timed out", "the limit of processor time"
    elif code < 0:
        status, error = "crashed", f"ended by {signal.Signals(-code).name}"
    elif status == "started":
        status, error = "exited early", f"the process ended with status {code} before the program's end"
    elif status not in STATUSES or status == "passed":
        status, error = "crashed", "its report was not written by the sandbox"
    text = output.decode(errors="replace")
    protection, denied = said.get("protection", ()), said.get("denied", ())
    return Result(status, error, text, seconds, tuple(protection), tuple(denied))
