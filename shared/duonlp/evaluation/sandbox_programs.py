"""The two sides of a sandboxed run: the candidate, which serves calls of its functions, and the judge, which tests them.

Nothing that the candidate sends is believed. It can answer a call with a plain value or an exception, like any function, or make
the verdict another than "passed". Imports only the standard library.
"""

import _thread
import builtins
import errno
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from duonlp.evaluation.sandbox_values import UnsupportedValueError, receive, send

ENDED = 3
"""Exit status of the judge if the candidate's process ended, or closed its pipes, before an answer."""
ERRORS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and not name.endswith("Group")
}
"""Exceptions that the candidate can raise in a test, by name."""
CLAIMS = ("failed", "exited early", "memory", "file size", "network", "forbidden", "unsupported")
"""Statuses that the candidate may claim: all of them failures."""

NETWORK = {
    "socket.__new__", "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
    "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo",
}  # fmt: skip
PROCESSES = {
    "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "os.killpg", "subprocess.Popen",
    "pty.spawn",
}  # fmt: skip


def describe(error: BaseException) -> str:
    """Return an exception's type and message, shortened."""
    try:
        return f"{type(error).__name__}: {str(error)[:1000]}".removesuffix(": ")
    except Exception:
        return type(error).__name__


def explain_denials(denied: list[str]) -> None:
    """Name the reason in the exceptions of denied actions that are common: a courtesy to honest programs, not a protection.

    Args:
        denied: Receives the names of the denied audit events (PEP 578).
    """
    reasons = dict.fromkeys(NETWORK, "no network in the sandbox")
    reasons |= dict.fromkeys(PROCESSES, "no other processes in the sandbox")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in reasons or (event == "socket.__new__" and arguments[1] == 1):  # asyncio's socket pairs
            return
        denied.append(event)
        raise PermissionError(errno.EPERM, reasons[event])

    sys.addaudithook(hook)


def classify(error: BaseException, denied: Sequence[str]) -> str:
    """Return the status of a program that ended with an exception."""
    number = getattr(error, "errno", None)
    if isinstance(error, SystemExit):
        return "exited early"
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, OSError) and number in (errno.EFBIG, errno.ENOSPC):
        return "file size"
    if isinstance(error, OSError) and number in (errno.ENETUNREACH, errno.ENETDOWN):
        return "network"
    if isinstance(error, OSError) and number in (errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSYS):
        return "network" if denied and denied[-1] in NETWORK else "forbidden"
    return "failed"


def run_candidate(program: bytes, names: Sequence[str], calls: int, answers: int, restricted: bool) -> int:
    """Run the program, and then its functions whenever the judge calls them.

    Args:
        program: Source code.
        names: Functions that the judge may call.
        calls: Descriptor of the judge's calls: (name, positional arguments, keyword arguments).
        answers: Descriptor of the answers: (kind, value, arguments after the call if they may have changed, denied events). A
            value is a list of callable names ("ready"), a result ("returned"), the class, arguments, message and status of an
            exception ("raised"), or status and message if the program can no longer pass ("over").
        restricted: Whether the kernel denies sockets and processes; if not, explaining denials would only look like protection.

    Returns:
        The exit status.
    """
    denied: list[str] = []
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses, for example, look up their module
    sys.modules["__main__"] = types.ModuleType("__main__")

    def answer(kind: str, value: Any, arguments: Any = None) -> None:
        flush()
        send(answers, (kind, value, arguments, sorted(set(denied))[:20]))

    if restricted:
        explain_denials(denied)
    try:
        exec(compile(program.decode("utf-8", "surrogatepass"), "program.py", "exec"), module.__dict__)
        ready = [name for name in names if callable(module.__dict__.get(name))]
    except BaseException as error:
        answer("over", over(error, denied))
        return 0
    answer("ready", ready)
    while ready:
        try:
            name, args, kwargs = receive(calls)
        except EOFError:
            break
        passed = [list(args), dict(kwargs)]
        try:
            try:
                result = module.__dict__[name](*args, **kwargs)
            except Exception as error:
                kind = next(base.__name__ for base in type(error).__mro__ if ERRORS.get(base.__name__) is base)
                what = (kind, plain(error.args), describe(error), classify(error, denied))
                answer("raised", what, arguments_after(passed))
            else:
                answer("returned", result, arguments_after(passed))
        except (UnsupportedValueError, RecursionError) as error:
            answer("over", ("unsupported", f"the result of {name} cannot be judged: {error}"))
        except BaseException as error:
            answer("over", over(error, denied))
    return 0


def flush() -> None:
    """Write what was printed."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        pass


def over(error: BaseException, denied: Sequence[str]) -> tuple[str, str]:
    """Return status and message of an exception that ends the program."""
    if isinstance(error, SystemExit):
        return "exited early", f"the program exited with status {error.code!r} before its end"[:1000]
    return classify(error, denied), describe(error)


def plain(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return an exception's arguments if they are plain values, and otherwise their texts."""
    simple = (str, bytes, int, float, type(None))
    return tuple(item if isinstance(item, simple) else str(item)[:1000] for item in arguments[:10])


def arguments_after(passed: list[Any]) -> Any:
    """Return the arguments of a call that may have changed them in place, or None if none of them can be."""
    mutable = any(isinstance(item, (list, dict, set)) for item in (*passed[0], *passed[1].values()))
    return (tuple(passed[0]), passed[1]) if mutable else None


class CandidateOverError(BaseException):
    """The candidate can no longer pass. Not an Exception, so that tests of exceptions do not catch it."""


class Candidate:
    """The candidate as the judge sees it.

    Args:
        calls: Descriptor to write calls to.
        answers: Descriptor to read answers from, which are checked.

    Attributes:
        verdict: (status, error) once the candidate can no longer pass, whatever the tests do with the exception; or None.
        denied: Denied events that it told of.
        raised: The last exception that it raised, its message, and the status it claimed.
    """

    def __init__(self, calls: int, answers: int):
        self.calls, self.answers, self.lock = calls, answers, _thread.allocate_lock()
        self.verdict: tuple[str, str] | None = None
        self.denied: list[str] = []
        self.raised: tuple[BaseException | None, str, str] = (None, "", "")

    def give_up(self, status: str, error: str) -> CandidateOverError:
        """Note that the candidate cannot pass and return the exception to raise."""
        if self.verdict is None:
            self.verdict = (status, error)
        return CandidateOverError(self.verdict[1])

    def receive(self) -> tuple[str, Any, Any]:
        """Read the next answer: kind, value, arguments after the call."""
        try:
            kind, value, arguments, denied = check_answer(receive(self.answers))
        except (EOFError, OSError):
            raise self.give_up("ended", "the program ended before an answer") from None
        except (ValueError, MemoryError, RecursionError) as error:
            raise self.give_up("crashed", f"an answer was not written by the sandbox: {error}") from None
        self.denied = [event[:100] for event in denied[:20]]
        if kind == "over":
            status, message = value
            raise self.give_up(status if status in CLAIMS else "failed", message[:1100])
        return kind, value, arguments

    def names(self) -> list[str]:
        """Wait until the program has run, and return the functions that it defines."""
        kind, value, _ = self.receive()
        if kind != "ready" or type(value) is not list:
            raise self.give_up("crashed", "the first answer was not written by the sandbox")
        return value

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the candidate: return what it returned, or raise what it raised."""
        with self.lock:
            if self.verdict is not None:
                raise CandidateOverError(self.verdict[1])
            try:
                send(self.calls, (name, args, kwargs))
            except UnsupportedValueError as error:
                raise self.give_up("unsupported", f"a test's argument of {name} cannot be passed on: {error}") from None
            except OSError:
                raise self.give_up("ended", "the program ended before an answer") from None
            kind, value, arguments = self.receive()
            if kind == "ready":
                raise self.give_up("crashed", "an answer was not written by the sandbox")
            if type(arguments) is tuple and len(arguments) == 2 and type(arguments[0]) is tuple:
                for old, new in zip(args, arguments[0], strict=False):
                    update(old, new)
                if type(arguments[1]) is dict:
                    for key, old in kwargs.items():
                        update(old, arguments[1].get(key))
        if kind == "returned":
            return value
        error = rebuild(*value[:2])
        self.raised = (error, value[2][:1100], value[3] if value[3] in CLAIMS else "failed")
        raise error


def check_answer(answer: Any) -> tuple[str, Any, Any, list[str]]:
    """Return an answer, see `run_candidate`, if it has the form of one.

    Raises:
        ValueError: It does not.
    """
    if type(answer) is not tuple or len(answer) != 4:
        raise ValueError("it has not four parts")
    kind, value, _, denied = answer
    if type(denied) is not list or not all(type(event) is str for event in denied):
        raise ValueError("its denied events are not a list of texts")
    if kind in ("over", "raised"):
        length, message = (2, 1) if kind == "over" else (4, 2)
        if type(value) is not tuple or len(value) != length or type(value[message]) is not str:
            raise ValueError("it has no message")
    elif kind not in ("ready", "returned"):
        raise ValueError("its kind is unknown")
    return answer


def update(old: Any, new: Any) -> None:
    """Change a list, dict or set of the tests to what the function left of it."""
    if type(old) is type(new) and old != new:
        if type(old) is list:
            old[:] = new
        elif type(old) in (dict, set):
            old.clear()
            old.update(new)


def rebuild(name: Any, arguments: Any) -> Exception:
    """Return a built-in exception from its name and arguments, as told by the candidate."""
    kind = ERRORS.get(name, Exception) if type(name) is str else Exception
    arguments = arguments if type(arguments) is tuple else ()
    try:
        return kind(*arguments)
    except Exception:
        return kind.__new__(kind)


def judge(report: int, tests: int, calls: int, answers: int) -> int:
    """Run the tests on the candidate's functions and report the verdict to the parent.

    Args:
        report: Descriptor to write the verdict to.
        tests: Descriptor of a file with a dict: prompt, test, and names of the functions.
        calls: Descriptor to write calls to.
        answers: Descriptor to read answers from.

    Returns:
        The exit status: ENDED if the candidate's end decides.
    """
    candidate = Candidate(calls, answers)
    task = receive(tests)
    status, error = "passed", ""
    try:
        run_tests(candidate, **task)
    except CandidateOverError:
        pass
    except BaseException as raised:
        status, error = "failed", describe(raised)
        if raised is candidate.raised[0]:
            _, error, status = candidate.raised
    if candidate.verdict is not None:
        status, error = candidate.verdict
    flush()
    send(report, {"verdict": status, "error": error, "denied": candidate.denied})
    return ENDED if status == "ended" else 0


def run_tests(candidate: Candidate, prompt: str, test: str, names: list[str]) -> None:
    """Run the prompt, for the helpers it defines, and then the tests, where each name is a function of the candidate."""
    module = types.ModuleType("test")
    sys.modules["test"] = sys.modules["__main__"] = module
    defined = candidate.names()
    exec(compile_prompt(prompt, names), module.__dict__)
    for name in names:
        if name not in defined:
            raise candidate.give_up("failed", f"NameError: the program defines no function {name!r}")
        module.__dict__[name] = proxy(candidate, name)
    exec(compile(test, "test.py", "exec"), module.__dict__)


def proxy(candidate: Candidate, name: str) -> Callable[..., Any]:
    """Return a function that calls the candidate's."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return candidate.call(name, args, kwargs)

    call.__name__ = call.__qualname__ = name
    return call


def compile_prompt(prompt: str, names: Sequence[str]) -> types.CodeType:
    """Compile a prompt, which ends in the header of the function to complete, with an empty body; or else what is before it."""
    start = min((found.start() for name in names if (found := last_header(prompt, name))), default=len(prompt))
    for text in (
        f"{prompt}\n    pass\n",
        f"{prompt}\n\tpass\n",
        f"{prompt} pass\n",
        f"{prompt} None\n",
        prompt,
        prompt[:start],
    ):
        try:
            return compile(text, "prompt.py", "exec")
        except (SyntaxError, ValueError):
            continue
    return compile("", "prompt.py", "exec")


def last_header(prompt: str, name: str) -> re.Match[str] | None:
    """Return where the last definition of a function begins, or None."""
    matches = list(re.finditer(rf"^(?:async\s+)?def\s+{re.escape(name)}\b", prompt, re.M))
    return matches[-1] if matches else None
