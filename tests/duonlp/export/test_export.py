"""Export small models, and run the files in pipelines."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from duonlp.benchmark import PerformanceBenchmark
from duonlp.data import LabelledTexts
from duonlp.errors import CheckpointError, InputError, MissingExtraError
from duonlp.export import ExportSettings, find_exported
from duonlp.export.validation import relative_difference
from tests import intents
from tests.cases import cases
from tests.duonlp.cli.test_app import checkpoint as language_model  # noqa: F401  (a fixture)
from tests.duonlp.cli.test_app import needs, run  # noqa: F401  (a fixture)

pytestmark = needs("tensorflow", "onnxruntime", "tf2onnx", "ai_edge_litert")

LABELS = ["balance", "weather", "alarm"]
TEXTS = ["what is the weather", "set an alarm for me please", "weather"]
FILES = {"onnx": "model.onnx", "litert": "model.tflite", "savedmodel": ""}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return intents.checkpoint(tmp_path_factory.mktemp("classifier") / "model", labels=LABELS, intermediate_size=128)


@pytest.fixture(scope="module")
def exported(classifier, tmp_path_factory):
    """Export the classifier to every format of tfnlp."""
    import tfnlp

    model, folder = (
        tfnlp.AutoModelForSequenceClassification.from_pretrained(classifier),
        tmp_path_factory.mktemp("exported"),
    )
    reports = {name: tfnlp.export_model(model, folder / name, name) for name in FILES}
    assert all(report["differences"]["logits"] < report["tolerance"] for report in reports.values())
    return {name: folder / name / file for name, file in FILES.items()}


@pytest.mark.parametrize("to", FILES)
def test_files_run_in_pipelines(exported, classifier, to):
    import tfnlp

    expected = tfnlp.pipeline("text-classification", classifier)(TEXTS, top_k=None)
    for place in (exported[to], exported[to].parent if exported[to].suffix else exported[to]):
        pipe = tfnlp.pipeline("text-classification", place)
        for ours, theirs in zip(pipe(TEXTS, top_k=None), expected, strict=True):
            assert [row["label"] for row in ours] == [row["label"] for row in theirs]
            np.testing.assert_allclose([r["score"] for r in ours], [r["score"] for r in theirs], atol=1e-5)
    record = PerformanceBenchmark(
        pipe, LabelledTexts(TEXTS, np.array([0, 1, 2], np.int32), LABELS), to, folder=exported[to], queries=2, warm_up=1
    ).run()
    assert record.size is not None and record.size > 1000


def test_layer_norms_are_one_operation(exported):
    import onnx

    kinds = [node.op_type for node in onnx.load(exported["onnx"]).graph.node]
    assert kinds.count("LayerNormalization") >= 3 and not {"Reciprocal", "Sqrt"} & set(kinds)


def test_a_saved_model_runs_without_this_library(exported):
    code = (
        "import sys, tensorflow as tf\n"
        "served = tf.saved_model.load(sys.argv[1])\n"
        "ids = tf.ones((2, 5), tf.int32)\n"
        "out = served.signatures['serve'](input_ids=ids, attention_mask=ids, token_type_ids=0 * ids)\n"
        "assert out['logits'].shape == (2, 3) and not {'duonlp', 'tfnlp'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-P", "-c", code, str(exported["savedmodel"])]
    result = subprocess.run(
        command, env={"PATH": "", "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.skipif(importlib.util.find_spec("flax") is None, reason="flax is not installed")
def test_stablehlo_and_onnx_run_in_jaxnlp(exported, classifier, tmp_path):
    import jaxnlp

    model = jaxnlp.AutoModelForSequenceClassification.from_pretrained(classifier)
    report = jaxnlp.export_model(model, tmp_path / "out")
    assert report["differences"]["logits"] < 1e-5
    expected = jaxnlp.pipeline("text-classification", classifier)(TEXTS)
    for place in (tmp_path / "out" / "model.stablehlo", exported["onnx"]):
        ours = jaxnlp.pipeline("text-classification", place)(TEXTS)
        assert [row["label"] for row in ours] == [row["label"] for row in expected]
        np.testing.assert_allclose([r["score"] for r in ours], [r["score"] for r in expected], atol=1e-5)
    with pytest.raises(InputError, match=r"savedmodel export, which tfnlp runs"):
        jaxnlp.pipeline("text-classification", exported["savedmodel"])
    with pytest.raises(InputError, match="jaxnlp does not export to onnx"):
        jaxnlp.export_model(model, tmp_path / "onnx", "onnx")


@pytest.mark.parametrize("to", ["onnx", pytest.param("litert", marks=pytest.mark.exports)])
def test_exported_decoders_generate_the_same_ids(language_model, tmp_path, to):  # noqa: F811
    import tfnlp

    model = tfnlp.AutoModelForCausalLM.from_pretrained(language_model)
    tfnlp.export_model(model, tmp_path / "out", to)
    pipe = tfnlp.pipeline("text-generation", tmp_path / "out")
    prompts = ["import", "def main(arguments):"]
    original = tfnlp.pipeline("text-generation", model, tokenizer=pipe.tokenizer)
    searches = [{"num_beams": 3}, {"do_sample": True, "seed": 3, "num_return_sequences": 2}]
    for options in (*searches, *([] if to == "onnx" else [{}, {"prompt_lookup_num_tokens": 2}])):  # each compiles
        options |= {"max_new_tokens": 6}
        assert pipe(prompts, **options) == original(prompts, **options)
    assert "".join(pipe.stream("import", max_new_tokens=4)) == pipe("import", max_new_tokens=4)[0]["generated_text"][6:]
    with pytest.raises(InputError, match="contrastive search compares hidden states"):
        pipe("import", penalty_alpha=0.6, top_k=4)


@pytest.mark.parametrize("name", ["t5-seq2seq-lm", pytest.param("marian-seq2seq-lm", marks=pytest.mark.exports)])
def test_exported_encoder_decoders_generate_the_same_ids(name, tmp_path):
    import tfnlp
    from tfnlp.export import RUNTIMES

    case = next(case for case in cases() if case.name == name)
    model = tfnlp.AutoModelForSeq2SeqLM.from_pretrained(case.write(tmp_path / "model"))
    tfnlp.export_model(model, tmp_path / "out", "onnx")
    exported = runtimes_of(tmp_path / "out", RUNTIMES)
    inputs = {name: value for name, value in case.inputs().items() if name != "labels"}
    options = {"max_new_tokens": 5, "num_beams": 2, "num_return_sequences": 2}
    assert np.array_equal(exported.generate(**inputs, **options), model.generate(**inputs, **options))


def runtimes_of(folder, engine):
    """Open an exported model."""
    from duonlp.export import ExportedModel

    return ExportedModel.open(find_exported(folder), engine)


@needs("tensorflow", "onnxruntime")
def test_decoders_with_a_single_key_value_head_are_exported(tmp_path):
    import tfnlp

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 40}
    config = {"model_type": "llama", **sizes, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = tfnlp.AutoModelForCausalLM.from_config(config)
    assert tfnlp.export_model(model, tmp_path / "llama")["differences"]["logits"] < 1e-5


@pytest.mark.parametrize("kind", ["static", pytest.param("dynamic", marks=pytest.mark.exports)])
def test_int8_is_close(classifier, tmp_path, kind):
    import tfnlp

    model = tfnlp.AutoModelForSequenceClassification.from_pretrained(classifier)
    ids = np.random.default_rng(0).integers(0, model.config.embedding.vocab_size, (16, 9), np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids % 2}
    report = tfnlp.export_model(model, tmp_path / kind, "onnx", int8=kind, batches=[batch])
    assert 1e-5 < report["differences"]["logits"] < 0.2 and report["tolerance"] is None


def test_static_int8_needs_data(classifier, tmp_path):
    import tfnlp

    model = tfnlp.AutoModelForSequenceClassification.from_pretrained(classifier)
    with pytest.raises(InputError, match="calibration data"):
        tfnlp.export_model(model, tmp_path / "static", "onnx", int8="static")
    assert not (tmp_path / "static").exists()


def test_static_shapes(classifier, tmp_path):
    import tfnlp

    model = tfnlp.AutoModelForSequenceClassification.from_pretrained(classifier)
    report = tfnlp.export_model(model, tmp_path / "out", "litert", int8="dynamic", batch_size=1, length=8)
    assert 1e-5 < report["differences"]["logits"] < 0.2
    exported = runtimes_of(tmp_path / "out", {})
    ids = np.random.default_rng(0).integers(0, 10, (3, 5), np.int32)  # three calls of the graph, each padded
    assert relative_difference(exported(input_ids=ids)["logits"], model(ids)["logits"].numpy()) < 0.2
    with pytest.raises(InputError, match=r"shape \[1, 9\], but the graph was exported for \[1, 8\]"):
        exported(input_ids=np.ones((1, 9), np.int32))
    for settings, message in (
        ({"length": 17}, "has 16 positions"),
        ({"target_length": 3}, "no input of this graph has"),
    ):
        with pytest.raises(InputError, match=message):
            tfnlp.export_model(model, tmp_path / "none", "onnx", **settings)


def test_a_difference_is_an_error_and_leaves_nothing(classifier, tmp_path, monkeypatch):
    import tfnlp

    model = tfnlp.AutoModelForSequenceClassification.from_pretrained(classifier)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.onnx").write_bytes(b"old")
    with pytest.raises(InputError, match=r"differs from the model's by .* more than 1e-12"):
        tfnlp.export_model(model, tmp_path / "out", tolerance=1e-12, overwrite=True)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.onnx"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"old"
    with pytest.raises(InputError, match="not empty"):
        tfnlp.export_model(model, tmp_path / "out")
    with pytest.raises(InputError, match="is quantized"):
        tfnlp.export_model(tfnlp.quantize(model, "int8"), tmp_path / "none")
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(MissingExtraError, match=r'tf2onnx, which is not installed; pip install "duonlp\[export\]"'):
        tfnlp.export_model(model, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_operations_without_a_form_are_named(tmp_path):
    import tensorflow as tf

    from tfnlp.export.onnx_files import write_onnx

    class Layer(tf.Module):
        def __call__(self, x):
            with tf.name_scope("encoder/layer_0"):
                return {"y": tf.linalg.cholesky(x)}

    function = tf.function(Layer().__call__, [tf.TensorSpec((2, 2), name="x")], autograph=False)
    with pytest.raises(InputError, match=r"no operation 'Cholesky' of layer 'encoder/layer_0'"):
        write_onnx(function, tmp_path / "model.onnx", None)


def test_settings_are_checked():
    for settings, message in (
        ({"to": "onxx"}, "to is 'onxx'"),
        ({"opset": 7}, "opset is 7; it must be from 13 to 18"),
        ({"to": "litert", "opset": 17}, "no effect on litert"),
        ({"to": "savedmodel", "int8": "dynamic"}, "not supported for savedmodel"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
    ):
        with pytest.raises(InputError, match=message):
            ExportSettings(**settings)


@pytest.mark.parametrize("to", ["onnx", "litert", "savedmodel"])
def test_damaged_files_are_errors(exported, tmp_path, to):
    import shutil

    import tfnlp

    source = exported[to].parent if exported[to].suffix else exported[to]
    shutil.copytree(source, tmp_path / "copy")
    file = tmp_path / "copy" / (exported[to].name if exported[to].suffix else "saved_model.pb")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="cannot load"):
        tfnlp.pipeline("text-classification", tmp_path / "copy")


def test_a_pipeline_needs_the_exported_head_and_its_files(exported, tmp_path):
    import tfnlp

    with pytest.raises(InputError, match="was exported with 'sequence-classification'"):
        tfnlp.pipeline("token-classification", exported["onnx"])
    with pytest.raises(InputError, match="dtype and param_dtype are for checkpoints"):
        tfnlp.pipeline("text-classification", exported["onnx"], dtype="bfloat16")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        tfnlp.pipeline("text-classification", tmp_path / "model.onnx")


def test_the_command(run, classifier, tmp_path):  # noqa: F811
    status, out, err = run("export", classifier, "--to", "onnx", "--opset", 15, "--output", tmp_path / "out", "--json")
    assert status == 0, err
    report = json.loads(out)
    assert report["differences"]["logits"] < 1e-5 and report["files"]["model.onnx"] > 1000
    status, out, err = run("run", "text-classification", "-m", tmp_path / "out", "-f", "tf", "weather", "--json")
    assert status == 0 and json.loads(out), err
    for arguments, part in (
        (["--to", "tflite"], "'tflite'"),
        (["--output", tmp_path / "out"], "--overwrite"),
        (["--head", "causal-lm", "--output", tmp_path / "new"], "attends in both directions"),
        (["--int8", "static", "--output", tmp_path / "new"], "--data"),
        ([], "--output"),
    ):
        status, _, err = run("export", classifier, *arguments)
        assert status == 2 and part in err, err
    status, _, err = run("export", tmp_path / "out", "--output", tmp_path / "again")
    assert status == 2 and "is an exported model already" in err
