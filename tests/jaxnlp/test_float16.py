"""Test that float16 overflows nowhere that Transformers' models in float16 do not; tests/parity runs them side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxnlp
from duonlp.config import NormConfig, PoolingConfig
from jaxnlp.head_layers import Pooler
from jaxnlp.layers import ACTIVATIONS
from jaxnlp.training.model import make_trainable, parameter_reader
from tests.engines import difference
from tests.overflows import case, large_attention, large_blocks, large_last_encoder_layer

T5 = case("t5-seq2seq-lm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return T5.write(tmp_path_factory.mktemp("t5") / "model", large_blocks)


def load(folder, **options):
    return jaxnlp.AutoModelForSeq2SeqLM.from_pretrained(folder, **options)


def test_t5_computes_what_it_does_in_float32(folder):
    def loss_and_logits(params, apply):
        outputs = apply(params, **T5.inputs(), output_hidden_states=True)
        return outputs["loss"], outputs

    results = {}
    for dtype in ("float32", "float16"):
        apply, params = jaxnlp.functional(load(folder, dtype=dtype))
        results[dtype] = jax.jit(jax.value_and_grad(lambda p, a=apply: loss_and_logits(p, a), has_aux=True))(params)
    ((exact, outputs), gradients), ((loss, half), ours) = results["float32"], results["float16"]
    assert max(float(jnp.abs(x).max()) for x in outputs["encoder_hidden_states"]) > 1e5
    assert half["logits"].dtype == jnp.float16
    assert difference(half["logits"], np.asarray(outputs["logits"])) < 5e-3 and abs(loss - exact) < 5e-3
    expected, actual = (np.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in (gradients, ours))
    assert np.linalg.norm(actual - expected) < 0.1 * np.linalg.norm(expected)


@pytest.mark.parametrize("scan", [False, True])
def test_t5_prepared_for_training(folder, scan):
    model, inputs = load(folder, dtype="float16"), {k: v for k, v in T5.inputs().items() if k != "labels"}
    inputs["decoder_input_ids"] = inputs["input_ids"]
    trainable = make_trainable(model, scan=scan, remat="full")
    params = trainable.parameters(parameter_reader(model), jax.tree.map(lambda _: None, trainable.abstract))
    logits = jax.jit(lambda p: trainable.outputs(p, inputs))(params)["logits"]
    assert difference(logits, np.asarray(load(folder)(**inputs)["logits"])) < 5e-3


def test_t5_stores_its_down_projections_in_float32(folder, tmp_path):
    model, inputs = load(folder, dtype="float16", param_dtype="float16"), T5.inputs()
    wide = {path for path, leaf in jaxnlp.parameter_tree(model).items() if leaf.dtype == jnp.float32}
    names = [f"{stack}/layer_{i}/feed_forward/down/kernel" for stack in ("encoder", "decoder") for i in range(2)]
    assert wide == set(names)
    assert difference(model(**inputs)["logits"], np.asarray(load(folder)(**inputs)["logits"])) < 5e-3
    model.save_pretrained(tmp_path / "half")
    stored = load_file(tmp_path / "half/model.safetensors")
    assert {name.split(".")[-2] for name, value in stored.items() if value.dtype == np.float32} == {"wo"}
    ids = {"input_ids": inputs["input_ids"], "max_new_tokens": 4}
    assert np.array_equal(load(folder).generate(**ids), load(tmp_path / "half", dtype="float16").generate(**ids))


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
    config = PoolingConfig(token=token, dense=False, activation="linear")
    pooler = Pooler(config, 2, NormConfig(), dtype=jnp.float16, param_dtype=jnp.float32, rngs=None)
    states, mask = jnp.full((1, 5001, 2), 20.0, jnp.float16), jnp.ones((1, 5001), jnp.int32)
    assert np.array_equal(pooler(states, attention_mask=mask), [[20.0, 20.0]])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = np.concatenate([np.linspace(-10, 10, 401), [-60_000, -300, 300, 60_000]]).astype(np.float16)
    exact, half = (np.asarray(ACTIVATIONS[name](jnp.asarray(x, dtype)), np.float32) for dtype in ("float32", "float16"))
    if name == "relu2":  # its squares overflow, as in PyTorch
        exact, half = exact[:-2], half[:-2]
    assert np.abs(half - exact).max() <= 2e-3 * max(1, np.abs(exact[:401]).max()) or np.allclose(half, exact, rtol=2e-3)
    if name in ("gelu", "gelu_new"):
        tail = (x[:401] < -1) & (x[:401] > -3)
        assert np.allclose(half[:401][tail], exact[:401][tail], rtol=1e-2, atol=0)
