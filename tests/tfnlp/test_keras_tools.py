"""Test Keras' tools on the models: saving, exporting, dtype policies, LoRA, quantization."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnlp
from duonlp.errors import InputError
from tests import rag
from tests.cases import cases
from tests.engines import difference
from tfnlp.distillation import Distiller
from tfnlp.heads import HEADS

BERT, LM, GPT2, T5 = (
    next(c for c in cases() if c.name == name)
    for name in ("bert-sequence-classification", "albert-masked-lm", "gpt2-causal-lm", "t5-seq2seq-lm")
)


def inputs_of(case):
    inputs = {name: value for name, value in case.inputs().items() if name != "labels"}
    return inputs | ({"decoder_input_ids": inputs["input_ids"][:, :4]} if case is T5 else {})


def new(case=BERT, **options):
    layers = {{"gpt2": "n_layer", "t5": "num_layers"}.get(case.hf["model_type"], "num_hidden_layers"): 1}
    spread = "initializer_factor" if case is T5 else "initializer_range"
    return HEADS[case.head].from_config(case.hf | layers, **{spread: 0.2}, **options)


@pytest.mark.representative
@pytest.mark.parametrize("case", [BERT, LM, GPT2, T5], ids=lambda c: c.name)
def test_keras_files_restore_the_model(case, tmp_path):
    model = new(case, dtype="bfloat16")
    model.save(tmp_path / "m.keras")
    back = keras.saving.load_model(tmp_path / "m.keras")
    assert type(back) is type(model)
    assert back.config == model.config and back.generation_config == model.generation_config
    assert (back.compute_dtype, back.variable_dtype) == ("bfloat16", "float32")
    np.testing.assert_array_equal(back(inputs_of(case))["logits"], model(inputs_of(case))["logits"])


def test_keras_files_restore_the_optimizer(tmp_path):
    model, inputs = new(), BERT.inputs()
    model.compile("sgd")
    model.fit(inputs, verbose=0)
    model.save(tmp_path / "m.keras")
    back = keras.saving.load_model(tmp_path / "m.keras")
    assert int(back.optimizer.iterations) == 1
    back.fit(inputs, verbose=0)


@pytest.mark.representative
@pytest.mark.parametrize("case", [BERT, GPT2], ids=lambda c: c.name)
def test_exported_models_serve_any_shape(case, tmp_path):
    model = new(case)
    model.export(tmp_path / "served")
    served = tf.saved_model.load(tmp_path / "served")
    for rows, columns in ((1, 4), (3, 9)):
        inputs = {name: value[:rows, :columns] for name, value in inputs_of(case).items()}
        inputs = {name: inputs.get(name, np.zeros((rows, columns), np.int32)) for name in model.input_signature()}
        outputs = served.serve(inputs)
        assert set(outputs) == {"logits"}
        assert difference(outputs["logits"], model(**inputs)["logits"]) < 1e-5


def test_exported_encoder_decoders_serve_any_lengths(tmp_path):
    model = new(T5)
    model.export(tmp_path / "served")
    served = tf.saved_model.load(tmp_path / "served")
    for rows, source, target in ((1, 4, 2), (3, 5, 7)):
        ids, decoder_ids = np.full((rows, source), 7), np.full((rows, target), 5)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "decoder_input_ids": decoder_ids}
        inputs = {name: value.astype(np.int32) for name, value in inputs.items()}
        outputs = served.serve(inputs)
        assert outputs["logits"].shape == (rows, target, T5.hf["vocab_size"])
        assert difference(outputs["logits"], model(**inputs)["logits"]) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "policy"),
    [
        ("bfloat16", "float32", "mixed_bfloat16"),
        ("float16", "float32", "mixed_float16"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "float32_stored_as_bfloat16"),
    ],
)
def test_half_precision_is_close(dtype, param_dtype, policy):
    full, half = new(), new(dtype=dtype, param_dtype=param_dtype)
    logits = half(inputs_of(BERT))["logits"]
    assert half.dtype_policy.name == policy and logits.dtype == dtype
    assert {v.dtype for v in tfnlp.parameter_tree(half).values()} == {param_dtype}
    assert 0 < difference(np.asarray(logits, np.float32), full(inputs_of(BERT))["logits"].numpy()) < 0.1


def test_fully_masked_rows_stay_finite_in_float16():
    logits = new(dtype="float16")(np.full((1, 3), 7), np.zeros((1, 3)))["logits"]
    assert np.isfinite(logits).all()


def test_lora_trains_only_its_weights_and_is_merged_when_saved(tmp_path):
    model, inputs = new(), BERT.inputs()
    for variable in model.trainable_weights:
        variable.trainable = False
    model.encoder.layer_0.attention.query.enable_lora(2)
    assert {v.name for v in model.trainable_weights} == {"lora_kernel_a", "lora_kernel_b"}
    before = {path: v.numpy() for path, v in tfnlp.parameter_tree(model).items()}
    model.compile(keras.optimizers.Adam(1e-2))
    start = model.evaluate(inputs, verbose=0)
    model.fit(inputs, epochs=5, verbose=0)
    assert model.evaluate(inputs, verbose=0) < start  # evaluated without dropout, whose noise would hide the change
    assert all(np.array_equal(v, before[path]) for path, v in tfnlp.parameter_tree(model).items())
    model.save_pretrained(tmp_path / "merged")
    merged = tfnlp.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert difference(merged(inputs)["logits"], model(inputs)["logits"]) < 1e-6
    assert difference(merged(inputs)["logits"], new()(inputs)["logits"]) > 1e-4


@pytest.mark.parametrize("case", [BERT, LM], ids=lambda c: c.name)
def test_int8_is_close_and_restored_from_a_file(case, tmp_path):
    model, inputs = new(case), inputs_of(case)
    full = model(inputs)["logits"].numpy()
    model.quantize("int8")
    assert str(model.encoder.layer_0.feed_forward.up._kernel.dtype) == "int8"
    quantized = model(inputs)["logits"].numpy()
    assert 0 < difference(quantized, full) < 0.1
    model.save(tmp_path / "m.keras")
    back = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(back(inputs)["logits"], quantized, atol=1e-6)
    model.save_pretrained(tmp_path / "m")
    np.testing.assert_array_equal(type(model).from_pretrained(tmp_path / "m")(inputs)["logits"], quantized)


def test_models_work_inside_a_functional_model():
    names = ("input_ids", "attention_mask")
    tensors = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
    body = tfnlp.AutoModel.from_config(BERT.hf)
    model = keras.Model(tensors, keras.layers.Dense(5)(body(tensors)["pooler_output"]))
    inputs = {name: BERT.inputs()[name] for name in names}
    assert model(inputs).shape == (3, 5)
    assert len(model.trainable_weights) == len(tfnlp.parameter_tree(body)) + 2


def test_layer_paths_are_those_of_the_parameter_tree():
    model = new()
    paths = {layer.path for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense)}
    assert f"{model.name}/encoder/layer_0/attention/query" in paths
    assert keras.models.clone_model(model).config == model.config


@pytest.mark.parametrize("path", ["m.h5", "m.hdf5", "M.H5", "folder", "m.ckpt"])
def test_files_that_do_not_hold_a_model_are_refused(tmp_path, path):
    model = new()
    for name, save in {"model": model.save, "distiller": Distiller(student=model, teacher=new()).save}.items():
        with pytest.raises(InputError, match=r"use model\.save\('model\.keras'\), model\.save_pretrained"):
            save(tmp_path / path)
        assert not any(tmp_path.iterdir()), name


def test_a_checkpoint_that_cannot_be_saved_is_refused_before_training(tmp_path):
    model = new()
    model.compile("sgd")
    with pytest.raises(InputError, match="cannot save a model to"):
        model.fit(BERT.inputs(), callbacks=[keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.h5"))], verbose=0)
    assert int(model.optimizer.iterations) == 0 and not any(tmp_path.iterdir())


def test_every_other_way_of_keras_to_save_loads_again(tmp_path):
    model, fresh, inputs = new(seed=1), new(seed=2), inputs_of(BERT)
    expected = model(inputs)["logits"]
    model.save(tmp_path / "folder", zipped=False)
    keras.saving.save_model(model, tmp_path / "m.keras")
    keras.saving.save_model(model, tmp_path / "m.h5")  # a function of Keras, so nothing of ours can refuse
    for saved in ("folder", "m.keras", "m.h5"):
        np.testing.assert_array_equal(keras.saving.load_model(tmp_path / saved)(inputs)["logits"], expected)
    for name, options in (("m.weights.h5", {}), ("m.weights.json", {"max_shard_size": 1e-5})):
        model.save_weights(tmp_path / name, **options)
        fresh = new(seed=2)
        fresh.load_weights(tmp_path / name)
        np.testing.assert_array_equal(fresh(inputs)["logits"], expected)
    with pytest.raises(ValueError, match=r"must end in `\.weights\.h5`"):
        model.save_weights(tmp_path / "w.h5")
    for name in ("served.h5", "served.keras"):
        with pytest.raises(InputError, match="export writes a folder"):
            model.export(tmp_path / name)
    assert not any((tmp_path / name).exists() for name in ("w.h5", "served.h5", "served.keras"))


def test_rag_scores_answers_with_the_layers_it_has_now():
    model, data = rag.load("tfnlp", "RagSequence"), rag.inputs()
    batch = {**rag.context(data), "doc_scores": rag.SCORES, "labels": data["labels"]}
    before = model.score_answers(batch)
    query = model.generator.decoder.layer_0.attention.query
    query.enable_lora(2)
    query.lora_kernel_b.assign(np.full(query.lora_kernel_b.shape, 0.3))
    expected = model(batch, exclude_bos_score=True)["nll"]
    assert difference(model.score_answers(batch), expected) < 1e-5 < difference(before, expected)
    with pytest.raises(InputError, match="unknown input 'documents'"):
        model({**batch, "documents": rag.SCORES})
