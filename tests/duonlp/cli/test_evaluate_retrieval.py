"""`duonlp evaluate retrieval`: tables, JSON, models of every part, and usage errors."""

import importlib.util
import json

import pytest

from duonlp.cli.evaluate_retrieval import labels
from tests.duonlp.cli.test_app import run  # noqa: F401  (a fixture)
from tests.duonlp.cli.test_ask import ANY, models  # noqa: F401  (a fixture)

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("bm25s"), reason="no bm25s")

CONTEXTS = {
    "program": ("Ada Lovelace wrote the first program in London.", "Ada Lovelace"),
    "flowers": ("The Jacquard loom weaves flowers and leaves.", ""),
    "patterns": ("The engine weaves patterns.", "engine"),
}


@pytest.fixture
def data(tmp_path):
    def answers(context, text):
        return {"text": [text] * bool(text), "answer_start": [context.index(text)] * bool(text)}

    rows = [
        {"id": name, "title": "t", "question": f"Which {name}?", "context": context, "answers": answers(context, text)}
        for name, (context, text) in CONTEXTS.items()
    ]
    for name, part in (("data.jsonl", rows[:2]), ("more.jsonl", rows[2:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    return tmp_path / "data.jsonl"


def test_keyword_search_needs_no_framework(run, data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("duonlp.cli.evaluate_retrieval.load_package", None)
    base = [
        "evaluate",
        "retrieval",
        "--data",
        data,
        "--more-documents",
        tmp_path / "more.jsonl",
        "--filter-by",
        "title",
    ]
    status, out, err = run(*base, "--json", "--k", "2,1")
    assert status == 0, err
    report = json.loads(out)["retrieval"]
    assert (report["documents"], report["questions"], report["k"]) == (3, {"answerable": 1, "all": 2}, [1, 2])
    assert report["scores"]["bm25"]["all"]["recall@1"]["value"] == 1
    status, out, err = run(*base, "--plot", tmp_path / "scores.png")
    assert status == 0 and "1 answerable questions, 3 documents" in out and "2 questions, 3 documents" in out
    assert (tmp_path / "scores.png").stat().st_size > 1000


@ANY
@pytest.mark.filterwarnings("ignore")
def test_dense_hybrid_ranker_and_reader(run, data, models, tmp_path):  # noqa: F811
    plain = models / "plain"
    status, out, err = run(
        "evaluate", "retrieval", "--data", data, "--more-documents", tmp_path / "more.jsonl", "--retriever",
        f"bm25+{plain}", "--retriever", plain, "--ranker", models / "ranker", "-m", models / "reader",
        "-f", "jax", "--json", "--k", "1", "--resamples", "0", "--limit", "2", "--threshold", "-1000000",
    )  # fmt: skip
    assert status == 0, err
    report = json.loads(out)
    systems = ["bm25+plain", "plain"]
    assert list(report["retrieval"]["scores"]) == [*systems, *(f"{name}, ranked" for name in systems)]
    answers = report["answers"]
    assert answers["withheld"] == 1 and sum(answers["split"].values()) == 1 and answers["found"] == 1
    assert answers["pipeline"]["all"]["NoAns_exact"] == 100 and answers["reader"]["answerable"]["total"] == 1


def test_labels_are_short_and_unique():
    assert labels(["bm25", "runs/a", "bm25+runs/a/"]) == ["bm25", "a", "bm25+a"]
    assert labels(["x/a", "y/a"]) == ["x/a", "y/a"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--data"),
        (["--data", "DATA", "--k", "0"], "--k is '0'"),
        (["--data", "DATA", "--top-k", "0"], "--top-k is 0"),
        (["--data", "DATA", "--limit", "-1"], "--limit is -1"),
        (["--data", "DATA", "--filter-by", "titel"], "did you mean 'title'"),
        (["--data", "DATA", "--right", "0"], "--right is 0"),
        (["--data", "DATA", "--retriever", "bm25", "--retriever", "bm25"], "more than once"),
        (["--data", "DATA", "-o", "max_answer_len=3"], "no --model"),
        (["--data", "DATA", "--plot", "scores.doc"], "scores.doc"),
        (["--data", "DATA", "--confidence", "2"], "confidence is 2"),
        (["--data", "/nowhere.json"], "/nowhere.json"),
    ],
)
def test_mistakes_are_one_line(run, data, arguments, words):  # noqa: F811
    status, out, err = run("evaluate", "retrieval", *[data if a == "DATA" else a for a in arguments])
    assert (status, out) == (2, "") and err.startswith("duonlp: ") and words in err and err.count("\n") == 1, err
