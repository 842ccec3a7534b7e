"""Pretraining encoder-decoders: the curve and dropout do not depend on the layout, and runs resume."""

import jax
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxnlp
from duonlp.data.blocks.batches import Batches, held_out_batches
from duonlp.data.objectives.language_modelling import CausalLM, objective
from duonlp.errors import ConfigError, InputError
from duonlp.training.log.metrics_file import read_metrics
from jaxnlp.training import LazyModel, export, make_mesh, make_step, pretrain
from jaxnlp.training.model import parameter_reader
from tests.duonlp.data.objective_blocks import FIRST, SIZE, tokenizer
from tests.jaxnlp.training.runs import GPT2, ROWS, CountingBlocks, Manifest, curve, settings, summed_loss

LENGTH, STEPS = 24, 8
T5 = {
    "model_type": "t5", "vocab_size": SIZE, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 2,
    "num_heads": 2, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
}  # fmt: skip


class Words(CountingBlocks):
    """Each token is the one before plus a stride that depends on the block."""

    def __init__(self):
        super().__init__(Manifest(block_length=LENGTH), LENGTH)

    def read(self, indices):
        indices = np.asarray(indices)[:, None]
        return {"input_ids": (FIRST + (indices + np.arange(LENGTH) * (1 + indices % 3)) % 32).astype(np.int32)}


def spans(**options):
    return objective("span-corruption", tokenizer(), noise_density=0.25, **options)


def batches(**options):
    return Batches(Words(), spans(), ROWS, **options)


def t5(**changes):
    return LazyModel.from_config(T5 | changes, head="seq2seq-lm", seed=1)


@pytest.fixture(scope="module")
def one_device():
    return curve(t5(), 1, steps=STEPS, objective_batches=batches(), mesh={})


@pytest.mark.parametrize(
    "changes",
    [
        {"parallelism": "pmap"},
        {"mesh": {"data": 2}, "accumulation": 4, "remat": "dots"},
        {"mesh": {"data": 2, "fsdp": 4}, "scan": True},
        {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}, "scan": True, "remat": "full"},
    ],
    ids=["pmap", "data, accumulation", "fsdp, scanned", "tensor, scanned"],
)
def test_the_curve_matches_that_of_one_device(one_device, changes):
    devices = 2 if changes.get("mesh") == {"data": 2} else None
    assert one_device[-1] < 0.9 * one_device[0]
    np.testing.assert_allclose(
        curve(t5(), devices, steps=STEPS, objective_batches=batches(), **changes), one_device, rtol=1e-5
    )


def loss_of(model, key=None, devices=1, gradient=False, **changes):
    """Loss of the first batch with the parameters of the model, and optionally its gradient."""
    step = make_step(model, settings(**changes), make_mesh(changes["mesh"], jax.devices()[:devices]))
    params = step.trainable.parameters(parameter_reader(model), step.shardings["params"])
    loss = lambda params, batch: summed_loss(step)(params, batch, key)  # noqa: E731
    if not gradient:
        total, count = jax.jit(loss)(params, step.put(batches()[0]))
        return float(total / count)
    (total, count), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, step.put(batches()[0]))
    return float(total / count), gradients


@pytest.mark.representative
def test_the_first_loss_is_that_of_the_model_and_relative_biases_get_a_gradient():
    """Padding is masked, and the relative position biases, which are outside the layers, get a gradient through them."""
    model = jaxnlp.AutoModelForSeq2SeqLM.from_config(T5, seed=1)
    batch = batches()[0]
    own = float(model(**batch)["loss"])
    loss, gradient = loss_of(t5(), None, 2, gradient=True, mesh={"fsdp": 2}, scan=True, remat="full")
    assert loss == pytest.approx(own, rel=1e-5)
    assert all(np.any(gradient[stack]["relative_attention"]["embedding"]) for stack in ("encoder", "decoder"))
    shifted = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    assert float(model(**shifted)["loss"]) == pytest.approx(own, rel=1e-6)


def test_scanning_and_sharding_do_not_change_dropout():
    key, model = jax.random.key(3), t5(dropout_rate=0.1)
    plain = loss_of(model, key, mesh={})
    assert loss_of(model, key, 2, mesh={"data": 2}, scan=True, remat="full") == pytest.approx(plain, rel=1e-6)
    assert abs(plain - loss_of(model, None, mesh={})) > 1e-3


def run(folder, steps=6, model=None, mesh=None, **changes):
    config = settings(**({"steps": 6, "evaluate_every": 3, "save_every": 3, "keep_every": 3} | changes))
    mesh = make_mesh(mesh or {}, jax.devices()[: int(np.prod(list((mesh or {}).values()), dtype=int))])
    return pretrain(
        model or t5(), batches(), config, folder, mesh=mesh, log={"console": False},
        held_out=held_out_batches(Words(), spans(), ROWS),
    )  # fmt: skip


def test_a_run_resumes_and_is_exported(tmp_path):
    import shutil

    whole = run(tmp_path / "run", scan=True)
    losses = [record["loss"] for record in read_metrics(tmp_path / "run") if record["kind"] == "step"]
    assert whole.steps == 6 and whole.tokens == 6 * ROWS * LENGTH
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    run(tmp_path / "run", scan=True, mesh={"fsdp": 2})
    again = [record["loss"] for record in read_metrics(tmp_path / "run") if record["kind"] == "step"]
    np.testing.assert_allclose(again, losses, rtol=1e-5)
    export(tmp_path / "run", tmp_path / "model")
    assert (tmp_path / "model" / "generation_config.json").is_file()
    model = jaxnlp.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    total = count = 0
    for batch in held_out_batches(Words(), spans(), ROWS):
        labelled = (batch["labels"] != -100).sum()
        total, count = total + float(model(**batch)["loss"]) * labelled, count + labelled
    assert total / count == pytest.approx(whole.held_out_loss, rel=1e-5)
    with pytest.raises(InputError, match=r"different data .*noise_density"):
        other = Batches(Words(), objective("span-corruption", tokenizer(), noise_density=0.3), ROWS)
        pretrain(t5(), other, settings(steps=6, scan=True), tmp_path / "run", log={"console": False})


def test_model_and_objective_must_match():
    with pytest.raises(
        InputError, match="span-corruption trains models with the head seq2seq-lm; this one's is causal-lm"
    ):
        pretrain(LazyModel.from_config(GPT2 | {"vocab_size": SIZE}), batches(), settings())
    with pytest.raises(InputError, match="trains models with the head causal-lm; this one's is seq2seq-lm"):
        pretrain(t5(), Batches(Words(), CausalLM(), ROWS), settings())
    with pytest.raises(InputError, match=r"begin with 3, .*decoder_start_token_id is 0"):
        pretrain(t5(), Batches(Words(), spans(decoder_start_token_id=3), ROWS), settings())
    with pytest.raises(ConfigError):
        LazyModel.from_config(GPT2, head="seq2seq-lm")
