"""A stored generation_config.json: each option is judged alone, unusable ones are named, and the file is written back."""

import json
import re
import warnings

import pytest

from duonlp.checkpoints.pretrained import default_generation_config
from duonlp.errors import InputError
from duonlp.generation import GenerationConfig
from duonlp.generation.config import DEFAULTS
from duonlp.generation.prompt import resolve_config
from tests.cases import cases

CONFIGS = {case.name: case.config for case in cases()}
GPT2, BART = CONFIGS["gpt2-causal-lm"], CONFIGS["bart-seq2seq-lm"]
BASE = {"num_beams": 4, "forced_bos_token_id": 7, "eos_token_id": [2, 9], "max_length": 30, "no_repeat_ngram_size": 3}


def read(stored, cfg=BART):
    """Return the options, and the text of the only warning or ""."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = default_generation_config(cfg, stored)
    assert len(caught) <= 1
    return config, str(caught[0].message) if caught else ""


@pytest.mark.parametrize(
    "odd",
    [
        *({name: value} for name in ("temperature", "top_p", "typical_p", "top_h") for value in (0, 0.0, -1, "x", [])),
        {"top_k": -1}, {"min_p": 7}, {"epsilon_cutoff": 1}, {"max_matching_ngram_size": 0}, {"num_assistant_tokens": 0},
        {"penalty_alpha": 0.6}, {"diversity_penalty": 0.5}, {"max_length": 0, "max_new_tokens": 9},
        {"min_length": -3, "min_new_tokens": 2}, {"decoder_start_token_id": None}, {"suppress_tokens": [-1, 9999]},
        {"cache_implementation": "static"}, {"token_healing": False}, {"some_future_option": {"a": [1]}},
        {"is_assistant": False, "assistant_confidence_threshold": 0.4}, {name: None for name in DEFAULTS if name not in BASE},
        {"max_length": 30.0}, {"max_length": 1e9}, {"output_attentions": True}, {"do_sample": 0}, {"bad_words_ids": []},
    ],
    ids=str,
)  # fmt: skip
def test_options_without_effect_are_ignored(odd):
    config, message = read(BASE | odd)
    assert not message
    assert (config.num_beams, config.forced_bos_token_id, config.no_repeat_ngram_size) == (4, 7, 3)
    assert config.to_dict().items() >= (BASE | odd).items()


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be above 0"),
        ({"early_stopping": 1}, "early_stopping=1 must be True"),  # Transformers takes only true itself for true
        ({"do_sample": 1}, "do_sample=1 must be True or False"),
        ({"do_sample": True, "temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"num_return_sequences": 9}, "num_return_sequences=9 is more than num_beams=4"),
        ({"num_beam_groups": 3, "diversity_penalty": 1.0}, "num_beams=4 is not divisible by num_beam_groups=3"),
        ({"num_beam_groups": 2, "do_sample": True}, "num_beam_groups=2 is diverse beam search, which does not sample"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3 is speculative decoding"),
        ({"suppress_tokens": [7]}, "forced_bos_token_id=7 is also in suppress_tokens"),
        ({"forced_eos_token_id": 99999}, "forced_eos_token_id contains 99999"),
        ({"bad_words_ids": [[1], 3]}, "bad_words_ids=.* must contain non-empty lists"),
        ({"sequence_bias": "x"}, "sequence_bias='x' must be"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5 needs a model without an encoder"),
        ({"token_healing": True}, "token_healing=True is unsupported"),
        ({"cache_implementation": "quantized"}, "cache_implementation='quantized' is unsupported"),
        ({"watermarking_config": {"bias": 2.0}, "dola_layers": "high"}, "dola_layers='high' is unsupported; watermarking_config"),
        ({"max_new_tokens": 0, "length_penalty": "x"}, "max_new_tokens=0 must be .*; length_penalty='x' must be"),
    ],
    ids=str,
)  # fmt: skip
def test_unusable_options_are_named_and_the_others_hold(odd, message):
    config, warning = read(BASE | odd)
    assert warning.startswith("some generation settings of generation_config.json are ignored: ")
    assert re.search(message, warning), warning
    assert (config.num_beams, config.no_repeat_ngram_size, config.eos_ids) == (4, 3, (2, 9))
    assert config.to_dict().items() >= odd.items()


def test_models_without_a_source():
    config, warning = read({"encoder_no_repeat_ngram_size": 3, "top_p": 0.9}, GPT2)
    assert "encoder_no_repeat_ngram_size=3 applies to the source" in warning and config.top_p == 0.9
    config, warning = read({"num_beams": 0}, GPT2)
    assert warning.startswith("all generation settings of generation_config.json are ignored: num_beams=0")
    assert config.eos_ids == (GPT2.eos_token_id,)
    assert read({"eos_token_id": None}, GPT2)[0].eos_ids == ()  # null: no end, as in Transformers


def test_stored_options_that_come_into_effect():
    config, _ = read(
        {"temperature": 0.0, "num_beam_groups": 2, "diversity_penalty": 0.5, "penalty_alpha": 0.6, "do_sample": False},
        GPT2,
    )
    assert config.strategy == "contrastive"
    with pytest.raises(InputError, match=r"temperature=0.0 must be above 0.* \(it is stored with the model"):
        config.with_options(do_sample=True)
    assert config.with_options(do_sample=True, temperature=0.5).strategy == "sample"
    diverse = config.with_options(num_beams=4)
    assert (diverse.num_beam_groups, diverse.diversity_penalty, diverse.penalty_alpha) == (2, 0.5, None)


def test_a_strategy_of_a_call_overrides_a_stored_one():
    contrastive, lookup = GenerationConfig(penalty_alpha=0.6), GenerationConfig(prompt_lookup_num_tokens=3)
    assert contrastive.with_options(num_beams=2).strategy == "beam"
    assert contrastive.with_options(do_sample=True).strategy == "sample"
    assert lookup.with_options(num_beams=2).prompt_lookup_num_tokens is None
    assert lookup.with_options(penalty_alpha=0.6).strategy == "contrastive"
    assert lookup.with_options(do_sample=True).prompt_lookup_num_tokens == 3
    with pytest.raises(InputError, match="speculative decoding"):
        lookup.with_options(num_beams=2, prompt_lookup_num_tokens=3)


def test_a_stored_length_is_limited_by_the_positions():
    config, _ = read({"max_length": 1e9, "eos_token_id": 2}, GPT2)
    assert resolve_config(GPT2, config).new_tokens(3, GPT2.max_length) == GPT2.max_length - 3
    with pytest.raises(InputError, match="exceed the"):
        resolve_config(GPT2, config, None, {"max_length": 10**6}).new_tokens(3, GPT2.max_length)


def test_files_are_written_back():
    stored = BASE | {"temperature": 0.0, "top_k": None, "num_return_sequences": 1, "x": [1], "repetition_penalty": 0.0}
    config, _ = read(stored)
    again = json.loads(json.dumps(config.to_dict()))
    assert again.items() >= stored.items() and read(again)[0] == config
    changed = config.with_options(num_return_sequences=2, repetition_penalty=1.5).to_dict()
    assert (
        changed["num_return_sequences"] == 2 and changed["repetition_penalty"] == 1.5 and changed["temperature"] == 0.0
    )


def test_options_of_a_call_may_be_unused_too():
    config = resolve_config(GPT2, GenerationConfig(), {"temperature": 0.0, "do_sample": False, "max_new_tokens": 3})
    assert config.max_new_tokens == 3 and config.temperature == 1.0
    with pytest.raises(InputError, match="temperature=0 must be above 0"):
        resolve_config(GPT2, GenerationConfig(), {"temperature": 0, "do_sample": True})


@pytest.mark.parametrize(
    ("name", "value"), [("labels", [1]), ("position_ids", [[0]]), ("encoder_outputs", ()), ("inputs", 1)]
)
def test_inputs_of_models_are_refused(name, value):
    with pytest.raises(InputError, match=f"generate does not take {name}; "):
        GenerationConfig().with_options(**{name: value})
    assert GenerationConfig().with_options(**{name: None}) == GenerationConfig()


def test_the_first_notation_of_a_forced_token():
    config = BART.replace(extra=dict(BART.extra) | {"force_bos_token_to_be_generated": True, "num_beams": 4})
    options = GenerationConfig.for_model(config)
    assert options.forced_bos_token_id == config.bos_token_id is not None and options.num_beams == 4
