"""`duonlp evaluate question-answering`: readers, files of answers and the empty baseline, and the files it writes."""

import importlib.util
import json
import warnings
from types import SimpleNamespace

import pytest

from duonlp.data.questions import Questions, write_squad
from duonlp.errors import NewHeadWarning
from duonlp.metrics.question_answering import read_answers, read_null_gaps, write_answers, write_null_gaps
from duonlp.tasks.reader_config import ReaderConfig, write_reader_config
from duonlp.util import frameworks
from tests.duonlp.cli.test_app import run  # noqa: F401  (a fixture)
from tests.readers import questions

ROWS = questions(8)  # the last of each four has no answer


@pytest.fixture
def data(tmp_path):
    write_squad(Questions(ROWS), tmp_path / "dev.json")
    return tmp_path / "dev.json"


class Readers:
    """An engine whose readers answer with the first word of a context, or with the place if they are called "knows"."""

    def __init__(self):
        self.calls = []

    def pipeline(self, task, model, **options):
        if str(model).endswith("headless"):
            warnings.warn("new", NewHeadWarning, stacklevel=2)

        def answer(item):
            true = next(row for row in ROWS if row["context"] == item["context"])["answers"]["text"]
            knows = str(model).endswith("knows")
            text = (true or [""])[0] if knows and true else item["context"].split()[0]
            gap = (-1.0 if true else 3.0) if knows else 0.5
            return {"score": 0.5, "start": 0, "end": len(text), "answer": text, "logit": 1.0, "null_gap": gap}

        def pipe(items, *, top_k, handle_impossible_answer, **more):
            self.calls.append((task, str(model).rpartition("/")[2], {**options, **more}))
            return [answer(item) for item in items]

        pipe.task = SimpleNamespace(folder=model)
        return pipe


@pytest.fixture
def engine(monkeypatch):
    package = Readers()
    monkeypatch.setattr(frameworks, "package", lambda framework: package)
    return package


def base(data, *more):
    return ["evaluate", "question-answering", "--data", data, "--resamples", "50", *more]


def test_files_of_answers_and_the_baseline(run, data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(frameworks, "package", None)  # no framework is needed
    write_answers(
        tmp_path / "a.json",
        {row["id"]: "today" if not row["answers"]["text"] else row["answers"]["text"][0] for row in ROWS},
    )
    write_null_gaps(tmp_path / "g.json", {row["id"]: 0.2 - bool(row["answers"]["text"]) for row in ROWS})
    status, out, err = run(*base(data, "--predictions", f"mine={tmp_path / 'a.json'}", "--json"))
    assert status == 0 and err == "", err
    systems = json.loads(out)["systems"]
    assert list(systems) == ["mine", "no answer"]
    assert (systems["mine"]["scores"]["exact"], systems["no answer"]["scores"]["exact"]) == (75, 25)
    assert (
        systems["no answer"]["scores"]["NoAns_f1"] == 100 and systems["mine"]["scores"]["intervals"]["f1"]["low"] <= 75
    )
    gaps = ["--predictions", f"mine={tmp_path / 'a.json'}", "--null-gaps", f"mine={tmp_path / 'g.json'}"]
    assert json.loads(run(*base(data, *gaps, "--json"))[1])["systems"]["mine"]["scores"]["f1"] == 100
    status, out, _ = run(*base(data, *gaps, "--threshold", "0.3"))
    assert status == 0 and "given" in out and "75.0" in out and "slightly optimistic" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
def test_models_and_written_files(run, engine, data, tmp_path):  # noqa: F811
    (tmp_path / "knows").mkdir()
    write_reader_config(tmp_path / "knows", ReaderConfig(32, 8, 5, 1.5))
    more = ["-m", tmp_path / "knows", "-m", "other=org/silent", "-f", "jax", "--max-length", "24"]
    output, figure = tmp_path / "out", tmp_path / "bars.svg"
    status, out, err = run(*base(data, *more, "--output", output, "--plot", figure))
    assert status == 0 and str(output) in out, err
    assert engine.calls == [
        ("question-answering", "knows", {"batch_size": 16, "max_seq_len": 24, "doc_stride": 8, "max_answer_len": 5}),
        ("question-answering", "silent", {"batch_size": 16, "max_seq_len": 24, "max_answer_len": 30}),
    ]
    report = json.loads((output / "scores.json").read_text())
    assert list(report["systems"]) == ["knows", "other", "no answer"] and report["framework"] == "jax"
    knows, other = report["systems"]["knows"], report["systems"]["other"]
    assert (knows["threshold"], knows["origin"], knows["scores"]["f1"]) == (1.5, "tuned", 100)
    assert (other["threshold"], other["origin"], other["scores"]["f1"]) == (0, "default", 25)  # every gap is above 0
    text = figure.read_text()
    assert "knows" in text and "HasAns F1" in text and "95% intervals" in text
    assert len(read_answers(output / "predictions/knows.json")) == len(
        read_null_gaps(output / "predictions/knows.null_gaps.json")
    )
    # --predictions and --null-gaps read them back
    again = ["--predictions", f"knows={output}/predictions/knows.json"]
    again += ["--null-gaps", f"knows={output}/predictions/knows.null_gaps.json", "--threshold", "1.5", "--json"]
    assert json.loads(run(*base(data, *again))[1])["systems"]["knows"]["scores"] == knows["scores"]
    status, _, err = run(*base(data, *again, "--output", output))
    assert status == 2 and "scores.json" in err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--predictions", "a.json"], ["--predictions 'a.json' is not NAME=FILE"]),
        (["--predictions", "a=/nowhere/a.json"], ["/nowhere/a.json"]),
        (["--predictions", "a=DATA"], ["the answer"]),
        (["--predictions", "a=SHORT"], ["predictions lack 7 of 8 questions"]),
        (["--null-gaps", "a=SHORT"], ["--null-gaps names 'a'", "no --predictions"]),
        (["--null-gaps", "a=b", "--null-gaps", "a=c", "--predictions", "a=SHORT"], ["'a' two files, 'b' and 'c'"]),
        (["--predictions", "a=SHORT", "--threshold", "1"], ["--threshold is 1.0, but no system has null gaps"]),
        (["--predictions", "no answer=SHORT"], ["two systems are named 'no answer'"]),
        (["-m", "x=a", "-m", "x=b"], ["two systems are named 'x'", "NAME=FOLDER"]),
        (["-m", "a", "-m", "a"], ["'a' is given twice"]),
        (["-m", "org/headless"], ["'org/headless' has no question-answering head"]),
        (["-m", "knows", "--threshold", "nan"], ["--threshold is nan"]),
        (["-m", "knows", "--limit", "-1"], ["--limit is -1"]),
        (["-m", "knows", "--batch-size", "0"], ["--batch-size is 0"]),
        (["-m", "knows", "--confidence", "95"], ["confidence is 95"]),
        (["-m", "knows", "--plot", "bars.gif"], ["'.gif'", ".png"]),
        (["-m", "knows", "--output", "SHORT/out"], ["--output", "can be written to"]),
        (["-m", "knows", "--split", "train"], ["split is 'train'"]),
    ],
)
def test_usage_errors_are_one_line_before_a_model_runs(run, engine, data, tmp_path, arguments, parts):  # noqa: F811
    write_answers(tmp_path / "short.json", {ROWS[0]["id"]: "today"})
    for name, path in {"DATA": data, "SHORT": tmp_path / "short.json"}.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    status, out, err = run(*base(data, *arguments))
    assert status == 2 and out == "" and err.count("\n") == 1 and engine.calls == [], err
    assert all(part in err for part in parts), err


def test_missing_data(run):  # noqa: F811
    status, _, err = run("evaluate", "question-answering", "-m", "knows")
    assert status == 2 and "pass --data" in err
