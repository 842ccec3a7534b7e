"""Test which layers are quantized, and the values that they get."""

import numpy as np
import pytest

from duonlp import architectures
from duonlp.errors import InputError
from duonlp.parameters import count_parameters, initial_value, parameters
from duonlp.quantization import (
    QuantizationSettings,
    calibration_batches,
    check_trainable,
    dequantized_values,
    quantized_values,
    resolve,
    simulated_config,
)
from duonlp.quantization.calibration import batches_of, rows_without_padding
from tests.intents import tokenizer

BERT = architectures.config_from_hf({
    "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "vocab_size": 30, "max_position_embeddings": 16,
})  # fmt: skip
HEAD = "sequence-classification"


def values_of(cfg=BERT, head=HEAD):
    return {path: initial_value(path, parameter) for path, parameter in parameters(cfg, head).items()}


def paths(**settings):
    return [path for path, _ in resolve(QuantizationSettings(**settings), BERT, HEAD).layers]


def test_layers_are_chosen_by_patterns():
    assert len(paths()) == 2 * 6 + 2 + 3  # six kernels per layer, the pooler and the classifier, three tables
    assert "classifier" not in paths(output=False) and "pooler/dense" in paths(output=False)
    assert not any("embeddings" in path for path in paths(embeddings=False))
    assert paths(layers=["*/layer_1/feed_forward/*"]) == [
        f"encoder/layer_1/feed_forward/{name}" for name in ("down", "up")
    ]
    assert "encoder/layer_0/attention/query" not in paths(skip=["*/attention/*"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"layers": ["encoder/layer_0/atention/query"]},
            "matches no layer .*did you mean 'encoder/layer_0/attention/query'",
        ),
        ({"skip": ["decoder/*"]}, r"skip has the pattern 'decoder/\*'"),
        ({"layers": "encoder/*"}, "pass a list of patterns"),
        ({"skip": ["*"]}, "quantize no layer"),
        ({"scheme": "int9"}, "scheme 'int9' is not one of int8"),
        ({"rounding": "awq"}, "AWQ quantizes only weights"),
        ({"group_size": 4}, "'int8' has no groups"),
        ({"percentile": 10}, "percentile is 10"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        paths(**settings)
    with pytest.raises(InputError, match=r"not a setting of quantization.*did you mean 'rounding'"):
        QuantizationSettings.of("int8", {"roundin": "gptq"})


@pytest.mark.parametrize("scheme", ["int8", "int8-weights", "int4"])
def test_values_fill_the_tree_of_the_quantized_model_and_return_to_floats(scheme):
    values = values_of()
    cfg, quantized = quantized_values(values.__getitem__, BERT, HEAD, QuantizationSettings(scheme))
    spec = parameters(cfg, HEAD)
    assert set(quantized) == {path for path, parameter in spec.items() if parameter.dtype is not None}
    for path, value in quantized.items():
        assert value.shape == spec[path].shape and value.dtype == spec[path].dtype, path
    assert count_parameters(cfg, HEAD) == count_parameters(BERT, HEAD)
    plain, floats = dequantized_values((values | quantized).__getitem__, cfg, HEAD)
    assert plain == BERT
    for path, value in floats.items():
        assert np.abs(value - values[path]).max() <= np.abs(values[path]).max() * (0.2 if scheme == "int4" else 0.005)
    with pytest.raises(InputError, match="already quantized"):
        quantized_values((values | quantized).__getitem__, cfg, HEAD, QuantizationSettings())
    with pytest.raises(InputError, match="integers cannot be trained"):
        check_trainable(cfg)


def recorded(calls):
    """Return a stand-in of an engine's recorder: every layer sees the same inputs, but for the values of later calls."""

    def record(paths, observe, values):
        calls.append((list(paths), dict(values)))
        for path in paths:
            if "layer_1/feed_forward" not in path or len(calls) < 9:
                size = parameters(BERT, HEAD)[f"{path}/kernel"].shape[0]
                observe(path, np.random.default_rng(0).normal(size=(20, size)).astype(np.float32))

    return record


def test_gptq_goes_block_by_block_with_what_is_rounded_so_far():
    calls, values = [], values_of()
    settings = QuantizationSettings("int8-static", rounding="gptq", embeddings=False)
    _, quantized = quantized_values(values.__getitem__, BERT, HEAD, settings, recorded(calls))
    assert [len(paths) for paths, _ in calls] == [6, 6, 1, 1]
    assert [len(seen) for _, seen in calls] == [0, 6, 12, 13]
    for path, value in calls[1][1].items():
        np.testing.assert_allclose(value, quantized[path] * quantized[f"{path}_scale"], rtol=1e-6)
    assert quantized["classifier/input_scale"] > 0


def test_what_calibration_lacks_is_named():
    values = values_of()
    for settings, name in (({"scheme": "int8-static"}, "static activations"), ({"rounding": "gptq"}, "gptq")):
        with pytest.raises(InputError, match=f"{name} need calibration data; pass batches="):
            quantized_values(values.__getitem__, BERT, HEAD, QuantizationSettings(**settings))
    with pytest.raises(InputError, match="never reached 'encoder/layer_0/attention/query'"):
        quantized_values(values.__getitem__, BERT, HEAD, QuantizationSettings("int8-static"), lambda *_: None)
    with pytest.raises(InputError, match="there are no calibration batches"):
        batches_of([], BERT, HEAD)
    with pytest.raises(InputError, match="a calibration batch is a str"):
        batches_of(["some text"], BERT, HEAD)
    with pytest.raises(InputError, match="the calibration batches are all padding"):
        batches_of([{"input_ids": np.ones((2, 3)), "attention_mask": np.zeros((2, 3))}], BERT, HEAD)

    def overflow(paths, observe, _):
        observe(paths[0], np.full((2, 8), np.inf, np.float32))

    with pytest.raises(InputError, match="infinite activations at the inputs of 'encoder/layer_0/attention/query'"):
        quantized_values(values.__getitem__, BERT, HEAD, QuantizationSettings("int8-static"), overflow)
    values["classifier/kernel"][0, 0] = np.nan
    with pytest.raises(InputError, match="classifier/kernel has 1 values that are NaN"):
        quantized_values(values.__getitem__, BERT, HEAD)


def test_texts_become_batches_of_one_length_with_or_without_a_padding_token():
    batches = calibration_batches(tokenizer(), ["a b c", " ", "a", "b"], batch_size=2, max_length=8)
    assert [len(batch["input_ids"]) for batch in batches] == [2, 1]
    assert len({batch["input_ids"].shape[1] for batch in batches}) == 1
    with pytest.raises(InputError, match="no text to calibrate with"):
        calibration_batches(tokenizer(), ["", "  "])
    with pytest.raises(InputError, match="texts is the string 'a b'; pass a list"):
        calibration_batches(tokenizer(), "a b")
    for name in ("batch_size", "max_length"):
        with pytest.raises(InputError, match=f"{name} is 0; it must be at least 1"):
            calibration_batches(tokenizer(), ["a b"], **{name: 0})


def test_labels_are_dropped_or_become_the_inputs_of_a_decoder():
    batch = {"input_ids": np.ones((2, 3), int), "labels": np.zeros(2, int), "sample_weight": np.ones(2)}
    assert list(batches_of(batch, BERT, HEAD)[0]) == ["input_ids"]
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 30}
    t5 = architectures.config_from_hf({"model_type": "t5", **sizes, "decoder_start_token_id": 0, "pad_token_id": 0})
    (inputs,) = batches_of(batch | {"labels": np.array([[4, 5], [6, -100]])}, t5, "seq2seq-lm")
    assert set(inputs) == {"input_ids", "decoder_input_ids"} and inputs["decoder_input_ids"].tolist() == [
        [0, 4],
        [0, 6],
    ]


def test_rows_of_padding_are_left_out():
    x, mask = np.arange(12.0).reshape(2, 3, 2), np.array([[1, 1, 0], [1, 0, 0]])
    source = {"attention_mask": mask, "decoder_input_ids": mask, "decoder_attention_mask": 1 - mask}
    assert rows_without_padding("encoder/layer_0/attention/query", x, source).tolist() == [[0, 1], [2, 3], [6, 7]]
    assert len(rows_without_padding("decoder/layer_0/attention/query", x, source)) == 3
    assert len(rows_without_padding("decoder/layer_0/cross_attention/key", x, source)) == 3
    assert len(rows_without_padding("classifier", x[:, 0], source)) == 2


def test_models_prepared_for_training_keep_their_parameters():
    read = values_of().__getitem__
    cfg = simulated_config(read, BERT, HEAD, QuantizationSettings("int4"))
    assert parameters(cfg, HEAD) == parameters(BERT, HEAD)
    check_trainable(cfg)
    final, _ = quantized_values(values_of().__getitem__, cfg, HEAD)
    assert final.quantization.layers == cfg.quantization.layers and not final.quantization.simulated
    with pytest.raises(InputError, match="static activations need calibration data"):
        simulated_config(read, BERT, HEAD, QuantizationSettings("int8-static"))
