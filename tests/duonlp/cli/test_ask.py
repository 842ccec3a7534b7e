"""`duonlp ask` over small real checkpoints: places of answers, the index, filters, and the mistakes of newcomers."""

import importlib.util
import io
import json
import shutil

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.checkpoints.save import save_checkpoint
from duonlp.cli import ask as module
from duonlp.cli.app import main
from duonlp.cli.retrieval_parts import load_encoder, parse_filters
from duonlp.errors import InputError
from duonlp.parameters import initial_value, parameters
from tests import rag
from tests.duonlp.cli.test_app import run  # noqa: F401  (a fixture)
from tests.reference import record_pipelines as reference

ANY = pytest.mark.skipif(
    not (importlib.util.find_spec("flax") and importlib.util.find_spec("bm25s")), reason="no flax or bm25s"
)
BERT = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 256}


def write_model(folder, head, hf, tokenizer, **options):
    tokenizer = reference.load_tokenizer(tokenizer)
    config = config_from_hf(hf | {"vocab_size": len(tokenizer)} | options)
    spec = parameters(config, head)
    save_checkpoint(folder, config, head, lambda p: 20 * initial_value(p, spec[p]), np.dtype("float32"), tokenizer)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Write tiny models with random weights: a reader, an encoder without a head, a ranker and a generator."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "reader", "question-answering", BERT, "wordpiece")
    write_model(folder / "plain", "base", BERT, "wordpiece")
    write_model(folder / "ranker", "sequence-classification", BERT, "wordpiece", num_labels=1)
    write_model(folder / "writer", "causal-lm", GPT2, "gpt2")
    return folder


@pytest.fixture
def docs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "ada.txt").write_text("A book about London.\n\nAda Lovelace wrote\nthe first program in London.\n")
    (folder / "loom.md").write_text("# Loom\n\nThe Jacquard loom weaves flowers and leaves.\n")
    (folder / "reviews.jsonl").write_text(
        '{"review": "The engine weaves patterns.", "stars": 5}\n{"review": "The engine is loud.", "stars": 1}\n'
    )
    return folder


@ANY
@pytest.mark.filterwarnings("ignore")
def test_answers_with_their_places(run, models, docs, tmp_path):  # noqa: F811
    base = ["ask", "--documents", docs, "-m", models / "reader", "-f", "jax"]
    status, out, err = run(*base, "Who wrote the first program?", "--json", "--words", 7, "--overlap", 0)
    assert status == 0, err
    report = json.loads(out)
    (result,) = report["results"]
    assert report["index"]["folder"].startswith(str(tmp_path / "cache")) and report["index"]["added"] == 3
    texts = {str(path): path.read_text() for path in docs.iterdir()}
    documents = {document["id"]: document for document in result["documents"]}
    assert 1 <= len(result["answers"]) <= 3 and result["documents"][0]["file"].endswith("ada.txt")
    for answer in result["answers"]:
        offset = documents[answer["document_id"]]["meta"]["offset"]
        if not answer["file"].endswith(".jsonl"):
            start = offset + answer["start"]
            text = texts[answer["file"]]
            assert text[start : start + len(answer["answer"])] == answer["answer"]
            assert answer["line"] == 1 + text[:start].count("\n")
    buffer = io.StringIO()
    module.print_result(result, buffer)
    out, first = buffer.getvalue(), result["answers"][0]
    assert out.count("\n") == 2 * len(result["answers"]) + out.startswith("The model prefers")
    assert f"{first['file']}:{first['line']}" in out and " ".join(first["answer"].split()) in out
    (docs / "new.txt").write_text("A new engine.")
    (docs / "loom.md").unlink()
    (docs / "bad.txt").write_bytes(b"caf\xe9")
    more = ["--filter", "stars=5", "--filter", "stars=1", "--words", 7, "--overlap", 0]
    status, out, err = run(*base, *more, stdin="engine?\n\nzebra\n")
    assert status == 0 and out.startswith("==> engine? <==\n") and "==> zebra <==\nNo passage matches" in out
    assert "reviews.jsonl:1" in out and "not read: bad.txt: byte 0xe9" in err and "new.txt" not in out
    assert sorted(names(tmp_path / "cache")) == ["ada.txt", "bad.txt", "new.txt", "reviews.jsonl"]


def names(cache):
    (index,) = cache.rglob("index.json")
    return json.loads(index.read_text())["files"]


@ANY
@pytest.mark.filterwarnings("ignore")
def test_dense_and_hybrid_retrieval_with_a_ranker(run, models, docs, tmp_path):  # noqa: F811
    base = [
        "ask",
        "engine?",
        "--documents",
        docs,
        "-m",
        models / "reader",
        "-f",
        "jax",
        "--json",
        "--index",
        tmp_path / "i",
    ]
    for retriever in (models / "plain", f"bm25+{models / 'plain'}"):
        status, out, err = run(*base, "--retriever", retriever, "--ranker", models / "ranker", "--passages", 2)
        assert status == 0, err
        report = json.loads(out)
        assert len(report["results"][0]["documents"]) == 2
    assert report["index"]["added"] == 0
    status, _, err = run(*base)
    assert status == 2 and "has vectors of" in err and "keyword search uses none" in err


@ANY
@pytest.mark.filterwarnings("ignore")
def test_a_generator_writes_the_answer(run, models, docs):  # noqa: F811
    base = ["ask", "--documents", docs, "--generator", models / "writer", "-f", "jax"]
    base += ["-o", "max_new_tokens=3", "-o", "template={passages}\\n{question}"]
    status, out, err = run(*base, "engine?", "--json")
    assert status == 0, err
    (result,) = json.loads(out)["results"]
    assert set(result) == {"query", "answer", "citations", "documents"} and len(result["documents"]) == 2
    status, out, err = run(*base, "zebra")
    assert status == 0 and out.startswith("No passage matches"), err


@ANY
@pytest.mark.filterwarnings("ignore")
def test_a_rag_model_writes_the_answer(run, docs, tmp_path):  # noqa: F811
    model = tmp_path / "rag"
    shutil.copytree(rag.folder("bert"), model)
    for name, tokenizer in rag.tokenizers().by_folder().items():
        tokenizer.save_pretrained(model / name)
    base = ["ask", "--documents", docs, "--generator", model, "-f", "jax", "-o", "max_length=4", "-o", "num_beams=1"]
    status, out, err = run(*base, "engine?", "--json")
    assert status == 0, err
    (result,) = json.loads(out)["results"]
    assert set(result["citations"]) == {1, 2} and len(result["documents"]) == 2


class Typed(io.StringIO):
    """What is typed on a terminal."""

    def isatty(self):
        return True


def test_questions_typed_one_after_the_other(docs, monkeypatch, capsys):
    class Asker:
        index, asked = {}, []

        def __init__(self, package, settings):
            pass

        def ask(self, text):
            self.asked.append(text)
            if text == "bad":
                raise InputError("that is no question")
            return {"query": text, "answers": [], "no_ans_gap": None, "documents": []}

    monkeypatch.setattr(module, "Asker", Asker)
    monkeypatch.setattr(module, "load_package", lambda framework: (None, "jax"))
    monkeypatch.setattr("sys.stdin", Typed("one\nbad\n two\n\nthree\n"))
    with pytest.raises(SystemExit) as end:
        main(["ask", "--documents", str(docs), "-m", "x"])
    out, err = capsys.readouterr()
    assert not end.value.code and Asker.asked == ["one", "bad", "two"]
    assert out.count("No passage matches") == 2 and "that is no question" in err and err.count("question> ") == 4


@ANY
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-d", "DOCS", "-m", "plain"], "has no question-answering head, so its answers would be random; fine-tune it"),
        (["-d", "DOCS", "-m", "reader", "--ranker", "plain"], "has no sequence-classification head"),
        (["-d", "DOCS", "--generator", "reader"], "which writes no text"),
        (["-d", "DOCS", "-m", "reader", "--retriever", "a,b,c"], "QUESTION,CONTEXT"),
        (["-d", "DOCS", "-m", "reader", "--retriever", "reader-that-is-missing"], "reader-that-is-missing"),
        (["-d", "DOCS", "-m", "reader", "-o", "max_answer_length=3"], "max_answer_length"),
        (["-d", "DOCS", "-m", "reader", "-o", "top_k=5"], "the option 'top_k' has no effect in a reader"),
        (["-d", "DOCS", "-m", "reader", "--index", "DOCS"], "has no index, but other files"),
        (["-d", "DOCS"], "neither --model nor --generator"),
        (["-d", "DOCS", "-m", "reader", "--generator", "writer"], "both --model and --generator"),
        (["-m", "reader"], "--documents"),
        (["-d", "EMPTY", "-m", "reader"], "has no documents: no file in it ends in .txt"),
        (["-d", "BAD", "-m", "reader"], "has no text that can be read: bad.txt: byte 0xe9 at 3"),
        (["-d", "/nowhere", "-m", "reader"], "'/nowhere' does not exist"),
        (["-d", "DOCS", "-m", "reader", "--top-k", "0"], "--top-k is 0"),
        (["-d", "DOCS", "-m", "reader", "--threshold", "nan"], "--threshold is nan"),
        (["-d", "DOCS", "-m", "reader", "--words", "0"], "words is 0"),
        (["-d", "DOCS", "-m", "reader", "--filter", "x"], "'x' is not KEY=VALUE"),
        (["-d", "DOCS", "-m", "reader", "--encoding", "klingon"], "klingon"),
    ],
)
def test_mistakes_are_one_line(run, models, docs, tmp_path, arguments, words):  # noqa: F811
    places = {"DOCS": docs, "EMPTY": tmp_path / "empty", "BAD": tmp_path / "bad"}
    places |= {name: models / name for name in ("reader", "plain", "ranker", "writer")}
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.txt").write_bytes(b"caf\xe9")
    status, out, err = run("ask", "Who?", "-f", "jax", *[places.get(a, a) for a in arguments])
    last = err.splitlines()[-1]
    assert (status, out) == (2, "") and last.startswith("duonlp: ") and words in last, err


def test_there_must_be_a_question(run, docs):  # noqa: F811
    for arguments, stdin in (([" "], None), ([], " \n")):
        status, _, err = run("ask", *arguments, "-d", docs, "-m", "x", stdin=stdin)
        assert status == 2 and "question" in err


def test_documents_do_not_control_the_terminal():
    answer = {"answer": "a\x1b[31m b", "score": 0.5, "file": "x\x1b.txt", "line": 1, "start": 2, "context_start": 0}
    answer["context"] = "0\x9b" + answer["answer"] + "\x07\nend"
    out = io.StringIO()
    module.print_result({"query": "q", "no_answer": False, "documents": [1], "answers": [answer]}, out)
    assert out.getvalue() == "1. a[31m b  0.50  x.txt:1\n   0a[31m b end\n"


@ANY
@pytest.mark.filterwarnings("ignore")
def test_an_encoder_of_mean_pooling_needs_no_pooler(models):
    import jaxnlp

    assert load_encoder(jaxnlp, str(models / "reader")).size == 16


def test_filters_of_the_command_line():
    assert parse_filters([]) is None
    assert parse_filters(["stars=5"]) == {"field": "meta.stars", "operator": "in", "value": ["5", 5]}
    assert parse_filters(["a=x", "meta.a=y=z", "b=true"]) == {
        "operator": "AND",
        "conditions": [
            {"field": "meta.a", "operator": "in", "value": ["x", "y=z"]},
            {"field": "meta.b", "operator": "in", "value": ["true", True]},
        ],
    }
    for text in ("stars", "=5"):
        with pytest.raises(InputError, match="is not KEY=VALUE"):
            parse_filters([text])
