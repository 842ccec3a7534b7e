"""Fine-tuning a reader on windows in Flax: it learns, its answers are scored, and filling rows do not count."""

import jax
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxnlp
from duonlp.evaluation import ReaderScorer
from duonlp.heads import NO_POSITION
from duonlp.training.log.metrics_file import read_metrics
from jaxnlp.training import FitConfig, fit, make_mesh
from tests.duonlp.data.test_question_batches import word_tokenizer
from tests.question_windows import BERT, OPTIONS, question_batches, questions


def reader():
    return jaxnlp.heads.HEADS["question-answering"].from_config(BERT, seed=1)


def test_a_reader_learns_and_its_answers_are_scored(tmp_path):
    mesh = make_mesh({}, jax.devices()[:1])
    settings = {"learning_rate": 0.02, "best_metric": "f1", "evaluate_every": 12, "log_every": 1}
    scorer = ReaderScorer(jaxnlp.pipeline, questions(9, seed=1), word_tokenizer(), batch_size=8, **OPTIONS)
    options = {"mesh": mesh, "evaluate": scorer, "log": {"console": False}}
    batches = question_batches()
    result = fit(reader(), batches, FitConfig(epochs=6, **settings), tmp_path / "whole", **options)
    last = result.history[-1]
    assert (
        last["HasAns_f1"] > 20 and last["best_f1"] >= last["f1"] and set(scorer.answers) == {f"q{i}" for i in range(9)}
    )
    assert result.best is not None and result.best["value"] == max(scores["f1"] for scores in result.history)
    losses = [record["loss"] for record in read_metrics(tmp_path / "whole") if record["kind"] == "step"]
    assert len(losses) == 6 * len(batches) and losses[-1] < 0.5 * losses[0]


def test_rows_that_fill_up_a_batch_do_not_count():
    model = reader()
    batch = list(question_batches(shuffle=False).epoch(0))[-1]
    real = batch["start_positions"] != NO_POSITION
    assert 0 < real.sum() < len(real)
    whole, part = (
        float(model(**rows)["loss"]) for rows in (batch, {name: value[real] for name, value in batch.items()})
    )
    assert whole == pytest.approx(part, rel=1e-6) and np.isfinite(whole)
