"""Sharding of parameters by their paths, for every family, stacked or not."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

pytest.importorskip("orbax.checkpoint")

from duonlp import architectures
from duonlp.training.config import mesh_shape
from jaxnlp.training.mesh import make_mesh, partition, shardings
from jaxnlp.training.model import LazyModel, make_trainable
from tests.jaxnlp.training.runs import GPT2


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 2, "fsdp": 2, "tensor": 2})


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("decoder/layer_0/attention/query/kernel", (16, 16), P("fsdp", "tensor")),
        ("decoder/layers/attention/query/kernel", (4, 16, 16), P(None, "fsdp", "tensor")),
        ("decoder/layers/attention/query/bias", (4, 16), P(None, "tensor")),
        ("decoder/layer_0/attention/output/kernel", (16, 16), P("tensor", "fsdp")),
        ("decoder/layer_0/feed_forward/down/kernel", (64, 16), P("tensor", "fsdp")),
        ("embeddings/word_embeddings/embedding", (32, 16), P("tensor", "fsdp")),
        ("embeddings/word_embeddings/embedding", (33, 16), P(None, "fsdp")),  # an odd vocabulary is not sharded
        ("embeddings/position_embeddings/embedding", (16, 16), P(None, "fsdp")),
        ("decoder/layer_0/attention_norm/scale", (16,), P()),
    ],
)
def test_rules(mesh, path, shape, expected):
    assert partition(path, shape, mesh) == expected


def test_every_matrix_of_every_family_is_sharded(mesh):
    for family in architectures.families():
        if "masked-lm" not in architectures.get(family).heads(family):
            continue
        hf = {
            "model_type": family,
            "vocab_size": 64,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        hf |= {"dim": 16, "n_layers": 2, "n_heads": 2, "embedding_size": 16, "intermediate_size": 32}
        trainable = make_trainable(LazyModel.from_config(hf, head="masked-lm"), scan=True)
        leaves = jax.tree_util.tree_leaves_with_path(shardings(trainable.abstract, mesh))
        replicated = [
            jax.tree_util.keystr(keys) for keys, leaf in leaves if leaf.spec == P() and keys[-1].key == "kernel"
        ]
        assert not replicated, f"{family}: {replicated}"


def test_moments_are_sharded_like_their_parameters(mesh):
    import optax

    params = make_trainable(LazyModel.from_config(GPT2), scan=True).abstract
    moments = jax.eval_shape(optax.scale_by_adam().init, params)
    assert jax.tree.leaves(shardings(moments.mu, mesh)) == jax.tree.leaves(shardings(params, mesh))


def test_shapes_of_meshes():
    assert mesh_shape({"data": -1, "fsdp": 4}, 8) == (2, 4, 1)
    assert mesh_shape({}, 1) == (1, 1, 1)
