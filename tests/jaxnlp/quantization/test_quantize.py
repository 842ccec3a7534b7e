"""Test jaxnlp's quantized models."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnlp
import jaxnlp.training
from duonlp.config import LayerQuantization
from duonlp.errors import InputError
from duonlp.training import FitConfig
from jaxnlp.kernels import choice, int8_product, kernels
from jaxnlp.layers import Linear
from jaxnlp.quantization.layers import QuantizedEmbed, QuantizedLinear
from jaxnlp.quantization.simulated import SimulatedLinear, simulated_paths
from jaxnlp.training.mesh import gather_parameters
from jaxnlp.training.model import make_trainable, parameter_reader
from tests import quantization as checks


@pytest.mark.parametrize("kind", checks.KINDS, ids=str)
@pytest.mark.parametrize("rows", [1, 5])
def test_a_layer_computes_what_numpy_does(kind, rows):
    x = np.random.default_rng(1).normal(size=(rows, 12)).astype(np.float32)
    parts, expected = checks.layer_parts(kind, x)
    layer = QuantizedLinear(12, 6, kind, use_bias=True, dtype=jnp.float32, param_dtype=jnp.float32)
    for name, value in parts.items():
        assert getattr(layer, name)[...].dtype == value.dtype and getattr(layer, name)[...].shape == value.shape
        setattr(layer, name, nnx.Param(jnp.asarray(value)))
    np.testing.assert_allclose(jax.jit(lambda layer, x: layer(x))(layer, x[None])[0], expected, rtol=1e-5, atol=1e-5)
    layer.dtype = jnp.bfloat16
    assert layer(x).dtype == jnp.bfloat16 and checks.difference(layer(x), expected) < 0.03


@pytest.mark.parametrize("features", [frozenset(), frozenset({"avx512_bf16"}), frozenset({"avx512_bf16", "amx_int8"})])
def test_products_of_integers_are_exact_on_every_processor(features, monkeypatch):
    monkeypatch.setattr(choice, "cpu_features", lambda: features)
    monkeypatch.setattr(choice, "WIDE_ROWS", 2)
    rng = np.random.default_rng(0)
    for rows, size in ((1, 7), (3, 2500)):
        x, kernel = (rng.integers(-127, 128, shape).astype(np.int8) for shape in ((rows, size), (size, 4)))
        x[:, : size // 2], kernel[: size // 2] = 127, 127  # sums beyond 2^24
        exact = (x.astype(np.int64) @ kernel.astype(np.int64)).astype(np.float32)
        np.testing.assert_array_equal(int8_product(x, kernel), exact)
        np.testing.assert_array_equal(int8_product(x, kernel.T, transposed=True), exact)
    assert choice.uses_bfloat16(2) == (features == {"avx512_bf16"})
    assert all(isinstance(value, str) for value in kernels().values())


@pytest.mark.parametrize("name", list(checks.HEADS))
def test_quantized_models_are_called_saved_and_loaded(name, tmp_path):
    checks.check_schemes(jaxnlp, name, tmp_path)


def test_the_compiled_copy_has_one_product_for_queries_keys_and_values():
    from jaxnlp.inference import transposed

    inputs = checks.inputs_of("bert")
    for scheme, settings in (
        ("int8", {}),
        ("int8-static", {}),
        ("int4", {"rounding": "awq"}),
        ("int8", {"skip": ["*/query"]}),
    ):
        model = jaxnlp.quantize(checks.model_of(jaxnlp, "bert"), scheme, [inputs], **settings)
        attention = transposed(model).encoder.layer_0.attention
        assert attention.fused == (scheme != "int4" and not settings)
        compiled = jaxnlp.compiled(model)(**inputs)["logits"]
        assert (
            checks.difference(compiled, checks.logits(model, inputs)) < 1e-2
        )  # values at the middle may be rounded to either


def test_quantized_models_generate():
    from jaxnlp.generation import generate

    model = jaxnlp.quantize(checks.model_of(jaxnlp, "gpt2"))
    out = generate(model, checks.IDS[:1, :4], max_new_tokens=5, do_sample=False)
    ids = checks.IDS[:1, :4]
    for _ in range(5):
        ids = np.concatenate([ids, np.asarray(model(ids)["logits"])[:, -1:].argmax(-1).astype(np.int32)], axis=1)
    np.testing.assert_array_equal(out.sequences if hasattr(out, "sequences") else out, ids)


def test_half_precision_models_are_quantized():
    for dtype in ("bfloat16", "float16"):
        model = checks.model_of(jaxnlp, "bert", dtype=dtype, param_dtype=dtype)
        quantized = jaxnlp.quantize(model)
        assert jaxnlp.parameter_tree(quantized)["classifier/kernel_scale"].dtype == np.float32
        inputs = checks.inputs_of("bert")
        assert checks.difference(checks.logits(quantized, inputs), checks.logits(model, inputs)) < 0.2


def test_products_with_a_table_do_not_overflow_float16():
    table = QuantizedEmbed(3, 16, LayerQuantization(), dtype=jnp.float16)
    table.embedding, table.embedding_scale = nnx.Param(jnp.full((3, 16), 127, jnp.int8)), nnx.Param(jnp.full(3, 1e-3))
    # The sum of the integers is 1,219,200, and the largest number of float16 65,504.
    y = table.attend(jnp.full((2, 16), 600, jnp.float16))
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y, np.full((2, 3), 1219.2), rtol=1e-3)


def test_wrong_calls_are_refused():
    checks.check_refusals(jaxnlp)


def test_training_for_quantization(tmp_path):
    config = FitConfig(epochs=15, learning_rate=2e-2, scan=True)
    checks.check_training(jaxnlp, config, tmp_path / "run")


def test_layers_that_are_quantized_in_different_ways_are_trained(tmp_path):
    settings = {"scheme": "int8-static", "skip": ["encoder/layer_0/*"]}
    checks.check_training(jaxnlp, FitConfig(epochs=15, learning_rate=2e-2), tmp_path / "run", **settings)
    prepared = jaxnlp.prepare_qat(checks.model_of(jaxnlp, "bert"), "int8", skip=["encoder/layer_0/*"])
    trainable = make_trainable(prepared)
    outputs = trainable.outputs(trainable.parameters(parameter_reader(prepared)), checks.batches_of()[0])
    assert checks.difference(outputs["logits"], checks.logits(prepared, checks.inputs_of("bert"))) < 1e-6
    with pytest.raises(InputError, match="quantized in different ways, so they cannot be scanned; pass scan=False"):
        make_trainable(prepared, scan=True)


def test_kernels_of_bfloat16_models_are_rounded_in_float32():
    kernel = np.array([[127], [101.498]], np.float32)  # steps of 1; in bfloat16, 101.498 is 101.5 and its integer 102
    params = {"layer": {"kernel": kernel}, "other": {"kernel": kernel}}
    gathered = gather_parameters(params, None, jnp.bfloat16, simulated=("layer",))
    assert gathered["layer"]["kernel"].dtype == jnp.float32 and gathered["other"]["kernel"].dtype == jnp.bfloat16
    layer: Any = Linear(2, 1, use_bias=False, dtype=jnp.bfloat16, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.__class__, layer.quantization = SimulatedLinear, LayerQuantization()
    layer.kernel = nnx.Param(jnp.asarray(kernel))
    assert float(layer(jnp.array([[0, 1]], jnp.bfloat16))[0, 0]) == 101
    assert simulated_paths(layer) == ("",)
