"""`duonlp evaluate code` over a small real checkpoint and a stand-in with fixed answers."""

import json

import pytest

from duonlp.cli import evaluate as cli_evaluate
from duonlp.cli.evaluate import Settings, completer, parse_ks
from duonlp.errors import InputError
from duonlp.evaluation import isolation_error, sandbox
from duonlp.util import frameworks
from tests.duonlp.cli.test_app import checkpoint, run  # noqa: F401  (fixtures)
from tests.sandboxes import refusal

pytestmark = pytest.mark.skipif(bool(refusal()), reason=refusal())

PROMPT = "def main():\n"
ROW = {"task_id": "t/0", "prompt": PROMPT, "entry_point": "main", "test": "def check(c):\n    assert c() == 0\n"}


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"task_id": "t/1"}) + "\n")
    return path


class FixedAnswers:
    """An engine whose pipeline gives every prompt the same completions, and that records its arguments."""

    def __init__(self, *texts):
        self.texts, self.options, self.calls = texts, None, []

    def pipeline(self, task, model, **options):
        self.options = options
        return self

    def __call__(self, prompt, num_return_sequences=1, **options):
        self.calls.append((num_return_sequences, options))
        return [{"generated_text": self.texts[i % len(self.texts)]} for i in range(num_return_sequences)]


@pytest.fixture
def engine(monkeypatch):
    package = FixedAnswers("    return 0\n\ndef more", "    return 1\n")
    monkeypatch.setattr(frameworks, "package", lambda framework: package)
    return package


UNSAFE = ["--unsafe"] if isolation_error() else []
"""The programs of these tests are harmless: they run without isolation where the kernel has none."""


def base(problems, *more):
    return ["evaluate", "code", "-m", "m", "--problems", problems, "-f", "jax", "--seconds", "30", *UNSAFE, *more]


def test_the_report(run, engine, problems, tmp_path):  # noqa: F811
    output = tmp_path / "report.json"
    arguments = base(problems, "--k", "1,2", "--samples", "4", "--batch-size", "3", "--output", output)
    status, out, err = run(*arguments, "--allow-code-execution", "--json")
    assert status == 0 and "WARNING" in err, err
    report = json.loads(out)
    assert report == json.loads(output.read_text())
    assert report["pass@k"]["pass@1"] == pytest.approx(0.75) and report["totals"]["samples"] == 8
    assert report["settings"]["samples"] == 4 and report["model"] == "m" and report["framework"] == "jax"
    assert engine.options["stop_strings"][0] == "\nclass" and engine.options["top_p"] == 0.95
    assert [count for count, _ in engine.calls] == [3, 1, 3, 1]
    assert engine.calls[0][1]["seed"] != engine.calls[1][1]["seed"]  # another seed for the second batch
    status, out, _ = run(*arguments, "--allow-code-execution")
    assert status == 0 and "pass@1" in out and "75.0%" in out and "resource limits" in out and str(output) in out


def test_greedy_completions_and_a_record(run, engine, problems, tmp_path):  # noqa: F811
    arguments = base(problems, "--temperature", "0", "--limit", "1", "--record", tmp_path / "r.jsonl", "--json")
    first = json.loads(run(*arguments, "--allow-code-execution")[1])
    assert first["pass@k"] == {"pass@1": 1.0} and engine.calls == [(1, {})] and "do_sample" not in engine.options
    assert json.loads(run(*arguments, "--allow-code-execution")[1]) == first and len(engine.calls) == 1


@pytest.mark.skipif(not frameworks.installed("jax"), reason="no flax")
def test_a_real_model(run, checkpoint, problems):  # noqa: F811
    arguments = ["evaluate", "code", "-m", checkpoint, "--problems", problems, "-f", "jax", "--limit", "1"]
    arguments += ["--k", "1,2", "--max-new-tokens", "6", "--temperature", "1", "--seconds", "30", "--json", *UNSAFE]
    status, out, err = run(*arguments, "--allow-code-execution")
    assert status == 0, err
    (row,) = json.loads(out)["problems"]
    assert row["samples"] == 2 and row["results"][0]["status"] in ("failed", "exited early")


@pytest.mark.slow
def test_completions_are_the_same_in_both_frameworks(checkpoint):  # noqa: F811
    if not all(frameworks.installed(name) for name in ("tf", "jax")):
        pytest.skip("needs both")
    settings = Settings(str(checkpoint), "", samples=3, batch_size=2, max_new_tokens=6, temperature=1.0)
    texts = [completer(frameworks.package(name), settings)([PROMPT], 3) for name in ("tf", "jax")]
    assert texts[0] == texts[1] and len(texts[0][0]) == 3


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--allow-code-execution", "--k", "1,x"], ["--k", "'1,x'"]),
        (["--allow-code-execution", "--k", "10", "--samples", "5"], ["--samples is 5", "10"]),
        (["--allow-code-execution", "--k", "2", "--temperature", "0"], ["--temperature 0", "--samples 1"]),
        (["--allow-code-execution", "--top-p", "2"], ["--top-p is 2.0"]),
        (["--allow-code-execution", "--workers", "-1"], ["--workers is -1"]),
        (["--allow-code-execution", "--output", "/nowhere/a.json"], ["--output", "/nowhere/a.json"]),
        ([], ["untrusted, model-written code", "--allow-code-execution"]),
    ],
)
def test_usage_errors_are_one_line(run, engine, problems, arguments, parts):  # noqa: F811
    status, out, err = run(*base(problems), *arguments)
    assert status == 2 and out == "" and err.count("\n") == 1 and engine.calls == [], err
    assert all(part in err for part in parts), err


def test_nothing_runs_without_isolation(run, engine, problems, monkeypatch):  # noqa: F811
    """The error comes before a model is loaded, names the step that failed, and says what --unsafe gives up."""
    monkeypatch.setattr(sandbox, "isolation_error", lambda: "cannot create namespaces (unshare): errno 1")
    arguments = [text for text in base(problems, "--allow-code-execution") if text != "--unsafe"]
    status, out, err = run(*arguments)
    assert status == 2 and out == "" and err.count("\n") == 1 and engine.calls == [] and engine.options is None
    assert "unshare" in err and "--unsafe" in err and "your rights" in err and "unsafe=True" not in err


def test_missing_arguments_and_files(run, engine, tmp_path):  # noqa: F811
    assert "--model" in run("evaluate", "code")[2] and "--problems" in run("evaluate", "code", "-m", "m")[2]
    status, _, err = run(*base(tmp_path / "none.jsonl"), "--allow-code-execution")
    assert status == 2 and "none.jsonl" in err
    assert "code" in run("evaluate", "--help")[1]


def test_values_of_k():
    assert parse_ks("10, 1,1") == (1, 10)
    for text in ("", "0", "1,", "-1"):
        with pytest.raises(InputError, match="--k"):
            parse_ks(text)


def test_a_report_is_written_atomically(tmp_path):
    cli_evaluate.write_json({"a": 1}, str(tmp_path / "a.json"))
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 1
