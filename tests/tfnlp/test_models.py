"""Test models of tfnlp beyond their outputs, which tests/parity covers: weights, inputs, generation, errors."""

import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import tensorflow as tf

import tfnlp
from duonlp.errors import CheckpointError, ConfigError, InputError
from duonlp.parameters import parameters
from tests.cases import cases
from tests.engines import difference
from tfnlp.heads import HEADS
from tfnlp.inference import get_compiled

BERT, ROBERTA, GPT2 = (
    next(c for c in cases() if c.name == name)
    for name in ("bert-sequence-classification", "roberta-base", "gpt2-causal-lm")
)


@pytest.fixture(scope="module")
def bert():
    return tfnlp.AutoModelForSequenceClassification.from_config(BERT.hf, seed=1)


@pytest.fixture(scope="module")
def gpt2():
    return tfnlp.AutoModelForCausalLM.from_config(
        GPT2.hf | {"eos_token_id": None, "n_layer": 1}, seed=3, initializer_range=0.5
    )


@pytest.mark.parametrize("head", list(HEADS))
def test_parameter_tree_matches_the_parameter_table_and_is_complete(head):
    case = next(c for c in cases() if c.head == head)
    model = HEADS[head].from_config(case.hf)
    tree, spec = tfnlp.parameter_tree(model), parameters(case.config, head)
    assert {path: tuple(v.shape) for path, v in tree.items()} == {path: p.shape for path, p in spec.items()}
    assert {id(v) for v in tree.values()} == {id(v) for v in model.weights}
    assert model.num_parameters() == model.count_params()


def test_keywords_dicts_lists_and_tensors_are_equivalent(bert):
    inputs = {name: value for name, value in BERT.inputs().items() if name != "labels"}
    expected = bert(inputs)["logits"]
    np.testing.assert_array_equal(bert(**inputs)["logits"], expected)
    np.testing.assert_array_equal(bert(**{k: v.tolist() for k, v in inputs.items()})["logits"], expected)
    np.testing.assert_array_equal(bert({k: v.astype(np.int64) for k, v in inputs.items()})["logits"], expected)
    np.testing.assert_array_equal(bert({k: tf.constant(v) for k, v in inputs.items()})["logits"], expected)
    assert np.array_equal(bert(inputs, training=True)["logits"], expected) is False


def test_compiled_matches_the_model_for_all_shapes(bert):
    run = tfnlp.compiled(bert)
    for rows, columns in ((3, 9), (1, 4)):
        inputs = {k: v[:rows, :columns] for k, v in BERT.inputs().items() if k != "labels"}
        assert difference(run(**inputs)["logits"], bert(inputs)["logits"]) < 1e-6
    bert.classifier.bias.assign(bert.classifier.bias + 1)
    assert difference(run(**inputs)["logits"], bert(inputs)["logits"]) < 1e-6


def test_get_compiled_compiles_again_when_layers_change(tmp_path):
    model = tfnlp.AutoModelForSequenceClassification.from_config(BERT.hf, seed=1)
    runs, weights = [get_compiled(model)], len(model.weights)
    tfnlp.parameter_tree(model)["classifier/bias"].assign_add(np.ones(model.config.num_labels))
    model.save(tmp_path / "model.keras")
    assert get_compiled(model) is runs[0] and len(model.weights) == weights
    model.classifier.enable_lora(2)
    runs.append(get_compiled(model))
    assert get_compiled(model) is runs[1] is not runs[0]
    model.classifier.quantize("int8")
    assert get_compiled(model) is not runs[1]
    alive = weakref.ref(model)
    del model, runs
    gc.collect()
    assert alive() is None  # cached on the model, not in a global table


def test_default_positions_are_those_of_the_family():
    from duonlp.positions import position_ids

    model, inputs = HEADS["base"].from_config(ROBERTA.hf, initializer_range=0.2), ROBERTA.inputs()
    expected = position_ids(model.config, inputs["input_ids"])
    derived = model(inputs)["last_hidden_state"]
    np.testing.assert_array_equal(model(**inputs, position_ids=expected)["last_hidden_state"], derived)
    assert difference(model(**inputs, position_ids=expected * 0)["last_hidden_state"], derived) > 1e-3


def test_saving_keeps_labels_generation_options_and_values(tmp_path):
    model = tfnlp.AutoModelForCausalLM.from_config(GPT2.hf | {"id2label": {"0": "a", "1": "b"}}, param_dtype="bfloat16")
    model.save_pretrained(tmp_path / "m")
    back = tfnlp.AutoModelForCausalLM.from_pretrained(tmp_path / "m", param_dtype="bfloat16")
    assert back.config == model.config and back.config.labels == ("a", "b")
    assert back.generation_config == model.generation_config
    a, b = tfnlp.parameter_tree(model), tfnlp.parameter_tree(back)
    assert all(np.array_equal(a[path].numpy(), b[path].numpy()) for path in a)


def test_large_tables_are_loaded_in_chunks(tmp_path):
    hf = BERT.hf | {"vocab_size": 12_000, "num_hidden_layers": 1}  # 1.1 MB: two chunks
    model = tfnlp.AutoModel.from_config(hf)
    model.save_pretrained(tmp_path / "m")
    path = "embeddings/word_embeddings/embedding"
    back = tfnlp.parameter_tree(tfnlp.AutoModel.from_pretrained(tmp_path / "m"))[path].numpy()
    np.testing.assert_array_equal(back, tfnlp.parameter_tree(model)[path].numpy())


def test_a_second_prompt_of_another_length_does_not_compile_again(gpt2):
    traced = []

    def watch(ids, logits, step):
        traced.append(step)
        return logits

    options = {"logits_processor": [watch]}
    gpt2.generate(np.full((1, 5), 7), max_new_tokens=5, **options)
    traced_once = len(traced)
    gpt2.generate(np.full((1, 7), 7), max_new_tokens=6, **options)
    gpt2.generate(np.full((1, 8), 9), max_new_tokens=8, **options)
    assert len(traced) == traced_once > 0


def test_batching_does_not_change_generation(gpt2):
    prompts = [
        [5, 6, 7, 8, 9, 10, 11],
        [20, 21, 22, 23, 24],
        [30, 31, 32, 33, 34, 35],
    ]  # one bucket, so few compilations
    alone = [gpt2.generate(np.array([p]), max_new_tokens=6)[0, len(p) :] for p in prompts]
    ids = np.array([[0] * (7 - len(p)) + p for p in prompts])
    mask = np.array([[0] * (7 - len(p)) + [1] * len(p) for p in prompts])
    together = gpt2.generate(ids, mask, max_new_tokens=6)[:, 7:]
    assert len({tuple(row) for row in alone}) > 1
    assert np.array_equal(together, alone)


def test_generation_stops_at_the_end_token_and_pads(gpt2):
    prompts = np.array([[5, 6, 7], [20, 21, 22]])
    free = gpt2.generate(prompts, max_new_tokens=8)
    eos = int(free[0, 4])
    ended = gpt2.generate(prompts, max_new_tokens=8, eos_token_id=eos, pad_token_id=60)
    stop = list(free[0, 3:]).index(eos)
    assert list(ended[0, 3 : 4 + stop]) == list(free[0, 3 : 4 + stop])
    assert set(ended[0, 4 + stop :]) <= {60}


def test_generation_uses_new_weights_and_layers():
    model = tfnlp.AutoModelForCausalLM.from_config(
        GPT2.hf | {"eos_token_id": None, "n_layer": 1}, initializer_range=0.5
    )
    prompt = np.array([[5, 6, 7]])
    first = model.generate(prompt, max_new_tokens=3)
    for variable in model.weights:
        variable.assign(-variable)
    assert not np.array_equal(model.generate(prompt, max_new_tokens=3), first)
    layer = model.decoder.layer_0.feed_forward.down
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.full(layer.lora_kernel_b.shape, 3.0))
    greedy, ids = prompt, model.generate(prompt, max_new_tokens=3)
    for _ in range(3):
        greedy = np.concatenate([greedy, model(greedy)["logits"].numpy()[:, -1:].argmax(-1)], axis=1)
    np.testing.assert_array_equal(ids, greedy)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": np.full((1, 3), 99)}, "contains 99"),
        ({"input_ids": np.full((1, 3), -1)}, "contains -1"),
        ({"input_ids": np.ones((1, 21), int)}, "21 tokens is longer than the 20 positions"),
        ({"input_ids": np.ones(3, int)}, r"shape \(3,\)"),
        ({"input_ids": np.ones((1, 3))}, "must be integers"),
        (
            {"input_ids": np.ones((1, 3), int), "token_type_ids": np.full((1, 3), 2)},
            "this model's token types are 0 to 1",
        ),
        (
            {"input_ids": np.ones((1, 3), int), "position_ids": np.full((1, 3), 20)},
            "this model's positions are 0 to 19",
        ),
        ({"input_ids": np.ones((1, 3), int), "inptu_mask": 1}, "unknown input 'inptu_mask'"),
        ({"attention_mask": np.ones((1, 3), int)}, "needs input_ids"),
    ],
)
def test_invalid_inputs(bert, inputs, message):
    with pytest.raises(InputError, match=message):
        bert(**inputs)
    with pytest.raises(InputError, match=message):
        bert(inputs)


def test_too_long_inputs_raise_inside_a_graph(bert):
    with pytest.raises(InputError, match="longer than the 20 positions"):
        tf.function(bert, autograph=False)({"input_ids": tf.ones((1, 21), tf.int32)})


def test_loading_with_invalid_heads_and_options(tmp_path):
    folder = BERT.write(tmp_path / "m")
    with pytest.raises(ConfigError, match="is_decoder=True"):
        tfnlp.AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ConfigError, match="has no 'replaced-token-detection' head"):
        HEADS["replaced-token-detection"].from_pretrained(folder)
    with pytest.raises(InputError, match="dtype 'int8' is not supported"):
        tfnlp.AutoModel.from_pretrained(folder, dtype="int8")
    with pytest.raises(InputError, match="unknown keyword 'num_label'"):
        tfnlp.AutoModel.from_pretrained(folder, num_label=3)
    with pytest.raises(CheckpointError, match="no folder"):
        tfnlp.AutoModel.from_pretrained(tmp_path / "nowhere")


def test_another_keras_backend_raises_with_a_remedy():
    # Keras' NumPy backend needs no further library.
    result = subprocess.run(
        [sys.executable, "-c", "import tfnlp"], capture_output=True, text=True, check=False,
        env=os.environ | {"KERAS_BACKEND": "numpy"},
    )  # fmt: skip
    assert "MissingExtraError" in result.stderr and "KERAS_BACKEND=tensorflow" in result.stderr
