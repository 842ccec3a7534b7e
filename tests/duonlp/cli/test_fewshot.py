"""`duonlp fewshot` and `duonlp adapt`: tables, plans, JSON, settings of methods, and usage errors."""

import json

import pytest

from duonlp.fewshot.comparison import ComparisonSettings
from tests.duonlp.cli.test_app import checkpoint, run  # noqa: F401  (fixtures)
from tests.duonlp.fewshot.test_comparison import rows

pytest.importorskip("sklearn")


@pytest.fixture
def options(tmp_path):
    (tmp_path / "issues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return [
        "--data", tmp_path / "issues.jsonl", "--text-template", "{title}\\n{body}", "--output", tmp_path / "out", "--seeds", "1",
    ]  # fmt: skip


def test_plan_tables_and_json(run, options, tmp_path):  # noqa: F811
    few = [*options, "--sizes", "4,all", "--methods", "naive-bayes"]
    status, out, err = run("fewshot", *few, "--dry-run")
    assert status == 0, err
    assert "0 cells are finished, 2 would run" in out and "naive-bayes, all, seed 0" in out and "unlabelled" in out
    status, out, err = run("fewshot", *few, "-o", "naive_bayes.smoothing=0.5")
    assert status == 0, err
    assert "macro F1" in out and "at the threshold 0.5" in out and "curves.png" in out
    assert "[2/2] naive-bayes, all, seed 0: micro F1" in err
    report = json.loads(run("fewshot", *few, "-o", "naive_bayes.smoothing=0.5", "--json")[1])
    assert [cell["settings"]["smoothing"] for cell in report["cells"]] == [0.5, 0.5]
    assert report["settings"]["sizes"] == [4, "all"] and report["settings"]["text_template"] == "{title}\n{body}"
    file = tmp_path / "out/settings.toml"
    again = json.loads(run("fewshot", "--config", file, "--json")[1])
    assert again["cells"] == report["cells"]
    assert ComparisonSettings(**report["settings"] | {"methods": ("naive-bayes",)}).options["naive-bayes"] == {
        "smoothing": 0.5
    }


def test_usage_errors(run, options, tmp_path):  # noqa: F811
    for arguments, message in [
        ([], "data"),
        ([*options, "--sizes", "8,x"], "--sizes is '8,x'; give positive numbers of texts"),
        ([*options, "--methods", "naive-byes"], "did you mean 'naive-bayes'"),
        ([*options, "--methods", "naive-bayes", "-o", "naive_bayes.smooth=1"], "did you mean 'naive-bayes.smoothing'"),
        ([*options, "-o", "naive_bayes=1"], "write --option naive_bayes.NAME=VALUE"),
        ([*options, "-o", "sise=1"], "'sise' is not a setting of duonlp fewshot"),
        ([*options, "--keep-models", "some"], "'some' is not one of all, none"),
        ([*options, "--unlabeled", tmp_path / "none.jsonl", "--methods", "naive-bayes"], "none.jsonl"),
        ([*options, "--sizes", "8,500", "--methods", "naive-bayes"], "a slice of 500 texts is larger than the data"),
        ([*options, "--per-label", "500", "--methods", "naive-bayes"], "500 texts of each label are wanted"),
    ]:
        status, _, err = run("fewshot", *arguments)
        assert status == 2 and message in err.replace("\n", " "), (arguments, err)


def test_adapt(run, checkpoint, options):  # noqa: F811
    status, _, err = run("adapt", *options[:6], "-m", checkpoint, "--cleaning", "pros", "-f", "jax")
    assert status == 2 and "did you mean 'prose'" in err
    status, _, err = run("adapt", "--data", "x.jsonl")
    assert status == 2 and "model" in err
