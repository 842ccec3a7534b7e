"""Training readers in both engines on the same windows gives the same losses, answers and gaps."""

import jax
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxnlp
import jaxnlp.training
import tfnlp
import tfnlp.training
from duonlp.evaluation import predict_answers
from duonlp.training.fit_config import FitConfig
from duonlp.training.log.metrics_file import read_metrics
from tests.duonlp.data.test_question_batches import word_tokenizer
from tests.question_windows import BERT, OPTIONS, question_batches, questions


def test_the_curves_and_the_answers_agree(tmp_path):
    config = FitConfig(steps=10, learning_rate=0.01, log_every=1)
    losses, trained = {}, {}
    for name, package, more in (
        ("jax", jaxnlp, {"mesh": jaxnlp.training.make_mesh({}, jax.devices()[:1])}),
        ("tf", tfnlp, {"jit_compile": False}),
    ):
        model = package.heads.HEADS["question-answering"].from_config(BERT, seed=1)
        result = package.training.fit(
            model, question_batches(), config, tmp_path / name, log={"console": False}, **more
        )
        losses[name] = [record["loss"] for record in read_metrics(tmp_path / name) if record["kind"] == "step"]
        pipe = package.pipeline("question-answering", result.model, tokenizer=word_tokenizer(), batch_size=4, **OPTIONS)
        trained[name] = predict_answers(pipe, questions(8, seed=2))
    assert losses["jax"][-1] < 0.8 * losses["jax"][0] and len(losses["jax"]) == 10
    np.testing.assert_allclose(losses["tf"], losses["jax"], rtol=0, atol=1e-4)
    assert trained["tf"][0] == trained["jax"][0]
    gaps = [list(gaps.values()) for _, gaps in trained.values()]
    np.testing.assert_allclose(*gaps, atol=1e-2)
