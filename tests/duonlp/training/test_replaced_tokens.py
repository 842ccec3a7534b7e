"""ELECTRA's objective: drawn tokens and the terms of the loss, in every engine."""

from importlib import import_module

import numpy as np
import pytest

from duonlp import numpy_ops
from duonlp.errors import InputError
from duonlp.heads import IGNORED
from duonlp.training.replaced_tokens import ReplacedTokens, draw_tokens, replaced_token_terms

RNG = np.random.default_rng(0)


@pytest.fixture(params=["tf", "jax"], scope="module")
def engine(request):
    """Provide an engine's ops, its losses, and its array constructor."""
    package = pytest.importorskip(f"{request.param}nlp")
    module, name = {"jax": ("jax.numpy", "asarray"), "tf": ("tensorflow", "convert_to_tensor")}[request.param]
    return package.ops, package.losses, getattr(import_module(module), name)


def test_draws_follow_the_distribution_and_the_temperature():
    logits = np.broadcast_to(np.log([0.5, 0.25, 0.2, 0.05]).astype(np.float32), (200, 100, 4))
    ids = RNG.integers(0, 30000, (200, 100)).astype(np.int32)
    for temperature in (1.0, 0.5):
        expected = np.exp(logits[0, 0] / temperature) / np.exp(logits[0, 0] / temperature).sum()
        drawn = draw_tokens(numpy_ops, logits, ids, temperature)
        np.testing.assert_allclose(np.bincount(drawn.ravel(), minlength=4) / drawn.size, expected, atol=0.01)


def test_draws_depend_on_the_row_and_the_seed_alone(engine):
    ops, _, convert = engine
    logits, ids = RNG.normal(size=(4, 5, 11)).astype(np.float32), RNG.integers(0, 30000, (4, 5)).astype(np.int32)
    drawn = draw_tokens(numpy_ops, logits, ids)
    np.testing.assert_array_equal(np.asarray(draw_tokens(ops, convert(logits), convert(ids))), drawn)
    np.testing.assert_array_equal(draw_tokens(numpy_ops, logits[::-1], ids[::-1]), drawn[::-1])
    assert (draw_tokens(numpy_ops, logits, ids, seed=1) != drawn).any()
    assert (draw_tokens(numpy_ops, logits, ids + 1) != drawn).any()


def test_terms_match_the_paper(engine):
    ops, losses, convert = engine
    ids, original = np.array([[4, 1, 6, 0], [1, 2, 1, 3]], np.int32), np.array([[4, 5, 6, 0], [5, 2, 3, 3]], np.int32)
    labels = np.where(ids == 1, original, IGNORED)  # 1 is the mask token
    mask, logits = np.array([[1, 1, 1, 0], [1, 1, 1, 1]]), RNG.normal(size=(2, 4, 7)).astype(np.float32)
    scores, seen = RNG.normal(size=(2, 4)).astype(np.float32), []

    def discriminator(tokens):
        seen.append(np.asarray(tokens))
        return convert(scores)

    batch = {name: convert(x) for name, x in (("input_ids", ids), ("labels", labels), ("attention_mask", mask))}
    terms = replaced_token_terms(ops, losses, ReplacedTokens(), lambda tokens: convert(logits), discriminator, batch)
    corrupted = np.where(ids == 1, draw_tokens(numpy_ops, logits, ids), ids)
    np.testing.assert_array_equal(seen[0], corrupted)
    replaced = corrupted != original  # a token that the generator gets right counts as original
    binary = np.log1p(np.exp(np.where(replaced, -scores, scores)))
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    words = -np.take_along_axis(log_probabilities, original[..., None], -1)[..., 0]
    (total, count, factor), (found, tokens, weight) = terms["generator_loss"], terms["discriminator_loss"]
    assert (float(total), float(count), factor) == (pytest.approx(words[ids == 1].sum(), rel=1e-5), 3.0, 1.0)
    assert (float(found), float(tokens), weight) == (pytest.approx((binary * mask).sum(), rel=1e-5), 7.0, 50.0)


@pytest.mark.parametrize("name", ["discriminator_weight", "temperature"])
def test_settings_out_of_range(name):
    with pytest.raises(InputError, match=f"{name} is 0.0; it must be positive"):
        ReplacedTokens(**{name: 0.0})
