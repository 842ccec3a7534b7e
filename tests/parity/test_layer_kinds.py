"""Kinds of layers that no family has yet, in both engines, against recorded results of Transformers' models that have them."""

from dataclasses import replace

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.config import LayerPattern, NormConfig
from tests.engines import difference
from tests.layer_kinds import KINDS, cotangent, inputs
from tests.reference.record_layers import FILE, digest, run_torch

RECORDED = np.load(FILE) if FILE.exists() else {}


def run_jax(kind):
    import jax
    import jax.numpy as jnp

    import jaxnlp
    from jaxnlp.model import Model

    apply, params = jaxnlp.functional(Model._from_plan(kind.config, kind.plan, "float32", "float32"))

    def loss(p):
        states = apply(p, **inputs())["last_hidden_state"]
        return jnp.sum(states * cotangent()), states

    gradients, states = jax.jit(jax.grad(loss, has_aux=True))(params)
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    return digest(states, {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves})


def run_tf(kind):
    import tensorflow as tf

    from tfnlp.model import Model
    from tfnlp.pretrained import parameter_tree

    model = Model._from_plan(kind.config, kind.plan, "float32", "float32")
    with tf.GradientTape() as tape:
        states = model(**inputs())["last_hidden_state"]
        loss = tf.reduce_sum(states * cotangent())
    tree = parameter_tree(model)
    gradients = tape.gradient(loss, [variable.value for variable in tree.values()])
    return digest(states, {path: tf.convert_to_tensor(g).numpy() for path, g in zip(tree, gradients)})


def check(ours, theirs):
    assert difference(ours["last_hidden_state"], theirs["last_hidden_state"]) < 1e-5
    assert ours["gradients"].shape == theirs["gradients"].shape
    assert difference(ours["gradients"], theirs["gradients"]) < 1e-4


@pytest.mark.parametrize("run", [run_jax, run_tf])
@pytest.mark.parametrize("name", KINDS)
def test_states_and_gradients(name, run):
    check(run(KINDS[name]), {k: RECORDED[f"{name}/{k}"] for k in ("last_hidden_state", "gradients")})


@pytest.mark.parity
@pytest.mark.parametrize("name", KINDS)
def test_what_is_recorded_is_what_transformers_computes(name):
    check({k: RECORDED[f"{name}/{k}"] for k in ("last_hidden_state", "gradients")}, run_torch(KINDS[name]))


@pytest.mark.parametrize("name", ["gemma3", "olmo2", "qwen2", "falcon"])
def test_fused_inference_computes_the_same(name):
    """One product for queries, keys and values of different widths, of which only some may have biases."""
    from jaxnlp.inference import compiled
    from jaxnlp.model import Model

    model = Model._from_plan(KINDS[name].config, KINDS[name].plan, "float32", "float32")
    expected = RECORDED[f"{name}/last_hidden_state"]
    assert difference(compiled(model)(**inputs())["last_hidden_state"], expected) < 1e-5


def test_norms_of_single_layers():
    """A layer may have another kind of norms than the model, or none; its parameters say so in both engines."""
    config = KINDS["qwen2"].config
    norms = (
        None,
        NormConfig(1e-3, position="post"),
        NormConfig(position="none"),
        NormConfig(bias=False, position="both"),
    )
    layers = LayerPattern.of([replace(config.layers[0], norm=norm) for norm in norms])
    kind = replace(KINDS["qwen2"], config=config.replace(layers=layers))
    names = [
        {path.split("/", 2)[2] for path in kind.values if f"layer_{i}/" in path and "_norm/" in path} for i in range(4)
    ]
    post = {f"{block}_norm/{leaf}" for block in ("attention", "feed_forward") for leaf in ("scale", "bias")}
    both = {f"{block}{kind}_norm/scale" for block in ("attention", "feed_forward") for kind in ("", "_output")}
    assert names == [{"attention_norm/scale", "feed_forward_norm/scale"}, post, set(), both]
    check(run_tf(kind), run_jax(kind))


@pytest.mark.parametrize("package", ["jaxnlp", "tfnlp"])
def test_mean_pooling_leaves_out_padding(package):
    from importlib import import_module

    hf = {"model_type": "electra", "vocab_size": 61, "hidden_size": 16, "embedding_size": 16, "num_hidden_layers": 1,
          "num_attention_heads": 2, "intermediate_size": 16}  # fmt: skip
    ids = np.random.default_rng(0).integers(5, 55, (2, 2, 9)).astype(np.int32)
    mask = np.broadcast_to(np.arange(9) < 6, ids.shape).astype(np.int32)
    for head, part, shape in (
        ("multiple-choice", "multiple_choice", (2, 2)),
        ("sequence-classification", "classification", (2,)),
    ):
        config = config_from_hf(hf).replace(**{f"{part}__token": "mean"})
        model = import_module(f"{package}.heads").HEADS[head].from_config(config)
        choices, real = ids.reshape(*shape, -1)[..., :9], mask.reshape(*shape, -1)[..., :9]
        padded = model(choices, attention_mask=real)["logits"]
        alone = model(choices[..., :6], attention_mask=real[..., :6])["logits"]
        assert difference(np.asarray(padded), np.asarray(alone)) < 1e-5, head
