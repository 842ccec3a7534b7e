"""`duonlp questions`: the report as text and JSON, what is written, and usage errors."""

import json

import pytest

from duonlp.data import read_questions
from tests.duonlp.cli.test_app import checkpoint, run  # noqa: F401  (fixtures)

ROW = {
    "id": "1", "title": "A", "question": "How is it?", "context": "It is [red] good.",
    "answers": {"text": ["good"], "answer_start": [12]},
}  # fmt: skip
BAD = ROW | {"id": "2", "answers": {"text": ["good"], "answer_start": [6]}}
NONE = ROW | {"id": "3", "question": "Why [red]?", "answers": {"text": [], "answer_start": []}}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROW, BAD, NONE)))
    return path


def test_the_report(run, file, tmp_path):  # noqa: F811
    status, out, err = run("questions", file, "--against", file, "--output", tmp_path / "squad.json")
    assert status == 0, err
    for part in (
        "answerable",
        "50.0%",
        "dropped rows, answer not found: 1",
        f"{file}:2",
        "it occurs at 12",
        "same context",
    ):
        assert part in out, part
    assert list(read_questions(tmp_path / "squad.json")) == [ROW, NONE]
    status, out, _ = run("questions", tmp_path / "squad.json", "--json", "--unit", "characters")
    report = json.loads(out)
    assert status == 0 and report["questions"] == 2 and report["unit"] == "characters" and "leakage" not in report
    assert report["lengths"]["contexts"]["max"] == 17 and report["dropped"] == {}
    report = json.loads(run("questions", file, "--json", "--against", tmp_path / "squad.json", "--limit", 1)[1])
    assert report["dropped"]["answer not found"]["documents"] == 1 and report["leakage"]["kinds"]["ids"]["shared"] == 1


def test_tokens_and_the_plot(run, checkpoint, file, tmp_path):  # noqa: F811
    pytest.importorskip("matplotlib")
    status, out, err = run("questions", file, "--tokenizer", checkpoint, "--plot", tmp_path / "x.svg")
    assert status == 0 and "tokens, mean" in out and "[red]" not in err
    assert "rows.jsonl" in (tmp_path / "x.svg").read_text()


def test_usage_errors(run, file, tmp_path):  # noqa: F811
    for arguments, message in [
        ([], "no questions given"),
        ([file, "--unit", "word"], "'word' is not one of words, characters"),
        ([file, "--unit", "words", "--tokenizer", "x"], "--tokenizer measures lengths in tokens"),
        ([file, "--against-split", "train"], "there is no --against"),
        ([file, "--plot", "x.txt"], "ends in '.txt'"),
        ([file, "--limit", "-1"], "--limit is -1"),
        ([file, "--split", "test"], "leave the split out"),
        ([file, "--output", tmp_path / "x.csv"], "ends in none of .json"),
        ([tmp_path / "missing.json"], "no file or folder"),
        ([file, "--encoding", "latin-0"], "not an encoding"),
    ]:
        status, out, err = run("questions", *arguments)
        assert status == 2 and message in err and out == "" and err.count("\n") == 1, (arguments, err)
