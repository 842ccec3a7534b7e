"""Pretraining of encoder-decoders: accumulation, the model's own loss, and sources and targets of different lengths."""

import numpy as np
import pytest

import tfnlp
from duonlp.data.blocks.batches import Batches, held_out_batches
from duonlp.data.objectives.language_modelling import CausalLM
from duonlp.data.objectives.language_modelling import objective as make_objective
from duonlp.errors import InputError
from duonlp.training.log.metrics_file import read_metrics
from tests.duonlp.data.objective_blocks import FIRST, SIZE, tokenizer
from tfnlp.training import Pretrainer, PretrainingLog, block_dataset, make_optimizer

LENGTH = 24
T5 = {
    "model_type": "t5", "vocab_size": SIZE, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 2,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0,
}  # fmt: skip


class Words:
    """Blocks of words, each the word before plus a step that depends on the block's number."""

    block_length = LENGTH

    def __len__(self):
        return 20

    def read(self, indices):
        indices = np.asarray(indices)[:, None]
        return {"input_ids": (FIRST + (indices + np.arange(LENGTH) * (1 + indices % 3)) % 32).astype(np.int32)}


def spans(**options):
    return make_objective("span-corruption", tokenizer(), noise_density=0.25, **options)


def batches(objective=None):
    return Batches(Words(), objective or spans(), 8)


def pretrainer(accumulation=1):
    trainer = Pretrainer(tfnlp.AutoModelForSeq2SeqLM.from_config(T5, seed=1), accumulation=accumulation)
    trainer.compile(make_optimizer("adamw", 1e-2, trainer.model, epsilon=1e-6), jit_compile=False)
    return trainer


def test_it_learns_the_same_with_accumulation(tmp_path):
    curves, weights = [], []
    for accumulation in (1, 4):
        trainer = pretrainer(accumulation)
        own = float(trainer.model(**batches()[0])["loss"])
        log = PretrainingLog(tmp_path / f"{accumulation}", log_every=1, console=False)
        trainer.fit(block_dataset(batches()), steps_per_epoch=8, callbacks=[log], verbose=0)
        records = [record for record in read_metrics(tmp_path / f"{accumulation}") if record["kind"] == "step"]
        curves.append([record["loss"] for record in records])
        assert curves[-1][0] == pytest.approx(own, rel=1e-5) and curves[-1][-1] < 0.9 * own
        assert records[-1]["tokens"] == 8 * 8 * LENGTH
        weights.append({path: value.numpy() for path, value in tfnlp.parameter_tree(trainer.model).items()})
    np.testing.assert_allclose(*curves, rtol=1e-5)
    for path, value in weights[0].items():
        np.testing.assert_allclose(weights[1][path], value, rtol=0, atol=1e-5, err_msg=path)
    held_out = held_out_batches(Words(), spans(), 8)  # the last batch has padding rows
    loss, _ = trainer.evaluate(block_dataset(held_out), verbose=0)
    total = count = 0
    for batch in held_out:
        labelled = (batch["labels"] != -100).sum()
        total, count = total + float(trainer.model(**batch)["loss"]) * labelled, count + labelled
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_model_and_objective_must_fit():
    trainer = pretrainer()
    with pytest.raises(InputError, match="head causal-lm; this one's is seq2seq-lm"):
        trainer.fit(block_dataset(batches(CausalLM())), steps_per_epoch=1, verbose=0)
    with pytest.raises(InputError, match=r"begin with 3, .*decoder_start_token_id is 0"):
        trainer.fit(block_dataset(batches(spans(decoder_start_token_id=3))), steps_per_epoch=1, verbose=0)
