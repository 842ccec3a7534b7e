"""Pretraining with two models: ELECTRA's generator and discriminator, and distillation on blocks (DistilBERT)."""

import numpy as np
import pytest

import tfnlp
from duonlp.data.blocks.batches import Batches, held_out_batches
from duonlp.errors import InputError
from duonlp.heads import IGNORED
from duonlp.training.replaced_tokens import ReplacedTokens
from tfnlp.training import BackupAndRestore, Pretrainer, ReplacedTokensPretrainer, block_dataset, make_optimizer
from tfnlp.training.backups import training_variables

ROWS, LENGTH = 8, 16
ELECTRA = {
    "model_type": "electra", "vocab_size": 32, "embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": LENGTH, "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("eagerly")


class Blocks:
    """Blocks in memory: each token is the one before plus a stride that depends on the block."""

    def __len__(self):
        return 64

    def read(self, indices):
        indices = np.asarray(indices)[:, None]
        return {"input_ids": ((indices + np.arange(LENGTH) * (1 + indices % 3)) % 32).astype(np.int32)}


def mask(input_ids, segment_ids, positions, seed):
    """Mask a third of the tokens, chosen by their place in the stream, with id 1."""
    draws = [np.random.default_rng([seed, int(position)]).random(input_ids.shape[1]) for position in positions]
    masked = np.array(draws) < 1 / 3
    labels = np.where(masked, input_ids, IGNORED).astype(np.int32)
    return {"input_ids": np.where(masked, 1, input_ids).astype(np.int32), "labels": labels}


def data(**options):
    return block_dataset(Batches(Blocks(), mask, ROWS), **options)


def trainer(accumulation=1):
    """Return a compiled pair: a discriminator, and a generator of half its width."""
    discriminator = tfnlp.heads.HEADS["replaced-token-detection"].from_config(ELECTRA, seed=1)
    generator = tfnlp.AutoModelForMaskedLM.from_config(ELECTRA | {"hidden_size": 8}, seed=2)
    settings = ReplacedTokens(discriminator_weight=5.0)
    pair = ReplacedTokensPretrainer(discriminator, generator, settings, accumulation=accumulation)
    pair.compile(make_optimizer("adamw", 1e-2, discriminator), jit_compile=False)
    return pair


def test_microbatches_change_nothing(compiled):
    expected = trainer().fit(data(steps=3), verbose=0).history
    split = trainer(accumulation=2).fit(data(steps=3), verbose=0).history
    assert split == {name: pytest.approx(values, rel=1e-4) for name, values in expected.items()}
    assert set(expected) == {"loss", "step_loss", "generator_loss", "discriminator_loss"}
    loss = expected["generator_loss"][0] + 5.0 * expected["discriminator_loss"][0]
    assert expected["loss"][0] == pytest.approx(loss, rel=1e-5)


def test_rows_that_fill_up_the_last_batch_do_not_count():
    """64 blocks in batches of 8, and of 24, of which the last has 8 filling rows."""
    losses = [
        trainer().evaluate(block_dataset(held_out_batches(Blocks(), mask, rows)), return_dict=True, verbose=0)
        for rows in (8, 24)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_both_models_learn_and_share_embeddings(tmp_path, compiled):
    pair = trainer()
    own = pair.generator.encoder.layer_0.attention.query.kernel
    assert pair.generator.embeddings.word_embeddings is pair.model.embeddings.word_embeddings
    variables = pair.trainable_variables
    assert len({id(variable) for variable in variables}) == len(variables) and any(v is own for v in variables)
    start = pair.evaluate(data(steps=2, start=90), return_dict=True, verbose=0)
    pair.fit(data(steps=40), verbose=0)
    end = pair.evaluate(data(steps=2, start=90), return_dict=True, verbose=0)
    assert end["generator_loss"] < start["generator_loss"] and end["discriminator_loss"] < start["discriminator_loss"]
    for model, name in ((pair.model, "discriminator"), (pair.generator, "generator")):
        model.save_pretrained(tmp_path / name)
        loaded = type(model).from_pretrained(tmp_path / name)
        ids = np.arange(LENGTH)[None]
        np.testing.assert_allclose(loaded(ids)["logits"], model(ids)["logits"], rtol=1e-4, atol=1e-5)


def test_a_run_resumes_bit_identically(tmp_path, compiled):
    whole, first, second = (trainer() for _ in range(3))
    whole.fit(data(), steps_per_epoch=3, epochs=2, verbose=0)
    first.fit(data(), steps_per_epoch=3, epochs=1, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    second.fit(data(), steps_per_epoch=3, epochs=2, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    expected, actual = (training_variables(pair) for pair in (whole, second))
    for name, variable in expected.items():
        np.testing.assert_array_equal(actual[name].numpy(), variable.numpy(), err_msg=name)


def test_pretraining_by_distillation(compiled):
    bert = {
        "model_type": "bert", "vocab_size": 32, "max_position_embeddings": LENGTH, "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.3,
    }  # fmt: skip
    teacher, student = (tfnlp.AutoModelForMaskedLM.from_config(bert, seed=seed) for seed in (1, 2))
    distiller = tfnlp.Distiller(student, teacher)
    distiller.compile(make_optimizer("adamw", 1e-2, student))
    history = distiller.fit(data(), steps_per_epoch=4, epochs=2, verbose=0).history
    assert history["distillation_loss"][1] < history["distillation_loss"][0]
    gpt2 = {"model_type": "gpt2", "vocab_size": 32, "n_positions": LENGTH, "n_embd": 16, "n_layer": 1, "n_head": 2}
    causal = [tfnlp.AutoModelForCausalLM.from_config(gpt2, seed=seed) for seed in (1, 2)]
    distiller = tfnlp.Distiller(*causal)
    distiller.compile("adamw")
    with pytest.raises(InputError, match="the labels of blocks are shifted already"):
        distiller.fit(data(), steps_per_epoch=1, verbose=0)


def test_usage_errors():
    discriminator = tfnlp.heads.HEADS["replaced-token-detection"].from_config(ELECTRA)
    generator = tfnlp.AutoModelForMaskedLM.from_config(ELECTRA | {"embedding_size": 12})
    with pytest.raises(InputError, match="embeddings/word_embeddings/embedding differ"):
        ReplacedTokensPretrainer(discriminator, generator)
    with pytest.raises(InputError, match="have the heads"):
        ReplacedTokensPretrainer(generator, discriminator)
    separate = ReplacedTokensPretrainer(discriminator, generator, ReplacedTokens(share_embeddings=False))
    assert isinstance(separate, Pretrainer)
    assert separate.generator.embeddings.word_embeddings is not discriminator.embeddings.word_embeddings
