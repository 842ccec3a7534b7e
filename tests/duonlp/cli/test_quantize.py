"""`duonlp quantize`, and quantized checkpoints in the other commands."""

import json

import numpy as np
import pytest

from duonlp import parity
from duonlp.architectures import config_from_hf
from duonlp.benchmark import PerformanceBenchmark
from duonlp.checkpoints import open_checkpoint
from duonlp.checkpoints.save import save_checkpoint
from duonlp.data import LabelledTexts
from duonlp.parameters import initial_value, parameters
from duonlp.quantization import scheme_of
from tests.duonlp.cli.test_app import TEXTS, checkpoint, needs, run  # noqa: F401  (fixtures)

JAX = needs("flax")


@pytest.fixture(scope="module")
def quantized(checkpoint, tmp_path_factory):  # noqa: F811
    """Write the checkpoint in int8, by the library."""
    import jaxnlp
    from duonlp.runs.quantization import quantize_checkpoint

    output = tmp_path_factory.mktemp("quantized") / "int8"
    quantize_checkpoint(jaxnlp, str(checkpoint), output)
    return output


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--scheme", "int9"], ["'int9'", "int8-static"]),
        (["--scheme", "int8-static"], ["needs calibration data", "--data"]),
        (["--scheme", "int4", "--rounding", "gptq"], ["gptq", "--data"]),
        (["--rounding", "awq"], ["AWQ", "int4"]),
        (["--layers", "*/feedforward/*"], ["'*/feedforward/*'", "matches no layer"]),
        (["--skip", "*/attention/query"], ["attention/query", "are one tensor of a checkpoint", "alike"]),
        (["--dequantize", "--scheme", "int8"], ["--dequantize"]),
        (["--plot", "weights.gif"], [".gif"]),
        (["--limit", "0"], ["limit is 0"]),
        (["--scheme", "int8-static", "--data", "missing.csv"], ["missing.csv"]),
    ],
)
@JAX
def test_usage_errors_come_before_the_model(arguments, parts, run, checkpoint, tmp_path):  # noqa: F811
    status, out, err = run("quantize", checkpoint, tmp_path / "out", "-f", "jax", *arguments)
    assert status == 2 and not out and all(part in err for part in parts), err
    assert not (tmp_path / "out").exists()


@JAX
def test_the_output_is_not_replaced_without_overwrite(run, checkpoint, quantized, tmp_path):  # noqa: F811
    (tmp_path / "file").write_text("x")
    status, _, err = run("quantize", checkpoint, tmp_path, "-f", "jax")
    assert status == 2 and "--overwrite" in err
    status, _, err = run("quantize", checkpoint, checkpoint, "-f", "jax", "--overwrite")
    assert status == 2 and "is the checkpoint itself" in err
    status, _, err = run("quantize", quantized, tmp_path / "again", "-f", "jax")
    assert status == 2 and "already quantized (int8)" in err and "--dequantize" in err


@JAX
def test_a_static_model_is_calibrated_saved_and_reported(run, checkpoint, tmp_path):  # noqa: F811
    data, output = tmp_path / "texts.txt", tmp_path / "out"
    data.write_text("".join(TEXTS), encoding="utf-8")
    arguments = [
        "--scheme", "int8-static", "--calibration", "percentile", "--percentile", 99, "--data", data, "--limit", 6,
        "--batch-size", 3, "--skip", "*/feed_forward/up", "--no-output", "--no-embeddings", "--plot", tmp_path / "w.png",
    ]  # fmt: skip
    status, out, err = run("quantize", checkpoint, output, "-f", "jax", "--json", *arguments)
    assert status == 0, err
    report = json.loads(out)
    assert report["texts"] == 6 and report["settings"]["percentile"] == 99
    assert report["size"]["after"] < report["size"]["before"]
    rows = {row["path"]: row for row in report["tensors"]}
    assert rows["decoder/layer_0/feed_forward/up/kernel"]["bits"] == 32
    key = rows["decoder/layer_0/attention/key/kernel"]
    assert key["bits"] == 8 and key["after"] == 16 * 16 + 16 * 4 + 4 and 0 < key["error"] < 0.02
    assert rows["embeddings/word_embeddings/embedding"]["error"] is None
    assert {row["output"] for row in report["outputs"]} >= {"logits"}
    cfg = open_checkpoint(output).transformer_config()
    assert scheme_of(cfg.quantization) == "int8-static"
    assert (output / "tokenizer.json").exists() and (tmp_path / "w.png").read_bytes().startswith(b"\x89PNG")


@JAX
def test_the_table_and_the_other_commands(run, checkpoint, quantized, tmp_path):  # noqa: F811
    status, out, err = run("quantize", checkpoint, tmp_path / "w", "-f", "jax", "--scheme", "int4", "--group-size", 8)
    assert status == 0 and "4 / 8" in out and "logits: largest difference from float32" in out, err
    assert "quantized: int8\n" in run("models", quantized)[1]
    status, out, err = run("generate", TEXTS[0].strip(), "-m", quantized, "-f", "jax", "--max-new-tokens", 3)
    assert status == 0 and out.startswith(TEXTS[0].strip()), err
    status, out, err = run("quantize", quantized, tmp_path / "float", "--dequantize")
    assert status == 0 and "float32" in out, err
    assert open_checkpoint(tmp_path / "float").transformer_config().quantization is None


@needs("flax", "tensorflow")
def test_parity_compares_the_engines_and_says_what_the_reference_is(quantized, checkpoint, tmp_path):  # noqa: F811
    report = parity.compare(quantized, max_new_tokens=2)
    assert report.ok and report.tolerance == parity.TOLERANCE_OF_QUANTIZED and report.reference == "tfnlp"
    assert "rounds activations" in report.skipped["torch"]  # whether or not it is installed
    assert {row.framework for row in report.rows} == {"jax"}


@needs("flax", "torch")
@pytest.mark.parity
def test_weights_only_are_compared_with_transformers(run, checkpoint, tmp_path):  # noqa: F811
    assert run("quantize", checkpoint, tmp_path / "w", "-f", "jax", "--scheme", "int4")[0] == 0
    report = parity.compare(tmp_path / "w", frameworks=("jax", "torch"), max_new_tokens=2)
    assert report.ok and report.tolerance == parity.TOLERANCE and "integers stand for" in report.reference


@JAX
def test_a_benchmark_records_the_scheme_and_the_size(tmp_path, run):  # noqa: F811
    import jaxnlp
    from duonlp.runs.quantization import quantize_checkpoint
    from duonlp.tokenizers.train import train_tokenizer

    tokenizer = train_tokenizer(TEXTS, vocab_size=280, min_frequency=0, max_length=32)
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "id2label": {0: "a", 1: "b"}}
    config = config_from_hf(
        {"model_type": "gpt2", "vocab_size": len(tokenizer), "pad_token_id": tokenizer.eos_token_id, **sizes}
    )
    spec, head = parameters(config, "sequence-classification"), "sequence-classification"
    plain = tmp_path / "plain"
    save_checkpoint(plain, config, head, lambda path: initial_value(path, spec[path]), np.dtype("float32"), tokenizer)
    report = quantize_checkpoint(jaxnlp, str(plain), tmp_path / "int8")
    texts = LabelledTexts(TEXTS[:2], np.array([0, 1], np.int32), ("a", "b"))
    records = [
        PerformanceBenchmark(
            jaxnlp.pipeline("text-classification", folder), texts, folder.name, folder=folder, warm_up=0
        ).run(progress=False)
        for folder in (plain, tmp_path / "int8")
    ]
    assert [record.quantization for record in records] == [None, "int8"]
    assert records[0].parameters == records[1].parameters
    assert records[1].size == report["size"]["after"] < records[0].size
