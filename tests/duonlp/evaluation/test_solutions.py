"""`check_solution`: tests that run outside the process of the functions they test."""

import collections
import os

import pytest

from duonlp.errors import InputError
from duonlp.evaluation import Problem, check_problem, check_solution, evaluate_problems, isolation_error
from duonlp.evaluation.sandbox import STATUSES

pytestmark = pytest.mark.skipif(os.name != "posix" or bool(isolation_error()), reason=f"{isolation_error()}")


def run(solution, test, names=("f",), **options):
    """Check a solution with a time limit that suits a busy machine."""
    result = check_solution(solution, test, names, **{"seconds": 30} | options)
    assert result.status in STATUSES
    return result


def test_values_keep_their_types_and_arguments_change_in_place():
    solution = """
import collections, enum
class Color(enum.IntEnum):
    RED = 1
def f(x):
    return x
def special(n):
    return [collections.Counter('aab'), Color.RED, collections.namedtuple('P', 'x y')(1, 2), True][n]
def change(items, *, table):
    items.append(1)
    table['k'] = items
def add(a, b=2, *rest, **more):
    return a + b + sum(rest) + sum(more.values())
"""
    test = """
import math
nan = float('nan')
for value in (None, True, 0, -1, 1 << 5000, 1.5, float('inf'), 'a\\ud800', b'\\xff', 1j, [1, [2]], (1,), {'a': {1: ()}}, {1, 2},
              frozenset('ab'), range(1, 9, 2), ''):
    result = f(value)
    assert result == value and type(result) is type(value), value
assert math.isnan(f(nan)) and f([1, (2, {'x'})]) == [1, (2, {'x'})]
assert [special(n) for n in range(4)] == [{'a': 2, 'b': 1}, 1, (1, 2), True] and type(special(2)) is tuple
items, table = [0], {}
assert change(items, table=table) is None and items == [0, 1] and table == {'k': [0, 1]}
assert add(1) == 3 and add(1, 1, 1, c=5) == 8 and add.__name__ == 'add'
"""
    result = run(solution, test, ("f", "special", "change", "add"))
    assert result.passed, result


def test_exceptions_are_raised_in_the_tests():
    solution = """
class Mine(LookupError):
    pass
def f(n):
    raise (ValueError('no', 1), Mine('x'), KeyError('k'), UnicodeDecodeError('utf-8', b'a', 0, 1, 'r'), AssertionError)[n]
"""
    test = """
for n, kind, text in ((0, ValueError, "('no', 1)"), (1, LookupError, 'x'), (2, KeyError, "'k'")):
    try:
        f(n)
    except kind as error:
        assert type(error) is kind and str(error) == text, error
    else:
        assert False
try:
    f(3)
except UnicodeDecodeError:
    pass
"""
    assert run(solution, test).passed
    result = run(solution, "f(0)")
    assert result.status == "failed" and result.error == "ValueError: ('no', 1)"


@pytest.mark.parametrize(
    ("solution", "test", "status", "error"),
    [
        ("def g(x): return 1", "", "failed", "'f'"),
        ("f = 1", "f(1)", "failed", "'f'"),
        ("def f(x): return object()", "try:\n    f(1)\nexcept Exception:\n    pass", "unsupported", "'object'"),
        ("def f(x): return (i for i in x)", "try:\n    f([1])\nexcept:\n    pass", "unsupported", "'generator'"),
        ("def f(x):\n    x.append(x)", "f([1])", "unsupported", "deep"),
        ("def f(x): return x", "f(print)", "unsupported", "argument of f"),
        ("import os\ndef f(x): os._exit(0)", "try:\n    f(1)\nexcept:\n    pass", "exited early", "0"),
        ("def f(x): exit()", "try:\n    f(1)\nexcept BaseException:\n    pass", "exited early", ""),
        ("def f(x): return 'a' * 10**8", "f(1)", "unsupported", "bytes"),
        ("def f(x): return [0] * 10**9", "f(1)", "memory", ""),
        ("def f(x):\n    while True: pass", "f(1)", "timed out", ""),
        ("import socket\ndef f(x): socket.socket()", "f(1)", "network", "no network"),
        ("def f(x): return f(x)", "f(1)", "failed", "RecursionError"),
        ("def f(x): return x", "def", "failed", "SyntaxError"),
        ("def f(x): return x", "while True: pass", "timed out", ""),
    ],
)  # fmt: skip
def test_what_does_not_pass(solution, test, status, error):
    result = run(solution, test, seconds=2 if status == "timed out" else 30)
    assert (result.status, error in result.error) == (status, True), result


def test_helpers_of_the_prompt_and_lists_of_assertions():
    prompt = (
        "import math\ndef poly(xs, x):\n    return sum(c * math.pow(x, i) for i, c in enumerate(xs))\n\ndef f(xs):\n"
    )
    test = "assert abs(poly([1, 2], f([1, 2]))) < 1e-4\nassert math.isclose(f([-6, 11]), 6 / 11)"
    for body in ("    return -xs[0] / xs[1]\n", "    return -xs[0] / xs[1]\n\ndef poly(xs, x):\n    return 0\n"):
        assert run(prompt + body, test, prompt=prompt).passed
    cheat = "    return 5\n\ndef poly(xs, x):\n    return 0\n"  # the tests use the prompt's own
    assert run(prompt + cheat, test, prompt=prompt).status == "failed"
    for header in (
        "def f(x):\n\t'''Double.'''\n",
        "def f(x): return",
        "def f(x):\n  '''Double.'''\n",
        "@print\ndef f(",
        "x = 1\n",
    ):
        assert run("def f(x): return 2 * x", "assert f(2) == 4", prompt=header).passed, header
    with pytest.raises(InputError, match="names"):
        check_solution("", "", [])
    with pytest.raises(InputError, match="shorter"):
        check_solution("", "#" * (17 << 20), ["f"])


def test_a_bad_completion_does_not_end_an_evaluation(tmp_path):
    """A record and a report are written, as JSON in UTF-8, whatever the completions hold."""
    test = "def check(candidate):\n    assert candidate(1) == 2\n"
    problems = [Problem(f"t/{i}", "def f(x):\n", "f", test) for i in range(2)]
    texts = [
        "    return '\ud800'",
        "    import os; os._exit(0)",
        "    raise ValueError('\\udcff')",
        "    return x + 1",
        "\0",
    ]
    options = {"samples": 5, "seconds": 30, "workers": 2, "allow_code_execution": True, "record": tmp_path / "r.jsonl"}
    report = evaluate_problems(problems, lambda prompts, n: [texts] * len(prompts), (1,), **options)
    statuses = collections.Counter({"failed": 6, "exited early": 2, "passed": 2})
    assert report["totals"]["statuses"] == statuses and str(report["problems"]).encode()
    assert "seccomp" in report["protection"]
    assert evaluate_problems(problems, lambda prompts, n: [], (1,), **options) == report
    assert check_problem(problems[0], texts[3], seconds=30).passed
