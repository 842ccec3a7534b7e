"""Distillation in JAX: a step against the formulas, the same steps on every mesh and with accumulation, and resuming."""

import jax
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxnlp
from duonlp.distillation import reference_losses as reference
from duonlp.distillation.settings import Attentions, Distillation, HiddenStates, Relations
from duonlp.distillation.teacher_logits import reorder_for_student
from duonlp.errors import InputError
from duonlp.training.log.metrics_file import read_metrics
from jaxnlp.distillation.distiller import DistillStep, distill, distill_plan, distill_step
from jaxnlp.training import FitConfig, FitStep, fit, make_mesh
from tests.cases import cases

HEAD = "sequence-classification"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
BERT = next(case for case in cases() if case.name == f"bert-{HEAD}").hf | NO_DROPOUT | {"num_labels": 3}
DISTILBERT = next(case for case in cases() if case.name == f"distilbert-{HEAD}").hf | {
    "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "num_labels": 3, "n_layers": 1,
}  # fmt: skip
EVERYTHING = Distillation(
    alpha=0.3, temperature=3.0,
    losses=(HiddenStates(0.2), HiddenStates(0.1, "cosine", ((-1, -1),)), Attentions(0.4), Relations(0.5)),
)  # fmt: skip


class Sentences:
    """Rows whose first id determines the label, with padding, token types and weights."""

    def __init__(self, rows=16, size=8):
        rng = np.random.default_rng(0)
        ids, lengths = rng.integers(5, 55, (rows, 6)).astype(np.int32), rng.integers(3, 7, (rows, 1))
        mask = (np.arange(6) < lengths).astype(np.int32)
        self.size, self.batch = size, {
            "input_ids": np.where(mask, ids, 0), "attention_mask": mask, "token_type_ids": np.zeros_like(ids),
            "labels": (ids[:, 0] % 3).astype(np.int32), "sample_weight": rng.uniform(0.5, 2, rows).astype(np.float32),
        }  # fmt: skip

    def __len__(self):
        return len(self.batch["labels"]) // self.size

    def order(self, number):
        return np.random.default_rng(number).permutation(len(self.batch["labels"])).reshape(-1, self.size)

    def epoch(self, number, first=0):
        for rows in self.order(number)[first:]:
            yield {name: values[rows] for name, values in self.batch.items()}


def model(hf, seed):
    return jaxnlp.AutoModelForSequenceClassification.from_config(hf, seed=seed)


def one_device():
    return make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def models():
    """A DistilBERT with one layer of width 16 and no token types, and a BERT with two layers of width 24."""
    return model(DISTILBERT | {"dim": 16}, 2), model(BERT, 1)


@pytest.fixture(scope="module")
def first_batch():
    return next(Sentences().epoch(0))


@pytest.mark.representative
def test_the_loss_of_a_step_matches_the_formulas(models, first_batch):
    """Each part against its NumPy reference on the models' outputs, for a different family, width and depth."""
    student, teacher = models
    d = Distillation(alpha=0.3, temperature=3.0, losses=(HiddenStates(0.2), HiddenStates(0.1, "cosine", ((-1, -1),))))
    step = DistillStep(student, teacher, FitConfig(), d, one_device())
    state = step.init_state()
    projections = jax.device_get(state["params"]["projections"])
    state, metrics = step(state, step.put(first_batch), 1e-3)
    metrics = jax.device_get(metrics)

    inputs = {name: first_batch[name] for name in ("input_ids", "attention_mask")}
    mine = jaxnlp.compiled(student)(**inputs, output_hidden_states=True)
    theirs = jaxnlp.compiled(teacher)(**inputs, token_type_ids=first_batch["token_type_ids"], output_hidden_states=True)
    weights, mask = first_batch["sample_weight"], first_batch["attention_mask"]

    def mean(name, *values, mask=None, **options):
        total, count = getattr(reference, name)(*map(np.asarray, values), mask=mask, sample_weight=weights, **options)
        return total / count

    logits = np.asarray(mine["logits"], np.float64)
    row_losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, first_batch["labels"][:, None], 1)[:, 0]
    states = [np.asarray(x) @ projections[f"state_{i}"]["kernel"] for i, x in enumerate(mine["hidden_states"])]
    pairs = [(states[0], theirs["hidden_states"][0]), (states[1], theirs["hidden_states"][2])]
    expected = {
        "student_loss": np.mean(row_losses * weights),
        "distillation_loss": 9 * mean("kl_divergence_sum", logits, theirs["logits"], temperature=3.0),
        "hidden_mse": np.mean([mean("hidden_mse_sum", *pair, mask=mask) for pair in pairs]),
        "hidden_cosine": mean("hidden_cosine_sum", *pairs[1], mask=mask),
    }
    # parts are logged without their weights
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=2e-5), name
    total = (
        0.3 * expected["student_loss"] + 0.7 * expected["distillation_loss"] + 0.2 * expected["hidden_mse"]
        + 0.1 * expected["hidden_cosine"]
    )  # fmt: skip
    assert metrics["loss"] == pytest.approx(total, rel=2e-5)


def test_meshes_and_accumulation_take_the_same_steps(models):
    """Eight devices, or two microbatches, match one; with all losses, and the teacher sharded as well."""
    student, teacher = model(BERT | {"num_hidden_layers": 1}, 2), models[1]

    def curve(mesh, **changes):
        config = FitConfig(learning_rate=1e-2, **changes)
        step = DistillStep(student, teacher, config, EVERYTHING, mesh)
        state, losses = step.init_state(), []
        for _ in range(2):
            for batch in Sentences().epoch(0):
                state, metrics = step(state, step.put(batch), 1e-2)
                losses.append(float(metrics["loss"]))
        return losses

    expected = curve(one_device())
    assert expected[-1] < expected[0]
    for mesh in ({"data": 4, "fsdp": 2}, {"data": 2, "tensor": 2}):
        np.testing.assert_allclose(
            curve(make_mesh(mesh, jax.devices()[: np.prod([*mesh.values()])])), expected, rtol=1e-5
        )
    np.testing.assert_allclose(curve(one_device(), accumulation=2), expected, rtol=1e-5)


def test_the_step_is_a_pure_function_that_donates_only_its_state(models, first_batch):
    student, teacher = models
    plan, params, frozen = distill_plan(student, teacher)
    before = jax.device_get(frozen)
    state = plan.fresh(jax.tree.map(jax.numpy.array, params))
    new, metrics = distill_step(plan, state, frozen, first_batch, np.float32(1e-3), np.uint32(0))
    assert set(metrics) == {"loss", "gradient_norm", "student_loss", "distillation_loss"} and int(new["step"]) == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state["params"]))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), before)
    again = distill_plan(student, teacher)[0]
    assert again == plan and hash(again) == hash(plan)  # so the step is not compiled again


def test_cached_logits_match_the_teacher(models, tmp_path):
    student, teacher = models
    batches = jaxnlp.cached_teacher_logits(teacher, Sentences(), tmp_path / "logits")
    settings = FitConfig(epochs=1, learning_rate=1e-2, log_every=1)
    options = {"mesh": one_device(), "log": {"console": False}}
    live = distill(student, teacher, Sentences(), settings, folder=tmp_path / "live", **options)
    cached = distill(student, None, batches, settings, folder=tmp_path / "cached", **options)
    for name, value in jaxnlp.parameter_tree(live.model).items():
        np.testing.assert_allclose(value, jaxnlp.parameter_tree(cached.model)[name], atol=1e-5)
    swapped = student.config.replace(labels=student.config.labels[::-1])
    reordered = next(reorder_for_student(batches, swapped).epoch(0))["teacher_logits"]
    np.testing.assert_array_equal(reordered, next(batches.epoch(0))["teacher_logits"][:, ::-1])


@pytest.mark.representative
def test_a_run_resumes_where_it_stopped(models, tmp_path):
    student, teacher = models
    options = {"mesh": one_device(), "validation": Sentences(), "log": {"console": False}}
    whole = distill(
        student, teacher, Sentences(), FitConfig(epochs=2, log_every=1), folder=tmp_path / "whole", **options
    )

    class Broken(Sentences):
        def epoch(self, number, first=0):
            if number == 1:
                raise RuntimeError("the disk is gone")
            return super().epoch(number, first)

    config = FitConfig(epochs=2, log_every=1)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        distill(student, teacher, Broken(), config, folder=tmp_path / "parts", **options)
    parts = distill(student, teacher, Sentences(), config, folder=tmp_path / "parts", **options)
    assert whole.history[-1] == pytest.approx(parts.history[-1])
    assert set(whole.history[-1]) == {"step", "loss", "student_loss", "distillation_loss"}
    last = [list(read_metrics(tmp_path / name))[-2]["distillation_loss"] for name in ("whole", "parts")]
    assert last[0] == pytest.approx(last[1])
    loaded = jaxnlp.AutoModelForSequenceClassification.from_pretrained(whole.best_folder)
    assert set(jaxnlp.parameter_tree(loaded)) == set(jaxnlp.parameter_tree(student))  # without projections


def test_incompatible_arguments_are_refused(models):
    student, teacher = models
    with pytest.raises(InputError, match="cannot compute hidden_mse without a teacher"):
        distill(student, None, Sentences(), distillation=Distillation(losses=(HiddenStates(),)))
    with pytest.raises(InputError, match="neither a teacher nor teacher_logits in the batch"):
        distill(student, None, Sentences(), FitConfig(epochs=1), mesh=one_device())
    with pytest.raises(InputError, match="label"):
        distill(model(BERT | {"num_labels": 4}, 1), teacher, Sentences(), mesh=one_device())
    pieces = DistillStep(student, teacher, FitConfig(accumulation=2), Distillation(alpha=0.0), one_device())
    with pytest.raises(InputError, match=r"3 rows does not divide among 2 .*no labels mark padding rows"):
        pieces.put({"input_ids": np.ones((3, 4), np.int32)})


def test_row_weights_apply_without_a_teacher(first_batch):
    """In fit, a row of weight 2 doubles its loss but not the count."""
    student = model(BERT | {"num_hidden_layers": 1}, 2)
    step = FitStep(student, FitConfig(), one_device())
    twice = first_batch | {"sample_weight": np.full(8, 2, np.float32)}
    plain = {name: values for name, values in first_batch.items() if name != "sample_weight"}
    losses = [float(step(step.init_state(), step.put(batch), 0.0)[1]["loss"]) for batch in (twice, plain)]
    assert losses[0] == pytest.approx(2 * losses[1], rel=1e-6)
    result = fit(student, Sentences(), FitConfig(epochs=1, accumulation=2), mesh=one_device())
    assert np.isfinite(result.loss)


def test_padding_rows_of_multi_label_batches_do_not_count(models, first_batch):
    """In both losses, and with accumulation, where one microbatch has only padding rows."""
    changes = {"problem_type": "multi_label_classification"}
    student, teacher = model(BERT | changes | {"num_hidden_layers": 1}, 2), model(BERT | changes, 1)
    labels = np.eye(3, dtype=np.float32)[first_batch["labels"]]
    real = {"input_ids": first_batch["input_ids"][:4], "labels": labels[:4]}
    padded = {
        "input_ids": first_batch["input_ids"][:5].repeat([1, 1, 1, 1, 4], 0),
        "labels": np.full((8, 3), -100.0, "f4"),
    }
    padded["input_ids"], padded["labels"] = padded["input_ids"][[0, 4, 1, 5, 2, 6, 3, 7]], padded["labels"]
    padded["labels"][::2] = labels[:4]
    losses = []
    for batch, pieces in ((real, 1), (padded, 1), (padded, 2)):
        step = DistillStep(student, teacher, FitConfig(accumulation=pieces), Distillation(), one_device())
        losses.append(float(step(step.init_state(), step.put(batch), 0.0)[1]["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6) and losses[2] == pytest.approx(losses[0], rel=1e-6)
