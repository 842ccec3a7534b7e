"""The end of a program: statuses, one line about an error, and standard streams that are gone."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from duonlp.errors import InputError
from duonlp.util.panics import without_panics
from duonlp.util.process import run_program

SHARED = Path(__file__).resolve().parents[3] / "shared"


class PanicException(BaseException):
    """What pyo3 raises for a panic of Rust."""


def leave(error: BaseException, cause: BaseException):
    try:
        raise cause
    except BaseException:
        raise error from cause


@pytest.mark.parametrize(
    ("program", "status", "line"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (lambda: sys.exit(1), 1, ""),
        (lambda: sys.exit("why"), 1, "why"),
        (lambda: leave(InputError("a\nb"), OSError()), 2, "p: a b"),
        (lambda: leave(KeyboardInterrupt(), ValueError()), 130, "p: interrupted"),
        (lambda: leave(SystemExit(130), KeyboardInterrupt()), 130, "p: interrupted"),
        (lambda: leave(SystemExit(1), BrokenPipeError()), 0, ""),
        (lambda: leave(OSError(28, "No space left", "f"), ValueError()), 2, "p: cannot write 'f': No space left"),
        (lambda: leave(MemoryError(), ValueError()), 2, "p: out of memory"),
        (lambda: leave(PanicException("no entry\nmore"), ValueError()), 2, "p: a tokenizer failed (no entry)"),
    ],
)
def test_statuses(program, status, line, capfd):
    assert run_program("p", program) == status
    err = capfd.readouterr().err
    assert err.startswith(line) and err.count("\n") == bool(line)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_bugs_and_debug_are_raised():
    with pytest.raises(ZeroDivisionError):
        run_program("p", lambda: 1 / 0)
    with pytest.raises(InputError):
        run_program("p", lambda: leave(InputError("a"), OSError()), debug=True)


def test_a_panic_is_an_error():
    with (
        pytest.raises(InputError, match=r"the tokenizer is damaged \(no entry\)"),
        without_panics("the tokenizer is damaged"),
    ):
        raise PanicException("no entry\nmore")


@pytest.mark.parametrize(
    ("redirection", "code", "status", "shown"),
    [
        (">&-", "print('x'); open('f', 'w').write('y')", 0, ""),
        (">/dev/full", "print('x')", 2, "p: cannot write standard output: No space left on device"),
        ("| true", "import time; time.sleep(.2); print('x', flush=True)", 0, ""),
        ("2>&-", "raise InputError('x')", 2, ""),
        ("2>/dev/full", "raise InputError('x')", 2, ""),
        ("", r"print('\udc80é')", 0, r"\udc80\xe9"),
    ],
)
def test_streams(tmp_path, redirection, code, status, shown):
    lines = [
        "from duonlp.errors import InputError",
        "from duonlp.util.process import run_program",
        "def program():",
        f"    {code}",
        "raise SystemExit(run_program('p', program))",
    ]
    (tmp_path / "p.py").write_text("\n".join(lines), encoding="utf-8")
    command = f"{{ {sys.executable} p.py; echo $? >status; }} {redirection}"
    if redirection != "| true":
        command = f"{sys.executable} p.py {redirection}; echo $? >status"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env={"PYTHONPATH": str(SHARED), "PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert int((tmp_path / "status").read_text()) == status, done.stderr
    assert shown in done.stdout + done.stderr and "Traceback" not in done.stderr and "Exception" not in done.stderr
    if (tmp_path / "f").exists():
        assert (tmp_path / "f").read_text() == "y"  # not also what was printed
