"""Compare token_logprobs, sequence_logprob and perplexity in both engines with the model's logits."""

from importlib import import_module

import numpy as np
import pytest

from duonlp.errors import InputError
from tests.cases import SIZES

HF = SIZES["gpt2"] | {"model_type": "gpt2", "vocab_size": 61, "n_positions": 20, "eos_token_id": None}
IDS = np.array([[5, 6, 7, 8, 9, 10], [0, 0, 11, 12, 13, 14]])
MASK = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])


@pytest.fixture(params=["jax", "tf"], scope="module")
def nlp(request):
    return import_module(f"{request.param}nlp")


@pytest.fixture(scope="module")
def model(nlp):
    return nlp.AutoModelForCausalLM.from_config(HF, seed=3, initializer_range=0.5)


def expected(model, row: np.ndarray) -> np.ndarray:
    """Return the log-probability of every token but the first of one text without padding, float64 [T - 1]."""
    logits = np.asarray(model(input_ids=row[None])["logits"], np.float64)[0]
    logprobs = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    return logprobs[np.arange(len(row) - 1), row[1:]]


def test_token_logprobs_match_the_logits(nlp, model):
    logprobs = nlp.generation.token_logprobs(model, IDS, MASK)
    assert logprobs.shape == (2, 5)
    assert np.allclose(logprobs[0], expected(model, IDS[0]), atol=1e-5)
    assert np.allclose(logprobs[1, 2:], expected(model, IDS[1, 2:]), atol=1e-5)


def test_prompt_and_padding_are_excluded(nlp, model):
    long, short = expected(model, IDS[0]), expected(model, IDS[1, 2:])
    sums = nlp.generation.sequence_logprob(model, IDS, 4, MASK)
    assert np.allclose(sums, [long[3:].sum(), short[1:].sum()], atol=1e-5)
    sums = nlp.generation.sequence_logprob(model, IDS, attention_mask=MASK)
    assert np.allclose(sums, [long.sum(), short.sum()], atol=1e-5)  # the first real token has no context
    perplexities = nlp.generation.perplexity(model, IDS, attention_mask=MASK)
    assert np.allclose(np.log(perplexities), [-long.mean(), -short.mean()], atol=1e-5)


def test_padding_on_the_right(nlp, model):
    ids = np.array([[11, 12, 13, 14, 0, 0]])
    sums = nlp.generation.sequence_logprob(model, ids, attention_mask=MASK[1:, ::-1])
    assert np.allclose(sums, expected(model, IDS[1, 2:]).sum(), atol=1e-5)


def test_logprobs_of_generate_match_sequence_logprob(nlp, model):
    out = model.generate(IDS[:1], max_new_tokens=4, return_dict_in_generate=True)
    scored = nlp.generation.sequence_logprob(model, out.sequences, IDS.shape[1])
    assert np.allclose(out.logprobs.sum(axis=1), scored, atol=1e-4)


@pytest.mark.parametrize(
    ("ids", "input_len", "message"),
    [
        (IDS, 0, "input_len=0 must be 1 to 5"),
        (IDS, 6, "input_len=6 must be 1 to 5"),
        (IDS[0], 1, "wrap a single one in a list"),
        (IDS + 60, 1, "this model's token ids are 0 to 60"),
        (np.ones((1, 30), int), 1, "longer than the 20 positions"),
    ],
)
def test_invalid_inputs_raise(nlp, model, ids, input_len, message):
    with pytest.raises(InputError, match=message):
        nlp.generation.sequence_logprob(model, ids, input_len)
