"""Llama's configuration: rotary scaling in both formats of config.json, unsupported options, old checkpoints."""

import json

import numpy as np
import pytest

from duonlp.architectures import config_from_hf, hf_config
from duonlp.checkpoints import open_checkpoint
from duonlp.errors import ConfigError, NewHeadWarning
from tests.cases import ROTARY, SIZES, Case

HF = SIZES["llama"] | {"model_type": "llama"}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}


@pytest.mark.parametrize("parameters", [None, DYNAMIC, *ROTARY], ids=lambda p: p["rope_type"] if p else "default")
def test_rotary_scaling_in_either_format(parameters):
    cfg = config_from_hf(HF | {"rope_parameters": parameters})
    saved = json.loads(json.dumps(hf_config(cfg)))
    assert config_from_hf(saved) == cfg
    scaling = parameters and {"type" if key == "rope_type" else key: x for key, x in parameters.items()}
    theta = (scaling or {}).pop("rope_theta", 10_000.0)
    older = {key: value for key, value in saved.items() if key != "rope_parameters"}
    for hf in (HF | {"rope_scaling": scaling, "rope_theta": theta}, older):
        assert config_from_hf(hf) == cfg


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({}, 20),
        ({"rope_parameters": DYNAMIC}, 40),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, 80),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 5}}, 40),
        ({"rope_parameters": ROTARY[-1]}, 20),
    ],
)
def test_scaling_extends_the_longest_text(changes, positions):
    assert config_from_hf(HF | changes).max_length == positions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "proportional"}},
            "rope_type 'proportional' is not supported; use one of default",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type 'linear' needs factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.0}}, "factor of rope_type 'linear' is 0.0"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, "needs high_freq_factor"),
        ({"rope_parameters": ROTARY[3] | {"low_freq_factor": 4.0}}, "low_freq_factor is 4.0 and high_freq_factor 4.0"),
        ({"rope_parameters": ROTARY[4] | {"long_factor": [1.0]}}, "long_factor has 1 numbers; use 4"),
        ({"rope_parameters": {"mrope_section": [1, 1, 2]}}, "mrope_section"),
        ({"rope_parameters": DYNAMIC, "head_dim": 2}, "at least 4 rotated dimensions"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key-value heads"),
        ({"head_dim": 7}, "7 rotary dimensions"),
        ({"head_dim": None, "hidden_size": 26}, "hidden size 26 is not a multiple"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"token_classification_bias": False}, "token_classification_bias=False"),
    ],
    ids=str,
)
def test_unsupported_options_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        config_from_hf(HF | changes)


def test_a_language_model_becomes_a_question_answering_model(tmp_path):
    """LlamaForQuestionAnswering has names of its own for the tensors of the base model."""
    folder = Case("llama-causal-lm", HF, "causal-lm").write(tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    with pytest.warns(NewHeadWarning, match="qa_outputs"):
        plan = checkpoint.plan(checkpoint.transformer_config(), "question-answering", 0, False)
    assert {source.path for source in plan if source.tensor is None} == {"qa_outputs/kernel", "qa_outputs/bias"}


def test_old_checkpoints_with_stored_frequencies(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = Case("llama-causal-lm", HF, "causal-lm").write(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert all(s.tensor is not None for s in checkpoint.plan(checkpoint.transformer_config(), "causal-lm", 0, False))
