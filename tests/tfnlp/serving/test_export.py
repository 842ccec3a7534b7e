"""Exported pipelines take texts, need no duonlp, and return what the pipelines return."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import tfnlp
from duonlp.errors import InputError
from duonlp.util.tokenization import tokenize
from tests.augmentation import TEXTS
from tests.graph_tokenizers import bert, gpt2, roberta, t5

pytest.importorskip("tensorflow_text")

from tfnlp.serving import export_pipeline
from tfnlp.text import TextTokenizer

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 70,
}  # fmt: skip
SAMPLES = [*TEXTS, "<mask> it's \u6771\u4eac, na\u00efve!", "x"]

SERVE = """
import json, sys
for name in ("duonlp", "tfnlp", "transformers", "tokenizers"):
    sys.modules[name] = None
import tensorflow as tf, tensorflow_text
served = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
outputs = served(**{name: tf.constant(texts) for name, texts in json.loads(sys.argv[2]).items()})
decode = lambda x: [decode(y) for y in x] if isinstance(x, list) else x.decode() if isinstance(x, bytes) else x
print(json.dumps({name: decode(value.numpy().tolist()) for name, value in outputs.items()}))
"""


def model_of(auto, tokenizer, **options):
    hf = {"model_type": "bert", "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id} | SIZES
    model = auto.from_config(hf, **options)
    for variable in model.variables:  # large weights, so that results differ from text to text
        variable.assign(variable * 8 if "kernel" in variable.path else variable)
    return model


def load(folder):
    return tf.saved_model.load(str(folder)).signatures["serving_default"]


def test_texts_are_classified_in_a_process_without_duonlp(tmp_path):
    model = model_of(tfnlp.AutoModelForSequenceClassification, bert(), num_labels=3)
    options = {"tokenizer": bert(), "truncation": True}
    export_pipeline("text-classification", model, tmp_path / "served", **options)
    inputs = json.dumps({"text": SAMPLES})
    done = subprocess.run(
        [sys.executable, "-P", "-c", SERVE, str(tmp_path / "served"), inputs],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result, expected = json.loads(done.stdout), tfnlp.pipeline("text-classification", model, **options)(SAMPLES)
    assert result["label"] == [row["label"] for row in expected]
    np.testing.assert_allclose(result["score"], [row["score"] for row in expected], atol=1e-5)
    assert_ops_are_served(tmp_path / "served")


TEXT_OPS = {"RegexSplitWithOffsets", "WordpieceTokenizeWithOffsets"}
"""Operations of tensorflow-text that are in TensorFlow Serving: SUPPORTED_TENSORFLOW_OPS of its model_servers/BUILD links the
target ops_lib of tensorflow-text, which has regex_split_ops_cc and wordpiece_tokenizer_cc."""


def assert_ops_are_served(folder):
    """Check that all operations are TensorFlow's own or among TEXT_OPS."""
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.framework import op_def_registry

    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    ops = {node.op for node in graph.node} | {
        node.op for function in graph.library.function for node in function.node_def
    }
    script = "import sys, tensorflow as tf; from tensorflow.python.framework import op_def_registry as r\n"
    script += "print(*[op for op in sys.argv[1:] if r.get(op) is None])"
    others = subprocess.run(
        [sys.executable, "-c", script, *ops], capture_output=True, text=True, check=True
    ).stdout.split()
    functions = {function.signature.name for function in graph.library.function}
    assert set(others) - functions <= TEXT_OPS
    assert op_def_registry.get("Add") is not None


@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_entities_are_those_of_the_pipeline(tmp_path, strategy):
    labels = {"id2label": {0: "O", 1: "B-A", 2: "I-A", 3: "B-C"}}
    model = model_of(tfnlp.AutoModelForTokenClassification, bert(), **labels)
    options = {"tokenizer": bert(), "aggregation_strategy": strategy}
    export_pipeline("token-classification", model, tmp_path, **options)
    result = {name: value.numpy() for name, value in load(tmp_path)(text=tf.constant(SAMPLES)).items()}
    expected = tfnlp.pipeline("token-classification", model, **options)(SAMPLES)
    assert result["count"].tolist() == [len(row) for row in expected] and result["count"].any()
    for i, row in enumerate(expected):
        for j, entity in enumerate(row):
            for name, value in entity.items():
                found = result[name][i, j]
                if isinstance(value, float):
                    np.testing.assert_allclose(found, value, atol=1e-5)
                else:
                    assert (found.decode() if isinstance(found, bytes) else found) == value, (name, entity)


@pytest.mark.parametrize(("hf", "impossible"), [(bert, True), (roberta, False)], ids=["wordpiece", "bytes"])
def test_answers_are_those_of_the_pipeline(tmp_path, hf, impossible):
    model = model_of(tfnlp.AutoModelForQuestionAnswering, hf())
    options = {
        "tokenizer": hf(), "max_seq_len": 48, "doc_stride": 12, "handle_impossible_answer": impossible, "max_answer_len": 7,
    }  # fmt: skip
    export_pipeline("question-answering", model, tmp_path, **options)
    questions, contexts = ["the film?", "who is it", "a"], [" ".join(TEXTS), "It's na\u00efve \u6771\u4eac.", TEXTS[2]]
    result = load(tmp_path)(question=tf.constant(questions), context=tf.constant(contexts))
    expected = tfnlp.pipeline("question-answering", model, **options)(question=questions, context=contexts)
    for i, answer in enumerate(expected):
        assert result["answer"][i].numpy().decode() == answer["answer"]
        assert (result["start"][i], result["end"][i]) == (answer["start"], answer["end"])
        for name in ("score", "logit", "null_gap"):
            np.testing.assert_allclose(result[name][i], answer[name], rtol=1e-4, atol=1e-5)


def test_generated_texts_are_those_of_the_pipeline(tmp_path):
    hf = {
        "model_type": "gpt2", "vocab_size": len(gpt2()), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64,
        "eos_token_id": gpt2().eos_token_id, "pad_token_id": gpt2().pad_token_id,
    }  # fmt: skip
    model = tfnlp.AutoModelForCausalLM.from_config(hf)
    options = {"tokenizer": gpt2(), "max_new_tokens": 8}
    export_pipeline("text-generation", model, tmp_path, batch_size=2, prompt_length=16, **options)
    prompts = ["the film", "it's \u6771\u4eac"]
    result = load(tmp_path)(text=tf.constant(prompts))["generated_text"].numpy()
    expected = tfnlp.pipeline("text-generation", model, **options)(prompts)
    assert [text.decode() for text in result] == [row[0]["generated_text"] for row in expected]


def test_a_layer_tokenizes_a_dataset():
    layer = TextTokenizer(bert(), max_length=12, pad_to_max_length=True)
    (inputs,) = tf.data.Dataset.from_tensor_slices(SAMPLES).batch(len(SAMPLES)).map(layer)
    expected = tokenize(bert(), SAMPLES, max_length=12, truncation=True, padding="max_length", return_tensors="np")
    assert inputs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(inputs[name], value)


def test_what_cannot_be_exported_is_refused(tmp_path):
    model = model_of(tfnlp.AutoModelForSequenceClassification, t5(), num_labels=3)
    with pytest.raises(InputError, match="'fill-mask' has no endpoint"):
        export_pipeline("fill-mask", model, tmp_path / "served", tokenizer=t5())
    with pytest.raises(InputError, match="drop the ending"):
        export_pipeline("text-classification", model, tmp_path / "served.keras", tokenizer=t5())
    assert not (tmp_path / "served").exists()
