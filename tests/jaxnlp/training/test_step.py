"""The training step: sharding, accumulation, scanning and rematerialization do not change the loss curve."""

import jax
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

from duonlp.errors import InputError
from duonlp.training.config import OPTIMIZERS
from jaxnlp.training import LazyModel, make_mesh, make_step
from jaxnlp.training.model import parameter_reader
from jaxnlp.training.optimizers import make_optimizer
from tests.jaxnlp.training.runs import GPT2, LENGTH, batches, curve, settings, summed_loss

DROPOUT = GPT2 | {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "scale_attn_by_inverse_layer_idx": True}


@pytest.fixture(scope="module")
def one_device():
    return curve(devices=1, mesh={})


@pytest.mark.parametrize(
    "changes",
    [
        {"parallelism": "pmap"},
        {"mesh": {"data": 8}},
        {"mesh": {"data": 2, "fsdp": 4}},
        pytest.param(
            {"mesh": {"fsdp": 2, "tensor": 2, "data": -1}, "scan": True, "remat": "full"},
            marks=pytest.mark.representative,
        ),
        {"mesh": {}, "accumulation": 4, "remat": "dots"},
    ],
    ids=["pmap", "data", "fsdp", "tensor, scanned", "accumulation"],
)
def test_the_curve_matches_that_of_one_device(one_device, changes):
    devices = 1 if changes.get("mesh") == {} else None
    assert one_device[-1] < 0.8 * one_device[0]
    np.testing.assert_allclose(curve(devices=devices, **changes), one_device, rtol=1e-5)


def test_accumulation_weights_tokens_not_microbatches():
    """Labels are uneven over the rows, so a mean of means would differ."""

    class Uneven:
        def __getitem__(self, step):
            batch = batches()[step]
            is_labeled = np.arange(LENGTH) < np.array([15, 1, 2, 15, 3, 15, 1, 4])[:, None]
            return batch | {"labels": np.where(is_labeled, batch["labels"], -100)}

    whole, pieces = (curve(devices=1, mesh={}, steps=3, objective_batches=Uneven(), accumulation=n) for n in (1, 4))
    np.testing.assert_allclose(pieces, whole, rtol=1e-6)


def test_scanning_and_sharding_do_not_change_dropout():
    model, batch = LazyModel.from_config(DROPOUT, seed=1), batches()[0]

    def loss(key, **changes):
        step = make_step(
            model, settings(**changes), make_mesh(changes["mesh"], jax.devices()[: 2 if changes["mesh"] else 1])
        )
        params = step.trainable.parameters(parameter_reader(model), step.shardings["params"])
        return jax.jit(summed_loss(step))(params, step.put(batch), key)[0]

    plain = loss(jax.random.key(3), mesh={})
    spread = loss(jax.random.key(3), mesh={"data": 2}, scan=True, remat="full")
    np.testing.assert_allclose(spread, plain, rtol=1e-6)
    assert abs(plain - loss(None, mesh={})) > 1e-2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_scanning_does_not_change_updates(optimizer):
    """Stacked parameters get the same updates as separate layers, and weight decay is for matrices only."""
    rng, shapes = np.random.default_rng(0), {"kernel": (130, 140), "bias": (140,), "scale": (140,)}
    layers = [{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(2)]
    apart = {"decoder": {f"layer_{i}": {"norm": layer} for i, layer in enumerate(layers)}}
    stacked = {"decoder": {"layers": {"norm": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}}}
    transform, updates = make_optimizer(settings(optimizer=optimizer, weight_decay=0.5)), {}
    for name, params in (("apart", apart), ("stacked", stacked)):
        gradients = jax.tree.map(lambda p: np.sin(p), params)
        updates[name], _ = transform.update(gradients, transform.init(params), params)
    for i in range(2):
        for name in shapes:
            ours, theirs = (
                updates["stacked"]["decoder"]["layers"]["norm"],
                updates["apart"]["decoder"][f"layer_{i}"]["norm"],
            )
            np.testing.assert_allclose(ours[name][i], theirs[name], rtol=1e-6)
    still = jax.tree.map(np.zeros_like, apart)
    decayed, _ = transform.update(still, transform.init(apart), apart)
    layer = decayed["decoder"]["layer_0"]["norm"]
    assert np.any(layer["kernel"]) and not np.any(layer["bias"]) and not np.any(layer["scale"])


@pytest.mark.representative
def test_bfloat16_follows_float32(one_device):
    losses = curve(devices=1, mesh={}, dtype="bfloat16", scan=True)
    assert np.abs(losses - one_device).max() < 0.1


def test_documents_of_one_row_do_not_see_each_other():
    """A row of two documents has the losses of two rows with one document each."""
    model = LazyModel.from_config(GPT2, seed=1)
    step = make_step(model, settings(mesh={}, batch_size=1), make_mesh({}, jax.devices()[:1]))
    params = step.trainable.parameters(parameter_reader(model), step.shardings["params"])
    ids = np.arange(12, dtype=np.int32).reshape(1, 12)
    labels = np.concatenate([ids[:, 1:5], [[-100]], ids[:, 6:], [[-100]]], axis=1).astype(np.int32)
    segments = np.array([[1] * 5 + [2] * 7], np.int32)
    loss = jax.jit(summed_loss(step))
    total, count = loss(params, {"input_ids": ids, "labels": labels, "segment_ids": segments})
    apart = [loss(params, {"input_ids": ids[:, cut], "labels": labels[:, cut]})[0] for cut in (slice(5), slice(5, 12))]
    assert count == 10
    np.testing.assert_allclose(total, sum(apart), rtol=1e-6)


def test_the_state_is_donated_and_one_program_is_compiled():
    model = LazyModel.from_config(GPT2, seed=1)
    step = make_step(model, settings(mesh={"data": 2}), make_mesh({"data": 2}, jax.devices()[:2]))
    state = step.init_state(parameter_reader(model))
    first = jax.tree.leaves(state)
    for number in range(3):
        state, _ = step(state, step.put(batches()[number]), 1e-3)
    assert all(leaf.is_deleted() for leaf in first)
    assert step._step._cache_size() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": {"data": 3}}, "does not fit 8 devices"),
        ({"mesh": {"model": 2}}, "axes are data, fsdp, tensor"),
        ({"batch_size": 12}, "make it a multiple of 8"),
        ({"batch_size": 8, "accumulation": 2}, "make it a multiple of 16"),
    ],
)
def test_invalid_meshes_and_batch_sizes(changes, message):
    with pytest.raises(InputError, match=message):
        make_step(LazyModel.from_config(GPT2), settings(**changes))


def test_only_language_modeling_heads_are_pretrained():
    with pytest.raises(InputError, match="causal-lm, masked-lm, seq2seq-lm can be pretrained"):
        make_step(LazyModel.from_config(GPT2, head="token-classification"), settings())
