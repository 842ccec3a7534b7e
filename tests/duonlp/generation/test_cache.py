"""Slots of windowed layers, compared with a cache of every token, and checks of caches that callers pass."""

import itertools

import numpy as np
import pytest

from duonlp import numpy_ops
from duonlp.architectures import config_from_hf
from duonlp.errors import InputError
from duonlp.generation.strategies.cache import Slots, check_cache, extend_cache
from tests.cases import SIZES


def test_windowed_layers_attend_to_the_same_tokens_as_with_a_cache_of_everything():
    """Write the number of each token into its slot, and compare the tokens that each step attends to."""
    for window, columns, steps, stride, rolls_back in itertools.product(
        (None, 1, 2, 3, 5, 8, 20), (1, 4, 8), (1, 3, 9), (1, 3), (False, True)
    ):
        slots = Slots(window, columns, steps, stride, rolls_back)
        cache = slots.extend(numpy_ops, np.arange(columns, dtype=np.int32)[None], 1)
        for step in range(steps):
            index, offsets = np.int32(step * stride), np.array([step], np.int32)
            tokens = columns + index + np.arange(stride, dtype=np.int32)  # one per beam
            cache = numpy_ops.update(cache, tokens[None], (0, slots.index(index, offsets[0])))
            everything = np.random.default_rng(step).random((1, stride, columns + steps * stride)) < 0.7
            everything[..., tokens[-1] + 1 :] = False
            everything[0, np.arange(stride), tokens] = True
            visible = slots.visible(numpy_ops, everything, offsets)
            assert visible.shape[2] == cache.shape[1]
            column = np.concatenate([np.arange(columns), columns + np.arange(steps * stride) // stride])
            for beam in range(stride):
                near = everything[0, beam] & (column > columns + step - (columns + steps if window is None else window))
                assert sorted(cache[0, visible[0, beam]]) == list(np.flatnonzero(near)), (slots, step)


def test_windowed_layers_keep_only_their_window():
    assert Slots(4, 16, 64).extend(numpy_ops, np.zeros((1, 16)), 1).shape == (1, 4)
    assert Slots(4, 16, 64, stride=3).extend(numpy_ops, np.zeros((1, 16)), 1).shape == (1, 3 + 4 * 3)
    assert Slots(4, 2, 64).extend(numpy_ops, np.zeros((1, 2)), 1).shape == (1, 4)
    assert Slots(100, 16, 64).extend(numpy_ops, np.zeros((1, 16)), 1).shape == (1, 80)
    assert Slots(4, 16, 64, rolls_back=True).extend(numpy_ops, np.zeros((1, 16)), 1).shape == (1, 80)


def test_cache_follows_the_pattern_of_layers():
    cfg = config_from_hf(SIZES["llama"] | {"model_type": "llama"})
    local = cfg.replace(attention__window=4).layers[0]
    layers = cfg.layers.of([cfg.layers[0], local])
    cache = {f"step_{i}": {"key": np.zeros((1, 2, 8, 16)), "value": np.zeros((1, 2, 16, 8))} for i in range(2)}
    extended = extend_cache(numpy_ops, layers, cache, [Slots(window, 16, 8) for window in layers.windows])
    assert [extended[name]["value"].shape[2] for name in cache] == [24, 4]
    assert [extended[name]["key"].shape[3] for name in cache] == [24, 4]


@pytest.mark.parametrize(
    ("slots", "tokens", "index", "message"),
    [
        ((8, 4), 2, 0, r"cache of layer 1 has 4 slots, but its attention window reaches over 6 tokens"),
        ((4, 8), 2, 0, "cache of layer 0 has 4 slots, but it attends to all tokens"),
        ((8, 8), 9, 0, "8 slots, too few for 9 new tokens after 0"),
        ((8, 8), 2, 7, r"2 new tokens after 7; create it with init_cache\(config, batch_size, 9\)"),
    ],
)
def test_caches_that_are_too_short(slots, tokens, index, message):
    cfg = config_from_hf(SIZES["llama"] | {"model_type": "llama"})
    layers = cfg.layers.of([cfg.layers[0], cfg.replace(attention__window=6).layers[0]])
    cache = {f"step_{i}": {"value": np.zeros((1, 2, n, 8))} for i, n in enumerate(slots)}
    with pytest.raises(InputError, match=message):
        check_cache(layers, cache, np.zeros((1, tokens), np.int32), index)
