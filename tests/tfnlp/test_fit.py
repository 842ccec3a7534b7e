"""Training with compile and fit: labels as y or inside the inputs, the head's own loss or Keras' losses and metrics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnlp
from duonlp.errors import InputError
from tests.cases import cases

BERT, TOKENS, SPANS, GPT2 = (
    next(c for c in cases() if c.name == name)
    for name in (
        "bert-sequence-classification", "bert-token-classification", "bert-question-answering", "gpt2-causal-lm",
    )
)  # fmt: skip
SMALL = {"num_hidden_layers": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NO_DROPOUT = {"n_layer": 1, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def sparse_cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def classifier():
    return tfnlp.AutoModelForSequenceClassification.from_config(BERT.hf | SMALL, initializer_range=0.2)


@pytest.fixture(scope="module")
def batch():
    """A learnable task: whether the first id is below 30."""
    ids = np.random.default_rng(0).integers(5, 55, (16, 6)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[::2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}, (ids[:, 0] < 30).astype(np.int32)


def test_compile_without_a_loss_trains_with_the_heads_own(classifier, batch):
    x, y = batch
    classifier.compile(keras.optimizers.Adam(1e-2))
    own = float(classifier(**x, labels=y)["loss"])
    assert classifier.evaluate(x, y, batch_size=16, verbose=0) == pytest.approx(own, rel=1e-5)
    assert classifier.evaluate(x | {"labels": y}, batch_size=16, verbose=0) == pytest.approx(own, rel=1e-5)
    losses = classifier.fit(x, y, epochs=12, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2
    predicted = classifier.predict(x | {"labels": y}, verbose=0)
    assert set(predicted) == {"logits"} and predicted["logits"].shape == (16, 3)
    np.testing.assert_array_equal(predicted["logits"].argmax(-1), y)


def test_keras_losses_and_metrics_see_the_logits(classifier, batch):
    x, y = batch
    classifier.compile(keras.optimizers.Adam(1e-2), loss=sparse_cross_entropy(), metrics=["accuracy"])
    out = classifier(**x, labels=y)
    loss, accuracy = classifier.evaluate(x, y, batch_size=16, verbose=0)
    assert loss == pytest.approx(float(out["loss"]), rel=1e-5)
    assert accuracy == pytest.approx(float((out["logits"].numpy().argmax(-1) == y).mean()))
    rows = tf.data.Dataset.from_tensor_slices(x | {"labels": y}).batch(16)
    assert classifier.fit(rows, epochs=12, shuffle=False, verbose=0).history["accuracy"][-1] == 1.0


def test_sample_weights_apply_to_both_losses(classifier, batch):
    x, y = batch
    weights = np.arange(16, dtype=np.float32)
    row_losses = keras.losses.sparse_categorical_crossentropy(y, classifier(x)["logits"], from_logits=True).numpy()
    for loss in (None, sparse_cross_entropy()):
        classifier.compile("sgd", loss=loss)
        loss_value = classifier.evaluate(x, y, sample_weight=weights, batch_size=16, verbose=0)
        assert loss_value == pytest.approx((row_losses * weights).mean(), rel=1e-5)


def test_ignored_labels_do_not_count_in_losses_and_metrics():
    model = tfnlp.AutoModelForTokenClassification.from_config(TOKENS.hf | SMALL)
    inputs = TOKENS.inputs()
    labels = inputs.pop("labels")
    counted = labels != -100
    assert 0 < counted.sum() < labels.size
    hits = model(**inputs)["logits"].numpy().argmax(-1) == labels
    model.compile("sgd", loss=sparse_cross_entropy(), metrics=["accuracy"])
    loss, accuracy = model.evaluate(inputs, labels, batch_size=3, verbose=0)
    assert loss == pytest.approx(float(model(**inputs, labels=labels)["loss"]), rel=1e-5)
    assert accuracy == pytest.approx(hits[counted].mean())


def test_two_outputs_take_a_dict(batch):
    x, y = batch
    model = tfnlp.AutoModelForQuestionAnswering.from_config(SPANS.hf | SMALL)
    spans = {"start_positions": y, "end_positions": y + 1}
    model.compile("sgd")
    own = model.evaluate(x, spans, batch_size=16, verbose=0)
    model.compile("sgd", loss=sparse_cross_entropy(), metrics={"start_logits": "accuracy"})
    both = model.evaluate(x | spans, batch_size=16, verbose=0, return_dict=True)
    assert both["loss"] == pytest.approx(2 * own, rel=1e-5)
    assert "start_logits_accuracy" in both
    with pytest.raises(InputError, match="a dict with start_positions, end_positions"):
        model.evaluate(x, y, verbose=0)


def test_a_causal_language_model_shifts_its_labels_for_every_loss():
    model = tfnlp.AutoModelForCausalLM.from_config(GPT2.hf | NO_DROPOUT)
    ids = np.random.default_rng(0).integers(0, 58, (4, 7)).astype(np.int32)
    expected = float(model(ids, labels=ids)["loss"])
    for loss in (None, sparse_cross_entropy()):
        model.compile("sgd", loss=loss)
        assert model.evaluate({"input_ids": ids}, ids, verbose=0) == pytest.approx(expected, rel=1e-5)


def test_missing_labels_are_refused(classifier, batch):
    classifier.compile("sgd")
    with pytest.raises(InputError, match="no labels to learn from"):
        classifier.fit(batch[0], verbose=0)


def test_the_padding_row_gets_no_gradient_from_the_lookup(classifier):
    ids = np.array([[5, 6, 0, 0], [7, 0, 0, 0]], np.int32)
    table = tfnlp.parameter_tree(classifier)["embeddings/word_embeddings/embedding"]
    with tf.GradientTape() as tape:
        loss = classifier(ids, labels=np.array([0, 1]))["loss"]
    gradient = tf.convert_to_tensor(tape.gradient(loss, table.value)).numpy()
    assert not gradient[0].any() and gradient[5].any() and gradient[7].any()
