"""`duonlp evaluate summarization`: baselines, models and prediction files compared, and the files it writes."""

import importlib.util
import json
import os
import warnings
from pathlib import Path

import pytest

from duonlp.cli import evaluate_summarization as cli_evaluate_summarization
from duonlp.cli.evaluate_summarization import file_names
from duonlp.cli.summarization_systems import model_names
from duonlp.errors import InputError
from duonlp.metrics.predictions import read_predictions, write_predictions
from duonlp.util import frameworks
from tests.cases import SIZES, Case
from tests.duonlp.cli.test_app import run  # noqa: F401  (a fixture)

for module in ("rouge_score", "sacrebleu", "sentencex"):
    pytest.importorskip(module)

DOCUMENTS = [
    "Dr. Smith lives in the U.S. now. He likes it. It rains. He stays.",
    "Prices rose. Nobody knows why. Some guess. The bank waits.",
    "A cat sat. It slept. It woke. It ate.",
]
SUMMARIES = ["Dr. Smith likes the U.S. He stays.", "Prices rose and nobody knows why.", "A cat slept and ate."]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = ({"id": f"d{i}", "document": d, "summary": s} for i, (d, s) in enumerate(zip(DOCUMENTS, SUMMARIES)))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Summarizer:
    """An engine whose model "knows" gives the references and other models "", and that records its arguments."""

    def __init__(self):
        self.calls = []

    def pipeline(self, task, model, **options):
        self.calls.append((task, model, options))
        if "num_beems" in options:
            raise InputError("summarization has no option 'num_beems'")
        answers = dict(zip(DOCUMENTS, SUMMARIES, strict=True)) if model == "knows" else {}
        return lambda texts: [{"summary_text": answers.get(text, "")} for text in texts]


@pytest.fixture
def engine(monkeypatch):
    package = Summarizer()
    monkeypatch.setattr(frameworks, "package", lambda framework: package)
    return package


def base(data, *more):
    return ["evaluate", "summarization", "--data", data, "--resamples", "100", *more]


def test_baselines_and_a_file(run, data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(frameworks, "package", None)  # no framework is needed
    other = tmp_path / "mine.txt"
    other.write_text("Prices rose.\n\nA cat ate.\n")
    arguments = base(data, "--baseline", "lead-1", "--baseline", "lead-3", "--predictions", f"mine={other}")
    status, out, err = run(*arguments, "--json")
    assert status == 0 and err == "", err
    report = json.loads(out)
    assert list(report["scores"]) == ["mine", "lead-1", "lead-3"] and report["examples"] == 3
    from rouge_score.rouge_scorer import RougeScorer

    first = ["Dr. Smith lives in the U.S. now.", "Prices rose.", "A cat sat."]
    scorer = RougeScorer(["rouge2"], use_stemmer=True)
    wanted = [scorer.score(s, d)["rouge2"].fmeasure for s, d in zip(SUMMARIES, first)]
    assert report["scores"]["lead-1"]["rouge2"]["value"] == pytest.approx(sum(wanted) / 3)
    assert set(report["metrics"]) == {"rouge1", "rouge2", "rougeL", "rougeLsum", "bleu"}
    assert "sentences: en" in report["metrics"]["rougeLsum"]["signature"] and len(report["differences"]) == 15
    assert report["systems"]["mine"]["words"] == 1.7 and report["systems"]["lead-1"]["seconds"] >= 0
    assert report["framework"] is None and {"sacrebleu", "rouge-score", "duonlp"} <= set(report["versions"])
    assert "jax" not in report["versions"]
    status, out, _ = run(*arguments)
    assert status == 0 and "rougeLsum" in out and "words per summary" in out and "lead-3" in out


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
def test_models_and_written_files(run, engine, data, tmp_path):  # noqa: F811
    output = tmp_path / "new" / "out"
    more = ["-m", "knows", "-m", "org/silent", "--baseline", "lead-3", "-f", "jax", "-o", "num_beams=2"]
    status, out, err = run(*base(data, *more, "--seed", "3", "--output", output))
    assert status == 0 and str(output) in out.replace("\n", ""), err
    assert engine.calls == [("summarization", name, {"num_beams": 2}) for name in ("knows", "org/silent")]
    report = json.loads((output / "scores.json").read_text())
    assert report["scores"]["knows"]["rougeLsum"]["value"] == pytest.approx(1)
    assert report["scores"]["org/silent"]["bleu"] == {"low": 0, "value": 0, "high": 0}
    assert report["framework"] == "jax" and "tokenizers" in report["versions"]
    assert report["command"]["options"] == {"num_beams": 2} and report["settings"]["seed"] == 3
    assert (output / "scores.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in output.iterdir()) == ["predictions", "scores.json", "scores.png"]
    # --predictions reads the predictions back
    again = [f"--predictions={name}={output / row['file']}" for name, row in report["systems"].items()]
    status, out, _ = run(*base(data, *again, "--seed", "3", "--json"))
    assert status == 0 and json.loads(out)["scores"] == report["scores"]
    assert json.loads(out)["data"]["sha256"] == report["data"]["sha256"]
    # a second run does not overwrite the first
    status, _, err = run(*base(data, "--baseline", "lead-3", "--output", output))
    assert status == 2 and "scores.json" in err


def test_predictions_survive_a_model_that_fails(run, engine, data, tmp_path):  # noqa: F811
    more = ["--baseline", "lead-3", "-m", "m", "-f", "jax", "--output", tmp_path / "out"]
    status, out, err = run(*base(data, *more, "-o", "num_beems=2"))
    assert status == 2 and out == "" and "did you mean 'num_beams'" in err and err.count("\n") == 1, err
    assert [path.name for path in (tmp_path / "out/predictions").iterdir()] == ["lead-3.jsonl"]
    assert not (tmp_path / "out/scores.json").exists()


def test_samples_are_seeded(run, engine, data):  # noqa: F811
    arguments = base(data, "-m", "knows", "-f", "jax", "-o", "do_sample=true", "--seed", "9", "--json")
    assert run(*arguments)[0] == run(*arguments, "-o", "seed=1")[0] == 0
    assert [options["seed"] for _, _, options in engine.calls] == [9, 1]


def test_tldr(run, engine, data, monkeypatch):  # noqa: F811
    calls = []

    def tldr(pipe, texts, **options):
        calls.append((pipe, texts, options))
        return ["words"] * len(texts)

    monkeypatch.setattr("duonlp.evaluation.baselines.tldr", tldr)
    more = ["--baseline", "tldr", "--tldr-model", "gpt2", "-f", "jax", "--tldr-option", "max_new_tokens=9"]
    status, out, err = run(*base(data, *more, "--tldr-option", "batch_size=2", "--seed", "4", "--json"))
    assert status == 0 and json.loads(out)["systems"]["tldr"]["source"] == "gpt2", err
    assert engine.calls == [("text-generation", "gpt2", {"batch_size": 2})]
    assert calls[0][1:] == (DOCUMENTS, {"seed": 4, "language": "en", "max_new_tokens": 9})


@pytest.mark.slow
@pytest.mark.skipif(not frameworks.installed("jax"), reason="no flax")
def test_real_models(run, data, tmp_path):  # noqa: F811
    pieces = (Path(__file__).parents[2] / "reference/pipelines/gpt2.json").read_text()
    end = {"vocab_size": 2000, "eos_token_id": 0, "pad_token_id": 0}
    for name, hf, head in (
        ("t5", {"model_type": "t5", "decoder_start_token_id": 0}, "seq2seq-lm"),
        ("gpt2", {"model_type": "gpt2", "n_positions": 128}, "causal-lm"),
    ):
        Case(name, SIZES[name] | end | hf, head).write(tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(pieces)
        tokens = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "model_max_length": 64}
        tokens["tokenizer_class"] = "PreTrainedTokenizerFast"
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(tokens))
    more = ["-f", "jax", "-m", tmp_path / "t5", "-o", "max_new_tokens=6", "-o", "num_beams=1", "--baseline", "tldr"]
    more += ["--tldr-model", tmp_path / "gpt2", "--tldr-option", "max_new_tokens=5", "--output", tmp_path / "out"]
    status, out, err = run(*base(data, *more, "--json"))
    assert status == 0, err
    report = json.loads(out)
    assert list(report["scores"]) == ["t5", "tldr"] and report["framework"] == "jax"
    rows = [json.loads(line) for line in (tmp_path / "out/predictions/t5.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["d0", "d1", "d2"]


def test_a_limit(run, data, tmp_path):  # noqa: F811
    mine = tmp_path / "mine.jsonl"
    mine.write_text("".join(json.dumps({"summary_text": text}) + "\n" for text in SUMMARIES))
    status, out, _ = run(*base(data, "--limit", "2", "--predictions", f"a=b={mine}", "--json"))
    assert status == 2
    status, out, err = run(*base(data, "--limit", "2", "--predictions", f"mine={mine}", "--json", "--sentences", ""))
    assert status == 0 and json.loads(out)["examples"] == 2, err
    assert "sentences: lines" in json.loads(out)["metrics"]["rouge1"]["signature"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["nothing to evaluate", "--baseline lead-3"]),
        (["--baseline", "lead3"], ["'lead3'", "did you mean 'lead-3'"]),
        (["--baseline", "lead-0"], ["'lead-0'"]),
        (["--baseline", "lead-3", "--baseline", "lead-3"], ["two systems are named 'lead-3'"]),
        (["--baseline", "lead-3", "--predictions", "lead-3=DATA"], ["two systems are named 'lead-3'"]),
        (["-m", "a", "-m", "a"], ["'a' is given twice"]),
        (["--baseline", "tldr"], ["--tldr-model"]),
        (["--baseline", "lead-3", "--tldr-model", "gpt2"], ["--baseline tldr"]),
        (["--baseline", "lead-3", "--tldr-option", "top_k=3"], ["--tldr-option"]),
        (["--baseline", "lead-3", "-o", "num_beams=3"], ["--option is for models"]),
        (["--predictions", "out.jsonl"], ["'out.jsonl' is not NAME=FILE"]),
        (["--predictions", "x=/nowhere/out.jsonl"], ["/nowhere/out.jsonl", "No such file"]),
        (["-m", "knows", "--predictions", "x=SHORT"], ["1 predictions", "3 examples"]),
        (["-m", "knows", "-f", "jaxx"], ["'jaxx'", "did you mean 'jax'"]),
        (["-m", "knows", "--limit", "1"], ["1 example", "at least 2"]),
        (["-m", "knows", "--limit", "-1"], ["--limit is -1"]),
        (["-m", "knows", "--resamples", "0"], ["resamples is 0"]),
        (["-m", "knows", "--confidence", "95"], ["confidence is 95"]),
        (["-m", "knows", "--output", "SHORT/out"], ["--output", "can be written to"]),
        (["-m", "knows", "--sentences", "klingon!"], ["'klingon!'"]),
        (["-m", "knows", "--summary-field", "tweet"], ["'tweet'"]),
    ],
)
def test_usage_errors_are_one_line_before_a_model_runs(run, engine, data, tmp_path, arguments, parts):  # noqa: F811
    (tmp_path / "short.txt").write_text("one\n")
    names = {"DATA": str(data), "SHORT": str(tmp_path / "short.txt")}
    for name, path in names.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    status, out, err = run(*base(data, *arguments))
    assert status == 2 and out == "" and err.count("\n") == 1 and engine.calls == [], err
    assert all(part in err for part in parts), err


@pytest.mark.parametrize(("owner", "call"), [(os, "replace"), (Path, "mkdir")])
def test_a_full_disk(run, data, tmp_path, monkeypatch, owner, call):  # noqa: F811
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, call, full)
    status, out, err = run(*base(data, "--baseline", "lead-3", "--output", tmp_path / "out"))
    assert status == 2 and out == "" and err.count("\n") == 1, err
    assert "No space left on device; " in err and str(tmp_path / "out") in err


def test_errors_in_the_data_name_flags(run, tmp_path):  # noqa: F811
    (tmp_path / "a.jsonl").write_text('{"document": "a", "summary": ""}\n')
    status, _, err = run(*base(tmp_path / "a.jsonl", "--baseline", "lead-3"))
    assert (
        status == 2
        and "a.jsonl:1: empty summary" in err
        and "fix that record or remove it" in err
        and "report" not in err
    )
    (tmp_path / "b.jsonl").write_text('{"x": "a", "y": "b"}\n')
    status, _, err = run(*base(tmp_path / "b.jsonl", "--baseline", "lead-3"))
    assert status == 2 and "name the document column with --document-field" in err


def test_missing_arguments_and_files(run, tmp_path):  # noqa: F811
    assert "--data" in run("evaluate", "summarization", "--baseline", "lead-3")[2]
    status, _, err = run(*base(tmp_path / "none.jsonl", "--baseline", "lead-3"))
    assert status == 2 and "none.jsonl" in err
    assert "summarization" in run("evaluate", "--help")[1]
    status, out, _ = run("evaluate", "summarization", "--help")
    assert status == 0 and "--tldr-model" in out and "--output" in out


def test_without_matplotlib_there_is_no_figure(run, data, tmp_path, monkeypatch):  # noqa: F811
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else find(name))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status, _, err = run(*base(data, "--baseline", "lead-3", "--output", tmp_path / "out"))
    assert status == 0 and any("no scores.png" in str(warning.message) for warning in caught), err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"predictions", "scores.json"}


def test_names(tmp_path):
    for folder in ("a/final", "b/final", "c/other"):
        (tmp_path / folder).mkdir(parents=True)
    a, b, c = (str(tmp_path / folder) for folder in ("a/final", "b/final", "c/other"))
    assert model_names([a, b, c, "org/name"]) == {a: a, b: b, c: "other", "org/name": "org/name"}
    files = file_names(["org/name", "org_name", "..", "Größe 1", "ORG/name"])
    assert list(files.values()) == [
        "predictions/org_name.jsonl", "predictions/org_name-2.jsonl", "predictions/system.jsonl",
        "predictions/Größe_1.jsonl", "predictions/ORG_name-3.jsonl",
    ]  # fmt: skip


def test_files_of_predictions(tmp_path):
    file, ids = tmp_path / "a.jsonl", ["x", "y", "z"]
    texts = ["one\ntwo\u2028three", "", "half \ud83d a pair"]
    write_predictions(file, ids, texts)
    assert read_predictions(file, ids) == [*texts[:2], "half ? a pair"]
    assert read_predictions(file, ["z", "x"])[1] == texts[0]  # by id, in any order
    with pytest.raises(InputError, match="no prediction for the example 'w'"):
        read_predictions(file, ["x", "w"])
    (tmp_path / "b.jsonl").write_text('"a"\n\n{"text": "b", "id": 3}\r\n')
    assert read_predictions(tmp_path / "b.jsonl", ["1", "2"]) == ["a", "b"]
    (tmp_path / "c.txt").write_bytes("\ufeffa\u2028b\r\n\r\nc".encode())
    assert read_predictions(tmp_path / "c.txt", ids) == ["a\u2028b", "", "c"]
    with pytest.raises(InputError, match="has 3 predictions, but there are 2"):
        read_predictions(tmp_path / "c.txt", ids[:2])
    assert read_predictions(tmp_path / "c.txt", ids[:2], limited=True) == ["a\u2028b", ""]
    for content, part in (
        ("", "has 0 predictions"), ("{", "line 1 of"), ('{"a": 1}', "has no text"), ('{"text": 1}', "has no text"),
        ("3", "has no text"),
        ('{"id": "x", "text": ""}\n' * 2 + '{"id": "y", "text": ""}', "'x' more than once"),
    ):  # fmt: skip
        (tmp_path / "d.jsonl").write_text(content)
        with pytest.raises(InputError, match=part):
            read_predictions(tmp_path / "d.jsonl", ids)
    (tmp_path / "e.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_predictions(tmp_path / "e.txt", ids)


def test_lengths():
    assert cli_evaluate_summarization.mean_words(["a b c", "", "d"]) == 1.3


def test_line_breaks_of_pegasus(run, tmp_path):  # noqa: F811
    scores = []
    for line_break in ("\n", "<n>"):
        data, mine = tmp_path / "marked.jsonl", tmp_path / "mine.jsonl"
        pairs = [{"id": i, "document": DOCUMENTS[0], "summary": f"He stays{line_break}It rains"} for i in "ab"]
        data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        texts = [{"id": i, "prediction": f"It rains{line_break}He stays"} for i in "ab"]
        mine.write_text("".join(json.dumps(text) + "\n" for text in texts))
        status, out, err = run(*base(data, "--predictions", f"mine={mine}", "--json"))
        assert status == 0, err
        scores.append(json.loads(out)["scores"]["mine"])
    assert scores[0] == scores[1] and scores[0]["rougeLsum"]["value"] > scores[0]["rougeL"]["value"]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_predictions_in_utf_8_beside_data_in_another_encoding(run, tmp_path, encoding):  # noqa: F811
    data, mine, text = tmp_path / "a.csv", tmp_path / "mine.txt", "Un caf\u00e9 chaud et un th\u00e9 vert"
    data.write_text("document,summary\n" + f"{DOCUMENTS[0]},{text}\n" * 2, encoding="cp1252")
    mine.write_text(f"{text}\n" * 2, encoding=encoding)
    status, out, err = run(*base(data, "--predictions", f"mine={mine}", "--encoding", "cp1252", "--json"))
    assert status == 0, err
    assert json.loads(out)["scores"]["mine"]["bleu"]["value"] == pytest.approx(100)
