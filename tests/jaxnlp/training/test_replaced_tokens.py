"""Pretraining with two models: ELECTRA's generator and discriminator, and distillation on blocks (DistilBERT)."""

import shutil

import jax
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

from duonlp.data.blocks.batches import Batches, held_out_batches
from duonlp.distillation.settings import Distillation, HiddenStates
from duonlp.errors import InputError
from duonlp.heads import IGNORED
from duonlp.training.replaced_tokens import ReplacedTokens
from jaxnlp.distillation.distiller import DistillStep
from jaxnlp.training import LazyModel, ReplacedTokensStep, export, make_mesh, pretrain
from tests.jaxnlp.training.runs import BERT, ROWS, CountingBlocks, settings

ELECTRA = {
    "model_type": "electra", "vocab_size": 32, "embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16, "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


class Masking:
    """Masks a third of the tokens, chosen by their place in the stream, with id 1."""

    name, head = "masking", "masked-lm"

    def __repr__(self):
        return "Masking()"

    def __call__(self, input_ids, segment_ids, positions, seed):
        draws = [np.random.default_rng([seed, int(position)]).random(input_ids.shape[1]) for position in positions]
        masked = np.array(draws) < 1 / 3
        labels = np.where(masked, input_ids, IGNORED).astype(np.int32)
        return {"input_ids": np.where(masked, 1, input_ids).astype(np.int32), "labels": labels}


def batches() -> Batches:
    return Batches(CountingBlocks(), Masking(), ROWS)


def models(**changes) -> tuple[LazyModel, LazyModel]:
    """Return a discriminator and a generator of half its width."""
    narrow = {"hidden_size": 8, "intermediate_size": 16}
    return (
        LazyModel.from_config(ELECTRA | changes, head="replaced-token-detection", seed=1),
        LazyModel.from_config(ELECTRA | narrow, head="masked-lm", seed=2),
    )


def test_rows_that_fill_up_the_last_batch_do_not_count():
    """64 blocks in batches of 8, and of 24 on two devices, of which the last has 8 filling rows."""
    losses = []
    for rows, mesh in ((8, {}), (24, {"data": 2})):
        step = ReplacedTokensStep(
            *models(), settings(mesh=mesh, batch_size=rows), None, make_mesh(mesh, jax.devices()[: 2 if mesh else 1])
        )
        losses.append(step.evaluate(step.init_state()["params"], held_out_batches(CountingBlocks(), Masking(), rows)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def electra(folder=None, steps=12, devices=1, data=None, **changes):
    """Return the result and the step of a run."""
    config = settings(steps=steps, **changes)
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    discriminator, generator = models()
    step = ReplacedTokensStep(discriminator, generator, config, ReplacedTokens(discriminator_weight=5.0), mesh)
    result = pretrain(discriminator, batches(), config, folder, step=step, log={"console": False})
    return result, step


def flat(params) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(k.key for k in keys): np.asarray(leaf) for keys, leaf in leaves}


def test_sharding_accumulation_and_scanning_change_nothing():
    expected, plain = electra()
    options = {"devices": 4, "mesh": {"fsdp": 2, "data": -1}, "accumulation": 2, "scan": True, "remat": "full"}
    sharded, step = electra(**options)
    assert sharded.loss == pytest.approx(expected.loss, rel=1e-5)
    held_out = [batches()[90]]
    assert step.evaluate(sharded.params, held_out) == pytest.approx(plain.evaluate(expected.params, held_out), rel=1e-3)


def test_both_models_learn_and_share_embeddings(tmp_path):
    result, step = electra(tmp_path / "run", steps=60, save_every=30)
    generator = step.generator(result.params)
    words = generator.embeddings.word_embeddings.embedding[...]
    np.testing.assert_array_equal(words, result.params["embeddings"]["word_embeddings"]["embedding"])
    fresh, _ = models()
    assert not np.array_equal(words, fresh.read("embeddings/word_embeddings/embedding"))
    start, end = (step.evaluate(params, [batches()[90]]) for params in (step.init_state()["params"], result.params))
    assert end["generator_loss"] < start["generator_loss"]
    assert end["discriminator_loss"] < start["discriminator_loss"]
    folder = export(tmp_path / "run", tmp_path / "model")
    assert (folder / "model.safetensors").exists()


def test_a_run_resumes_bit_identically(tmp_path):
    expected, _ = electra()
    electra(tmp_path, steps=12, save_every=5)
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    resumed, _ = electra(tmp_path, steps=12, save_every=5)
    assert resumed.loss == expected.loss
    for path, value in flat(expected.params).items():
        np.testing.assert_array_equal(flat(resumed.params)[path], value, err_msg=path)


def test_pretraining_by_distillation():
    teacher = LazyModel.from_config(BERT, head="masked-lm", seed=3)
    student = LazyModel.from_config(BERT | {"num_hidden_layers": 1}, head="masked-lm", seed=4)
    distillation = Distillation(alpha=0.5, losses=(HiddenStates(1.0, "cosine", layers=((-1, -1),)),))
    losses = []
    for devices, options in ((1, {}), (4, {"mesh": {"fsdp": 2, "data": -1}, "scan": True, "remat": "full"})):
        config = settings(steps=10, **options)
        step = DistillStep(student, teacher, config, distillation, make_mesh(config.mesh, jax.devices()[:devices]))
        losses.append(pretrain(student, batches(), config, step=step).loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_usage_errors():
    discriminator, generator = models()
    config = settings()
    with pytest.raises(InputError, match="have the heads"):
        ReplacedTokensStep(generator, discriminator, config)
    with pytest.raises(InputError, match="vocabulary of 40 tokens"):
        ReplacedTokensStep(models(vocab_size=40)[0], generator, config)
    with pytest.raises(InputError, match="embeddings/word_embeddings/embedding differ"):
        ReplacedTokensStep(models(embedding_size=12)[0], generator, config)
