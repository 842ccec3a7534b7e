"""pass@k, HumanEval's format, truncation of completions, and the whole evaluation with a stand-in model."""

import gzip
import json
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.evaluation import isolation_error
from duonlp.evaluation.human_eval import cut_at_first_block, evaluate_problems, read_problems
from duonlp.evaluation.pass_rate import pass_at_k
from tests.sandboxes import refusal

pytestmark = pytest.mark.skipif(bool(refusal()), reason=refusal())

RUN = {"seconds": 20, "allow_code_execution": True, "unsafe": bool(isolation_error())}
"""The programs of these tests are harmless: they run without isolation where the kernel has none."""

PROMPT = 'def add(a, b):\n    """Sum of two numbers."""\n'
TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
ROWS = [
    {"task_id": f"t/{i}", "prompt": PROMPT.replace("add", name), "entry_point": name, "test": TEST}
    for i, name in enumerate(("add", "plus", "total"))
]
NESTED = "    def g():\n        if 1:\n            print(2)\n    return g"
RIGHT, WRONG = "    return a + b\n\nprint(add(1, 2))\n", "    return a - b\n"


@pytest.fixture
def problems(tmp_path):
    with gzip.open(tmp_path / "p.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    return read_problems(tmp_path / "p.jsonl.gz")


@pytest.mark.parametrize("n", [1, 5, 20])
def test_pass_at_k_is_the_binomial_formula(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            exact = 1 - Fraction(comb(n - c, k), comb(n, k))
            assert pass_at_k(n, c, k) == pytest.approx(float(exact), abs=1e-14)


def test_pass_at_k_of_many_samples_and_of_arrays():
    exact = 1 - Fraction(comb(100_000 - 3, 5_000), comb(100_000, 5_000))
    assert pass_at_k(100_000, 3, 5_000) == pytest.approx(float(exact), rel=1e-9)
    np.testing.assert_allclose(pass_at_k(np.array([4, 4, 4]), [0, 2, 4], 1), [0, 0.5, 1])
    assert pass_at_k(10, [1, 10], 3).shape == (2,)


@pytest.mark.parametrize(
    ("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6), ([5, 2], [0, 0], 3), (5, 0.5, 1)]
)
def test_pass_at_k_rejects_invalid_numbers(n, c, k):
    with pytest.raises(InputError):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("prompt", "completion", "body"),
    [
        ("def f():\n", "    return 1\n\ndef g():\n    pass", "    return 1"),
        ("def f():\n", "    return 1\n\n\nclass A:\n    pass", "    return 1"),
        ("def f():\n", "    x = 1\n\n    # a note\n    return x\n# outside\n", "    x = 1\n\n    # a note\n    return x"),
        ("def f():\n", "    return 1\n@decorated\n", "    return 1"),
        ("def f():\n", f"{NESTED}\nprint(f())", NESTED),
        ("def f():\n", "    return 1\nif __name__", "    return 1"),
        ("def f():\n", "def g():\n    pass", ""),  # the left margin follows the prompt's last line break
        ("def f(): return", " default\n", " default"),
        ("x = ", "define(1)", "define(1)"),  # not at the margin
        ("def f():\n", "    return 1  \n\n", "    return 1"),
    ],
)  # fmt: skip
def test_a_completion_ends_with_its_block(prompt, completion, body):
    assert cut_at_first_block(prompt, completion) == body


def test_problems_are_read_plain_and_zipped(tmp_path, problems):
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    assert read_problems(tmp_path / "p.jsonl") == problems
    assert [p.entry_point for p in problems] == ["add", "plus", "total"] and problems[0].canonical_solution == ""


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "no problems"),
        (b"{", "line 1"),
        (b"[1]", "it is not an object"),
        (json.dumps(ROWS[0] | {"test": None}).encode(), "test"),
        (json.dumps(ROWS[0] | {"entry_point": "a b"}).encode(), "'a b'"),
        ((json.dumps(ROWS[0]) + "\n").encode() * 2, "line 2"),
        (b"\xff", "UTF-8|utf-8"),
    ],
)
def test_invalid_problem_files(tmp_path, content, part):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=part):
        read_problems(tmp_path / "p.jsonl")


def test_a_missing_and_a_broken_file(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        read_problems(tmp_path / "nowhere.jsonl")
    (tmp_path / "p.jsonl.gz").write_bytes(b"plain")
    with pytest.raises(InputError, match=r"p\.jsonl\.gz"):
        read_problems(tmp_path / "p.jsonl.gz")


class Model:
    """Solves the first problem always, the second every other time, the third never; records the prompts."""

    def __init__(self):
        self.prompts_seen = []

    def __call__(self, prompts, n):
        self.prompts_seen += prompts
        kinds = {"add": [RIGHT] * n, "plu": ([RIGHT.replace("add", "plus"), WRONG] * n)[:n], "tot": [WRONG] * n}
        return [kinds[prompt[4:7]] for prompt in prompts]


def test_nothing_runs_without_permission(problems, capsys):
    model = Model()
    with pytest.raises(InputError, match="allow_code_execution=True"):
        evaluate_problems(problems, model, (1,))
    assert model.prompts_seen == []


def test_an_evaluation_from_prompts_to_scores(problems, capsys):
    report = evaluate_problems(problems, Model(), (1, 2), workers=2, **RUN)
    assert "WARNING" in capsys.readouterr().err
    assert report["pass@k"] == pytest.approx({"pass@1": 0.5, "pass@2": 2 / 3})
    assert report["totals"] == {
        "problems": 3, "solved": 2, "samples": 6, "passed": 3, "statuses": {"passed": 3, "failed": 3},
    }  # fmt: skip
    assert [row["passed"] for row in report["problems"]] == [2, 1, 0]
    result = report["problems"][2]["results"][0]
    assert result["completion"] == WRONG.rstrip() and result["error"].startswith("AssertionError")
    assert "resource limits" in report["protection"] and json.dumps(report)


def test_an_evaluation_resumes_from_its_record(problems, tmp_path):
    record, model = tmp_path / "record.jsonl", Model()
    options = {"record": record, "label": "a", **RUN}
    first = evaluate_problems(problems[:2], model, (1,), **options)
    with record.open("a") as file:
        file.write('{"task_id": "t/2", "samp')  # an incomplete line, as left by a crash
    report = evaluate_problems(problems, model, (1,), **options)
    assert len(model.prompts_seen) == 3 and report["problems"][:2] == first["problems"]
    assert evaluate_problems(problems, model, (1,), **options) == report and len(model.prompts_seen) == 3
    with pytest.raises(InputError, match=r"'a'.*'b'"):
        evaluate_problems(problems, model, (1,), **options | {"label": "b"})
    assert evaluate_problems(problems, model, (1, 2), **options)["totals"]["samples"] == 6  # runs again


def test_invalid_arguments(problems):
    with pytest.raises(InputError, match="samples is 1"):
        evaluate_problems(problems, Model(), (1, 10), samples=1, allow_code_execution=True)
    with pytest.raises(InputError, match=r"\[1\]"):
        evaluate_problems(problems, lambda prompts, n: [["x"]], (2,), **RUN)
    with pytest.raises(InputError, match="0 problems"):
        evaluate_problems([], Model(), (1,), allow_code_execution=True)
    with pytest.raises(InputError, match="workers"):
        evaluate_problems(problems, Model(), (1,), workers=0, allow_code_execution=True)
