"""`duonlp labels`: the report as text and JSON, the files of the parts, and usage errors."""

import json

import pytest

from duonlp.data import read_labelled_texts, read_unlabelled_texts
from tests.duonlp.cli.test_app import run  # noqa: F401  (a fixture)
from tests.duonlp.data.test_labelled_texts import write

ROWS = [
    {"title": f"[red] {i}", "body": None if i % 3 else f"body {i}", "labels": ["bug", "docs"][: i % 4 if i % 4 < 3 else 1]}
    for i in range(80)
]  # fmt: skip


@pytest.fixture
def file(tmp_path):
    return write(
        tmp_path / "issues.jsonl", [*ROWS, ROWS[1], {"title": "", "body": None, "labels": ["bug"]}], lines=True
    )


def test_the_report_and_the_files(run, file, tmp_path):  # noqa: F811
    given = ["labels", file, "--text-template", r"{title}\n\n{body}", "--split", "0.5,0.25,0.25", "--slices", "2,8,all"]
    status, out, err = run(*given, "--output", tmp_path / "out")
    assert status == 0, err
    for part in ("unlabeled", "duplicates", "train", "test", "labels a text", "empty text", f"{file}:82", "wrote"):
        assert part in out, part
    folder = tmp_path / "out"
    train = read_labelled_texts(folder, "train")
    assert len(train) == 30 and len(read_labelled_texts(folder, "validation")) == 15
    assert len(read_labelled_texts(folder / "slice-8", "train")) == 8
    assert read_labelled_texts(folder / "slice-2", "test").texts == read_labelled_texts(folder, "test").texts
    unlabeled = read_unlabelled_texts(folder / "unlabeled.jsonl")
    assert len(unlabeled) == 20 and unlabeled[0] == "[red] 0\n\nbody 0"
    assert (folder / "labels.txt").read_text() == "bug\ndocs\n"
    status, out, err = run(*given, "--json", "--seed", 1)
    report = json.loads(out)
    assert status == 0 and report["unlabelled"] == 20 and report["duplicates"] == 1 and report["files"] == []
    assert report["splits"]["train"]["texts"] == 30 and list(report["slices"]) == ["2", "8", "all"]
    assert report["unusable"] == {"empty text": 1} and report["counts"] == {"bug": 60, "docs": 20}
    status, _, err = run(*given, "--output", folder)
    assert status == 2 and "is not empty; give a new one" in err


def test_no_label_applies_and_the_plot(run, file, tmp_path):  # noqa: F811
    pytest.importorskip("matplotlib")
    given = ["labels", file, "--text-column", "title", "--unlabeled", "negative", "--plot", tmp_path / "x.svg"]
    status, out, err = run(*given, "--output", tmp_path / "out", "--most-frequent", 1)
    assert status == 0 and "no label applies" in out and "read them with --unlabeled negative" in out, err
    assert "issues.jsonl" in (tmp_path / "x.svg").read_text()
    read = read_labelled_texts(tmp_path / "out" / "train.jsonl", unlabelled="negative")
    assert len(read) == 80 and read.label_names == ("bug",)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "no texts given"),
        (["FILE", "--split", "0.5"], "give two or three shares"),
        (["FILE", "--split", "a,b"], "--split is 'a,b'; give two or three shares"),
        (["FILE", "--split", "0.5,0.6"], "add up to 1"),
        (["FILE", "--slices", "8,x"], "--slices is '8,x'"),
        (
            ["FILE", "--slices", "99"],
            "a slice of 99 texts is larger than the data, 60 texts; give sizes up to 60, or 'all'",
        ),
        (["FILE", "--unlabeled", "no"], "'no' is not one of separate, negative, error"),
        (["FILE", "--plot", "x.txt"], "ends in '.txt'"),
        (["FILE", "--label-map", "x.json"], "cannot read the label map 'x.json'"),
        (["FILE", "--text-template", "{titel}"], "did you mean 'title'? Name existing columns in --text-template"),
        (["missing.jsonl"], "no file or folder 'missing.jsonl'"),
    ],
)
def test_usage_errors(run, file, arguments, message):  # noqa: F811
    given = [str(file) if argument == "FILE" else argument for argument in arguments]
    column = [] if not arguments or "--text-template" in arguments else ["--text-column", "title"]
    status, out, err = run("labels", *given, *column)
    assert status == 2 and not out and message in err, err
    assert err.count("\n") == 1
