"""Attacks on the sandbox of generated programs: forged verdicts, and escapes that are looked for from outside."""

import contextlib
import itertools
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from duonlp.evaluation import Problem, Result, check_problem, check_program, isolation_error
from duonlp.evaluation.sandbox import STATUSES
from tests.attack._escapes import CALLS, ESCAPES, TOOLS
from tests.attack._forgeries import FORGERIES, HONEST, PROMPT, TEST, random_answer
from tests.attack.harness import HELD, Budget, Outcome, attack

AT_ONCE = 3
"""Programs per case, run two at a time."""
PROBLEM = Problem("attack/0", PROMPT, "add", TEST)
SECONDS = 2.0


def refused() -> str:
    """Return why nothing runs here, which is what the library promises where it cannot isolate programs, or ""."""
    return "this is no POSIX system" if os.name != "posix" else isolation_error()


def judge(completion: str) -> Result:
    """Judge a completion of the problem."""
    return check_problem(PROBLEM, completion, seconds=SECONDS, memory=512 << 20)


def forged_outcome(name: str, completion: str) -> Outcome:
    """Return the outcome of one forgery; a result that cannot be written as UTF-8 is a fault too."""
    try:
        result = judge(completion)
        (result.error + result.output + "".join(result.denied)).encode()
    except Exception as error:
        return Outcome(name, "traceback", f"{type(error).__name__}: {error}")
    if result.passed or result.status not in STATUSES:
        return Outcome(name, "forged", repr(result))
    if "seccomp" not in result.protection:
        return Outcome(name, "escape", f"ran with {result.protection}")
    return Outcome(name, HELD)


@attack("forged verdicts")
def forged_verdicts(budget: Budget) -> Iterator[Outcome]:
    """Judge programs that cannot pass honestly, first those of a list and then random answers, and now and then an honest one."""
    if reason := refused():
        yield Outcome(f"refused: {reason}", HELD)
        return
    items = list(FORGERIES.items())
    listed = [items[i] for i in budget.rng.permutation(len(items))]
    endless = itertools.chain(listed, ((f"random answer {n}", random_answer(budget.rng)) for n in itertools.count()))
    with ThreadPoolExecutor(2) as pool:
        for number in budget:
            if number % 10 == 0:  # it has not become impossible to pass
                passed = check_problem(PROBLEM, HONEST, seconds=30).passed
                yield Outcome("the honest program", HELD if passed else "wrong", "" if passed else "it did not pass")
            chunk = list(itertools.islice(endless, AT_ONCE))
            yield from pool.map(lambda item: forged_outcome(*item), chunk)


class Targets:
    """Targets outside the sandbox, and whether a program reached any of them.

    Args:
        folder: Folder of the attack.
    """

    def __init__(self, folder: Path):
        self.home = Path(
            tempfile.mkdtemp(prefix=".duonlp-attack-", dir=Path.home() if os.access(Path.home(), os.W_OK) else folder)
        )
        self.home.chmod(0o777)  # so that only the sandbox protects it
        self.secret, self.canary = self.home / "secret", self.home / "canary"
        self.word = f"hunter{os.urandom(8).hex()}"
        self.secret.write_text(self.word)
        self.canary.write_text("canary")
        for file in (self.secret, self.canary):
            file.chmod(0o666)
        self.listeners = [socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
        self.abstract = f"\0duonlp-{os.urandom(8).hex()}"
        for listener, address in zip(self.listeners, (("127.0.0.1", 0), str(self.home / "socket"), self.abstract)):
            listener.bind(address)
            listener.listen()
            listener.setblocking(False)
        (self.home / "socket").chmod(0o777)
        self.victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10**6)"])
        self.state = self.snapshot()

    def snapshot(self) -> list[tuple[str, int, int, bytes]]:
        """Return names, modes, modification times and contents of the planted files."""
        rows = []
        for file in sorted(self.home.iterdir()):
            status = file.lstat()
            rows.append((file.name, status.st_mode, status.st_mtime_ns, file.read_bytes() if file.is_file() else b""))
        return rows

    def prelude(self) -> str:
        """Return the definitions that the programs use."""
        column = {"x86_64": 1, "aarch64": 2}.get(platform.machine(), 1)
        numbers = {row[0]: int(row[column]) for row in (entry.split() for entry in CALLS.replace("\n", " ").split(","))}
        names = {
            "SECRET": str(self.secret), "CANARY": str(self.canary), "FOLDER": str(self.home), "NUMBERS": numbers,
            "TCP": self.listeners[0].getsockname(), "UNIX": str(self.home / "socket"), "ABSTRACT": self.abstract,
            "VICTIM": self.victim.pid, "PARENT": os.getpid(),
        }  # fmt: skip
        return "".join(f"{name} = {value!r}\n" for name, value in names.items()) + TOOLS

    def reached(self, result: Result) -> str:
        """Return what a program reached, as seen from outside or as it says itself, or ""."""
        text = result.output + result.error
        if self.word in text:
            return "the secret was read"
        if "REACHED" in text:
            return text
        for listener in self.listeners:
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                return "a listener saw a connection"
        if self.snapshot() != self.state:
            return "the planted files changed"
        if self.victim.poll() is not None:
            return "the victim was killed"
        return "" if "seccomp" in result.protection else f"ran with {result.protection}"

    def close(self) -> None:
        """Remove the targets."""
        self.victim.kill()
        self.victim.wait()
        for listener in self.listeners:
            listener.close()
        for file in self.home.iterdir():
            file.unlink()
        self.home.rmdir()


def escape_outcome(targets: Targets, name: str, program: str) -> Outcome:
    """Return the outcome of one attempt to escape."""
    try:
        result = check_program(targets.prelude() + program, seconds=SECONDS, memory=256 << 20, file_size=8 << 20)
    except Exception as error:
        return Outcome(name, "traceback", f"{type(error).__name__}: {error}")
    what = targets.reached(result)
    return Outcome(name, "escape" if what else HELD, what)


@attack("sandbox escapes")
def sandbox_escapes(budget: Budget) -> Iterator[Outcome]:
    """Run programs that try to reach files, sockets, processes, the kernel and more memory, and look for traces outside."""
    if reason := refused():
        yield Outcome(f"refused: {reason}", HELD)
        return
    items = list(ESCAPES.items())
    targets = Targets(budget.folder)
    try:
        listed = [items[i] for i in budget.rng.permutation(len(items))]
        endless = itertools.cycle(listed)
        with ThreadPoolExecutor(2) as pool:
            for _ in budget:
                chunk = list(itertools.islice(endless, AT_ONCE))
                yield from pool.map(lambda item: escape_outcome(targets, *item), chunk)
    finally:
        targets.close()
