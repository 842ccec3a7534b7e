"""The sandbox against misbehaving programs, with namespaces if the kernel allows them, and without."""

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
from duonlp.evaluation.sandbox import STATUSES, check_program

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
KINDS = pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "audit hook"])


def run(program, namespaces=True, **limits):
    """Run a program with a time limit that suits a busy machine."""
    result = check_program(program, **{"seconds": 30, "namespaces": namespaces} | limits)
    assert result.status in STATUSES and {"resource limits", "audit hook"} <= set(result.protection)
    assert namespaces or "namespaces" not in result.protection
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
        ("import ctypes\nctypes.CDLL(None).fork()", "forbidden", ""),
        ("import urllib.request as u\nu.urlopen('http://127.0.0.1:9')", "failed", "no network"),
        ("import os\nprint(open(f'/proc/{os.getppid() or 1}/environ').read())", "forbidden", "processes"),
        ("print(open('/proc/self/mem', 'rb').read(1))", "forbidden", ""),
        ("import gc\ngc.get_objects()", "forbidden", ""),
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
            assert run(f"import os\np = {folder!r}\n{line}", namespaces).status == "forbidden"
        link = f"import os\ntry:\n    os.symlink({folder!r}, 'l')\nexcept OSError:\n    os._exit(1)\nopen('l/x', 'w')"
        assert not run(link, namespaces).passed
        assert os.listdir(folder) == []


def test_the_parents_environment_is_hidden(monkeypatch):
    monkeypatch.setenv("PASSWORD_OF_A_TEST", "hunter2")
    program = """import os, glob
print(os.environ)
for name in glob.glob("/proc/[0-9]*/environ"):
    try:
        print(open(name).read())
    except OSError:
        pass
"""
    for namespaces in (True, False):
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


def test_namespaces_contain_what_the_hook_misses():
    """Machine code raises no audit events, but its processes have no network and are killed with the rest."""
    if "namespaces" not in run("").protection:
        pytest.skip("no namespaces here")
    program = (
        "import os\nos.setsid()\nprint(sorted(p for p in os.listdir('/proc') if p.isdigit()))\nprint(os.getppid())"
    )
    result = run(program)
    assert result.passed and result.output == "['1']\n0\n"
    assert (
        run("print(open('/proc/net/dev').read())").output.count(":") == 1
    )  # only the loopback interface, which is down


def test_fallback_without_namespaces(monkeypatch, tmp_path):
    """Some kernels fail half-way; a program that is killed early says nothing about the kernel."""
    source = sandbox.CHILD.read_text()
    assert "    if libc.unshare(" in source
    (tmp_path / "child.py").write_text(
        source.replace("    if libc.unshare(", "    raise OSError\n    if libc.unshare(")
    )
    monkeypatch.setattr(sandbox, "CHILD", tmp_path / "child.py")
    monkeypatch.setattr(sandbox, "_namespaces_fail", False)
    result = run("print(1)")
    assert result.passed and "namespaces" not in result.protection and sandbox._namespaces_fail
    (tmp_path / "child.py").write_text("import os\nos.kill(os.getpid(), 9)")
    monkeypatch.setattr(sandbox, "_namespaces_fail", False)
    assert check_program("print(1)").status == "crashed" and not sandbox._namespaces_fail


def test_the_folder_is_removed():
    before = set(os.listdir(tempfile.gettempdir()))
    run("open('a', 'w').write('x')", False)
    assert not [name for name in set(os.listdir(tempfile.gettempdir())) - before if name.startswith("program-")]


def children(process):
    """Return the ids of the children of a process, as str."""
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def alive(process):
    """Return whether a process runs: not gone, and not a zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prctl")
def test_the_program_ends_with_its_caller(tmp_path):
    program = "import time\nwhile True:\n    print(1, flush=True)\n    time.sleep(0.1)"
    code = f"from duonlp.evaluation.sandbox import check_program\ncheck_program({program!r}, seconds=60)"
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=os.getcwd(), env=os.environ | {"TMPDIR": str(tmp_path)})
    deadline = time.monotonic() + 30
    while not (running := children(caller.pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    running += children(running[0])  # in namespaces, the program is the child's child
    caller.kill()
    caller.wait()
    while any(map(alive, running)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running and not any(map(alive, running))


@pytest.mark.parametrize("limit", ["seconds", "memory", "file_size", "output_size"])
def test_limits_are_positive(limit):
    with pytest.raises(InputError, match=limit):
        check_program("", **{limit: 0})
