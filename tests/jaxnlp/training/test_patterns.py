"""Training of layers that differ: scanning over the period of their pattern changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

from duonlp.parameters import parameters
from duonlp.training.layer_decay import rate_factor
from jaxnlp.heads import HEADS
from jaxnlp.training import LazyModel, make_mesh, make_step
from jaxnlp.training.export import export
from jaxnlp.training.model import layer_paths, make_trainable, parameter_reader
from jaxnlp.training.objectives import LanguageModeling
from jaxnlp.training.optimizers import make_optimizer
from tests.jaxnlp.training.runs import batches, curve, run, settings

# A first layer of its own, a period of three that repeats twice, and a remainder of one.
MODERNBERT = {
    "model_type": "modernbert", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 16, "local_attention": 6, "pad_token_id": 0,
}  # fmt: skip
DROPOUT = {"attention_dropout": 0.1, "mlp_dropout": 0.1, "embedding_dropout": 0.1}


def lazy(**changes) -> LazyModel:
    return LazyModel.from_config(MODERNBERT | changes, head="masked-lm", seed=1)


def test_scanning_over_the_period_gives_the_loss_and_gradients_of_the_plain_model():
    model, batch = lazy(), batches()[0]
    plain = HEADS["masked-lm"].from_config(MODERNBERT, seed=1)
    expected = plain(batch["input_ids"], labels=batch["labels"])["loss"]
    results = {}
    for scan in (False, True):
        trainable = make_trainable(model, scan=scan)
        shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), trainable.abstract)
        params = trainable.parameters(parameter_reader(model), shardings)

        def loss(params, trainable=trainable):
            total, count, _ = LanguageModeling().terms(trainable, params, {}, batch)["loss"]
            return total / count

        value, gradients = jax.jit(jax.value_and_grad(loss))(params)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        leaves = {"/".join(k.key for k in keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(gradients)}
        results[scan] = {}
        for path, names in trainable.paths.items():
            rows = leaves[path] if "/layers" in path else [leaves[path]]
            results[scan] |= dict(zip(names, rows, strict=True))
        stacks = {path.split("/")[1] for path in trainable.paths if path.startswith("encoder/")}
        assert stacks == (
            {"layer_0", "layers_1_3", "layers_2_3", "layers_3_3", "layer_7", "final_norm"} if scan
            else {*(f"layer_{i}" for i in range(8)), "final_norm"}
        )  # fmt: skip
    assert set(results[True]) == set(results[False]) == set(parameters(model.config, "masked-lm"))
    for path, gradient in results[False].items():
        np.testing.assert_allclose(results[True][path], gradient, rtol=1e-4, atol=1e-6, err_msg=path)


def test_scanning_and_sharding_change_neither_the_curve_nor_dropout():
    expected = curve(lazy(), devices=1, mesh={}, steps=4)
    options = {"mesh": {"fsdp": 2, "tensor": 2, "data": -1}, "scan": True, "remat": "full"}
    np.testing.assert_allclose(curve(lazy(), steps=4, **options), expected, rtol=1e-5)
    model, losses = lazy(**DROPOUT), []
    for scan in (False, True):
        step = make_step(model, settings(mesh={}, scan=scan), make_mesh({}, jax.devices()[:1]))
        params = step.trainable.parameters(parameter_reader(model), step.shardings["params"])
        terms = jax.jit(step.plan.terms)(params, {}, step.put(batches()[0]), jax.random.key(3))
        losses.append(float(terms["loss"][0]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


def test_paths_of_stacked_layers():
    assert layer_paths("encoder/layers_2_3/attention/query/kernel", 2) == [
        "encoder/layer_2/attention/query/kernel", "encoder/layer_5/attention/query/kernel",
    ]  # fmt: skip
    assert layer_paths("decoder/layers/feed_forward_norm/scale", 2)[1] == "decoder/layer_1/feed_forward_norm/scale"


def test_stacked_layers_have_the_learning_rates_of_their_own_depth():
    config = lazy().config
    transform = make_optimizer(settings(optimizer="lion"), lambda path: rate_factor(path, config, 0.5))
    params = {"encoder": {"layers_2_3": {"kernel": jnp.ones((2, 3, 3))}, "layer_7": {"kernel": jnp.ones((3, 3))}}}
    updates, _ = transform.update(params, transform.init(params), params)
    last, stacked = updates["encoder"]["layer_7"]["kernel"], updates["encoder"]["layers_2_3"]["kernel"]
    np.testing.assert_allclose(stacked[0] / last, 0.5**5, rtol=1e-6)
    np.testing.assert_allclose(stacked[1] / last, 0.5**2, rtol=1e-6)


def test_checkpoints_of_a_run_are_exported_unstacked(tmp_path):
    mesh, exported = make_mesh({}, jax.devices()[:1]), []
    for scan in (False, True):
        run(tmp_path / f"run{scan}", lazy(), mesh, scan=scan, steps=1, save_every=1)
        folder = export(tmp_path / f"run{scan}", tmp_path / f"model{scan}")
        exported.append(HEADS["masked-lm"].from_pretrained(folder))
    ids = batches()[0]["input_ids"]
    np.testing.assert_allclose(exported[1](ids)["logits"], exported[0](ids)["logits"], rtol=1e-4, atol=1e-5)
