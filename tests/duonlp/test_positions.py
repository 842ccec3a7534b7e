"""Relative position buckets, compared with T5's at every distance, and rotary frequencies with Transformers'."""

import numpy as np
import pytest

from duonlp import numpy_ops
from duonlp.architectures import config_from_hf
from duonlp.architectures._rotary import rotary
from duonlp.errors import ConfigError
from duonlp.positions import position_ids, relative_bucket_table, rotary_frequencies, rotary_tables
from tests.cases import ROTARY, SIZES


def test_buckets_of_t5_by_hand():
    """Compare with T5's 32 buckets up to distance 128: 8 exact distances per side, then logarithmic ones."""
    table = relative_bucket_table(32, 128, True)
    past, future = table[128::-1], table[128:]  # of distances 0, 1, 2, ...
    begins = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    assert np.flatnonzero(np.diff(past, prepend=-1)).tolist() == begins and past.max() == 15
    np.testing.assert_array_equal(future[1:], past[1:] + 16)
    causal = relative_bucket_table(32, 128, False)
    assert not causal[128:].any()  # later keys count as distance 0
    assert causal[128::-1][[1, 15, 16, 18, 19, 128]].tolist() == [1, 15, 16, 16, 17, 31]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("buckets", "distance"), [(32, 128), (8, 6), (33, 128), (7, 50), (4, 3), (32, 17), (16, 1000), (320, 800)]
)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_transformers(buckets, distance, bidirectional):
    torch, t5 = pytest.importorskip("torch"), pytest.importorskip("transformers.models.t5.modeling_t5")
    distances = np.arange(-3 * distance, 3 * distance + 1)
    theirs = t5.T5Attention._relative_position_bucket(torch.tensor(distances), bidirectional, buckets, distance)
    table = relative_bucket_table(buckets, distance, bidirectional)
    np.testing.assert_array_equal(table[np.clip(distances, -distance, distance) + distance], theirs.numpy())


@pytest.mark.parametrize(("buckets", "distance"), [(3, 128), (0, 128), (32, 16), (32, 4)])
def test_invalid_bucket_sizes(buckets, distance):
    """Refuse sizes for which Transformers divides by zero or looks up missing rows."""
    hf = {"model_type": "t5", "relative_attention_num_buckets": buckets, "relative_attention_max_distance": distance}
    with pytest.raises(ConfigError, match=f"relative_attention_num_buckets={buckets}"):
        config_from_hf(hf)


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
RECORDED = [
    ({}, None, [1, 0.1, 0.01, 0.001], 1),
    (DYNAMIC, None, [1, 0.1, 0.01, 0.001], 1),
    (DYNAMIC, 50, [1, 0.0629960522, 0.00396850286, 0.00025], 1),
    (ROTARY[0], None, [0.4, 0.0845896974, 0.0178885441, 0.00378296641], 1),
    (ROTARY[1], None, [1, 0.025, 0.0025, 0.00025], 1.138629436111989),
    (ROTARY[2], None, [1, 0.025, 0.0025, 0.00025], 1.1010933855647465),
    (ROTARY[3], None, [1, 0.336382985, 0.0555725843, 0.01321714], 1),
    (ROTARY[4], None, [1, 0.0909090936, 0.00833333284, 0.00076923077], 1),
    (ROTARY[4], 21, [1, 0.05, 0.00333333341, 0.0002], 1),
]
"""Parameters of heads of width 8 and 20 positions, length of the text, and what Transformers 5.24 computes from them."""


@pytest.mark.parametrize(("parameters", "length", "expected", "factor"), RECORDED)
def test_rotary_frequencies(parameters, length, expected, factor):
    frequencies, attention_factor = rotary_frequencies(rotary(parameters, 8, 20), length)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, expected, rtol=3e-7)
    assert attention_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("parameters", [{}, DYNAMIC, *ROTARY])
@pytest.mark.parametrize("framework", ["jaxnlp", "tfnlp"])
def test_rotary_tables_are_the_same_in_every_framework(framework, parameters):
    ops, config = pytest.importorskip(f"{framework}.ops"), rotary(parameters, 8, 20)
    for length in (20, 33):  # up to the positions of pretraining, and beyond
        positions = np.stack([np.arange(length), np.maximum(np.arange(length) - 4, 0)]).astype(np.int32)
        expected = rotary_tables(numpy_ops, config, positions)
        for ours, theirs in zip(rotary_tables(ops, config, ops.cast(positions, "int32")), expected, strict=True):
            np.testing.assert_allclose(np.asarray(ours), theirs, atol=3e-6)


@pytest.mark.parity
@pytest.mark.parametrize("length", [None, 3000])
@pytest.mark.parametrize(
    "parameters",
    [
        DYNAMIC,
        {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.707,
            "truncate": False,
            "beta_fast": 16.0,
        },
        {"rope_type": "yarn", "factor": 40.0, "attention_factor": 1.25, "beta_slow": 2.0},
        ROTARY[3] | {"rope_theta": 5e5, "original_max_position_embeddings": 1024},
        {"rope_type": "longrope", "short_factor": [1.1] * 32, "long_factor": [*range(1, 33)], "factor": 4.0},
    ],
)
def test_rotary_frequencies_are_those_of_transformers(parameters, length):
    torch, rope = pytest.importorskip("torch"), pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig

    config = LlamaConfig(num_attention_heads=4, head_dim=64, rope_parameters=dict(parameters))
    tensor = None if length is None else torch.tensor(length)
    theirs, their_factor = rope.ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, seq_len=tensor)
    ours, factor = rotary_frequencies(rotary(parameters, 64, config.max_position_embeddings), length)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-7)
    assert factor == their_factor


def test_columns_that_pad_the_batch_are_no_text():
    """Otherwise a bucket's padding would switch longrope to its frequencies of long texts."""
    config = config_from_hf(SIZES["llama"] | {"model_type": "llama"})
    mask = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 0, 0]])
    assert position_ids(config, np.ones((2, 5), np.int32), mask).tolist() == [[0, 1, 2, 2, 2]] * 2
    assert position_ids(config, np.ones((2, 5), np.int32)).tolist() == [[0, 1, 2, 3, 4]] * 2
