"""GenerationConfig: defaults, reading, writing, overrides and warnings."""

import json
import warnings

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.generation import GenerationConfig
from duonlp.generation.config import DEFAULTS
from tests.cases import cases

CONFIG = next(case for case in cases() if case.name == "gpt2-causal-lm").config
EVERYTHING = {
    "max_new_tokens": 7, "min_new_tokens": 2, "do_sample": True, "seed": 4, "num_return_sequences": 2, "num_beams": 4,
    "early_stopping": "never", "length_penalty": 0.5, "sequence_bias": [[[1, 2], -1.5], [[3], 2.0]],
    "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words_ids": [[1], [2, 3]], "forced_eos_token_id": [4, 5],
    "exponential_decay_length_penalty": [3, 1.1], "suppress_tokens": [8], "begin_suppress_tokens": [9],
    "temperature": 0.7, "top_k": 9, "top_p": 0.8, "min_p": 0.1, "typical_p": 0.9, "epsilon_cutoff": 0.01,
    "eta_cutoff": 0.02, "eos_token_id": [6, 7], "pad_token_id": 0, "stop_strings": ["stop", "\n\n"],
    "renormalize_logits": True, "top_h": 0.4, "guidance_scale": 1.5, "output_scores": True,
}  # fmt: skip


def test_round_trip():
    config = GenerationConfig(**EVERYTHING)
    written = config.to_dict()
    assert written == EVERYTHING
    assert GenerationConfig.for_model(CONFIG, json.loads(json.dumps(written))) == (
        GenerationConfig(**EVERYTHING, bos_token_id=CONFIG.bos_token_id)
    )
    assert hash(config) == hash(GenerationConfig(**EVERYTHING))
    assert GenerationConfig().to_dict() == {}


def test_unknown_keys_are_written_back():
    stored = {"transformers_version": "5.0.0", "max_length": 30, "some_key": [1, 2]}
    config = GenerationConfig.for_model(CONFIG, stored)
    assert config.max_length == 30 and config.eos_token_id == CONFIG.eos_token_id
    assert config.to_dict().items() >= stored.items()


def test_lists_dicts_and_numpy_are_accepted():
    lists = GenerationConfig(sequence_bias=[[[1, 2], 0.5]], bad_words_ids=[[1], [2]], eos_token_id=[np.int64(3), 4])
    tuples = GenerationConfig(sequence_bias={(1, 2): 0.5}, bad_words_ids=((1,), (2,)), eos_token_id=(3, 4))
    assert lists == tuples and lists.eos_ids == (3, 4)
    assert GenerationConfig(stop_strings="end").stop_strings == ("end",)
    assert GenerationConfig(top_p=np.float32(0.5)).top_p == 0.5
    assert GenerationConfig(eos_token_id=5).eos_ids == (5,) and GenerationConfig().eos_ids == ()
    assert GenerationConfig(eos_token_id=(5, 6)).padding == 5 and GenerationConfig(pad_token_id=1).padding == 1


def test_none_is_the_default():
    config = GenerationConfig(num_beams=3, eos_token_id=5, bad_words_ids=[[4]], max_new_tokens=3)
    assert config.with_options(num_beams=None).num_beams == 1
    assert config.with_options(eos_token_id=None).eos_ids == ()
    assert config.with_options(top_k=None).top_k == 0  # off, as in Transformers, not its default of 50
    assert config.with_options(bad_words_ids=None).bad_words_ids == ()
    assert config.with_options() == config


def test_a_requested_length_overrides_a_stored_one():
    config = GenerationConfig(max_new_tokens=3)
    assert config.with_options(max_length=10).new_tokens(4, 50) == 6
    assert config.with_options(max_length=10, max_new_tokens=2).new_tokens(4, 50) == 2
    assert GenerationConfig().new_tokens(4, 50) == 20 and GenerationConfig().new_tokens(4, 10) == 6


def test_one_beam_has_no_groups():
    config = GenerationConfig(num_beams=4, num_beam_groups=2, diversity_penalty=0.5)
    assert config.with_options(num_beams=1).strategy == "greedy"


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ({}, "greedy"),
        ({"do_sample": True}, "sample"),
        ({"num_beams": 2}, "beam"),
        ({"num_beams": 2, "do_sample": True}, "beam"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive"),
        ({"penalty_alpha": 0.0}, "greedy"),
    ],
    ids=str,
)
def test_strategies(options, strategy):
    assert GenerationConfig(**options).strategy == strategy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "seed=1 has no effect without do_sample=True"),
        ({"temperature": 0.7}, "temperature=0.7 has no effect without do_sample=True"),
        ({"top_p": 0.7}, "top_p=0.7 has no effect"),
        ({"temperature": 0.0}, "temperature=0.0 has no effect without do_sample=True"),
        ({"temperature": 0, "do_sample": False, "num_beams": 2}, "temperature=0 has no effect"),
        ({"top_p": 0, "top_k": 5}, "top_p=0 has no effect"),
        ({"top_k": 5}, "top_k=5 has no effect"),
        ({"length_penalty": 2.0}, "length_penalty=2.0 has no effect without num_beams=2 or more"),
        ({"early_stopping": True}, "early_stopping=True has no effect"),
    ],
    ids=str,
)
def test_options_without_effect_warn(options, message):
    with pytest.warns(UserWarning, match=message):
        GenerationConfig().with_options(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "do_sample": True},
        {"top_k": 4, "penalty_alpha": 0.6},
        {"length_penalty": 2.0, "num_beams": 2},
        {"use_cache": True, "synced_gpus": False},
        {"constraints": None, "max_time": None},
    ],
    ids=str,
)
def test_other_options_do_not_warn(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GenerationConfig().with_options(**options)


def test_unsupported_options_are_errors_in_a_call_and_warnings_in_a_file():
    with pytest.raises(InputError, match=r"assistant_early_exit=1 is unsupported; .*assistant_model"):
        GenerationConfig().with_options(assistant_early_exit=1)
    with pytest.warns(UserWarning, match="sets assistant_early_exit=1, which is unsupported and ignored"):
        GenerationConfig.for_model(CONFIG, {"assistant_early_exit": 1})


def test_files_of_transformers_are_read(tmp_path):
    from transformers import GenerationConfig as Theirs

    theirs = Theirs(num_beams=3, length_penalty=0.5, eos_token_id=[5, 6], bad_words_ids=[[1, 2]], early_stopping=True)
    theirs.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    config = GenerationConfig.for_model(CONFIG, stored)
    assert config == GenerationConfig.for_model(CONFIG, theirs.to_dict())
    assert (config.num_beams, config.length_penalty, config.eos_ids) == (3, 0.5, (5, 6))
    assert config.bad_words_ids == ((1, 2),) and config.early_stopping is True


def test_defaults_are_those_of_transformers():
    from transformers import GenerationConfig as Theirs

    theirs = Theirs._get_default_generation_params()
    # Theirs: 20 tokens in total, though generate adds 20 new ones; and a draft model proposes more tokens at a time.
    shared = (DEFAULTS.keys() & theirs.keys()) - {"max_length", "num_assistant_tokens"}
    assert len(shared) > 20
    for name in shared:
        assert (DEFAULTS[name] or None) == (theirs[name] or None), name
