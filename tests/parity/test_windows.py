"""Generation with attention windows in both engines: every strategy's logits are those of one pass over the whole text."""

from importlib import import_module

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.errors import InputError
from tests.generation import LLAMA, prompts, windowed_config

WINDOWS = (3, None, 7)
LENGTHS = (9, 2, 16)  # shorter and longer than both windows
FREE = {"eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 12}


@pytest.fixture(params=["jax", "tf"], scope="module")
def framework(request):
    return request.param


@pytest.fixture(scope="module")
def model(framework):
    nlp = import_module(f"{framework}nlp")
    config = windowed_config(config_from_hf(LLAMA | {"initializer_range": 0.5}), WINDOWS)
    return nlp.AutoModelForCausalLM.from_config(config, seed=3)


def logits_of(model, sequences: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the logits [B, T, V] of whole texts without a cache, [B, T] with left padding."""
    texts, new = len(sequences) // len(mask), sequences.shape[1] - mask.shape[1]
    mask = np.pad(np.repeat(mask, texts, 0), ((0, 0), (0, new)), constant_values=1)
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32)
    return np.asarray(model(input_ids=sequences, attention_mask=mask, position_ids=positions)["logits"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "seed": 4, "num_return_sequences": 2},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 4},
        {"penalty_alpha": 0.5, "top_k": 3},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=lambda options: next(iter(options), "greedy"),
)
def test_logits_of_every_strategy_are_those_of_the_whole_text(model, options):
    lengths = LENGTHS[-1:] if "prompt_lookup_num_tokens" in options else LENGTHS
    ids, mask = prompts(1, lengths)
    out = model.generate(ids, mask, **FREE, **options, output_logits=True)
    expected = logits_of(model, out.sequences, mask)[:, ids.shape[1] - 1 : -1]  # [texts, steps, V]
    for text in range(len(out.sequences)):
        for step in range(FREE["max_new_tokens"]):
            row = out.beam_indices[text, step] if "num_beams" in options else text
            difference = np.abs(out.logits[step, row] - expected[text, step]).max()
            assert difference < 1e-5 * np.abs(expected[text, step]).max(), (text, step)


def test_windows_change_the_text(framework, model):
    ids, mask = prompts(1, LENGTHS)
    nlp = import_module(f"{framework}nlp")
    everything = nlp.AutoModelForCausalLM.from_config(config_from_hf(LLAMA | {"initializer_range": 0.5}), seed=3)
    assert not np.array_equal(model.generate(ids, mask, **FREE), everything.generate(ids, mask, **FREE))


def test_a_cache_that_is_too_short(framework, model):
    transformer = import_module(f"{framework}nlp.transformer")
    cache = transformer.init_cache(model.config, 1, 8)
    ids = prompts(2, (8,))[0]
    whole = np.asarray(model(input_ids=ids)["logits"])
    first = model(input_ids=ids[:, :5], cache=cache, cache_index=0)
    rest = model(input_ids=ids[:, 5:], cache=first["cache"], cache_index=5)
    for part, expected in ((first, whole[:, :5]), (rest, whole[:, 5:])):
        np.testing.assert_allclose(np.asarray(part["logits"]), expected, atol=1e-4)
    with pytest.raises(InputError, match="8 slots, too few for 4 new tokens after 5"):
        model(input_ids=ids[:, :4], cache=first["cache"], cache_index=5)
    short = cache | {"step_2": {name: x[..., :2, :] for name, x in cache["step_2"].items()}}
    with pytest.raises(
        InputError, match="cache of layer 2 has 2 slots, but its attention window reaches over 7 tokens"
    ):
        model(input_ids=ids, cache=short, cache_index=0)
