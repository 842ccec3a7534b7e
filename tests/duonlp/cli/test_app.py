"""The command line: results on standard output, usage errors as one line and status 2, differences as status 1."""

import importlib.util
import io
import json
import os

import numpy as np
import pytest

from duonlp import parity
from duonlp.architectures import config_from_hf
from duonlp.checkpoints.save import save_checkpoint
from duonlp.cli.app import main
from duonlp.errors import InputError, MissingExtraError
from duonlp.parameters import initial_value, parameters
from duonlp.tokenizers.train import train_tokenizer
from duonlp.util import frameworks
from tests.reference import record_pipelines as reference

TEXTS = ["import os\n", "def main(arguments):\n    return 0\n"] * 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Write a tiny GPT-2 with random weights and a tokenizer, without any framework."""
    folder = tmp_path_factory.mktemp("cli") / "tiny"
    tokenizer = train_tokenizer(TEXTS, vocab_size=280, min_frequency=0, max_length=32)
    sizes = {"vocab_size": len(tokenizer), "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    special = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = config_from_hf({"model_type": "gpt2", **sizes, **special})
    spec = parameters(config, "causal-lm")
    save_checkpoint(
        folder, config, "causal-lm", lambda path: 20 * initial_value(path, spec[path]), np.dtype("float32"), tokenizer
    )
    return folder


@pytest.fixture
def run(capsys, monkeypatch):
    """Return run(*arguments, stdin=None) -> (status, standard output, standard error)."""

    def call(*arguments, stdin=None):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin or ""))
        if stdin is None:
            monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


def needs(*modules):
    missing = [module for module in modules if not importlib.util.find_spec(module)]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


def test_help_and_version(run):
    status, out, _ = run("--help")
    assert status == 0 and all(
        command in out for command in ("run", "generate", "summarize", "parity", "demo", "models")
    )
    for command in ("run", "generate", "summarize", "parity", "demo", "models"):
        status, out, _ = run(command, "--help")
        assert status == 0 and "--json" in out
    assert run("--version")[:2] == (0, "duonlp 0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "text-clasification", "x"], ["'text-clasification'", "did you mean 'text-classification'"]),
        (["run", "ner", "x"], ["--model"]),
        (["run", "ner", "x", "-m", "MODEL", "-f", "jaxx"], ["'jaxx'", "tf", "did you mean 'jax'"]),
        (["run", "ner", "-m", "MODEL"], ["no input", "--input"]),
        (["run", "ner", "x", "-m", "MODEL", "-i", "f.txt"], ["both"]),
        (["run", "ner", "-m", "MODEL", "-i", "/nowhere/f.txt"], ["'/nowhere/f.txt'", "No such file"]),
        (["run", "ner", "x", "-m", "MODEL", "-o", "top_k"], ["'top_k'", "KEY=VALUE"]),
        (["parity", "MODEL", "--head", "causal"], ["'causal'", "did you mean 'causal-lm'"]),
        (["parity", "MODEL", "--frameworks", "jax,pytorch"], ["'pytorch'", "did you mean 'torch'"]),
        (["models", "/nowhere/at-all"], ["/nowhere/at-all"]),
        (["demo", "--steps", "-3"], ["--steps", "-3"]),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(run, checkpoint, arguments, parts):
    status, out, err = run(*[checkpoint if a == "MODEL" else a for a in arguments])
    assert status == 2 and out == ""
    assert err.startswith("duonlp: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err


def test_debug_shows_the_traceback():
    with pytest.raises(InputError):
        main(["run", "nonsense", "--debug"])


def test_errors_of_the_parser_have_status_2(run):
    assert run("runn")[0] == 2
    assert run("run")[0] == 2
    assert run("models", "--nonsense")[0] == 2


def test_models_lists_every_family(run):
    status, out, _ = run("models", "--json")
    families = json.loads(out)
    assert status == 0 and families["gpt2"]["causal-lm"] == {"class": "GPT2LMHeadModel", "parameters": 124439808}
    assert families["bert"]["base"]["parameters"] == 109482240
    status, out, _ = run("models")
    assert status == 0 and "gpt2" in out and "124.4M" in out


def test_models_describes_a_checkpoint(run, checkpoint):
    status, out, _ = run("models", checkpoint, "--json")
    description = json.loads(out)
    assert status == 0 and (description["model_type"], description["head"], description["layers"]) == (
        "gpt2",
        "causal-lm",
        2,
    )
    assert description["heads"]["causal-lm"]["parameters"] == description["heads"]["base"]["parameters"]
    status, out, _ = run("models", checkpoint)
    assert status == 0 and "causal-lm (saved)" in out


def test_a_missing_framework_names_its_extra(run, checkpoint, monkeypatch):
    monkeypatch.setattr(frameworks, "installed", lambda name: False)
    status, _, err = run("run", "text-generation", "x", "-m", checkpoint, "-f", "tf")
    assert status == 2 and 'pip install "duonlp[tf]"' in err


@pytest.mark.parametrize(
    "framework", [pytest.param("tf", marks=needs("tensorflow")), pytest.param("jax", marks=needs("flax"))]
)
def test_run_reads_arguments_files_and_standard_input(run, checkpoint, tmp_path, framework):
    base = ["run", "text-generation", "-m", checkpoint, "-f", framework, "-o", "max_new_tokens=3", "--json"]
    status, out, err = run(*base, "import", "def")
    assert status == 0, err
    report = json.loads(out)
    assert report["framework"] == framework and len(report["results"]) == 2
    texts = [result[0]["generated_text"] for result in report["results"]]
    assert texts[0].startswith("import")
    for name, content in (
        ("t.txt", "import\n\ndef\n"),
        ("t.json", '["import", "def"]'),
        ("t.jsonl", '"import"\n"def"\n'),
    ):
        (tmp_path / name).write_text(content)
        assert json.loads(run(*base, "-i", tmp_path / name)[1])["results"] == report["results"]
    assert json.loads(run(*base, stdin="import\ndef\n")[1])["results"] == report["results"]
    status, _, err = run(*base, "-o", "max_new_token=2", "import")
    assert status == 2 and "max_new_tokens" in err


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Return bert(head), which writes a tiny BERT with random weights and the recorded tokenizer."""
    folder = tmp_path_factory.mktemp("bert")

    def write(head):
        if not (folder / head).exists():
            tokenizer = reference.load_tokenizer("wordpiece")
            sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
            config = config_from_hf({"model_type": "bert", **sizes, "intermediate_size": 16})
            spec = parameters(config, head)
            save_checkpoint(
                folder / head, config, head, lambda p: 20 * initial_value(p, spec[p]), np.dtype("float32"), tokenizer
            )
        return folder / head

    return write


QUESTIONS = [{"question": "Who wrote?", "context": "Ada wrote."}, {"question": "Where?", "context": "In London."}]
EVERY_RESULT = {
    "question-answering": ("question-answering", [json.dumps(item) for item in QUESTIONS], dict),
    "fill-mask": ("masked-lm", ["Ada [MASK] the program.", "The [MASK] weaves."], list),
    "sentence-embedding": ("base", ["Ada wrote.", "The loom weaves."], list),
}


@needs("flax")
@pytest.mark.parametrize("task", EVERY_RESULT)
@pytest.mark.filterwarnings("ignore:.*modules.json")
def test_run_gives_one_result_for_each_input(run, bert, task):
    head, inputs, kind = EVERY_RESULT[task]
    base = ["run", task, "-m", bert(head), "-f", "jax", "--json"]
    one, two = (json.loads(run(*base, *inputs[:count])[1])["results"] for count in (1, 2))
    assert (len(one), len(two)) == (1, 2)
    assert all(type(result) is kind for result in one + two)
    if task == "sentence-embedding":
        np.testing.assert_allclose(one[0], two[0], atol=1e-5)
    elif task == "fill-mask":
        assert [p["token"] for p in one[0]] == [p["token"] for p in two[0]] and len(one[0]) == 5
    else:
        assert one[0]["answer"] == two[0]["answer"] and one[0]["answer"] in QUESTIONS[0]["context"]
    assert run(*base[:-1], inputs[0])[0] == 0  # and the table


@needs("flax")
def test_run_prints_a_row_for_each_candidate_label(run, tmp_path):
    tokenizer = reference.load_tokenizer("wordpiece")
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    labels = {"id2label": {str(i): name for i, name in enumerate(reference.NLI_LABELS[0])}}
    config = config_from_hf({"model_type": "bert", **sizes, **labels, "intermediate_size": 16})
    spec = parameters(config, "sequence-classification")
    save_checkpoint(
        tmp_path, config, "sequence-classification", lambda p: initial_value(p, spec[p]), np.dtype("float32"), tokenizer
    )
    base = ["run", "zero-shot-classification", "-m", tmp_path, "-f", "jax", "Ada wrote."]
    status, out, _ = run(*base, "--option", "candidate_labels=code, cities")
    assert (
        status == 0 and [line.split()[-1] for line in out.splitlines()[:1]] == ["score"] and len(out.splitlines()) == 3
    )
    (result,) = json.loads(run(*base, "--option", "candidate_labels=code, cities", "--json")[1])["results"]
    assert sorted(result["labels"]) == ["cities", "code"] and result["sequence"] == "Ada wrote."
    assert json.loads(run(*base, "--labels", "code, cities", "--json")[1])["results"] == [result]
    (listed,) = json.loads(run(*base, "--labels", '["code, Python", "1815"]', "--json")[1])["results"]
    assert sorted(listed["labels"]) == ["1815", "code, Python"]
    for extra, words in (
        ([], 'got no candidate_labels; pass them with --labels, such as --labels "politics, sports"'),
        (["--labels", "a", "-o", "candidate_labels=b"], "given twice, by --labels and by --option"),
        (["--labels", "[]"], "has no labels"),
    ):
        status, _, error = run(*base, *extra)
        assert status == 2 and words in error
    status, _, error = run("run", "fill-mask", "-m", tmp_path, "--labels", "a", "A [MASK].")
    assert status == 2 and "--labels has no effect on fill-mask" in error


def fake_runner(noise, ids, together=None, lacks=(), extra=()):
    def forward(batch):
        logits = np.linspace(-4, 4, batch["input_ids"].size * 5, dtype=np.float32).reshape(*batch["input_ids"].shape, 5)
        at_padding = 100 * noise * (batch["attention_mask"] == 0)[..., None]
        outputs = {"logits": logits + np.float32(noise) + at_padding.astype(np.float32), "pooler_output": logits[:, 0]}
        return {name: value for name, value in outputs.items() if name not in lacks} | dict.fromkeys(extra, logits)

    def generate(prompts, mask, count):
        assert (mask[:, -1] == 1).all() and mask.shape == prompts.shape
        new = [ids] if len(prompts) == 1 else [ids, together or ids]
        return np.concatenate([prompts, np.array(new)[:, :count]], axis=1)

    return forward, generate


@pytest.mark.parametrize(
    ("noise", "ids", "ok", "same"),
    [(1e-6, [1, 2], True, True), (1e-3, [1, 2], False, True), (0, [1, 3], False, False), (np.nan, [1, 2], False, True)],
)
def test_parity_measures_real_tokens_against_the_reference(checkpoint, monkeypatch, run, noise, ids, ok, same):
    runners = {"tf": fake_runner(0, [1, 2]), "jax": fake_runner(noise, ids)}
    monkeypatch.setattr(parity.comparison, "load", lambda name, *_: runners[name])
    monkeypatch.setattr(frameworks, "installed", lambda name: name != "torch")
    report = parity.compare(checkpoint, max_new_tokens=2)
    assert (report.ok, report.same_ids) == (ok, same)
    assert "torch" in report.skipped and "pip install" in report.skipped["torch"]
    row, pooled = report.rows
    assert (row.output, row.framework, row.reference) == ("logits", "jax", "tf") and pooled.ok
    np.testing.assert_allclose(row.difference, noise, rtol=0.2, atol=1e-7)
    if not ok:
        with pytest.raises(AssertionError, match="logits"):
            parity.assert_parity(checkpoint, max_new_tokens=2)
    status, out, _ = run("parity", checkpoint, "--json")
    assert status == (0 if ok else 1) and json.loads(out)["ok"] is ok
    status, out, _ = run("parity", checkpoint)
    assert status == (0 if ok else 1) and "logits" in out


@pytest.mark.parametrize("difference", [{"lacks": ["pooler_output"]}, {"extra": ["more"]}, {"together": [1, 3]}])
def test_parity_sees_missing_outputs_and_batches_that_differ(checkpoint, monkeypatch, run, difference):
    runners = {"tf": fake_runner(0, [1, 2]), "jax": fake_runner(0, [1, 2], **difference)}
    for first, second in (("tf", "jax"), ("jax", "tf")):
        monkeypatch.setattr(parity.comparison, "load", lambda name, *_: runners[name])
        report = parity.compare(checkpoint, frameworks=(first, second), max_new_tokens=2)
        failed = [row for row in report.rows if not row.ok]
        assert not report.ok
        if "together" in difference:
            assert not failed and report.same_ids is False and "[1, 3]" in str(report)
        else:
            (row,) = failed
            assert row.output in ("pooler_output", "more") and row.difference == np.inf and report.same_ids
    assert run("parity", checkpoint, "--frameworks", "tf,jax")[0] == 1


def test_parity_needs_two_frameworks(checkpoint, monkeypatch):
    monkeypatch.setattr(frameworks, "installed", lambda name: name == "jax")
    with pytest.raises(MissingExtraError, match="two frameworks"):
        parity.compare(checkpoint)


@needs("tensorflow", "flax")
def test_parity_of_the_real_frameworks(run, checkpoint):
    status, out, err = run("parity", checkpoint, "--frameworks", "tf,jax", "--json")
    report = json.loads(out)
    assert status == 0, err
    assert report["ok"] and report["same_ids"] and set(report["generated"]) == {"tf", "jax"}
    status, out, _ = run("parity", checkpoint, "--frameworks", "tf,jax", "--tolerance", "1e-12")
    assert status == 1 and "differs" in out


def test_notes_of_native_code_stay_off_the_screen_and_the_rest_does_not(capfd):
    with frameworks.without_native_notes():
        os.write(2, b"I0000 00:00:1.5 7 port.cc:153] custom operations are on\nE0000 00:00:1.5 an error\nplain\n")
        os.write(2, b"E0000 00:00:1.5 7 cuda_platform.cc:52] failed call to cuInit: INTERNAL: UNKNOWN ERROR (303)\n")
    assert capfd.readouterr().err == "E0000 00:00:1.5 an error\nplain\n"
    with pytest.raises(RuntimeError), frameworks.without_native_notes():
        os.write(2, b"before\n")
        raise RuntimeError
    assert capfd.readouterr().err == "before\n"
