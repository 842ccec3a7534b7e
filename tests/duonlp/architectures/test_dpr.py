"""DPR: which of the two towers a checkpoint is, and what old checkpoints have beside it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from duonlp.architectures import config_from_hf
from duonlp.checkpoints import open_checkpoint
from duonlp.checkpoints.save import save_checkpoint
from duonlp.errors import ConfigError
from duonlp.parameters import initial_value, parameters
from tests.cases import ENCODER

TOWERS = {"DPRQuestionEncoder": "question_encoder", "DPRContextEncoder": "ctx_encoder"}


def write(folder, tower, declared=True, **options):
    cfg = config_from_hf({"model_type": "dpr", **ENCODER, "architectures": [tower], **options})
    spec = parameters(cfg)
    save_checkpoint(folder, cfg, "base", lambda path: initial_value(path, spec[path]), np.float32)
    if not declared:
        config = json.loads((folder / "config.json").read_text())
        del config["architectures"]
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("tower", TOWERS)
def test_the_tower_is_that_of_config_json_or_else_of_the_tensors(tmp_path, tower, declared):
    checkpoint = open_checkpoint(write(tmp_path / "a", tower, declared, projection_dim=7))
    cfg = checkpoint.transformer_config()
    assert cfg.base_class == tower and cfg.pooler.size == 7
    sources = {source.path: source for source in checkpoint.plan(cfg, "base")}
    assert sources["pooler/dense/kernel"].parameter.shape == (24, 7)
    save_checkpoint(tmp_path / "b", cfg, "base", lambda path: sources[path].read(), np.float32)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["architectures"] == [tower]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(name.startswith(f"{TOWERS[tower]}.") for name in second) and first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_tower_starts_from_the_other_one(tmp_path):
    checkpoint = open_checkpoint(write(tmp_path, "DPRQuestionEncoder"))
    cfg = checkpoint.transformer_config(architectures=["DPRContextEncoder"])
    assert cfg.base_class == "DPRContextEncoder"
    assert all(source.tensor for source in checkpoint.plan(cfg, "base"))


def test_the_unused_pooler_of_old_checkpoints_is_ignored(tmp_path):
    file = write(tmp_path, "DPRContextEncoder") / "model.safetensors"
    name = "ctx_encoder.bert_model.pooler.dense"
    more = {f"{name}.weight": np.ones((24, 24), np.float32), f"{name}.bias": np.ones(24, np.float32)}
    save_file(load_file(file) | more, file)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.plan(checkpoint.transformer_config(), "base")


def test_the_reader_is_refused():
    with pytest.raises(ConfigError, match=r"architectures is \['DPRReader'\].*DPRQuestionEncoder, DPRContextEncoder"):
        config_from_hf({"model_type": "dpr", "architectures": ["DPRReader"]})
