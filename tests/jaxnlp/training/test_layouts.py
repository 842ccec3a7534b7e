"""What all training shares: scanned and sharded fine-tuning, padding rows, objectives of one's own, a sharded teacher."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

pytest.importorskip("orbax.checkpoint")

import jaxnlp
from duonlp.distillation.settings import Distillation, HiddenStates
from duonlp.errors import InputError
from duonlp.training.fit_loop import total_steps
from duonlp.training.run_file import FORMAT
from jaxnlp.distillation.distiller import DistillStep, distill
from jaxnlp.heads import HEADS
from jaxnlp.training import FitConfig, FitStep, LazyModel, fit, make_mesh, make_step, pretrain
from tests.jaxnlp.training.runs import BERT, GPT2, Sentences, batches, classifier, settings

QUIET = {"log": {"console": False}}


def one_device():
    return make_mesh({}, jax.devices()[:1])


def test_scanned_and_rematerialized_fine_tuning_equals_plain(tmp_path):
    """With dropout; and a scanned run does not resume as a plain one."""
    model = classifier(1, hidden_dropout_prob=0.1)
    results = [
        fit(model, Sentences(), FitConfig(epochs=1, learning_rate=1e-2, **layout), folder, mesh=one_device(), **QUIET)
        for folder, layout in ((None, {}), (tmp_path / "run", {"scan": True, "remat": "full"}))
    ]
    assert results[1].loss == pytest.approx(results[0].loss, rel=1e-5)
    plain, scanned = (jaxnlp.parameter_tree(result.model) for result in results)
    assert set(plain) == set(scanned)
    for path in (path for path in plain if not path.endswith("key/bias")):  # whose gradient is rounding alone
        np.testing.assert_allclose(scanned[path], plain[path], atol=1e-5)
    with pytest.raises(InputError, match="started with scan=True"):
        fit(model, Sentences(), FitConfig(epochs=1, learning_rate=1e-2), tmp_path / "run", mesh=one_device(), **QUIET)


def test_mapping_over_the_devices_equals_one_device():
    """With batches of 8 and 5 rows on four devices, in fine-tuning and in distillation."""
    mesh, teacher = make_mesh({"data": 4}, jax.devices()[:4]), classifier(2)
    for run in (fit, partial(distill, teacher=teacher)):
        config = {"epochs": 1, "learning_rate": 1e-2}
        losses = [
            run(classifier(1), batches=Sentences(), config=FitConfig(**config, **changes), mesh=devices).loss
            for devices, changes in ((one_device(), {}), (mesh, {"parallelism": "pmap", "accumulation": 2}))
        ]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)


LABELS = {
    "sequence-classification": {},
    "regression": {"problem_type": "regression", "num_labels": 1},
    "multi-label": {"problem_type": "multi_label_classification"},
    "question-answering": {"num_labels": 2},
    "token-classification": {},
    "replaced-token-detection": {"model_type": "electra", "embedding_size": 16},
}


def labelled(kind, rows=3):
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 32, (rows, 6)).astype(np.int32)
    labels = {
        "sequence-classification": {"labels": ids[:, 0] % 3},
        "regression": {"labels": rng.normal(size=rows).astype(np.float32)},
        "multi-label": {"labels": (ids[:, :3] % 2).astype(np.float32)},
        "question-answering": {"start_positions": ids[:, 0] % 6, "end_positions": ids[:, 1] % 6},
        "token-classification": {"labels": np.where(ids % 4, ids % 3, -100)},
        "replaced-token-detection": {"labels": ids % 2},
    }[kind]
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), **labels}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.representative)])
def test_padding_rows_change_neither_loss_nor_gradient(kind, sharded):
    """Three rows on four devices, or in two microbatches, against the model's own loss on these rows."""
    head = kind if kind in HEADS else "sequence-classification"
    model = LazyModel.from_config(BERT | {"num_hidden_layers": 1} | LABELS[kind], head=head, seed=1)
    batch, norms = labelled(kind), []
    layouts = (make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4]), 1) if sharded else (one_device(), 2)
    for mesh, pieces in ((one_device(), 1), layouts):
        step = FitStep(model, FitConfig(accumulation=pieces), mesh)
        _, metrics = step(step.init_state(), step.put(batch), 0.0)
        norms.append([float(metrics[name]) for name in ("loss", "gradient_norm")])
    own = float(HEADS[head].from_config(BERT | {"num_hidden_layers": 1} | LABELS[kind], seed=1)(**batch)["loss"])
    assert norms[0][0] == pytest.approx(own, rel=1e-5)
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def doubled(outputs, batch):
    """Return twice the cross-entropy of the next tokens, and a second term."""
    losses = -jnp.take_along_axis(
        jax.nn.log_softmax(outputs["logits"]), jnp.maximum(batch["labels"], 0)[..., None], axis=-1
    )[..., 0]
    is_labeled = batch["labels"] != -100
    count = jnp.sum(is_labeled, dtype=jnp.float32)
    return (2 * jnp.sum(losses * is_labeled), count), (count, count)


@pytest.mark.representative
def test_pretraining_with_a_loss_and_an_evaluation_of_ones_own(tmp_path):
    """The loss is 2 x cross-entropy + 1, also split into microbatches over devices."""
    model, seen = LazyModel.from_config(GPT2, seed=1), []
    step = make_step(model, settings(mesh={}), one_device())
    expected = float(step(step.init_state(), step.put(batches()[0]), 0.0)[1]["loss"])

    def evaluate(model):
        seen.append(type(model).__name__)
        return {"score": 0.5}

    result = pretrain(
        model, batches(), settings(steps=2, evaluate_every=2, mesh={"data": 2, "fsdp": 2}, accumulation=2, scan=True),
        tmp_path / "run", loss=doubled, evaluate=evaluate, held_out=[batches()[0]],
        mesh=make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4]), **QUIET,
    )  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["loss"] == pytest.approx(2 * expected + 1, rel=1e-5)
    assert records[-1]["score"] == 0.5 and seen == ["ModelForCausalLM"] and result.held_out_loss < records[0]["loss"]
    with pytest.raises(InputError, match="can be pretrained without a loss of your own"):
        make_step(classifier(1), settings(mesh={}), one_device())


def test_the_teacher_is_sharded_like_the_student():
    mesh = make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])
    step = DistillStep(
        classifier(1, num_hidden_layers=1),
        classifier(2),
        FitConfig(scan=True),
        Distillation(losses=(HiddenStates(),)),
        mesh,
    )
    kernel = step.frozen["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert kernel.shape == (2, 16, 16) and kernel.sharding.spec == PartitionSpec(None, "fsdp", None)
    assert kernel.addressable_shards[0].data.shape == (2, 8, 16)
    assert step.shardings["params"]["encoder"]["layers"]["attention"]["query"]["kernel"].spec == kernel.sharding.spec


def test_a_run_of_an_older_version_is_refused(tmp_path):
    train = partial(fit, classifier(1), Sentences(), FitConfig(steps=1), tmp_path / "run", mesh=one_device(), **QUIET)
    train()
    file = tmp_path / "run" / "run.json"
    run = json.loads(file.read_text())
    assert run.pop("format") == FORMAT
    file.write_text(json.dumps(run))
    with pytest.raises(InputError, match=r"saved by an older version of duonlp \(format 1, this version's is 2\)"):
        train()


def test_settings_and_batches_that_cannot_be_laid_out():
    with pytest.raises(InputError, match="does not fit 8 devices"):
        fit(classifier(1), Sentences(), FitConfig(mesh={"fsdp": 3}))
    with pytest.raises(InputError, match="pmap replicates it"):
        FitConfig(parallelism="pmap", mesh={"fsdp": 2})
    with pytest.raises(InputError, match="remat is 'all'"):
        FitConfig(remat="all")
    with pytest.raises(InputError, match="scan is True, which only jaxnlp can honor"):
        total_steps([{}], FitConfig(scan=True), None, None)
    batches = type("Share", (Sentences,), {"hosts": (0, 2)})()
    with pytest.raises(InputError, match="share of host 0 of 2"):
        fit(classifier(1), batches, FitConfig(), mesh=one_device())
    step = FitStep(classifier(1), FitConfig(accumulation=2), one_device(), loss=doubled)
    with pytest.raises(
        InputError, match=r"3 rows does not divide among 2 .*a loss of your own cannot leave out padding rows"
    ):
        step.put(labelled("sequence-classification"))
    unlabelled = labelled("sequence-classification") | {"labels": np.full(3, -100)}
    step = FitStep(classifier(1), FitConfig(), one_device())
    with pytest.raises(InputError, match="have no label to evaluate on"):
        step.evaluate(step.init_state()["params"], [unlabelled])
    assert float(step(step.init_state(), step.put(unlabelled), 0.0)[1]["loss"]) == 0


@pytest.mark.parametrize("run", [fit, partial(distill, teacher=classifier(2))], ids=["fit", "distill"])
def test_runs_without_a_label_that_counts_are_refused(tmp_path, run):
    """Before anything is compiled; a batch without labels among others is fine."""
    batch = labelled("sequence-classification")
    unlabelled = batch | {"labels": np.full(3, -100)}
    with pytest.raises(InputError, match="no label of the first 2 batches counts in the loss"):
        run(classifier(1), batches=[unlabelled], config=FitConfig(steps=2), folder=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run" / "checkpoints").exists() or not list((tmp_path / "run" / "checkpoints").iterdir())
    result = run(classifier(1), batches=[unlabelled, batch], config=FitConfig(steps=2), mesh=one_device(), **QUIET)
    assert result.steps == 2 and result.loss > 0


def test_pretraining_without_a_label_that_counts_is_refused(monkeypatch):
    unlabelled = dict.fromkeys(("input_ids", "labels"), np.full((8, 16), -100, np.int32))
    monkeypatch.setattr(type(batches()), "__getitem__", lambda self, step: unlabelled)
    with pytest.raises(InputError, match="no label of the first 16 batches counts"):
        pretrain(LazyModel.from_config(GPT2), batches(), settings(mesh={}), mesh=one_device(), **QUIET)
