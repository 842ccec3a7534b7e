"""Test that float16 overflows nowhere that Transformers' models in float16 do not; tests/parity runs them side by side."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

import tfnlp
from duonlp.config import NormConfig, PoolingConfig
from duonlp.errors import InputError
from tests.engines import difference
from tests.overflows import case, large_attention, large_blocks, large_last_encoder_layer
from tfnlp.head_layers import Pooler
from tfnlp.layers import ACTIVATIONS, Dropout, LayerNorm
from tfnlp.steps.terms import MeanOfTerms
from tfnlp.training import Schedule, make_optimizer

pytestmark = pytest.mark.usefixtures("eagerly")
T5 = case("t5-seq2seq-lm")
HALF = keras.DTypePolicy("mixed_float16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return T5.write(tmp_path_factory.mktemp("t5") / "model", large_blocks)


def load(folder, **options):
    return tfnlp.AutoModelForSeq2SeqLM.from_pretrained(folder, **options)


def test_t5_computes_what_it_does_in_float32(folder):
    results = []
    for dtype in ("float32", "float16"):
        model = load(folder, dtype=dtype)
        with tf.GradientTape() as tape:
            outputs = model(**T5.inputs(), output_hidden_states=True)
        gradients = tape.gradient(outputs["loss"], model.trainable_variables)
        gradients = np.concatenate([tf.reshape(tf.convert_to_tensor(g), [-1]) for g in gradients])
        results.append((outputs, gradients))
    (exact, expected), (half, actual) = results
    assert max(float(tf.reduce_max(tf.abs(x))) for x in exact["encoder_hidden_states"]) > 1e5
    assert half["logits"].dtype == tf.float16
    assert difference(half["logits"], exact["logits"].numpy()) < 5e-3 and abs(half["loss"] - exact["loss"]) < 5e-3
    assert np.linalg.norm(actual - expected) < 0.1 * np.linalg.norm(expected)


def test_t5_compiled_by_keras_policy(folder, compiled):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = load(folder)
    finally:
        keras.config.set_dtype_policy(before)
    inputs = {name: value for name, value in T5.inputs().items() if name != "labels"}
    inputs["decoder_input_ids"] = inputs["input_ids"]
    assert difference(tfnlp.compiled(model)(**inputs)["logits"], load(folder)(**inputs)["logits"].numpy()) < 5e-3


def test_t5_stores_its_down_projections_in_float32(folder, tmp_path):
    model, inputs = load(folder, dtype="float16", param_dtype="float16"), T5.inputs()
    wide = {path for path, variable in tfnlp.parameter_tree(model).items() if variable.dtype == "float32"}
    names = [f"{stack}/layer_{i}/feed_forward/down/kernel" for stack in ("encoder", "decoder") for i in range(2)]
    assert wide == set(names)
    assert difference(model(**inputs)["logits"], load(folder)(**inputs)["logits"].numpy()) < 5e-3
    model.save_pretrained(tmp_path / "half")
    stored = load_file(tmp_path / "half/model.safetensors")
    assert {name.split(".")[-2] for name, value in stored.items() if value.dtype == np.float32} == {"wo"}
    ids = {"input_ids": inputs["input_ids"], "max_new_tokens": 4}
    assert np.array_equal(load(folder).generate(**ids), load(tmp_path / "half", dtype="float16").generate(**ids))
    model.save(tmp_path / "half.keras")
    back = keras.saving.load_model(tmp_path / "half.keras")
    assert np.array_equal(back(**inputs)["logits"], model(**inputs)["logits"])


@pytest.mark.parametrize(
    ("name", "factor"),
    [("t5-seq2seq-lm", large_attention), ("pegasus-seq2seq-lm", large_last_encoder_layer)],
)
def test_clamped_states_are_finite(name, factor, tmp_path):
    one = case(name)
    logits = load(one.write(tmp_path / "model", factor), dtype="float16")(**one.inputs())["logits"]
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("token", ["mean", "mean_with_padding"])
def test_means_over_many_tokens(token):
    pooler = Pooler(PoolingConfig(token=token, dense=False, activation="linear"), 2, NormConfig(), dtype=HALF)
    states, mask = tf.fill((1, 5001, 2), tf.constant(20.0, tf.float16)), tf.ones((1, 5001), tf.int32)
    assert np.array_equal(pooler(states, attention_mask=mask), [[20.0, 20.0]])


def test_layers_of_a_float16_model_read_float32_states():
    states = tf.constant([[100_000.0, 0.0, -100_000.0]])
    norm = LayerNorm(3, 1e-5, dtype=HALF)
    norm.build()
    assert np.allclose(norm(states), [[1.2247, 0.0, -1.2247]], atol=1e-3) and norm(states).dtype == tf.float16
    assert np.isfinite(Dropout(0.1, dtype=HALF)(states, training=True)).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = np.concatenate([np.linspace(-10, 10, 401), [-60_000, -300, 300, 60_000]]).astype(np.float16)
    exact, half = (np.asarray(ACTIVATIONS[name](tf.constant(x, dtype)), np.float32) for dtype in ("float32", "float16"))
    if name == "relu2":  # its squares overflow, as in PyTorch
        exact, half = exact[:-2], half[:-2]
    assert np.abs(half - exact).max() <= 2e-3 * max(1, np.abs(exact[:401]).max()) or np.allclose(half, exact, rtol=2e-3)
    with tf.GradientTape() as tape:
        tape.watch(inputs := tf.constant(x[: -1 if name == "relu2" else None]))
        outputs = ACTIVATIONS[name](inputs)
    assert np.isfinite(tape.gradient(outputs, inputs)).all()
    if name in ("gelu", "gelu_new", "gelu_fast"):
        tail = (x[:401] < -1) & (x[:401] > -3)
        assert np.allclose(half[:401][tail], exact[:401][tail], rtol=1e-2, atol=0)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_skipped_by_loss_scaling_advance_nothing(accumulation):
    one = case("bert-sequence-classification")
    model = tfnlp.AutoModelForSequenceClassification.from_config(one.hf, dtype="float16")
    inner = make_optimizer("adamw", Schedule(10, 1e-3), model, accumulation=accumulation)
    model.compile(keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**60))
    before = {path: variable.numpy() for path, variable in tfnlp.parameter_tree(model).items()}
    model.fit(one.inputs(), epochs=3, batch_size=3, verbose=0)
    assert model.step.numpy() == 0 and model.optimizer.dynamic_scale.numpy() == 2.0**57
    assert all(np.array_equal(variable, before[path]) for path, variable in tfnlp.parameter_tree(model).items())
    model.optimizer.dynamic_scale.assign(2.0**10)
    model.fit(one.inputs(), epochs=2, batch_size=3, verbose=0)
    assert model.step.numpy() == 2 // accumulation


def test_training_parameters_stored_in_half_precision():
    one = case("bert-sequence-classification")
    half = tfnlp.AutoModelForSequenceClassification.from_config(one.hf, dtype="float16", param_dtype="float16")
    half.compile("adam")
    with pytest.raises(InputError, match=r"stored in float16 cannot be trained.*param_dtype='float32'"):
        half.fit(one.inputs(), verbose=0)
    brain = tfnlp.AutoModelForSequenceClassification.from_config(one.hf, dtype="bfloat16", param_dtype="bfloat16")
    brain.compile(make_optimizer("adamw", 1e-3, brain))
    assert np.isfinite(brain.fit(one.inputs(), verbose=0).history["loss"]).all()


def test_losses_are_summed_in_float32_whatever_floatx_is():
    before = keras.config.floatx()
    keras.config.set_floatx("float16")
    try:
        metric = MeanOfTerms()
        metric.update_state({"logits": (tf.constant(80_000.0), tf.constant(40_001.0))})
        assert metric.result() == np.float32(80_000) / np.float32(40_001)
    finally:
        keras.config.set_floatx(before)
