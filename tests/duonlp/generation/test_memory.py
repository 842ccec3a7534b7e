"""Calls that no memory holds are refused before anything is allocated."""

import tracemalloc
from types import SimpleNamespace

import pytest

from duonlp.architectures import config_from_hf
from duonlp.checkpoints.pretrained import check_memory
from duonlp.errors import ConfigError, InputError
from duonlp.generation import GenerationConfig
from duonlp.generation.driver import prepare
from tests.cases import SIZES


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}, {"do_sample": True, "num_return_sequences": 3}])
def test_a_billion_new_tokens(options):
    config = config_from_hf({"model_type": "t5", **SIZES["t5"]})  # relative positions set no limit
    model = SimpleNamespace(config=config, generation_config=GenerationConfig.for_model(config))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"up to 1,000,000,001 tokens would take .* GiB .* reduce max_new_tokens"):
        prepare(model, [[5, 6, 1]], options={"max_new_tokens": 10**9, **options})
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()
    assert len(prepare(model, [[5, 6, 1]], options={"max_new_tokens": 1000, **options})) == 1


def test_parameters_beyond_any_memory():
    check_memory(1 << 20)
    with pytest.raises(ConfigError, match=r"take 1,048,576\.0 GiB and this machine has .* GiB"):
        check_memory(1 << 50)
