"""`duonlp summarize` over a small real checkpoint: files of any length, and usage errors."""

import importlib.util
import json

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.checkpoints.save import save_checkpoint
from duonlp.cli import summarize as cli_summarize
from duonlp.errors import InputError
from duonlp.parameters import initial_value, parameters
from tests.duonlp.cli.test_app import run  # noqa: F401  (a fixture)
from tests.reference import record_pipelines as reference

ANY = pytest.mark.skipif(not importlib.util.find_spec("flax"), reason="no flax")
T5 = {
    "model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "pad_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
    "task_specific_params": {"summarization": {"max_length": 6, "num_beams": 1, "prefix": "sum up: "}},
}  # fmt: skip
SENTENCE = "Ada Lovelace wrote the first program."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Write a tiny T5 with random weights, without any framework."""
    folder = tmp_path_factory.mktemp("cli") / "t5"
    tokenizer = reference.load_tokenizer("unigram")
    config = config_from_hf(T5 | {"vocab_size": len(tokenizer)})
    spec = parameters(config, "seq2seq-lm")
    save_checkpoint(
        folder, config, "seq2seq-lm", lambda path: initial_value(path, spec[path]), np.dtype("float32"), tokenizer
    )
    return folder


@pytest.fixture
def files(tmp_path):
    """Write a short document and a long one."""
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text(SENTENCE + "\n")
    long.write_text(" ".join([SENTENCE] * 6))
    return short, long


@ANY
@pytest.mark.filterwarnings("ignore")
def test_summaries_of_files_and_of_standard_input(run, checkpoint, files):  # noqa: F811
    from jaxnlp import pipeline

    texts = [file.read_text() for file in files]
    pipe = pipeline("summarization", checkpoint, long_documents="chunk")
    short, long = (result["summary_text"] for result in pipe(texts))
    status, out, err = run("summarize", *files, "-m", checkpoint, "-f", "jax")
    assert status == 0 and out == f"==> {files[0]} <==\n{short}\n\n==> {files[1]} <==\n{long}\n", err
    status, out, _ = run("summarize", "-m", checkpoint, "-f", "jax", stdin=texts[0])
    assert status == 0 and out == short + "\n"
    status, out, _ = run("summarize", files[1], "-m", checkpoint, "-f", "jax", "--json", "--chunks", "--beams", 2)
    report = json.loads(out)
    assert status == 0 and (report["framework"], report["model"]) == ("jax", str(checkpoint))
    assert report["options"] == {"num_beams": 2, "return_chunks": True, "long_documents": "chunk"}
    (result,) = report["results"]
    assert result["file"] == str(files[1]) and len(result["chunks"][0]) > 1
    assert " ".join(chunk["text"] for chunk in result["chunks"][0]) == texts[1]
    status, _, err = run(
        "summarize", *files, "-m", checkpoint, "-f", "jax", "--long", "error", "-o", "max_source_length=40"
    )
    assert status == 2 and f"'{files[1]}' has " in err and "max_source_length is 40" in err


@ANY
@pytest.mark.filterwarnings("ignore")
def test_run_prints_the_texts_of_tasks_that_write(run, checkpoint):  # noqa: F811
    from jaxnlp import pipeline

    expected = pipeline("summarization", checkpoint)(SENTENCE)[0]["summary_text"]
    status, out, err = run("run", "summarization", SENTENCE, "-m", checkpoint, "-f", "jax")
    assert status == 0 and out.split() == expected.split(), err
    status, out, _ = run(
        "run", "translation_en_to_fr", SENTENCE, "-m", checkpoint, "-f", "jax", "--json", "-o", "max_length=5"
    )
    assert status == 0 and list(json.loads(out)["results"][0][0]) == ["translation_text"]


class Package:
    """An engine whose pipeline returns the beginning of each text, and that records its arguments."""

    def __init__(self):
        self.calls = []

    def pipeline(self, *arguments, **options):
        self.calls.append((arguments, options))
        chunks = {"chunks": [[{"text": "a b", "summary_text": "a"}]]} if options.get("return_chunks") else {}

        def summarize(texts):
            if "bad" in texts:
                raise InputError(f"summarization: input {texts.index('bad')} has 9 tokens")
            return [{"summary_text": text[:3]} | chunks for text in texts]

        return summarize


def test_options_of_the_pipeline_and_printed_summaries(capsys):
    package, documents = Package(), [cli_summarize.Document("a.txt", "first"), cli_summarize.Document("-", "bad")]
    report = cli_summarize.summarize_documents(package, "tf", "M", documents[:1], {"return_chunks": True})
    assert package.calls == [(("summarization", "M"), {"return_chunks": True, "long_documents": "chunk"})]
    cli_summarize.write_summaries(report, __import__("sys").stdout)
    assert capsys.readouterr().out == "[round 1, part 1 of 1] a\nfir\n"
    cli_summarize.summarize_documents(package, "tf", "M", documents[:1], {"truncation": True})
    assert package.calls[-1][1] == {"truncation": True}
    with pytest.raises(InputError, match="summarization: '-' has 9 tokens"):
        cli_summarize.summarize_documents(package, "tf", "M", documents, {})
    for options in ({"num_return_sequences": 2}, {"return_tensors": True}):
        with pytest.raises(InputError, match="prints one text per document"):
            cli_summarize.summarize_documents(package, "tf", "M", documents, options)


@pytest.mark.parametrize(
    ("arguments", "stdin", "parts"),
    [
        (["FILE"], None, ["--model"]),
        (["-m", "M"], None, ["no document", "standard input"]),
        (["-m", "M"], "  \n", ["standard input is empty"]),
        (["-m", "M", "EMPTY"], None, ["is empty"]),
        (["-m", "M", "/nowhere/a.txt"], None, ["'/nowhere/a.txt'", "No such file"]),
        (["-m", "M", "BINARY"], None, ["it is not UTF-8 text"]),
        (["-m", "M", "-", "-"], "a", ["- is given more than once"]),
        (["-m", "M", "FILE", "--long", "chunks"], None, ["--long 'chunks'", "did you mean 'chunk'"]),
        (["-m", "M", "FILE", "--beams", "2", "-o", "num_beams=3"], None, ["num_beams is given twice"]),
        (["-m", "M", "FILE", "-o", "beams"], None, ["KEY=VALUE"]),
    ],
)
def test_usage_errors_are_one_line(run, tmp_path, files, arguments, stdin, parts):  # noqa: F811
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00a")
    names = {"FILE": files[0], "EMPTY": tmp_path / "empty.txt", "BINARY": tmp_path / "binary.txt"}
    status, out, err = run("summarize", *(names.get(a, a) for a in arguments), stdin=stdin)
    assert status == 2 and not out and err.count("\n") == 1 and all(part in err for part in parts), err
