"""Fine-tuning a reader on windows in Keras: fit, plain model.fit, rows that do not count, and scores of its answers."""

import keras
import numpy as np
import pytest

import tfnlp
from duonlp.evaluation import ReaderScorer
from duonlp.heads import NO_POSITION
from tests.duonlp.data.test_question_batches import word_tokenizer
from tests.question_windows import BERT, OPTIONS, question_batches, questions
from tfnlp.training import FitConfig, batch_dataset, fit

pytestmark = pytest.mark.usefixtures("eagerly")


def reader():
    return tfnlp.heads.HEADS["question-answering"].from_config(BERT, seed=1)


def test_a_reader_learns_and_its_answers_are_scored():
    config = FitConfig(epochs=6, learning_rate=0.02, best_metric="f1", evaluate_every=12)
    scorer = ReaderScorer(tfnlp.pipeline, questions(9, seed=1), word_tokenizer(), batch_size=8, **OPTIONS)
    validation = question_batches(9, seed=1, shuffle=False)
    result = fit(
        reader(),
        question_batches(),
        config,
        validation=validation,
        evaluate=scorer,
        log={"console": False},
        jit_compile=False,
    )
    first, last = result.history[0], result.history[-1]
    assert last["loss"] < first["loss"] and last["HasAns_f1"] > 20 and {"best_f1", "NoAns_exact"} <= set(last)
    assert set(scorer.answers) == {f"q{i}" for i in range(9)}


def test_plain_keras_trains_on_the_batches():
    model = reader()
    model.compile(keras.optimizers.Adam(0.02))
    dataset = batch_dataset(question_batches(), epochs=4)
    history = model.fit(dataset, verbose=0, shuffle=False, epochs=4, steps_per_epoch=4).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]


def test_rows_that_fill_up_a_batch_do_not_count():
    model = reader()
    batch = list(question_batches(shuffle=False).epoch(0))[-1]
    real = batch["start_positions"] != NO_POSITION
    assert 0 < real.sum() < len(real)
    whole, part = (
        float(model(**rows)["loss"]) for rows in (batch, {name: value[real] for name, value in batch.items()})
    )
    assert whole == pytest.approx(part, rel=1e-6) and np.isfinite(whole)
