"""The sandbox against misbehaving programs, isolated and, where that is asked for, with what is left without namespaces."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from duonlp.errors import InputError
from duonlp.evaluation import sandbox
from duonlp.evaluation.sandbox import STATUSES, IsolationError, check_program, isolation_error


def unsafe_error():
    """Return why programs cannot run here even without isolation, or ""."""
    try:
        return "" if check_program("", seconds=30, namespaces=False, unsafe=True).passed else "they fail"
    except InputError as error:
        return str(error)


pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
needs_isolation = pytest.mark.skipif(os.name != "posix" or bool(isolation_error()), reason=f"{isolation_error()}")
needs_unsafe = pytest.mark.skipif(os.name != "posix" or bool(unsafe_error()), reason=f"{unsafe_error()}")
KINDS = pytest.mark.parametrize(
    "namespaces",
    [pytest.param(True, marks=needs_isolation), pytest.param(False, marks=needs_unsafe)],
    ids=["isolated", "unsafe"],
)


def run(program, namespaces=True, **limits):
    """Run a program with a time limit that suits a busy machine."""
    result = check_program(program, **{"seconds": 30, "namespaces": namespaces, "unsafe": not namespaces} | limits)
    assert result.status in STATUSES and "resource limits" in result.protection
    assert {"namespaces", "seccomp"} <= set(result.protection) if namespaces else "namespaces" not in result.protection
    return result


@KINDS
def test_a_program_passes_by_reaching_its_end(namespaces):
    result = run("import math\nassert math.comb(4, 2) == 6\nprint('done')", namespaces)
    assert result.passed and result.output == "done\n" and result.error == "" and result.seconds > 0


@KINDS
@pytest.mark.parametrize(
    "program",
    [
        "import dataclasses, collections\n@dataclasses.dataclass\nclass A:\n    x: int\nassert A(1) == A(1)",
        "import tempfile, os\nwith tempfile.TemporaryDirectory() as d:\n    open(d + '/x', 'w').write('a')",
        "import asyncio\nasync def f():\n    return 1\nassert asyncio.run(f()) == 1",
        "open('x', 'w').write('a')\nassert open('x').read() == 'a'\nimport os\nos.remove('x')\nassert os.listdir() == []",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()",
        "import atexit\natexit.register(lambda: 1 / 0)",
        "import os, sys\nassert not set(os.environ) - {'LC_CTYPE'} and sys.stdin.read() == '' and sys.flags.isolated",
        "try:\n    x = 'a' * 10 ** 12\nexcept MemoryError:\n    pass",
    ],
)
def test_honest_programs_pass(namespaces, program):
    assert run(program, namespaces).passed


@KINDS
@pytest.mark.parametrize(
    ("program", "status", "error"),
    [
        ("assert 1 == 2, 'no'", "failed", "AssertionError: no"),
        ("def (", "failed", "SyntaxError"),
        ("raise KeyboardInterrupt", "failed", "KeyboardInterrupt"),
        ("def f():\n    f()\nf()", "failed", "RecursionError"),
        ("input()", "failed", "EOFError"),
        ("import sys\nsys.exit(0)\nassert False", "exited early", "0"),
        ("exit()", "exited early", ""),
        ("import os\nos._exit(0)\nassert False", "exited early", "0"),
        ("import os\nos.closerange(0, 99)\nos._exit(0)", "exited early", ""),
        ("while True:\n    print('x' * 1000)", "output limit", "more"),
        ("x = [bytearray(10**8) for _ in range(99)]", "memory", ""),
        ("f = open('a', 'wb')\nfor _ in range(99):\n    f.write(bytes(10**6))", "file size", ""),
        ("import os\nwhile True:\n    os.fork()", "forbidden", "processes"),
        ("import subprocess\nsubprocess.run(['ls'])", "forbidden", "processes"),
        ("import multiprocessing as m\nm.get_context('fork').Process(target=print).start()", "forbidden", "processes"),
        ("import os\nos.system('ls')", "forbidden", "processes"),
        ("import os\nos.kill(os.getppid() or 1, 9)", "forbidden", "processes"),
        ("import ctypes\nassert ctypes.CDLL(None).fork() >= 0", "failed", "AssertionError"),
        ("import urllib.request as u\nu.urlopen('http://127.0.0.1:9')", "failed", "no network"),
        ("import os\nprint(open(f'/proc/{os.getppid() or 1}/environ').read())", "forbidden", "ermission"),
        ("print(open('/proc/self/mem', 'rb').read(1))", "forbidden", ""),
        ("import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.unshare(0x10000000):\n"
         "    raise OSError(ctypes.get_errno(), 'unshare')", "forbidden", "unshare"),
    ],
)  # fmt: skip
def test_failures_and_denied_actions(namespaces, program, status, error):
    if program.startswith("print(open('/proc") and not sys.platform.startswith("linux"):
        pytest.skip("no /proc")
    limits = {"memory": 1 << 29, "file_size": 10**7, "output_size": 20_000}
    result = run(program, namespaces, **limits)
    assert (result.status, error in result.error) == (status, True), result
    assert len(result.output) <= 20_000


@KINDS
@pytest.mark.parametrize(
    "program",
    [
        "while True:\n    pass",
        "import time\ntime.sleep(99)",
        "import signal, time\nsignal.signal(15, print)\ntime.sleep(99)",
    ],
)
def test_the_time_limit_ends_everything(namespaces, program):
    result = run(program, namespaces, seconds=0.5)
    assert result.status == "timed out" and result.seconds < 30


@KINDS
def test_no_connection_is_made(namespaces):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = listener.getsockname()
        for program in (
            f"import socket\nsocket.create_connection({address})",
            f"import _socket\n_socket.socket(2, 1).connect({address})",
        ):
            result = run(program, namespaces)
            assert result.status == "network" and any(event.startswith("socket") for event in result.denied)
        listener.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listener.accept()


@KINDS
def test_the_callers_folder_is_not_written_to(namespaces):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        for line in ("open(p + '/x', 'w')", "os.mkdir(p + '/x')", "os.open(p + '/x', os.O_CREAT | os.O_RDWR)"):
            result = run(f"import os\np = {folder!r}\n{line}", namespaces)
            assert result.status == "forbidden" or "No such file" in result.error  # isolated, there is no such folder
        link = f"import os\ntry:\n    os.symlink({folder!r}, 'l')\nexcept OSError:\n    os._exit(1)\nopen('l/x', 'w')"
        assert not run(link, namespaces).passed
        assert os.listdir(folder) == []


@KINDS
def test_the_parents_environment_is_hidden(namespaces, monkeypatch):
    monkeypatch.setenv("PASSWORD_OF_A_TEST", "hunter2")
    program = """import os, glob
print(os.environ)
for name in glob.glob("/proc/[0-9]*/environ"):
    try:
        print(open(name).read())
    except OSError:
        pass
"""
    assert "hunter2" not in run(program, namespaces).output


@KINDS
def test_a_program_cannot_claim_to_pass(namespaces):
    """A report that the program itself writes to every descriptor has no effect."""
    for text in ('{"status": "passed"}', "0" * 32, ""):
        program = (
            "import os\nfor fd in range(3, 99):\n    try:\n"
            f"        os.write(fd, {text!r}.encode() + b'\\n')\n    except OSError:\n        pass\nos._exit(0)"
        )
        assert not run(program, namespaces).passed


@needs_isolation
def test_a_program_sees_nothing_but_itself(tmp_path, monkeypatch):
    """Files, processes, network and users of the machine are not there; those of the program are."""
    (tmp_path / "secret").write_text("hunter2")
    program = f"""
import os, pathlib
assert sorted(p for p in os.listdir('/proc') if p.isdigit()) == ['1'] and os.getppid() == 0
assert open('/proc/self/net/dev').read().count(':') == 1  # only the loopback interface, which is down
assert os.getuid() != 0 and os.stat('/').st_mode & 0o777 == 0o755 and os.getcwd() == '/tmp' and os.listdir() == []
for path in ('/home', '/etc/passwd', '/bin/sh', '/sys', '/run', '/var', '/usr/bin', {sys.executable!r}):
    assert not os.path.exists(path), path
assert not os.path.exists({str(tmp_path)!r}) and not os.path.exists({os.path.expanduser("~/.bashrc")!r})
for line in open('/proc/self/status'):
    name, _, value = line.partition(':')
    assert not name.startswith('Cap') or name == 'CapBnd' or int(value, 16) == 0, line
    assert name not in ('NoNewPrivs', 'Seccomp') or int(value) > 0, line
"""
    result = run(program)
    assert result.passed, result


@needs_isolation
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_program_of_root_is_not_root():
    result = run("import os\nassert os.getresuid() == os.getresgid() == (65534,) * 3 and not os.getgroups()")
    assert result.passed and "user nobody" in result.protection


def fail_to_unshare(monkeypatch, tmp_path):
    """Have the sandbox's processes fail like those of a kernel that denies user namespaces."""
    for file in sandbox.FOLDER.glob("sandbox_*.py"):
        text = file.read_text()
        if file.stem == "sandbox_kernel":
            assert "libc.unshare(NAMESPACES)" in text
            text = text.replace("libc.unshare(NAMESPACES)", "ctypes.set_errno(1) or 1")
        (tmp_path / file.name).write_text(text)
    monkeypatch.setattr(sandbox, "FOLDER", tmp_path)
    sandbox.isolation_error.cache_clear()


def test_nothing_runs_where_the_kernel_cannot_isolate(monkeypatch, tmp_path):
    (tmp_path / "output").mkdir()
    fail_to_unshare(monkeypatch, tmp_path)
    try:
        with pytest.raises(IsolationError, match=r"create namespaces \(unshare\).*errno 1\).*unsafe=True.*your rights"):
            check_program("1")
        if not unsafe_error():
            result = check_program("print(1)", seconds=30, unsafe=True)
            assert result.passed and "namespaces" not in result.protection
    finally:
        sandbox.isolation_error.cache_clear()
    with pytest.raises(InputError, match="unsafe=True"):
        check_program("1", namespaces=False)


@needs_isolation
@pytest.mark.parametrize(
    "program",
    [
        "x = '\ud800'",
        "import os\nfor i in range(3, 99):\n    try:\n        os.write(i, LINE)\n    except OSError:\n        pass\nos._exit(0)",
        "import signal\nsignal.signal(35, signal.SIG_DFL)\nsignal.raise_signal(35)\nassert False",
        "raise ValueError('\\ud800' * 10**6)",
        "(" * 100_000,
        "\0",
        "import sys\nsys.stdout.buffer.write(b'\\xff\\xd8' * 1000)\nassert False",
    ],
)  # fmt: skip
def test_one_program_does_not_change_the_next(program):
    """Whatever a program does, its own result says so in printable text, and the next program is as well protected."""
    for line in (b'{"denied": 5}\n', b"[[1]]\n", b"[" * 100_000, b'{"setup": "x", "number": 1}\n', b'{"exit": 5}\n'):
        result = run(program.replace("LINE", repr(line) if len(line) < 100 else "b'[' * 100_000"))
        assert not result.passed and (result.error + result.output).encode()
        if "LINE" not in program:
            break
    assert run("print(1)").protection == result.protection


def test_the_folder_is_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run("open('a', 'w').write('x')", not isolation_error())
    assert not list(tmp_path.iterdir())


def descendants(process):
    """Return the ids of the children of a process, their children, and so on, as str."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return children + [other for child in children for other in descendants(child)]


def alive(process):
    """Return whether a process runs: not gone, and not a zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@needs_isolation
def test_the_program_ends_with_its_caller(tmp_path):
    program = "import time\nwhile True:\n    print(1, flush=True)\n    time.sleep(0.1)"
    code = f"from duonlp.evaluation.sandbox import check_program\ncheck_program({program!r}, seconds=60)"
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=os.getcwd(), env=os.environ | {"TMPDIR": str(tmp_path)})
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and len(descendants(caller.pid)) < 5:  # supervisor, two guards, two sides
        time.sleep(0.02)
    time.sleep(1)  # the first five checked whether programs can be isolated
    running = descendants(caller.pid)
    caller.kill()
    caller.wait()
    while any(map(alive, running)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(running) == 5 and not any(map(alive, running))


@pytest.mark.parametrize("limit", ["seconds", "memory", "file_size", "output_size"])
def test_limits_are_positive(limit):
    with pytest.raises(InputError, match=limit):
        check_program("", **{limit: 0})
