"""Runs with files: they finish, resume, and refuse changes that would break their loss curve."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxnlp
from duonlp.errors import CheckpointError, InputError, NonFiniteLossError
from duonlp.training.log.metrics_file import read_metrics
from duonlp.util.files import locked_folder
from jaxnlp.training import LazyModel, export, make_mesh, pretrain
from tests.jaxnlp.training.runs import GPT2, LENGTH, ROWS, CountingBlocks, batches, run, settings

FINISHED = {"steps": 12, "evaluate_every": 4, "save_every": 4, "keep_every": 4}


def one_device():
    return make_mesh({}, jax.devices()[:1])


def losses(folder):
    return [record["loss"] for record in read_metrics(folder) if record["kind"] == "step"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    result = run(folder, mesh=one_device(), **FINISHED)
    return folder, result


def copy(finished, tmp_path, without=()):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    for step in without:
        shutil.rmtree(folder / "checkpoints" / str(step))
    return folder


def test_a_run_logs_steps_and_evaluations(finished):
    folder, result = finished
    assert (result.steps, result.tokens, result.preempted) == (12, 12 * ROWS * LENGTH, False)
    records = read_metrics(folder)
    evaluations = [(r["step"], r["tokens"]) for r in records if r["kind"] == "evaluation"]
    assert evaluations == [(n, n * ROWS * LENGTH) for n in (4, 8, 12)]
    assert records[-1]["loss"] == pytest.approx(result.held_out_loss)
    assert losses(folder)[-1] == pytest.approx(result.loss) and len(losses(folder)) == 12
    expected = np.reshape(losses(folder), (3, 4)).mean(axis=1)  # of the steps since the evaluation before
    curve = result.learning_curve
    assert [record["train_loss"] for record in curve] == pytest.approx(expected, rel=1e-6)
    assert [(record["step"], record["tokens"]) for record in curve] == [(n, n * ROWS * LENGTH) for n in (4, 8, 12)]
    assert curve[-1]["loss"] == result.held_out_loss and curve[0]["epoch"] == 1
    stored = json.loads((folder / "run.json").read_text())
    assert stored["model"]["n_embd"] == 16 and stored["config"]["steps"] == 12


@pytest.mark.representative
def test_resuming_is_bit_identical(finished, tmp_path):
    folder = copy(finished, tmp_path, without=[12])
    result = run(folder, mesh=one_device(), **FINISHED)
    assert losses(folder) == losses(finished[0]) and result.learning_curve == finished[1].learning_curve


def test_fewer_devices_continue_the_curve(finished, tmp_path):
    """8, then 4, then 2 of them, each resuming from a checkpoint of the run before."""
    folder = copy(finished, tmp_path)
    for devices, axes, removed in (
        (8, {"data": -1}, (8, 12)),
        (4, {"data": 2, "fsdp": 2}, (8, 12)),
        (2, {"fsdp": 2}, (12,)),
    ):
        for step in removed:
            shutil.rmtree(folder / "checkpoints" / str(step))
        run(folder, mesh=make_mesh(axes, jax.devices()[:devices]), **FINISHED)
        np.testing.assert_allclose(losses(folder), losses(finished[0]), rtol=1e-5)


def test_pmap_resumes_a_run_of_jit(finished, tmp_path):
    folder = copy(finished, tmp_path, without=[12])
    run(folder, steps=12, evaluate_every=4, save_every=4, parallelism="pmap")
    np.testing.assert_allclose(losses(folder), losses(finished[0]), rtol=1e-5)


def test_a_finished_run_is_not_trained_further(finished, tmp_path):
    folder = copy(finished, tmp_path)
    before = (folder / "metrics.jsonl").read_bytes()
    result = run(folder, mesh=one_device(), steps=12, evaluate_every=4, save_every=4)
    assert result.steps == 12 and result.loss == pytest.approx(finished[1].loss)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_the_last_and_the_best_are_kept(tmp_path):
    folder = tmp_path / "run"
    # The rate at the end of the warmup is far too high, so the loss rises again.
    run(folder, mesh=one_device(), steps=12, evaluate_every=2, save_every=2, keep_last=1, keep_every=6, learning_rate=3.0,
        schedule="linear", warmup_share=0.9)  # fmt: skip
    evaluations = {r["step"]: r["loss"] for r in read_metrics(folder) if r["kind"] == "evaluation"}
    best = min(evaluations, key=evaluations.get)
    assert best not in (6, 12)
    assert {int(name) for name in os.listdir(folder / "checkpoints")} == {best, 6, 12}


def test_sigterm_saves_and_the_run_resumes(finished, tmp_path):
    class StopAt(CountingBlocks):
        def read(self, indices):
            if 5 * ROWS in np.asarray(indices):  # read when step 6 is prepared
                os.kill(os.getpid(), signal.SIGTERM)
            return super().read(indices)

    folder = tmp_path / "run"
    unshuffled = {"shuffle": False}
    stopped = batches(**unshuffled)
    object.__setattr__(stopped, "blocks", StopAt())
    config = settings(steps=12)
    options = {"mesh": one_device(), "log": {"console": False}}
    result = pretrain(LazyModel.from_config(GPT2, seed=1), stopped, config, folder, **options)
    assert result.preempted and result.steps < 12
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    pretrain(LazyModel.from_config(GPT2, seed=1), batches(**unshuffled), config, folder, **options)
    whole = tmp_path / "whole"
    pretrain(LazyModel.from_config(GPT2, seed=1), batches(**unshuffled), config, whole, **options)
    assert losses(folder) == losses(whole)


def test_a_folder_in_use_is_refused_and_superseded_checkpoints_are_removed(tmp_path):
    folder, options = tmp_path / "run", {"steps": 4, "save_every": 2, "keep_best": 0, "mesh": one_device()}
    run(folder, **options)
    assert sorted(os.listdir(folder / "checkpoints")) == ["2", "4"]
    with locked_folder(folder, "training"), pytest.raises(InputError, match="is being written by another process or"):
        run(folder, **options)
    run(folder, **options, keep_last=1)  # as after a kill between a save and the removal of the checkpoint before
    assert os.listdir(folder / "checkpoints") == ["4"]


def test_a_non_finite_loss_stops_before_it_is_saved(finished, tmp_path):
    """No checkpoint is written after the parameters diverge."""
    folder = tmp_path / "run"
    with pytest.raises(NonFiniteLossError, match=r"step \d+ has a loss .*lower the learning rate"):
        run(folder, mesh=one_device(), steps=12, save_every=2, learning_rate=1e30, clip_norm=1e30, log_every=5,
            warmup_share=0.0)  # fmt: skip
    saved = folder / "checkpoints"
    assert not saved.exists() or not [name for name in os.listdir(saved) if name.isdigit() and int(name) > 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_decay": 0.5}, "weight_decay=0.1 .now 0.5."),
        ({"scan": True}, "scan=False"),
        ({"steps": 13}, "steps=12"),
    ],
)
def test_changed_settings_are_refused_on_resume(finished, tmp_path, changes, message):
    folder = copy(finished, tmp_path)
    with pytest.raises(InputError, match=message):
        run(folder, mesh=one_device(), **({"steps": 12} | changes))


def test_another_model_or_other_data_are_refused_on_resume(finished, tmp_path):
    folder = copy(finished, tmp_path)
    with pytest.raises(InputError, match=r"different model .*n_embd: stored 16, now 32"):
        run(folder, LazyModel.from_config(GPT2 | {"n_embd": 32}), mesh=one_device(), steps=12)
    with pytest.raises(InputError, match=r"different data .*seed: stored 0, now 7"):
        pretrain(LazyModel.from_config(GPT2), batches(seed=7), settings(steps=12), folder, mesh=one_device())


def test_a_damaged_checkpoint_is_named(finished, tmp_path):
    folder = copy(finished, tmp_path)
    for file in (folder / "checkpoints" / "12" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"checkpoints/12.*delete that folder"):
        run(folder, mesh=one_device(), steps=12)


def test_batches_must_match_the_configuration():
    with pytest.raises(InputError, match=r"8 rows but config.batch_size is 16"):
        pretrain(LazyModel.from_config(GPT2), batches(), settings(batch_size=16))
    with pytest.raises(InputError, match="no held_out"):
        pretrain(LazyModel.from_config(GPT2), batches(), settings(evaluate_every=1))


@pytest.mark.representative
@pytest.mark.parametrize("scan", [False, True])
def test_export(finished, tmp_path, scan):
    folder = finished[0]
    if scan:
        folder = tmp_path / "run"
        run(folder, mesh=make_mesh({"fsdp": 2}, jax.devices()[:2]), steps=12, save_every=4, scan=True)
    export(folder, tmp_path / "model", max_shard_size="10KB")
    model = jaxnlp.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    inputs = CountingBlocks().read(np.arange(64))["input_ids"]
    loss = float(model(input_ids=inputs, labels=inputs)["loss"])
    assert loss == pytest.approx(finished[1].held_out_loss, rel=1e-5)
    with pytest.raises(InputError, match="no checkpoint of step 5; choose from"):
        export(folder, tmp_path / "other", step=5)


def test_a_model_in_memory_is_trained_like_a_lazy_one_and_not_changed(finished):
    model = jaxnlp.AutoModelForCausalLM.from_config(GPT2, seed=1)
    before = np.array(model(input_ids=np.arange(8)[None])["logits"])
    result = pretrain(model, batches(), settings(steps=12), mesh=one_device())
    assert result.loss == pytest.approx(finished[1].loss, rel=1e-6)
    np.testing.assert_array_equal(model(input_ids=np.arange(8)[None])["logits"], before)


def test_a_checkpoint_is_trained_further(tmp_path):
    """The first loss is that of the loaded model, of another family and objective."""
    bert = {"model_type": "bert", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0}  # fmt: skip
    model = jaxnlp.AutoModelForMaskedLM.from_config(bert, seed=3)
    model.save_pretrained(tmp_path / "bert")
    stream = batches()
    first = stream[0]
    own = model(input_ids=first["input_ids"], labels=first["labels"])["loss"]
    loaded = LazyModel.from_pretrained(tmp_path / "bert", head="masked-lm")
    config = settings(steps=2, save_every=2)
    pretrain(loaded, stream, config, tmp_path / "run", mesh=one_device(), log={"console": False})
    assert losses(tmp_path / "run")[0] == pytest.approx(float(own), rel=1e-5)
    export(tmp_path / "run", tmp_path / "further")
    further = jaxnlp.AutoModelForMaskedLM.from_pretrained(tmp_path / "further")
    assert float(further(**first)["loss"]) < float(own)


@pytest.mark.parametrize("lazy", [False, True])
def test_generation_settings_survive_training(tmp_path, lazy):
    """A run on a loaded model exports its generation_config.json, with the options that are not used."""
    jaxnlp.AutoModelForCausalLM.from_config(GPT2, seed=3).save_pretrained(tmp_path / "gpt2")
    stored = {"num_beams": 3, "temperature": 0.0, "eos_token_id": [3, 4], "some_option": {"a": 1}}
    (tmp_path / "gpt2" / "generation_config.json").write_text(json.dumps(stored))
    load = LazyModel if lazy else jaxnlp.AutoModelForCausalLM
    pretrain(
        load.from_pretrained(tmp_path / "gpt2"), batches(), settings(steps=1, save_every=1), tmp_path / "run",
        mesh=one_device(), log={"console": False},
    )  # fmt: skip
    export(tmp_path / "run", tmp_path / "further")
    written = json.loads((tmp_path / "further" / "generation_config.json").read_text())
    assert written.items() >= stored.items()


def test_a_time_limit_ends_the_run_and_decays_the_rate(tmp_path):
    result = run(tmp_path / "run", mesh=one_device(), steps=10**6, seconds=0.5)
    rates = [record["learning_rate"] for record in read_metrics(tmp_path / "run")]
    assert 1 < result.steps < 10**5 and not result.preempted
    assert rates[-1] < rates[len(rates) // 2]
