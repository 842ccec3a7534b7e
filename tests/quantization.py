"""Checks of quantized models, the same for both engines."""

import numpy as np
import pytest

from duonlp.config import LayerQuantization
from duonlp.errors import InputError
from duonlp.parameters import parameters
from duonlp.quantization import arithmetic
from duonlp.typing import Batch

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
BERT = {"model_type": "bert", **TINY, "max_position_embeddings": 32, "initializer_range": 0.3, "num_labels": 3}
BERT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {
    "model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 32, "eos_token_id": 39,
    "initializer_range": 0.3,
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 40,
    "decoder_start_token_id": 0,
}  # fmt: skip
HEADS = {
    "bert": ("AutoModelForSequenceClassification", BERT),
    "gpt2": ("AutoModelForCausalLM", GPT2),
    "t5": ("AutoModelForSeq2SeqLM", T5),
}
KINDS = (
    LayerQuantization(activations="dynamic"), LayerQuantization(activations="static"), LayerQuantization(),
    LayerQuantization(bits=4), LayerQuantization(bits=4, group_size=5, channel_scaled=True),
)  # fmt: skip
SCHEMES = (
    ("int8", {}), ("int8", {"embeddings": False, "output": False}), ("int8-static", {"calibration": "mse"}),
    ("int8-weights", {"rounding": "gptq"}), ("int4", {"group_size": 8, "rounding": "awq"}),
)  # fmt: skip
IDS = np.random.default_rng(0).integers(5, 38, (3, 9)).astype(np.int32)
MASK = (np.arange(9) < np.array([[9], [6], [8]])).astype(np.int32)


def inputs_of(name: str) -> dict[str, np.ndarray]:
    """Return inputs of a model of HEADS."""
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    return inputs | ({"decoder_input_ids": IDS[:, :5]} if name == "t5" else {})


def model_of(engine, name: str, seed: int = 1, **options):
    """Return a new model of HEADS."""
    auto, hf = HEADS[name]
    return getattr(engine, auto).from_config(hf, seed=seed, **options)


def logits(model, inputs) -> np.ndarray:
    """Return a model's logits at real tokens."""
    return np.asarray(model(**inputs)["logits"], np.float32)


def difference(first, second) -> float:
    """Return the largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(first, np.float32) - second).max() / np.abs(second).max())


def layer_parts(quantization: LayerQuantization, x: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the parameters of a quantized layer with 12 inputs and 6 outputs, and its outputs according to NumPy."""
    rng = np.random.default_rng(2)
    kernel, bias = rng.normal(size=(12, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    integers, scales = arithmetic.quantize_kernel(kernel, quantization)
    parts = {
        "kernel": arithmetic.pack_int4(integers) if quantization.bits == 4 else integers,
        "kernel_scale": scales,
        "bias": bias,
    }
    if quantization.activations == "static":
        parts["input_scale"] = np.float32(0.02)
    if quantization.channel_scaled:
        parts["channel_scale"] = np.linspace(0.5, 2, 12, dtype=np.float32)
    expected = arithmetic.linear(
        x, integers, scales, quantization, bias, parts.get("input_scale"), parts.get("channel_scale")
    )
    return parts, expected


def check_schemes(engine, name: str, tmp_path) -> None:
    """Check that quantized models are close, the same when compiled or loaded, and that floats come back."""
    model, inputs = model_of(engine, name), inputs_of(name)
    full = logits(model, inputs)
    for scheme, settings in SCHEMES:
        quantized = engine.quantize(model, scheme, [inputs], **settings)
        values = logits(quantized, inputs)
        assert 0 < difference(values, full) < (0.6 if scheme == "int4" else 0.2), (scheme, settings)
        quantized.save_pretrained(tmp_path / scheme)
        back = getattr(engine, HEADS[name][0]).from_pretrained(tmp_path / scheme)
        specs = [parameters(m.config, m.head) for m in (back, quantized)]
        assert specs[0] == specs[1]
        assert difference(logits(back, inputs), values) < 1e-6
        quantized.save_pretrained(tmp_path / "float", dequantize=True)
        floats = getattr(engine, HEADS[name][0]).from_pretrained(tmp_path / "float")
        assert floats.config.quantization is None
        assert difference(logits(floats, inputs), logits(engine.dequantize(quantized), inputs)) < 1e-6
    assert difference(logits(model, inputs), full) == 0


def check_refusals(engine) -> None:
    """Check that what cannot be quantized, or trained, is refused before anything runs."""
    model = model_of(engine, "bert")
    with pytest.raises(InputError, match="static activations need calibration data"):
        engine.quantize(model, "int8-static")
    wrong = {"input_ids": IDS + 30, "attention_mask": MASK}  # of another tokenizer
    with pytest.raises(InputError, match="token ids are 0 to 39; check that the tokenizer belongs to the model"):
        engine.quantize(model, "int8-static", [wrong])
    with pytest.raises(InputError, match="a model needs input_ids"):
        engine.quantize(model, "int8-static", [{"attention_mask": MASK}])
    broken = model_of(engine, "bert")
    kernel = broken.classifier.kernel
    (kernel.assign if hasattr(kernel, "assign") else kernel.set_value)(np.full(kernel.shape, np.nan, np.float32))
    with pytest.raises(InputError, match="classifier/kernel has 48 values that are NaN or infinite"):
        engine.quantize(broken)
    quantized = engine.quantize(model)
    for function in (engine.quantize, engine.prepare_qat):
        with pytest.raises(InputError, match="already quantized"):
            function(quantized)
    refusals = (
        ("int8-static", {}, "static activations need calibration data"),
        ("int5", {}, "int8"),
        ("int4", {"rounding": "gptq", "batches": [inputs_of("bert")]}, "to the nearest, not with 'gptq'"),
    )
    for scheme, settings, message in refusals:
        with pytest.raises(InputError, match=message):
            engine.prepare_qat(model, scheme, **settings)


def batches_of() -> list[Batch]:
    """Return a batch of the classifier with labels that it can learn."""
    return [inputs_of("bert") | {"labels": (IDS[:, 1] % 3).astype(np.int32)}]


def check_training(engine, config, folder, scheme: str = "int8", **settings) -> None:
    """Check that training with rounding ends in a model that predicts the same when it is quantized."""
    batches = batches_of()
    prepared = engine.prepare_qat(model_of(engine, "bert"), scheme, [inputs_of("bert")], **settings)
    before = logits(prepared, inputs_of("bert"))
    result = engine.training.fit(prepared, batches, config, folder, validation=batches)
    simulated = logits(result.model, inputs_of("bert"))
    assert result.loss < 0.5 and difference(simulated, before) > 0.1
    best = engine.AutoModelForSequenceClassification.from_pretrained(folder / "best")
    assert best.config.quantization == prepared.config.quantization
    quantized = engine.quantize(result.model)
    assert all(layer.input_scale is None for _, layer in quantized.config.quantization.layers)
    assert difference(logits(quantized, inputs_of("bert")), simulated) < 1e-4
    with pytest.raises(InputError, match="integers cannot be trained"):
        engine.training.fit(quantized, batches, config)
