"""Random numbers: threefry's published test vectors in every engine, Gumbel noise, and keys of texts."""

from importlib import import_module

import numpy as np
import pytest

from duonlp import numpy_ops
from duonlp.generation.threefry import gumbel, row_keys, threefry2x32

VECTORS = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]
"""(key, counter, result) from Random123's kat_vectors for threefry2x32 with 20 rounds."""


@pytest.fixture(params=["numpy", "jax", "tf"], scope="module")
def engine(request):
    """Provide the engine's ops and its array constructor."""
    if request.param == "numpy":
        return numpy_ops, np.asarray
    pytest.importorskip({"jax": "jax", "tf": "tensorflow"}[request.param])
    module, name = {"jax": ("jax.numpy", "asarray"), "tf": ("tensorflow", "convert_to_tensor")}[request.param]
    return import_module(f"{request.param}nlp.ops"), getattr(import_module(module), name)


def test_published_vectors(engine):
    ops, convert = engine
    keys, counters, expected = (np.array(part, np.uint32).T for part in zip(*VECTORS))
    actual = threefry2x32(ops, tuple(map(convert, keys)), tuple(map(convert, counters)))
    np.testing.assert_array_equal([np.asarray(word) for word in actual], expected)


def test_noise_is_the_same_in_every_engine(engine):
    ops, convert = engine
    keys, tokens = row_keys(3, [np.array([1, 2])], 4), np.arange(100, dtype=np.int32)[None]
    actual = np.asarray(gumbel(ops, convert(keys), convert(np.int32(7)), convert(tokens)))
    assert actual.shape == (4, 100) and actual.dtype == np.float32
    np.testing.assert_allclose(actual, gumbel(numpy_ops, keys, np.int32(7), tokens), rtol=1e-5, atol=1e-6)


def test_noise_follows_the_gumbel_distribution():
    keys = row_keys(0, [np.array([1])], 50)
    noise = gumbel(numpy_ops, keys, np.int32(2), np.arange(4000, dtype=np.int32)[None]).astype(np.float64)
    assert np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.03)
    assert np.abs(np.corrcoef(noise[:10]) - np.eye(10)).max() < 0.08  # noise of different keys is uncorrelated
    for quantile in (0.1, 0.5, 0.9):
        assert (noise < -np.log(-np.log(quantile))).mean() == pytest.approx(quantile, abs=0.005)


def test_noise_of_a_token_does_not_depend_on_the_others():
    keys, tokens = row_keys(0, [np.array([1])], 2), np.array([[5, 900, 17]], np.int32)
    whole = gumbel(numpy_ops, keys, np.int32(1), np.arange(1000, dtype=np.int32)[None])
    np.testing.assert_array_equal(gumbel(numpy_ops, keys, np.int32(1), tokens), whole[:, tokens[0]])
    assert not np.array_equal(gumbel(numpy_ops, keys, np.int32(2), tokens), whole[:, tokens[0]])


def test_keys_belong_to_seed_prompt_and_sample():
    one, two = np.array([5, 6, 7]), np.array([5, 6])
    keys = row_keys(1, [one, two], 3)
    assert keys.shape == (6, 2) and keys.dtype == np.uint32
    assert len({row.tobytes() for row in keys}) == 6
    np.testing.assert_array_equal(keys[3:], row_keys(1, [two], 3))  # independent of the batch
    np.testing.assert_array_equal(keys, row_keys(1, [one.astype(np.int64), two], 3))
    assert not np.array_equal(keys, row_keys(2, [one, two], 3))
    np.testing.assert_array_equal(row_keys(1, [one] * 3, 1), keys[:3])  # repeated prompts continue the sample numbering
    assert row_keys(2**63, [one], 1).shape == (1, 2)
