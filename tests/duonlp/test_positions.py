"""Relative position buckets, compared with T5's at every distance."""

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.errors import ConfigError
from duonlp.positions import relative_bucket_table


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
