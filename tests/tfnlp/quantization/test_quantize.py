"""Test tfnlp's quantized models."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnlp
import tfnlp.training
from duonlp.config import LayerQuantization
from duonlp.errors import InputError
from duonlp.training import FitConfig
from tests import quantization as checks
from tfnlp.kernels import choice, int8_product, kernels
from tfnlp.quantization import simulated
from tfnlp.quantization.layers import QuantizedEmbed, QuantizedLinear


@pytest.mark.parametrize("kind", checks.KINDS, ids=str)
@pytest.mark.parametrize("rows", [1, 5])
def test_a_layer_computes_what_numpy_does(kind, rows):
    x = np.random.default_rng(1).normal(size=(rows, 12)).astype(np.float32)
    parts, expected = checks.layer_parts(kind, x)
    layer = QuantizedLinear(12, 6, kind, use_bias=True, dtype=keras.DTypePolicy("float32"), name="layer")
    layer.build()
    for name, value in parts.items():
        variable = layer._kernel if name == "kernel" else getattr(layer, name)
        assert variable.dtype == value.dtype.name and not variable.trainable
        variable.assign(value)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
    for product in (choice.ONEDNN, choice.FLOAT) if choice.has_onednn() else (choice.FLOAT,):
        with choice.products(product):
            graph = tf.function(lambda x: layer(x), autograph=False).get_concrete_function(tf.TensorSpec([None, 12]))
        np.testing.assert_allclose(graph(tf.constant(x)), expected, rtol=1e-5, atol=1e-5)


def test_products_of_integers_are_exact_with_every_implementation():
    rng = np.random.default_rng(0)
    for rows, size in ((1, 7), (3, 2500)):
        x, kernel = (rng.integers(-127, 128, shape).astype(np.int8) for shape in ((rows, size), (size, 4)))
        exact = (x.astype(np.int64) @ kernel.astype(np.int64)).astype(np.float32)
        for product in (choice.XLA, *([choice.ONEDNN] if choice.has_onednn() else [])):
            with choice.products(product):
                graph = tf.function(
                    lambda x, k: (int8_product(x, k), int8_product(x, tf.transpose(k), True)), autograph=False
                )
                for result in graph(x, kernel):
                    np.testing.assert_array_equal(result, exact, err_msg=product)
    assert all(isinstance(value, str) for value in kernels().values())


@pytest.mark.parametrize("name", list(checks.HEADS))
def test_quantized_models_are_called_saved_and_loaded(name, tmp_path):
    checks.check_schemes(tfnlp, name, tmp_path)


def test_graphs_with_and_without_the_fast_product_agree(monkeypatch):
    inputs, model = checks.inputs_of("bert"), tfnlp.quantize(checks.model_of(tfnlp, "bert"))
    expected = checks.logits(model, inputs)
    monkeypatch.setattr(choice, "XLA_MAX_TOKENS", 0)
    for has_onednn in (choice.has_onednn(), False):
        monkeypatch.setattr(choice, "has_onednn", lambda has=has_onednn: has)
        assert checks.difference(tfnlp.compiled(model)(**inputs)["logits"], expected) < 1e-2
    predicted = model.predict(inputs, verbose=0)["logits"]
    assert checks.difference(predicted, expected) < 1e-2
    # A second model in the same process has its own weights.
    other = tfnlp.quantize(checks.model_of(tfnlp, "bert", seed=2))
    assert checks.difference(tfnlp.compiled(other)(**inputs)["logits"], checks.logits(other, inputs)) < 1e-2


def test_keras_quantize_changes_the_model_itself_and_keras_files_restore_it(tmp_path):
    inputs = checks.inputs_of("gpt2")
    model, expected = checks.model_of(tfnlp, "gpt2"), tfnlp.quantize(checks.model_of(tfnlp, "gpt2"))
    model.compile("sgd")
    count = len(model.weights)
    model.quantize("int8")
    assert len(model.weights) == len(tfnlp.parameter_tree(model)) > count
    assert (
        model.config == expected.config
        and checks.difference(checks.logits(model, inputs), checks.logits(expected, inputs)) == 0
    )
    model.save(tmp_path / "m.keras")
    back = keras.saving.load_model(tmp_path / "m.keras")
    assert checks.difference(checks.logits(back, inputs), checks.logits(model, inputs)) == 0
    with pytest.raises(InputError, match="scheme 'float8' is not one of int8"):
        checks.model_of(tfnlp, "gpt2").quantize("float8")
    with pytest.raises(InputError, match="integers cannot be trained"):
        back.compile("sgd")
        back.fit(inputs | {"labels": inputs["input_ids"]}, verbose=0)


def test_an_exported_model_has_only_operations_of_stock_tensorflow(tmp_path):
    inputs, model = checks.inputs_of("bert"), tfnlp.quantize(checks.model_of(tfnlp, "bert"))
    model.export(tmp_path / "m")
    loaded = tf.saved_model.load(tmp_path / "m")
    zeros = np.zeros_like(checks.IDS)
    out = loaded.serve({name: tf.constant(inputs.get(name, zeros)) for name in model.input_signature()})
    assert checks.difference(out["logits"], checks.logits(model, inputs)) < 1e-2
    functions = loaded.signatures["serving_default"].graph.as_graph_def()
    nodes = [*functions.node, *(node for function in functions.library.function for node in function.node_def)]
    assert not [node.op for node in nodes if node.op.startswith("_")]
    assert not [function for function in functions.library.function if function.attr["_XlaMustCompile"].b]


def test_quantized_models_generate():
    from tfnlp.generation import generate

    model = tfnlp.quantize(checks.model_of(tfnlp, "gpt2"))
    out = generate(model, checks.IDS[:1, :4], max_new_tokens=5, do_sample=False)
    ids = checks.IDS[:1, :4]
    for _ in range(5):
        ids = np.concatenate([ids, np.asarray(model(ids)["logits"])[:, -1:].argmax(-1).astype(np.int32)], axis=1)
    np.testing.assert_array_equal(out.sequences if hasattr(out, "sequences") else out, ids)


def test_half_precision_models_are_quantized():
    for dtype in ("bfloat16", "float16"):
        model = checks.model_of(tfnlp, "bert", dtype=dtype, param_dtype=dtype)
        quantized = tfnlp.quantize(model)
        assert tfnlp.parameter_tree(quantized)["classifier/kernel_scale"].dtype == "float32"
        inputs = checks.inputs_of("bert")
        assert checks.difference(checks.logits(quantized, inputs), checks.logits(model, inputs)) < 0.2
        model.quantize("int8")  # Keras' own raises ValueError for float16


def test_products_with_a_table_do_not_overflow_float16():
    table = QuantizedEmbed(3, 16, LayerQuantization(), dtype=keras.DTypePolicy("float16"), name="table")
    table.build()
    table._embeddings.assign(np.full((3, 16), 127))
    table.embedding_scale.assign(np.full(3, 1e-3))
    # The sum of the integers is 1,219,200, and the largest number of float16 65,504.
    y = table.attend(tf.fill((2, 16), tf.constant(600, tf.float16)))
    assert y.dtype == tf.float16
    np.testing.assert_allclose(y, np.full((2, 3), 1219.2), rtol=1e-3)


def test_wrong_calls_are_refused():
    checks.check_refusals(tfnlp)


@pytest.mark.parametrize("settings", [{}, {"scheme": "int8-static", "skip": ["encoder/layer_0/*"]}], ids=str)
def test_training_for_quantization(settings, tmp_path):
    config = FitConfig(epochs=15, learning_rate=2e-2)
    checks.check_training(tfnlp, config, tmp_path / "run", **settings)


def test_kernels_of_bfloat16_models_are_rounded_in_float32(monkeypatch):
    model, dtypes, rounded = (
        tfnlp.prepare_qat(checks.model_of(tfnlp, "bert", dtype="bfloat16")),
        [],
        simulated.round_kernel,
    )

    def round_kernel(kernel, quantization):
        dtypes.append(tf.convert_to_tensor(kernel).dtype)
        return rounded(kernel, quantization)

    monkeypatch.setattr(simulated, "round_kernel", round_kernel)
    assert model(**checks.inputs_of("bert"))["logits"].dtype == tf.bfloat16
    assert len(dtypes) == 14 and set(dtypes) == {tf.float32}


def test_models_prepared_for_training_learn_with_lora():
    model = tfnlp.prepare_qat(checks.model_of(tfnlp, "bert"))
    for layer in (model.classifier, model.embeddings.word_embeddings):
        layer.enable_lora(2)
    model.compile(keras.optimizers.Adam(1e-1))
    batch = checks.batches_of()[0]
    model.fit(batch, epochs=3, verbose=0)
    simulated = checks.logits(model, checks.inputs_of("bert"))
    assert np.any(model.classifier.lora_kernel_b) and np.any(model.embeddings.word_embeddings.lora_embeddings_b)
    assert checks.difference(checks.logits(tfnlp.quantize(model), checks.inputs_of("bert")), simulated) < 1e-4
