"""`duonlp augment`: rows in, changed copies out."""

import json
from types import SimpleNamespace

import pytest

from duonlp.cli import augment as module
from tests.augmentation import FORTH, TEXTS, fill_mask, translator
from tests.standins import command


@pytest.fixture
def run(capsys, monkeypatch):
    def pipeline(task, model):
        return fill_mask() if task == "fill-mask" else translator(FORTH if model == "there" else {"das": "the"})

    monkeypatch.setattr(module, "load_package", lambda name: (SimpleNamespace(pipeline=pipeline), "jax"))
    return command(capsys, monkeypatch)


@pytest.fixture
def file(tmp_path):
    rows = [
        {"id": number, "title": text[:20], "body": text if number else None, "label": ["a"]}
        for number, text in enumerate(TEXTS)
    ]
    path = tmp_path / "issues.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"id": 9, "title": " ", "body": None, "label": []}])
    )
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_keep_their_other_columns(run, file, tmp_path):
    out = tmp_path / "out.jsonl"
    arguments = ("augment", file, "--method", "edits", "--text-column", "title,body", "--per-text", 2, "--output", out)
    status, printed, err = run(*arguments, "--json", "--seed", 1)
    assert status == 0, err
    report, rows = json.loads(printed), read(out)
    assert (
        report["rows"] == 5 and report["new"] == len(rows) == 10 and report["dropped"]["empty text"]["documents"] == 1
    )
    assert [row["id"] for row in rows[:4]] == ["0+1", "0+2", "1+1", "1+2"] and rows[0]["body"] is None
    assert all(row["label"] == ["a"] and row.keys() == {"id", "title", "body", "label"} for row in rows)
    assert rows[2]["title"] != TEXTS[1][:20] and rows[2]["body"] != TEXTS[1]
    run(*arguments, "--seed", 1, "--originals", "--cache", tmp_path / "cache")
    assert [row for row in read(out) if "+" in str(row["id"])] == rows and len(read(out)) == 15
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_methods(run, file, tmp_path):
    out, table = tmp_path / "out.jsonl", tmp_path / "synonyms.json"
    table.write_text(json.dumps({"download": ["transfer"]}))
    common = ("--text-column", "title", "--output", out)
    for arguments in (
        ("masked", "--model", "m", "--share", "0.4", "-o", "top_k=3"),
        ("synonyms", "--synonyms", table),
        ("edits", "--synonyms", table, "--protect", "hangs", "-o", 'operations=["insert"]'),
    ):
        status, printed, err = run("augment", file, "--method", *arguments, *common)
        assert status == 0 and "new copies of 5 rows" in printed, err
    assert sum("transfer" in row["title"] for row in read(out)) == 1
    text = tmp_path / "text.csv"
    text.write_text("text,label\nthe model is slow,a\n")
    back = ("--method", "back-translation", "--model", "there", "--backward-model", "back", "--per-text", 2)
    status, printed, err = run("augment", text, *back, "--output", out)
    assert status == 0 and [row["text"] for row in read(out)] == ["the Modell ist langsam", "Modell ist langsam the"], (
        err
    )
    assert read(out)[0]["label"] == "a"


def test_usage_errors(run, file, tmp_path):
    out, code = tmp_path / "out.jsonl", tmp_path / "code.jsonl"
    code.write_text('{"text": "`x`"}\n')
    for arguments, message in [
        ([], "no texts given"),
        ([file], "no method given"),
        ([file, "--method", "mask"], "did you mean 'masked'"),
        ([file, "--method", "edits"], "--output is ''"),
        ([file, "--method", "edits", "--output", out], "--text-column"),
        ([file, "--method", "edits", "--output", out, "--text-column", "titel"], "did you mean 'title'"),
        ([code, "--method", "masked", "--output", out], "pass --model"),
        ([code, "--method", "back-translation", "--model", "m", "--output", out], "--backward-model"),
        ([code, "--method", "edits", "--model", "m", "--output", out], "--model has no effect"),
        ([code, "--method", "edits", "--output", out, "-o", "top_k=3"], "no option 'top_k'"),
        ([code, "--method", "edits", "--output", out, "--per-text", "0"], "per_text is 0"),
        ([code, "--method", "edits", "--output", out, "--share", "2"], "alpha is 2"),
        ([code, "--method", "edits", "--output", out], "no copy of the 1 texts differs"),
        ([tmp_path / "none.jsonl", "--method", "edits", "--output", out], "no file or folder"),
    ]:
        status, _, err = run("augment", *arguments)
        assert status == 2 and message in err, (arguments, err)
        assert not out.exists()
