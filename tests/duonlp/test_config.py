"""config.json to TransformerConfig and back."""

import dataclasses

import pytest

from duonlp import architectures
from duonlp.architectures import class_name, config_from_hf, head_of, hf_config
from duonlp.checkpoints.checkpoint import override
from duonlp.config import ACTIVATIONS, activation_name
from duonlp.errors import ConfigError, InputError
from tests.cases import cases


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_translation_and_back_are_inverse(case):
    cfg = case.config
    hf = hf_config(cfg, case.head)
    assert config_from_hf(hf) == cfg
    assert hf_config(config_from_hf(hf), case.head) == hf
    assert head_of(hf) == case.head


@pytest.mark.parametrize("model_type", architectures.families())
def test_defaults_are_transformers_own(model_type):
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(model_type)
    ours = hf_config(config_from_hf({"model_type": model_type}))
    for key, value in ours.items():
        if key not in ("architectures", "id2label", "n_inner"):
            assert value == getattr(theirs, key, None), key  # some classes lack keys that are None in the others


@pytest.mark.parametrize("model_type", architectures.families())
def test_every_head_has_a_class_in_transformers(model_type):
    import transformers

    for head in architectures.get(model_type).heads(model_type):
        assert hasattr(transformers, class_name(model_type, head)), head


def test_keys_without_effect_are_written_back():
    hf = {"model_type": "bert", "directionality": "bidi", "task_specific_params": {"a": 1}}
    written = hf_config(config_from_hf(hf))
    assert written["directionality"] == "bidi" and written["task_specific_params"] == {"a": 1}


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        ({}, "no model_type"),
        ({"model_type": "xlnet"}, "'xlnet' is not supported"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"model_type": "bert", "add_cross_attention": True}, "add_cross_attention=True"),
        ({"model_type": "bert", "pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"model_type": "bert", "hidden_act": "prelu"}, "'prelu' is not supported"),
        ({"model_type": "bert", "num_attention_heads": 5}, "768 is not a multiple"),
        ({"model_type": "bert", "problem_type": "ranking"}, "'ranking'"),
        ({"model_type": "bert", "id2label": {"0": "a", "2": "b"}}, "without gaps"),
        ({"model_type": "electra", "summary_type": "attn"}, "summary_type='attn'"),
        ({"model_type": "albert", "num_hidden_groups": 13}, "num_hidden_groups=13"),
        ({"model_type": "roberta", "pad_token_id": None}, "pad_token_id"),
        ({"model_type": "gpt2", "quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_unsupported_options_are_refused_by_name(hf, message):
    with pytest.raises(ConfigError, match=message):
        config_from_hf(hf)


def test_a_missing_head_lists_the_available_ones():
    with pytest.raises(ConfigError, match=r"gpt2 has no 'masked-lm' head; available heads are base, causal-lm"):
        class_name("gpt2", "masked-lm")


def test_overrides_are_keys_of_config_json():
    hf = {"model_type": "bert", "id2label": {"0": "no", "1": "yes"}}
    assert config_from_hf(override(hf, {"num_labels": 3})).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert config_from_hf(override(hf, {"num_labels": 2})).labels == ("no", "yes")
    assert config_from_hf(override(hf, {"hidden_dropout_prob": 0.0})).hidden_dropout == 0
    with pytest.raises(InputError, match="unknown keyword 'hidden_droput_prob'"):
        override(hf, {"hidden_droput_prob": 0.0})


def test_replace_reaches_into_parts_and_refuses_unknown_fields():
    cfg = config_from_hf({"model_type": "gpt2"})
    assert cfg.replace(attention__dropout=0.5).attention.dropout == 0.5
    with pytest.raises(ConfigError, match="no field 'droput'"):
        cfg.replace(attention__droput=0.5)
    with pytest.raises(ConfigError, match="no part 'atention'"):
        cfg.replace(atention__dropout=0.5)


def test_without_dropout_clears_every_rate():
    cfg = config_from_hf({"model_type": "electra"}).without_dropout()

    def rates(part):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if dataclasses.is_dataclass(value):
                yield from rates(value)
            elif "dropout" in field.name:
                yield value

    assert set(rates(cfg)) == {0.0}


def test_configs_are_hashable_and_immutable():
    cfg = config_from_hf({"model_type": "bert"})
    assert hash(cfg) == hash(config_from_hf({"model_type": "bert"}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.hidden_size = 3


def test_activation_names():
    assert activation_name("swish") == "silu" and activation_name(None) == "linear"
    assert [activation_name(name) for name in ACTIVATIONS] == list(ACTIVATIONS)
