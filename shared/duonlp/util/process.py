"""What a command-line program does about its process: standard streams, Ctrl-C, errors and the exit status."""

import _thread
import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any, TextIO

from duonlp.errors import DuonlpError
from duonlp.util.panics import is_panic
from duonlp.util.reading import first_line

USAGE_ERROR, INTERRUPTED = 2, 130
"""Exit statuses of an error that the user can fix, and of Ctrl-C."""


_ends_here: list[bool] = []
"""Not empty if the process does nothing after :func:`run_program`."""


def run_program(
    name: str, program: Callable[[], Any], *, describe: Callable[[DuonlpError], str] = str, debug: bool = False
) -> int:
    """Run a program and return its exit status; errors that a user can fix become one line on standard error.

    A closed pipe, as after ``| head``, is not an error (status 0); a full disk is. Ctrl-C at any
    moment is one line and status 130. An exception that is a bug is not caught.

    Args:
        name: Name of the program, which begins the line.
        program: The program; returns its exit status or None, or raises SystemExit.
        describe: Message of an error that a user can fix.
        debug: Raise such errors instead.

    Raises:
        DuonlpError: With `debug`.
    """
    prepare_streams()
    interrupted = False
    with _interruptible():
        try:
            status = program()
        except BaseException as error:
            interrupted = isinstance(_cause(error), KeyboardInterrupt)
            status = _status_of(name, error, describe, debug)
            if status is None:
                raise
    status = _flush(name, status if isinstance(status, int) else 0)
    if interrupted and _ends_here:
        os._exit(status)  # a framework's threads may still compile, and crash when the interpreter goes away under them
    return status


def prepare_streams() -> None:
    """Open the null device in place of closed standard streams, and let those of other encodings escape characters.

    Without this, a file that the program opens would take the place of a closed standard output, and get its text.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, mode))  # noqa: SIM115
    for output in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            output.reconfigure(errors="backslashreplace")  # pyrefly: ignore


def say(text: str) -> None:
    """Print a line on standard error, if it can be written to."""
    try:
        print(" ".join(text.split()), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _silence(sys.stderr)


def exit_on_interrupt(name: str) -> None:
    """Let Ctrl-C end the process with one line from here on: for the time of imports and of the interpreter's own exit."""

    def end(*_: Any) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{name}: interrupted\n".encode())
        os._exit(INTERRUPTED)

    _ends_here.append(True)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def _status_of(
    name: str, error: BaseException, describe: Callable[[DuonlpError], str], debug: bool
) -> int | str | None:
    """Return the exit status of an error after saying what it is; None if it is a bug."""
    cause = _cause(error)
    if isinstance(error, DuonlpError):
        if debug:
            return None
        say(f"{name}: {describe(error)}")
        return USAGE_ERROR
    if isinstance(cause, KeyboardInterrupt):
        say(f"{name}: interrupted")
        return INTERRUPTED
    if isinstance(error, SystemExit):
        if isinstance(cause, BrokenPipeError):  # Rich and Typer exit with status 1
            _silence(sys.stdout)
            return 0
        if isinstance(error.code, str):
            say(error.code)
            return 1
        return error.code or 0
    if isinstance(error, BrokenPipeError) and _reader_left():
        _silence(sys.stdout)
        return 0
    if debug:
        return None
    if isinstance(error, OSError) and error.strerror is not None:  # from writing; a failed read raises a DuonlpError
        file = repr(error.filename) if error.filename else "standard output"
        say(f"{name}: cannot write {file}: {error.strerror}; free some space or write elsewhere")
        return USAGE_ERROR
    if isinstance(error, MemoryError):
        say(f"{name}: out of memory; use a smaller model, batch or input")
        return USAGE_ERROR
    if is_panic(error):
        say(f"{name}: a tokenizer failed ({first_line(error)}); check its files")
        return USAGE_ERROR
    return None


def _cause(error: BaseException) -> BaseException:
    """Return the innermost error that led to an error and was not replaced by it (``raise ... from None``)."""
    while True:
        inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if inner is None or not isinstance(error, SystemExit | RuntimeError):
            return error
        error = inner


def _reader_left() -> bool:
    """Return whether the reader of standard output or standard error has closed its end."""
    try:
        poll = select.poll()
        for stream in (sys.stdout, sys.stderr):
            poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no poll, or not real files
        return True


def _flush(name: str, status: int) -> int:
    """Write what standard output still holds; return the status, or that of the failure."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)
    except OSError as error:
        _silence(sys.stdout)
        say(f"{name}: cannot write standard output: {error.strerror}; free some space or write elsewhere")
        return USAGE_ERROR
    except ValueError:  # closed
        pass
    return status


def _silence(stream: TextIO) -> None:
    """Send what a stream still holds to the null device, so that the interpreter can flush it at its exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextlib.contextmanager
def _interruptible() -> Generator[None, None, None]:
    """Raise KeyboardInterrupt for Ctrl-C, again if a destructor or callback swallowed it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) in (
        signal.SIG_IGN, None,
    ):  # fmt: skip
        yield
        return
    hook = sys.unraisablehook

    def unraisable(event: Any) -> None:
        if event.exc_type is not KeyboardInterrupt:
            hook(event)
            return
        again = threading.Timer(0.05, _thread.interrupt_main)  # when this call is over, which would swallow it, too
        again.daemon = True
        again.start()

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, previous)
