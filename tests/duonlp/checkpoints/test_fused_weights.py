"""Tensors that hold several parameters: equal and unequal parts, outputs and inputs, interleaved by head."""

import numpy as np
import pytest

from duonlp.architectures._common import Part, fused_linear
from duonlp.checkpoints.layouts import stored_shape


@pytest.mark.parametrize(
    ("sizes", "axis", "groups", "shapes"),
    [
        ((1, 1, 1), -1, 1, [(5, 4)] * 3),
        ((4, 1, 1), -1, 1, [(5, 16), (5, 4), (5, 4)]),
        ((2, 1, 1), -1, 3, [(5, 12), (5, 6), (5, 6)]),
        ((1, 3), 0, 1, [(2, 5), (6, 5)]),
        ((1, 1), 0, 2, [(4, 5), (4, 5)]),
        ((4, 1, 1), -1, 2, [(16,), (4,), (4,)]),
    ],
)
def test_parts_of_a_whole_and_back(sizes, axis, groups, shapes):
    rng = np.random.default_rng(0)
    parts = [Part(i, sizes, axis, groups) for i in range(len(sizes))]
    values = [rng.standard_normal(shape) for shape in shapes]
    whole = parts[0].join(values)
    for part, value in zip(parts, values):
        assert whole.shape == part.whole_shape(value.shape)
        np.testing.assert_array_equal(part.of(whole), value)


def test_interleaved_parts_lie_as_in_falcon():
    """Two key-value heads of width 1 with two queries each: q q k v, q q k v."""
    whole = np.arange(8)[None]
    query, key, value = (Part(i, (2, 1, 1), groups=2).of(whole) for i in range(3))
    assert query.tolist() == [[0, 1, 4, 5]] and key.tolist() == [[2, 6]] and value.tolist() == [[3, 7]]


def test_a_torch_linear_is_split_along_its_outputs():
    """It is stored as [outputs, inputs]."""
    rows = fused_linear("qkv", ["q", "k", "v"], sizes=(4, 1, 1))
    assert [(row.name, row.path, row.part.index) for row in rows[:3]] == [
        ("qkv.weight", "q/kernel", 0), ("qkv.weight", "k/kernel", 1), ("qkv.weight", "v/kernel", 2),
    ]  # fmt: skip
    assert stored_shape(rows[0], (5, 8)) == stored_shape(rows[1], (5, 2)) == (12, 5)
    assert stored_shape(rows[4], (2,)) == (12,)
    whole = np.arange(5 * 12).reshape(5, 12)
    assert np.shares_memory(rows[0].part.of(whole), whole)  # a checkpoint is read without copies


def test_a_single_part_is_the_whole_tensor():
    assert [row.part for row in fused_linear("up", ["feed_forward/up"])] == [None, None]
