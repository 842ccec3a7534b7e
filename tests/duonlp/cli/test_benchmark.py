"""`duonlp benchmark`: models measured into a run file, runs printed and compared, usage errors as one line."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

from duonlp.benchmark import memory as benchmark_memory
from duonlp.benchmark.memory import Memory
from duonlp.benchmark.record import read_records
from duonlp.cli.benchmark import BenchmarkSettings, model_names, read_texts
from duonlp.errors import InputError
from duonlp.util import frameworks
from tests.cases import ENCODER, Case
from tests.duonlp.cli.test_app import run  # noqa: F401  (a fixture)

ROWS = [
    ("hello", "greet"),
    ("hi", "greet"),
    ("pay it", "pay"),
    ("send money", "pay"),
    ("sing", "oos"),
    ("dance", "oos"),
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS))
    return path


@pytest.fixture
def models(tmp_path):
    """Write the folders a/best and b, whose answers are those of Package."""
    folders = []
    for name in ("a/best", "b"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x" * (1000 if name == "b" else 2000))
        (folder / "config.json").write_text('{"model_type": "bert"}')
        folders.append(folder)
    return folders


class Package:
    """An engine whose pipelines answer correctly, except for the model of folder b on "hello"."""

    def __init__(self):
        self.calls = []

    def pipeline(self, task, model, **options):
        self.calls.append((task, model.name, options))
        answers = dict(ROWS) | ({"hello": "pay"} if model.name == "b" else {})

        def call(texts):
            return [{"label": answers[text], "score": 0.9} for text in ([texts] if isinstance(texts, str) else texts)]

        return call


@pytest.fixture
def package(monkeypatch):
    made = Package()
    monkeypatch.setattr(frameworks, "package", lambda framework: made)
    alone = []
    made.alone = alone

    def memory_alone(framework, model, texts, **more):
        alone.append((framework, Path(model).name, len(texts), more))
        if made.fails:
            assert [each.memory for each in read_records(made.fails)] == [None, None]  # no measurement is lost
            if Path(model).name == "b":
                raise InputError("the process was killed")
        return Memory(3000, 1000, True)

    made.fails = None
    monkeypatch.setattr(benchmark_memory, "memory_alone", memory_alone)
    return made


def measured(run, models, data, tmp_path, *more):  # noqa: F811
    arguments = ["benchmark", "-m", models[0], "-m", models[1], "--data", data, "-f", "jax", "--out-of-scope", "oos"]
    return run(*arguments, "--output", tmp_path / "run.json", *more)


def test_models_are_measured_into_a_run_file(run, package, models, data, tmp_path):  # noqa: F811
    status, out, err = measured(run, models, data, tmp_path, "-o", "pipeline.max_length=9", "--queries", "4")
    assert status == 0 and "run.json" in out.replace("\n", ""), err
    a, b = read_records(tmp_path / "run.json")
    assert (a.name, b.name) == ("a", "b") and (a.size, b.size) == (2000, 1000) and a.run == b.run
    assert a.scores["accuracy"] == 1 and b.scores["in_scope_accuracy"] == 0.75 and b.scores["out_of_scope_recall"] == 1
    assert a.framework == "jax" and a.model == str(models[0]) and a.latency.queries == 4 and a.memory.growth == 2000
    assert package.calls[0] == ("text-classification", "best", {"truncation": True, "max_length": 9})
    assert package.alone[1] == ("jax", "b", 4, {"batch_size": 32, "options": {"truncation": True, "max_length": 9}})
    assert a.settings["queries"] == 4 and a.settings["data"] == str(data)
    assert re.search(r"a +100\.00 +100\.00 +100\.00", out) and re.search(r"b +83\.33 +75\.00", out)
    # a second run replaces the record of the same name
    status, _, err = run(
        "benchmark", "-m", f"b={models[0]}", "--data", data, "--no-memory", "--output", tmp_path / "run.json"
    )
    again = read_records(tmp_path / "run.json")
    assert status == 0 and [each.name for each in again] == ["a", "b"] and again[0] == a, err
    assert again[1].scores["accuracy"] == 1 and again[1].memory is None and len(package.alone) == 2


def test_memory_that_cannot_be_measured(run, package, models, data, tmp_path):  # noqa: F811
    package.fails = tmp_path / "run.json"
    with pytest.warns(UserWarning, match="b is recorded without its memory: the process was killed"):
        status, _, err = measured(run, models, data, tmp_path)
    a, b = read_records(package.fails)
    assert status == 0 and a.memory.peak == 3000 and b.memory is None and a.run == b.run, err


def test_json_and_a_toml_file(run, package, models, data, tmp_path):  # noqa: F811
    toml = tmp_path / "run.toml"
    toml.write_text(
        f'models = ["{models[0]}"]\ndata = "{data}"\nmemory = false\nqueries = 3\nthreshold = 0.95\nout_of_scope = "oos"\n'
    )
    status, out, err = run("benchmark", "--config", toml, "--queries", "2", "--json")
    assert status == 0, err
    (record,) = json.loads(out)["records"]
    assert record["latency"]["queries"] == 2 and record["scores"]["out_of_scope_recall"] == 1
    assert record["scores"]["in_scope_accuracy"] == 0  # no score reaches the threshold
    toml.write_text('modles = ["x"]')
    status, out, err = run("benchmark", "--config", toml)
    assert status == 2 and "'modles'" in err and "did you mean 'models'" in err and err.count("\n") == 1


def test_runs_are_printed_and_compared(run, package, models, data, tmp_path):  # noqa: F811
    file = tmp_path / "run.json"
    measured(run, models, data, tmp_path)
    package.calls.clear()
    status, out, _ = run("benchmark", file)
    assert status == 0 and "83.33" in out and "3.0" not in out.splitlines()[0]
    assert [row["name"] for row in json.loads(run("benchmark", file, "--json")[1])["records"]] == ["a", "b"]
    assert run("benchmark", file, "--markdown")[1].splitlines()[3].startswith("| b | 83.33 | 75.00 | 100.00 |")
    status, out, _ = run("benchmark", "--compare", file)
    assert status == 0 and "a -> b" in out and "within noise" in out
    status, out, _ = run("benchmark", "--compare", file, file, "--json")
    comparison = json.loads(out)
    assert status == 0 and {row["name"] for row in comparison["differences"]} == {"a", "b"}
    assert {row["verdict"] for row in comparison["differences"]} == {"the same"} and package.calls == []
    assert run("benchmark", "--compare", file, file, "--markdown")[1].startswith("| model | metric |")


def test_a_slower_run_fails(run, package, models, data, tmp_path):  # noqa: F811
    before, after = tmp_path / "run.json", tmp_path / "after.json"
    measured(run, models, data, tmp_path)
    content = json.loads(before.read_text())
    for record in content["records"]:
        record["latency"]["p50"] *= 1.5
    after.write_text(json.dumps(content))
    assert run("benchmark", "--compare", before, after)[0] == 0
    assert run("benchmark", "--compare", before, after, "--fail-if-slower", "1.6")[0] == 0
    status, out, err = run("benchmark", "--compare", before, after, "--fail-if-slower", "1.1")
    assert status == 1 and "1.500" in err and "p50 latency" in out


def test_missing_matplotlib_is_reported_first(run, package, models, data, tmp_path, monkeypatch):  # noqa: F811
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    status, _, err = measured(run, models, data, tmp_path, "--plot", tmp_path / "p.png")
    assert status == 2 and "duonlp[bench]" in err and package.calls == []


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
def test_figures(run, package, models, data, tmp_path):  # noqa: F811
    status, out, err = measured(run, models, data, tmp_path, "--plot", tmp_path / "p.png")
    assert status == 0 and "p.png" in out.replace("\n", "") and (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG", err
    assert run("benchmark", tmp_path / "run.json", "--plot", tmp_path / "p.svg")[0] == 0
    assert "latency of one text" in (tmp_path / "p.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["no model", "--model"]),
        (["-m", "A"], ["no data", "--data"]),
        (["-m", "A", "--data", "/nowhere/x.jsonl"], ["/nowhere/x.jsonl"]),
        (["-m", "A", "-m", "x/..=A", "--data", "DATA", "-m", "A"], ["two models are named 'a'"]),
        (["-m", "=A", "--data", "DATA"], ["NAME=MODEL"]),
        (["-m", "A", "--data", "DATA", "--out-of-scope", "os"], ["'os'", "did you mean 'oos'"]),
        (["-m", "A", "--data", "DATA", "--threshold", "0.5"], ["no out-of-scope label"]),
        (["-m", "A", "--data", "DATA", "--queries", "0"], ["queries is 0"]),
        (["-m", "A", "--data", "DATA", "--limit", "0"], ["limit is 0"]),
        (["-m", "A", "--data", "DATA", "-f", "jaxx"], ["'jaxx'", "did you mean 'jax'"]),
        (["-m", "A", "--data", "DATA", "--output", "/nowhere/run.json"], ["/nowhere"]),
        (["-m", "A", "--data", "DATA", "--output", "DATA"], ["data.jsonl", "not JSON"]),
        (["-m", "A", "--data", "DATA", "--plot", "p.gif"], ["'.gif'"]),
        (["-m", "A", "--data", "DATA", "-o", "warmup=3"], ["'warmup'", "did you mean 'warm_up'"]),
        (["-m", "A", "--data", "DATA", "--label-column", "intent"], ["'intent'"]),
        (["-m", "A", "--data", "DATA", "--data-config", "plus"], ["'plus'", "not a dataset on the Hub"]),
        (["-m", "A", "--data", "DATA", "--fail-if-slower", "1.1"], ["--compare"]),
        (["run.json", "-m", "A"], ["models is for measuring"]),
        (["--compare"], ["one run file or two, and got 0"]),
        (["--compare", "/nowhere/run.json"], ["/nowhere/run.json", "No such file"]),
        (["--compare", "DATA", "--fail-if-slower", "0"], ["--fail-if-slower is 0"]),
        (["--compare", "DATA", "--plot", "p.png"], ["--plot"]),
    ],
)
def test_usage_errors_are_one_line_before_a_model_is_loaded(run, package, models, data, arguments, parts):  # noqa: F811
    for name, path in (("DATA", data), ("A", models[0])):
        arguments = [re.sub(rf"(^|=){name}$", rf"\g<1>{path}", argument) for argument in arguments]
    status, out, err = run("benchmark", *arguments)
    assert status == 2 and out == "" and err.count("\n") == 1 and package.calls == [], err
    assert all(part in err for part in parts), err


def test_names(models, tmp_path):
    assert model_names([str(models[0]), str(models[1]), "org/name", f"c={models[1]}"]) == {
        "a": str(models[0]), "b": str(models[1]), "org/name": "org/name", "c": str(models[1]),
    }  # fmt: skip
    with pytest.raises(InputError, match="two models are named 'c'"):
        model_names(["c=x", "c=y"])


def test_a_limit_takes_evenly_spaced_texts(data):
    texts = read_texts(BenchmarkSettings(("m",), str(data), limit=3))
    assert texts.texts == ["hello", "pay it", "dance"] or texts.texts == ["hello", "send money", "dance"]
    assert texts.label_names == ("greet", "oos", "pay") and texts.labels.tolist() == [0, 2, 1]


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["jax", "tf"])
def test_a_real_model(run, data, tmp_path, framework):  # noqa: F811
    if not frameworks.installed(framework):
        pytest.skip(f"no {framework}")
    labels = {"0": "greet", "1": "oos", "2": "pay"}
    hf = {"model_type": "bert", "id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *{word for text, _ in ROWS for word in text.split()}]
    folder = tmp_path / "bert"
    Case("bert", ENCODER | {"vocab_size": len(vocabulary)} | hf, "sequence-classification").write(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 16}')
    arguments = ["-m", folder, "--data", data, "-f", framework, "--out-of-scope", "oos", "--json", "--queries", "3"]
    arguments += ["--no-memory"] if framework == "tf" else []  # one child process is enough
    status, out, err = run("benchmark", *arguments)
    assert status == 0, err
    (record,) = json.loads(out)["records"]
    assert record["size"] == (folder / "model.safetensors").stat().st_size and record["parameters"] > 100
    assert 0 <= record["scores"]["accuracy"] <= 1 and np.isfinite(record["latency"]["p99"])
    assert (record["memory"] is None) >= (framework == "tf")
    assert record["memory"] is None or record["memory"]["peak"] > record["memory"]["before"] > 0
    assert record["throughput"] > 0 and record["framework"] == framework
