"""BART and related families: configurations of well-known checkpoints, and tensor names of various versions."""

import numpy as np
import pytest

from duonlp.architectures import config_from_hf, hf_config
from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.checkpoints.safetensors_file import TensorToWrite, list_tensors, write_tensors
from duonlp.checkpoints.weight_files import WEIGHTS
from duonlp.errors import ConfigError
from duonlp.parameters import parameters
from duonlp.positions import fixed_table
from tests.cases import Case, cases

# config.json of facebook/bart-large-cnn, google/pegasus-xsum, facebook/mbart-large-50 and Helsinki-NLP/opus-mt-en-de, without
# the keys in SIXTEEN; some options are no longer read by Transformers, nor by us.
SIXTEEN = {
    "d_model": 1024, "encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "add_bias_logits": False,
    "is_encoder_decoder": True, "use_cache": True, "classif_dropout": 0.0, "classifier_dropout": 0.0,
}  # fmt: skip
PUBLISHED = {
    "bart": SIXTEEN | {
        "vocab_size": 50264, "max_position_embeddings": 1024, "encoder_layers": 12, "decoder_layers": 12,
        "num_hidden_layers": 12, "normalize_before": False, "add_final_layer_norm": False, "pad_token_id": 1,
        "static_position_embeddings": False, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
        "forced_bos_token_id": 0, "forced_eos_token_id": 2, "num_beams": 4, "max_length": 142, "prefix": " ",
        "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, "task_specific_params": {"summarization": {}},
    },
    "pegasus": SIXTEEN | {
        "vocab_size": 96103, "max_position_embeddings": 512, "encoder_layers": 16, "decoder_layers": 16,
        "num_hidden_layers": 16, "normalize_before": True, "normalize_embedding": False, "add_final_layer_norm": True,
        "static_position_embeddings": True, "extra_pos_embeddings": 1, "scale_embedding": True, "pad_token_id": 0,
        "bos_token_id": 0, "eos_token_id": 1, "activation_function": "relu", "length_penalty": 0.6,
        "activation_dropout": 0.1, "attention_dropout": 0.1, "forced_eos_token_id": 1, "decoder_start_token_id": 0,
    },
    "mbart": SIXTEEN | {
        "vocab_size": 250054, "max_position_embeddings": 1024, "encoder_layers": 12, "decoder_layers": 12,
        "normalize_before": True, "normalize_embedding": True, "add_final_layer_norm": True, "scale_embedding": True,
        "static_position_embeddings": False, "decoder_start_token_id": 2, "tokenizer_class": "MBart50Tokenizer",
    },
    "marian": SIXTEEN | {
        "d_model": 512, "encoder_attention_heads": 8, "decoder_attention_heads": 8, "vocab_size": 58101,
        "max_position_embeddings": 512, "encoder_layers": 6, "decoder_layers": 6, "activation_function": "swish",
        "normalize_before": False, "normalize_embedding": False, "static_position_embeddings": True, "bos_token_id": 0,
        "scale_embedding": True, "decoder_start_token_id": 58100, "pad_token_id": 58100, "bad_words_ids": [[58100]],
    },
}  # fmt: skip


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_published_configurations(model_type):
    from transformers import AutoConfig

    hf = {"model_type": model_type, **PUBLISHED[model_type]}
    cfg = config_from_hf(hf)
    written = hf_config(cfg, "seq2seq-lm")
    dropped = {key for key in hf if key not in written}
    assert dropped <= {"num_hidden_layers"}  # another name of encoder_layers
    theirs = AutoConfig.for_model(**hf)
    for key in (
        "d_model",
        "encoder_layers",
        "decoder_layers",
        "pad_token_id",
        "scale_embedding",
        "forced_eos_token_id",
    ):
        assert written[key] == getattr(theirs, key), key
    assert cfg.max_length == cfg.decoder.max_length == hf["max_position_embeddings"]
    assert cfg.num_labels == theirs.num_labels


def test_alternative_key_names():
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3}
    cfg = config_from_hf({"model_type": "bart", "decoder_attention_heads": 2, **small})
    assert (cfg.hidden_size, cfg.attention.num_heads, cfg.num_layers) == (8, 2, 3)
    assert config_from_hf({"model_type": "bart", "encoder_layers": 4, "num_hidden_layers": 3}).num_layers == 4


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        ({"model_type": "m2m_100", "pad_token_id": None}, "pad_token_id of m2m_100 is null"),
        ({"model_type": "marian", "decoder_vocab_size": 7}, "decoder_vocab_size=7 differs from vocab_size=58101"),
        ({"model_type": "bart", "is_encoder_decoder": False, "is_decoder": True}, "is_encoder_decoder=False"),
        ({"model_type": "bart", "decoder_attention_heads": 3}, "1024 is not a multiple"),
    ],
)
def test_unsupported_options_are_rejected(hf, message):
    with pytest.raises(ConfigError, match=message):
        config_from_hf(hf)


def test_question_answering_ignores_the_number_of_labels():
    assert parameters(config_from_hf({"model_type": "bart"}), "question-answering")["qa_outputs/kernel"].shape == (
        1024,
        2,
    )


def case(name):
    return next(c for c in cases() if c.name == name)


def values(folder, of: Case):
    return {source.path: source.read() for source in open_checkpoint(folder).plan(of.config, of.head)}


def saved(folder, of: Case):
    of.write(folder)
    return {name: tensor.read() for name, tensor in list_tensors(folder / WEIGHTS).items()}


def rewrite(folder, tensors):
    rows = [TensorToWrite(n, v.shape, v.dtype, lambda v=v: v) for n, v in tensors.items()]
    write_tensors(folder / WEIGHTS, rows)


def same(ours, others):
    return set(ours) == set(others) and all(np.array_equal(ours[path], others[path]) for path in ours)


@pytest.mark.parametrize(
    "name", ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"]
)
def test_tied_embeddings_load_from_any_of_their_names(name, tmp_path):
    bart = case("bart-seq2seq-lm")
    tensors = saved(tmp_path, bart)
    once = values(tmp_path, bart)
    tensors[name] = tensors.pop("model.shared.weight")
    rewrite(tmp_path, tensors)
    assert same(values(tmp_path, bart), once)


def test_untied_embeddings_of_transformers_4_fill_both_tables(tmp_path):
    untied = case("bart-seq2seq-lm[tie_word_embeddings=False]")
    tensors = saved(tmp_path, untied)
    assert "model.shared.weight" in tensors  # Transformers 5 reports it missing otherwise, although it does not use it
    del tensors["model.encoder.embed_tokens.weight"], tensors["model.decoder.embed_tokens.weight"]
    rewrite(tmp_path, tensors)
    loaded = values(tmp_path, untied)
    tables = [loaded[f"{stack}embeddings/word_embeddings/embedding"] for stack in ("", "decoder_")]
    assert np.array_equal(*tables) and np.array_equal(tables[0], tensors["model.shared.weight"])


def test_a_missing_logits_bias_is_zero(tmp_path):
    bart = case("bart-seq2seq-lm")
    tensors = saved(tmp_path, bart)
    assert tensors.pop("final_logits_bias").shape == (1, 61)
    rewrite(tmp_path, tensors)
    assert not values(tmp_path, bart)["lm_head/bias"].any()


@pytest.mark.parametrize("name", ["m2m_100-seq2seq-lm", "marian-seq2seq-lm", "pegasus-seq2seq-lm"])
def test_saved_constants_are_recognized(name, tmp_path):
    made = case(name)
    tensors = saved(tmp_path, made)
    once = values(tmp_path, made)
    for stack, e in (("encoder", made.config.embedding), ("decoder", made.config.decoder.embedding)):
        tensors[f"model.{stack}.version"] = np.zeros(1, np.float32)
        for constant in ("weight", "weights"):
            tensors[f"model.{stack}.embed_positions.{constant}"] = fixed_table(e)[:20].copy()
    rewrite(tmp_path, tensors)
    assert same(values(tmp_path, made), once)


@pytest.mark.parametrize(
    ("name", "written"),
    [("pegasus-seq2seq-lm", True), ("pegasus-base", True), ("marian-base", True), ("marian-seq2seq-lm", False)],
)
def test_fixed_positions_are_written_where_transformers_expects_them(name, written, tmp_path):
    made = case(name)
    tensors = saved(tmp_path, made)
    prefix = "" if made.head == "base" else "model."
    for stack, e in (("encoder", made.config.embedding), ("decoder", made.config.decoder.embedding)):
        table = tensors.get(f"{prefix}{stack}.embed_positions.weight")
        assert (table is not None) == written
        assert table is None or np.array_equal(table, fixed_table(e))
