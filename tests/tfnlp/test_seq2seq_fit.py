"""fit on an encoder-decoder: where labels may be, label smoothing, evaluation by generation, saving the best model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnlp
from duonlp.errors import InputError
from tests.pairs import T5, pair_batches, share_of_words, tokenizer
from tfnlp.losses import IGNORED, SmoothedCrossEntropy, cross_entropy
from tfnlp.training import GenerationEvaluation, SaveBest, Schedule, batch_dataset, make_optimizer


def model_of(**changes):
    return tfnlp.AutoModelForSeq2SeqLM.from_config(T5 | changes, seed=1)


def compiled(loss=None, eagerly=False):
    model = model_of()
    optimizer = make_optimizer("adamw", 3e-2, model, beta2=0.999)
    model.compile(optimizer, loss=loss, jit_compile=False, run_eagerly=eagerly)  # a few steps cost less than a graph
    return model


@pytest.fixture(scope="module")
def batch():
    return next(pair_batches(8).epoch(0))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_smoothing_matches_cross_entropy_with_explicit_targets(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = tf.constant(rng.normal(size=(3, 4, 7)), tf.float32), rng.integers(0, 7, (3, 4)).astype(np.int32)
    labels[0, 1:] = labels[2, 3] = IGNORED
    targets = keras.ops.one_hot(np.where(labels == IGNORED, 0, labels), 7) * (1 - smoothing) + smoothing / 7
    token_losses = -tf.reduce_sum(targets * tf.nn.log_softmax(logits), axis=-1)
    expected = token_losses.numpy()[labels != IGNORED].mean()
    assert float(cross_entropy(logits, labels, label_smoothing=smoothing)) == pytest.approx(expected, rel=1e-6)
    assert SmoothedCrossEntropy(smoothing)(labels, logits).numpy() * labels.size == pytest.approx(
        expected * (labels != IGNORED).sum(), rel=1e-6
    )
    again = keras.losses.deserialize(keras.losses.serialize(SmoothedCrossEntropy(smoothing)))
    assert again.label_smoothing == smoothing


def test_labels_may_be_y_or_inputs(batch):
    model = compiled(eagerly=True)
    expected = float(model(**batch)["loss"])
    inputs = {name: value for name, value in batch.items() if name in ("input_ids", "attention_mask")}
    labels = batch["labels"]
    for x, y in (
        (batch, None), (inputs | {"labels": labels}, None), (inputs, labels), (inputs, {"logits": labels}),
        (inputs | {"decoder_input_ids": batch["decoder_input_ids"]}, labels),
    ):  # fmt: skip
        assert model.evaluate(x, y, batch_size=8, verbose=0) == pytest.approx(expected, rel=1e-5)
    predicted = model.predict(inputs | {"labels": labels}, batch_size=8, verbose=0)["logits"]
    np.testing.assert_allclose(predicted, model(**batch)["logits"], atol=1e-5)
    assert model.fit(inputs, labels, batch_size=8, verbose=0).history["loss"] == pytest.approx([expected], rel=1e-5)


def test_the_smoothed_loss_skips_ignored_labels(batch):
    labels = np.where(np.arange(batch["labels"].shape[1]) < 2, batch["labels"], IGNORED).astype(np.int32)
    labels[3:] = IGNORED
    model = compiled(SmoothedCrossEntropy(0.1), eagerly=True)
    logits = model(**batch)["logits"]
    expected = float(cross_entropy(logits, labels, label_smoothing=0.1))
    assert model.evaluate(batch | {"labels": labels}, batch_size=8, verbose=0) == pytest.approx(expected, rel=1e-5)


def test_labels_as_y_work_under_a_strategy(batch):
    """There, Keras builds losses and metrics with an averaged batch of its own."""
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        model = compiled(SmoothedCrossEntropy(0.1))
    x = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = float(cross_entropy(model(**batch)["logits"], batch["labels"], label_smoothing=0.1))
    assert model.evaluate(x, batch["labels"], batch_size=8, verbose=0) == pytest.approx(expected, rel=1e-5)


def test_the_dataset_keeps_the_order_of_the_epochs():
    batches = pair_batches(20)
    rows = list(batch_dataset(batches, epochs=2, first_epoch=1))
    expected = [batch for epoch in (1, 2) for batch in batches.epoch(epoch)]
    assert len(rows) == len(expected) == int(batch_dataset(batches, epochs=2).cardinality())
    for ours, theirs in zip(rows, expected, strict=True):
        assert set(ours) == set(theirs)
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.representative
def test_generated_texts_are_scored_and_the_best_model_is_saved(tmp_path):
    model, validation = compiled(), pair_batches(8, shuffle=False)
    evaluation = GenerationEvaluation(validation, tokenizer(), share_of_words, max_new_tokens=4)
    best = SaveBest(tmp_path / "best", "val_words", tokenizer=tokenizer())
    stopping = keras.callbacks.EarlyStopping("val_words", mode="max", patience=2)
    history = model.fit(
        batch_dataset(pair_batches(), epochs=12), epochs=12, steps_per_epoch=3, shuffle=False, verbose=0,
        validation_data=batch_dataset(validation), callbacks=[evaluation, best, stopping],
    ).history  # fmt: skip
    assert len(history["val_words"]) == len(history["val_loss"]) == len(evaluation.history) <= 12
    assert best.best.value == max(history["val_words"]) > 0.4
    assert best.best.step == 3 * (1 + int(np.argmax(history["val_words"])))
    loaded = tfnlp.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "best")
    assert evaluation.scorer(loaded)["words"] == best.best.value
    assert evaluation.scorer.references == [list(several) for several in validation.references]
    assert (tmp_path / "best" / "tokenizer.json").exists()


def test_evaluation_every_two_batches(tmp_path):
    model, scores = compiled(), iter([0.0, 0.1, 0.9, 0.3])  # the first is the dry run before training
    evaluation = GenerationEvaluation(
        pair_batches(8), tokenizer(), lambda *_: {"score": next(scores)}, every=2, most_batches=1, max_new_tokens=2
    )
    best = SaveBest(tmp_path / "best", "val_score")
    history = model.fit(
        batch_dataset(pair_batches(), epochs=2),
        epochs=2,
        steps_per_epoch=3,
        shuffle=False,
        verbose=0,
        callbacks=[evaluation, best],
    ).history
    assert [record["step"] for record in evaluation.history] == [2, 4, 6]
    assert history["val_score"] == [0.1, 0.3] and (best.best.value, best.best.step) == (0.9, 4)


def test_scores_never_replace_other_logs():
    model, validation = compiled(), pair_batches(8, shuffle=False)

    def fit(*metrics, **options):
        evaluations = [
            GenerationEvaluation(validation, tokenizer(), metric, most_batches=1, max_new_tokens=2, **options)
            for metric in metrics
        ]
        data = batch_dataset(pair_batches(), epochs=1)
        model.fit(
            data,
            epochs=1,
            steps_per_epoch=1,
            shuffle=False,
            verbose=0,
            validation_data=data.take(1),
            callbacks=evaluations,
        )

    for name, prefix in (("loss", "val_"), ("loss", ""), ("val_loss", "")):
        with pytest.raises(InputError, match="another prefix"):  # before training
            fit(lambda *_, name=name: {name: 9.0}, prefix=prefix)
    assert int(model.step.numpy()) == 0
    with pytest.raises(InputError, match="val_words have names that the logs have already"):
        fit(lambda *_: {"words": 1.0}, lambda *_: {"words": 2.0})
    with pytest.raises(InputError, match="'generated_length'; rename"):
        fit(lambda *_: {"generated_length": 1.0})


def test_a_schedule_counts_steps_instead_of_batches():
    model = model_of()
    rate = Schedule(4, 1.0, schedule="linear", warmup_share=0.0, final_share=0.0)
    optimizer = make_optimizer("adafactor", rate, model, accumulation=3)
    assert optimizer.gradient_accumulation_steps == 3
    rates = [float(optimizer._learning_rate(tf.constant(i))) for i in range(12)]
    np.testing.assert_allclose(rates, np.repeat(rate.rates, 3))


def test_usage_errors(tmp_path, batch):
    classifier = tfnlp.AutoModelForSequenceClassification.from_config(
        {"model_type": "bert", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
         "intermediate_size": 8, "max_position_embeddings": 16},
    )  # fmt: skip
    evaluation = GenerationEvaluation([batch], tokenizer(), share_of_words)
    for call, message in {
        lambda: evaluation.scorer(classifier): "needs the seq2seq-lm head, not sequence-classification",
        lambda: GenerationEvaluation([], tokenizer(), share_of_words).scorer(
            model_of()
        ): "there are no validation batches",
        lambda: GenerationEvaluation([batch], tokenizer(), share_of_words, every=-1): "every is -1",
        lambda: SaveBest(tmp_path, mode="highest"): "mode is 'highest'",
        lambda: batch_dataset([]): "there are no batches",
        lambda: batch_dataset([batch], epochs=0): "epochs is 0",
        lambda: SmoothedCrossEntropy(1.0): "label_smoothing is 1.0",
        lambda: make_optimizer("adamw", 1e-3, classifier, accumulation=0): "accumulation is 0",
    }.items():
        with pytest.raises(InputError, match=message):
            call()
    with pytest.warns(UserWarning, match="the logs have no 'val_loss', only loss"):
        model = compiled(eagerly=True)
        model.fit(batch, batch_size=8, verbose=0, callbacks=[SaveBest(tmp_path / "best")])
    assert not (tmp_path / "best").exists()
