"""`duonlp finetune --task question-answering` and `duonlp evaluate` on a tiny reader, in each framework."""

import json

import pytest

from duonlp.data.questions import Questions, write_squad
from duonlp.runs import cross_validation
from duonlp.runs.cross_validation import spread
from duonlp.runs.models import load_for_training
from duonlp.runs.question_answering import QuestionData
from duonlp.tasks.reader_config import read_reader_config
from duonlp.training.log.metrics_file import read_metrics
from duonlp.util import frameworks
from tests.duonlp.cli.test_app import run  # noqa: F401  (a fixture)
from tests.readers import PLACES, questions, reader_checkpoint

EPOCHS = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return the folder of a checkpoint without a head (bert), and of training and validation questions."""
    folder = tmp_path_factory.mktemp("readers")
    for name, count, seed in (("train", 96, 0), ("dev", 16, 1)):
        write_squad(Questions(questions(count, seed)), folder / f"{name}.json")
    reader_checkpoint(folder / "bert")
    return folder


def arguments(base, *more):
    return [
        "finetune", "--task", "question-answering", "-m", base / "bert", "-d", base / "train.json", "--validation-data",
        base / "dev.json", "--batch-size", 16, "--max-length", 16, "--doc-stride", 2, "--epochs", EPOCHS, "--learning-rate",
        "1e-2", "-o", "fit.log_every=1", *more,
    ]  # fmt: skip


def test_a_plan(run, base, tmp_path):  # noqa: F811
    status, out, err = run(*arguments(base, "--output", tmp_path / "run", "--dry-run"))
    assert status == 0 and not (tmp_path / "run").exists(), err
    assert "96 training questions (24 unanswerable), 16 validation questions (4 unanswerable)" in out
    assert "24 steps of 16 windows, 6 per epoch" in out
    folds = [value for value in arguments(base) if value not in ("--validation-data", base / "dev.json")]
    status, out, err = run(*folds, "--output", tmp_path / "run", "--folds", 3, "--dry-run")
    assert status == 0 and out.startswith("3 folds by title; the first: 6"), err


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--task", "summarization"], ["task is 'summarization'", "text-classification or question-answering"]),
        (["--task", "question-answring"], ["did you mean 'question-answering'"]),
        (["--label-column", "x"], ["'label_column' is not a setting", "--task text-classification"]),
        (["--max-length", 64], ["max_length is 64; the model reads at most 32 tokens"]),
        (["--doc-stride", 16], ["doc_stride is 16"]),
        (["--folds", 3], ["folds is 3", "validation_data"]),
        (["-o", "fit.best_metric=accuracy"], ["best_metric is 'accuracy'", "f1"]),
    ],
)
def test_usage_errors_are_one_line_before_training(run, base, tmp_path, more, parts):  # noqa: F811
    status, out, err = run(*arguments(base, "--output", tmp_path / "run"), *more, "--dry-run")
    assert status == 2 and out == "" and err.count("\n") == 1 and not (tmp_path / "run").exists(), err
    assert all(part in err for part in parts), err


def test_questions_without_the_task(run, base, tmp_path):  # noqa: F811
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions(4)))
    status, _, err = run("finetune", "-m", base / "bert", "-d", tmp_path / "train.jsonl", "--output", tmp_path / "run")
    assert (
        status == 2 and "questions on contexts instead of labeled texts" in err and "--task question-answering" in err
    )


def test_a_setting_of_another_task(run, base, tmp_path):  # noqa: F811
    status, _, err = run("finetune", "-m", base / "bert", "-d", base / "train.json", "--output", tmp_path, "--folds", 3)
    assert status == 2 and "not a setting of text-classification, but of question-answering" in err
    assert "give --task question-answering" in err and err.count("\n") == 1


def test_cross_validation_prints_mean_and_spread(run, base, tmp_path, monkeypatch):  # noqa: F811
    report = {
        "metrics": spread([{"best_f1": 60.0, "f1": 50.0}, {"best_f1": 70.0, "f1": 54.0}]), "at_threshold": {}, "folds": [{}, {}],
        "seconds": 2.0, "output": str(tmp_path), "preempted": False,
    }  # fmt: skip
    monkeypatch.setattr(cross_validation, "cross_validate", lambda package, settings: report)
    given = [value for value in arguments(base) if value not in ("--validation-data", base / "dev.json")]
    status, out, err = run(*given, "--output", tmp_path / "run", "--folds", 2)
    assert status == 0 and out.index("f1 ") < out.index("best_f1"), err
    assert "52.0000" in out and "2.8284" in out and "2 folds, 2.0 s of training" in out
    status, _, err = run(*given, "--output", tmp_path / "run", "--folds", 2, "--plot", tmp_path / "a.svg")
    assert status == 2 and "plot a fold with --config fold-1/settings.toml" in err


def test_folds_need_groups(run, base, tmp_path):  # noqa: F811
    write_squad(Questions([row | {"title": ""} for row in questions(8)]), tmp_path / "untitled.json")
    given = [
        "finetune",
        "--task",
        "question-answering",
        "-m",
        base / "bert",
        "--output",
        tmp_path / "run",
        "--folds",
        2,
    ]
    status, _, err = run(*given, "-d", tmp_path / "untitled.json", "--dry-run")
    assert status == 2 and "has no title" in err and "--fold-by context" in err
    status, _, err = run(*given, "-d", base / "dev.json", "--fold-by", "titel", "--dry-run")
    assert status == 2 and "has no column 'titel'" in err and "did you mean 'title'" in err


@pytest.fixture(scope="module")
def losses():
    """Hold the logged losses by framework, to compare them."""
    return {}


@pytest.mark.parametrize("framework", ["jax", "tf"])
def test_a_real_run_learns_adapts_and_is_evaluated(run, base, tmp_path, losses, framework):  # noqa: F811
    pytest.importorskip(frameworks.NEEDS[framework])
    status, out, err = run(*arguments(base, "--output", tmp_path / "run", "-f", framework, "--json"))
    assert status == 0, err
    report = json.loads(out)
    assert report["at_threshold"]["f1"] > 90 and report["row_noun"] == "windows" and report["data"]["train"] == 96
    trained = read_reader_config(tmp_path / "run" / "best")
    assert trained is not None and trained.max_seq_len == 16 and trained.doc_stride == 2
    assert trained.null_threshold == report["at_threshold"]["threshold"]
    losses[framework] = [row["loss"] for row in read_metrics(tmp_path / "run") if row["kind"] == "step"]
    assert len(losses[framework]) == 6 * EPOCHS and losses[framework][-1] < losses[framework][0] / 4
    pipe = frameworks.package(framework).pipeline("question-answering", tmp_path / "run" / "best", progress=False)
    assert pipe("where is it", context="again there attic today")["answer"] in PLACES
    status, out, err = run(
        "evaluate",
        "question-answering",
        "-d",
        base / "dev.json",
        "-m",
        tmp_path / "run" / "best",
        "-f",
        framework,
        "--json",
    )
    assert status == 0, err
    scores = json.loads(out)["systems"]["best"]
    assert scores["origin"] == "tuned" and scores["scores"]["f1"] == pytest.approx(report["at_threshold"]["f1"])
    # Another run starts from this reader, head included.
    package = frameworks.package(framework)
    for folder, is_new in ((base / "bert", True), (tmp_path / "run" / "best", False)):
        assert load_for_training(package, QuestionData.auto_class, str(folder), "float32", 0)[1] is is_new
    status, out, err = run("finetune", "--config", tmp_path / "run" / "settings.toml", "--json")
    assert status == 0 and json.loads(out)["metrics"] == pytest.approx(report["metrics"]), err


def test_the_engines_have_the_same_loss_curve(losses):
    if len(losses) < 2:
        pytest.skip("only one framework is installed")
    assert losses["tf"] == pytest.approx(losses["jax"], abs=1e-3)
