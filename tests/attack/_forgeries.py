"""Completions that cannot pass honestly, and try to be judged as passed. Each continues PROMPT."""

# ruff: noqa: E501 (one program, one line)

import struct

PROMPT = 'def add(a, b):\n    """Sum of two values, which it leaves as they are."""\n'
TEST = """
def check(candidate):
    assert candidate(2, 3) == 5
    assert candidate(0.5, 0.25) == 0.75
    assert candidate("a", "b") == "ab"
    data = [3, 1]
    assert candidate(data, [2]) == [3, 1, 2]
    assert data == [3, 1]
"""
# Nothing but comparisons, which is what an object that equals everything, or a patched builtin, would pass in the same process.
HONEST = "    return list(a) + list(b) if isinstance(a, list) else a + b\n"

# What the following programs share. `everything` are the values that a program can reach from its own frames.
TOOLS = """
import ctypes, gc, os, struct, sys, threading, time
def frames():
    frame = sys._getframe()
    while frame:
        yield frame
        frame = frame.f_back
def descriptors():
    return [fd for fd in range(3, 64) if not fails(os.fstat, fd)]
def fails(f, *args):
    try:
        f(*args)
    except BaseException:
        return True
def flood(data):
    for fd in descriptors():
        os.set_blocking(fd, False)
        fails(os.write, fd, data)
def frame(data):
    return struct.pack("<I", len(data)) + data
def text(s):
    return b"s" + struct.pack("<I", len(s)) + s.encode()
def tuple_of(*parts):
    return b"t" + struct.pack("<I", len(parts)) + b"".join(parts)
EMPTY = b"l\\0\\0\\0\\0"
READY = frame(tuple_of(text("ready"), b"l" + struct.pack("<I", 1) + text("add"), b"N", EMPTY))
def returned(value):
    return frame(tuple_of(text("returned"), value, b"N", EMPTY))
def raised(name, arguments=tuple_of(), status="passed"):
    return frame(tuple_of(text("raised"), tuple_of(text(name), arguments, text("m"), text(status)), b"N", EMPTY))
def over(status):
    return frame(tuple_of(text("over"), tuple_of(text(status), text("")), b"N", EMPTY))
def answer_descriptor():
    for f in frames():
        if "answers" in f.f_locals and isinstance(f.f_locals["answers"], int):
            return f.f_locals["answers"]
def send(*data):
    for part in data:
        os.write(answer_descriptor(), part)
"""

EQUAL = """
class Same({base}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __hash__(self): return 5
    def __getitem__(self, key): return self
    def __getattribute__(self, name): return {base}.__getattribute__(self, name)
"""


def function(body: str, top: str = "", tools: bool = True) -> str:
    """Return a completion with this body and code at the top level."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"{lines}\n{TOOLS if tools else ''}{top}\n"


VERDICT = '{"verdict": "passed", "error": "", "denied": []}'
LINES = [VERDICT, '{"status": "passed"}', '{"ready": "candidate", "protection": []}', '{"exit": 0}', "0" * 32]

FORGERIES: dict[str, str] = {
    # The verdict in memory, and in the pipes.
    "walk the frames for a token or verdict": function(
        "for f in frames():\n    for name, value in list(f.f_locals.items()):\n        if isinstance(value, (bytes, str)) and len(value) < 99:\n"
        "            flood(b'\\n' + (value if isinstance(value, bytes) else value.encode()) + b'\\n')\nos._exit(0)"
    ),
    "walk a traceback's frames": function(
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    f = e.__traceback__.tb_frame\n    while f:\n"
        "        f.f_globals.update(passed=True, verdict=('passed', ''))\n        f = f.f_back\n    os._exit(0)"
    ),
    **{
        f"write {line[:24]} to every descriptor and exit": function(
            f"flood({line!r}.encode() + b'\\n')\nos._exit(0)"
        )
        for line in LINES
    },
    "write a verdict at import and exit": function("return 0", f"flood({VERDICT!r}.encode() + b'\\n')\nos._exit(0)"),
    "print a verdict": function(f"print({VERDICT!r}, flush=True)\nreturn 0"),
    "flood the output with verdicts": function(f"while True:\n    print({VERDICT!r})"),
    "chdir to /proc/self and open mem": function("os.chdir('/proc/self')\nopen('mem', 'r+b').write(b'passed')"),
    "write to the memory of every process": function(
        "for pid in os.listdir('/proc'):\n    if pid.isdigit():\n        fails(lambda: open(f'/proc/{pid}/mem', 'r+b').write(b'x'))\nreturn 0"
    ),
    "reopen the pipes of /proc/self/fd": function(
        f"for fd in range(64):\n    fails(lambda: os.write(os.open(f'/proc/self/fd/{{fd}}', os.O_RDWR | os.O_NONBLOCK), {VERDICT!r}.encode()))\n"
        "os._exit(0)"
    ),
    "write to the parent's descriptors through /proc/1": function(
        f"for pid in (1, 2, os.getppid()):\n    for fd in range(64):\n        fails(lambda: open(f'/proc/{{pid}}/fd/{{fd}}', 'w').write({VERDICT!r}))\nos._exit(0)"
    ),
    "search the garbage collector's objects": function(
        "for o in gc.get_objects():\n    if isinstance(o, dict) and 'verdict' in o:\n        o['verdict'] = 'passed'\n"
        "    if getattr(o, '__name__', '') in ('describe', 'classify', 'over'):\n        o.__code__ = (lambda *a: 'passed').__code__\nreturn 0"
    ),
    # Exits.
    "_exit(0) in the function": function("os._exit(0)"),
    "_exit(0) at the top level": function("return 0", "os._exit(0)"),
    "_exit with the judge's status": function("os._exit(3)"),
    "sys.exit(0)": function("sys.exit(0)"),
    "raise KeyboardInterrupt": function("raise KeyboardInterrupt"),
    "raise GeneratorExit": function("raise GeneratorExit"),
    "close everything and exit": function("os.closerange(0, 99)\nos._exit(0)"),
    "abort": function("os.abort()"),
    "a thread that exits later": function("return 0", "threading.Timer(0.05, lambda: os._exit(0)).start()"),
    "fork and let the child answer": function("if not os.fork():\n    return a + b\nos._exit(0)"),
    "run the interpreter again": function("os.execv(sys.executable, [sys.executable, '-c', ''])"),
    # Values that compare equal.
    "an object whose __eq__ is true": function("return Same()", EQUAL.format(base="object"), False),
    **{
        f"a subclass of {base} whose __eq__ is true": function(f"return Same({value})", EQUAL.format(base=base), False)
        for base, value in (
            ("int", "7"),
            ("float", "7"),
            ("str", "'x'"),
            ("list", "[7]"),
            ("dict", "{7: 7}"),
            ("tuple", "(7,)"),
        )
    },
    "an object that claims to be an int": function(
        "return X()", "class X:\n    __class__ = int\n    __eq__ = lambda *a: True", False
    ),
    "a class whose metaclass's __eq__ is true": function(
        "return X", "class M(type):\n    __eq__ = lambda *a: True\nclass X(metaclass=M): pass", False
    ),
    "unittest.mock.ANY": function("from unittest import mock\nreturn mock.ANY", tools=False),
    "NotImplemented": function("return NotImplemented", tools=False),
    "NaN": function("return float('nan')", tools=False),
    "a generator": function("yield a", tools=False),
    "an object with a __reduce__": function("return X()", "class X:\n    def __reduce__(self): return (eval, ('5',))"),
    "a list that contains itself": function("x = [5]\nx[0] = x\nreturn x"),
    "an argument changed to the expectation": function(
        "if isinstance(a, list):\n    a.clear()\n    a += [3, 1, 2]\n    return a\nreturn a + b"
    ),
    "an int of a million digits": function("return 10 ** 1_000_000"),
    "a tuple of 16 million zeros": function("return (0,) * 15_000_000"),
    # Patches, which reach only the candidate's own process.
    "patched builtins": function(
        "return 0", "import builtins\nfor n in ('AssertionError', 'isinstance', 'type', 'compile', 'exec', 'str', 'len'):\n"
        "    setattr(builtins, n, lambda *a, **k: True)",
    ),
    "an AssertionError that cannot be raised": function(
        "raise AssertionError", "import builtins\nclass E(BaseException):\n    def __new__(c, *a): return None\nbuiltins.AssertionError = E"
    ),
    "a check of its own": function("return 0", "def check(candidate): pass\ncandidate = lambda *a: 5"),
    "a module test of its own": function("return 0", "import types\nsys.modules['test'] = sys.modules['math'] = types.ModuleType('x')"),
    "a patched math.isclose": function("return 0", "import math\nmath.isclose = lambda *a, **k: True"),
    "a patched struct": function("return 0", "struct.Struct.pack = lambda *a: b''\nimport builtins"),
    "a trace function": function("return 0", "sys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: os._exit(0))"),
    "an audit hook that exits": function("return 0", "sys.addaudithook(lambda *a: os._exit(0))"),
    "os.write replaced": function("return 0", f"write = os.write\nos.write = lambda fd, data: (write(fd, {VERDICT!r}.encode() + b'\\n'), len(data))[1]"),
    "the small integers overwritten": function("return 0", "ctypes.memset(id(5) + 24, 0, 4)"),
    "a signal handler": function("return 0", "import signal\nfor n in range(1, 65): fails(signal.signal, n, lambda *a: os._exit(0))\nsignal.alarm(1)"),
    "an exit handler": function("return 0", f"import atexit\natexit.register(flood, {VERDICT!r}.encode())"),
    # Answers that the sandbox did not write.
    "answers in advance": function("return 0", "send(READY, *[returned(b'i' + struct.pack('<IB', 1, 5))] * 99)\nos._exit(0)"),
    "answers of the status passed": function("send(over('passed'))\nos._exit(0)"),
    "ready twice": function("send(READY, READY)\ntime.sleep(9)"),
    **{
        f"raise {name} in the tests": function(f"send(raised({name!r}))\nos._exit(0)")
        for name in ("SystemExit", "CandidateOverError", "KeyboardInterrupt", "BaseException", "eval", "exit", "object")
    },
    "an exception with bad arguments": function("send(raised('UnicodeDecodeError', tuple_of(b'T', b'T')))\nos._exit(0)"),
    "a status that is a list": function("send(frame(tuple_of(text('over'), tuple_of(EMPTY, EMPTY), b'N', EMPTY)))\nos._exit(0)"),
    "an unhashable key": function("send(returned(b'm' + struct.pack('<I', 1) + EMPTY + b'N'))\nos._exit(0)"),
    "a count of four billion": function("send(returned(b'l\\xff\\xff\\xff\\xff'))\nos._exit(0)"),
    "a length of four billion": function("send(b'\\xff\\xff\\xff\\xff')\ntime.sleep(9)"),
    "deep nesting": function("send(returned(b'l\\1\\0\\0\\0' * 100_000 + b'N'))\nos._exit(0)"),
    "lone surrogates": function("send(frame(tuple_of(text('over'), tuple_of(text('failed'), b's\\3\\0\\0\\0\\xed\\xa0\\x80'), b'N', EMPTY)))\nos._exit(0)"),
    "arguments that turn into others": function("send(frame(tuple_of(text('returned'), b'T', tuple_of(tuple_of(b'T', b'T'), b'T'), EMPTY)))\nreturn 0"),
    "denied events that are a number": function("send(frame(tuple_of(text('returned'), b'T', b'N', b'T')))\nos._exit(0)"),
    "JSON in place of an answer": function(f"send({VERDICT!r}.encode())\nos._exit(0)"),
    "half an answer": function("send(returned(b'T')[:-3])\nos._exit(0)"),
    "noise": function("send(os.urandom(1 << 16))\nos._exit(0)"),
    # The judge and the library.
    "kill every process": function("for pid in (0, -1, 1, 2, 3, os.getppid()):\n    fails(os.kill, pid, 9)\n    ctypes.CDLL(None).kill(pid, 9)\nreturn 0"),
    "stop every process": function("for pid in (0, -1, 1, 2, os.getppid()):\n    ctypes.CDLL(None).kill(pid, 19)\nreturn 0"),
    "trace every process": function("for pid in range(1, 99):\n    ctypes.CDLL(None).ptrace(16, pid, 0, 0)\nreturn 0"),
    "change the sandbox's own files": function(
        "return 0", "for folder in sys.path + ['/tmp']:\n    for name in ('struct.py', 'duonlp/evaluation/sandbox_values.py', 'json/__init__.py'):\n"
        "        fails(lambda: open(os.path.join(folder, name), 'a').write('raise SystemExit(0)'))",
    ),
    "a module left behind for the judge": function(
        "return 0", "for name in ('math', 'json', 'struct'):\n    fails(lambda: open(name + '.py', 'w').write('import os; os._exit(0)'))"
    ),
    "a program that is no text": "    return '\ud800'\n",
    "a program with a NUL": "    return 0\n\0",
    "a program too deep to parse": "    return " + "(" * 5000 + "\n",
    "hang": function("while True: pass"),
}  # fmt: skip


def random_answer(rng) -> str:
    """Return a completion that answers its calls with a damaged answer."""
    answer = b"t\4\0\0\0" + b"s" + struct.pack("<I", 8) + b"returned" + b"i\1\0\0\0\5" + b"N" + b"l\0\0\0\0"
    data = bytearray(struct.pack("<I", len(answer)) + answer)
    for _ in range(rng.integers(1, 6)):
        position = rng.integers(len(data))
        match rng.integers(3):
            case 0:
                data[position] = rng.integers(256)
            case 1:
                del data[position]
            case _:
                data[position:position] = bytes(data[rng.integers(len(data)) :])[: rng.integers(1, 9)]
    return function(f"send({bytes(data)!r} * {rng.integers(1, 4)})\nos._exit(0)")
