"""Test text generation inside a SavedModel."""

import numpy as np
import pytest
import tensorflow as tf

import tfnlp
from duonlp.architectures import config_from_hf
from duonlp.errors import InputError
from duonlp.generation.threefry import row_keys
from tests.cases import SIZES
from tests.generation import windowed_config
from tfnlp.generation import export_generate

HF = SIZES["gpt2"] | {"model_type": "gpt2", "vocab_size": 61, "n_positions": 32, "eos_token_id": 3, "pad_token_id": 1}
T5 = SIZES["t5"] | {"model_type": "t5", "num_layers": 1}
IDS = np.array(
    [[7, 8, 9, 10, 11], [1, 1, 5, 6, 7], [12, 13, 14, 15, 16]], np.int32
)  # three rows: one more fills the bucket
MASK = (IDS != 1).astype(np.int32)


LLAMA = SIZES["llama"] | {"model_type": "llama", "num_hidden_layers": 3, "eos_token_id": 3, "pad_token_id": 1}


@pytest.fixture(params=["gpt2", "llama with windows"], scope="module")
def model(request):
    if request.param == "gpt2":
        return tfnlp.AutoModelForCausalLM.from_config(HF, seed=3, initializer_range=0.5)
    config = windowed_config(config_from_hf(LLAMA | {"initializer_range": 0.5}), (3, None, 3))
    return tfnlp.AutoModelForCausalLM.from_config(config, seed=3)


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "seed": 4, "num_return_sequences": 2}],
    ids=["beams", "sampling"],
)
def test_exported_generation_matches_the_model(model, tmp_path, options):
    export_generate(model, tmp_path / "served", batch_size=3, prompt_length=5, max_new_tokens=6, **options)
    served = tf.saved_model.load(tmp_path / "served")
    expected = model.generate(IDS, MASK, max_new_tokens=6, **options)
    keys = [row_keys(4, [row[mask > 0] for row, mask in zip(IDS, MASK)], 2)] if "seed" in options else []
    sequences = served.generate(tf.constant(IDS), tf.constant(MASK), *map(tf.constant, keys))["sequences"].numpy()
    assert sequences.shape == (6, 11)
    assert np.array_equal(sequences[:, : expected.shape[1]], expected)


def test_exported_encoder_decoder_takes_other_source_lengths(tmp_path):
    ids = {"vocab_size": 61, "pad_token_id": 1, "eos_token_id": 3, "decoder_start_token_id": 1}
    model = tfnlp.AutoModelForSeq2SeqLM.from_config(T5 | ids, seed=3, initializer_factor=0.5)
    options = {"max_new_tokens": 4, "num_beams": 2, "num_return_sequences": 2, "encoder_no_repeat_ngram_size": 1}
    export_generate(model, tmp_path / "served", batch_size=3, prompt_length=5, **options)
    served = tf.saved_model.load(tmp_path / "served")
    sources = np.array([[7, 8, 9, 10, 11], [5, 6, 7, 1, 1], [12, 13, 14, 15, 1]], np.int32)
    mask = (sources != 1).astype(np.int32)
    expected = model.generate(sources, mask, **options)
    sequences = served.generate(tf.constant(sources), tf.constant(mask))["sequences"].numpy()
    assert sequences.shape == (6, 1 + 4) and np.all(sequences[:, 0] == 1)
    assert np.array_equal(sequences[:, : expected.shape[1]], expected)


def test_options_that_cannot_be_exported(model, tmp_path):
    with pytest.raises(InputError, match="cannot be exported"):
        export_generate(model, tmp_path / "served", prompt_length=5, stop_strings=["x"])
