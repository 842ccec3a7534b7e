"""Distillation in JAX: one step against the formulas, every mesh and piece alike, and a run that goes on where it stopped."""

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
    """Rows whose label is told by their first id, with padding, token types and weights."""

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
    """A BERT of two layers and 24 wide, and a DistilBERT of one, 16 wide, that knows no token types."""
    return model(DISTILBERT | {"dim": 16}, 2), model(BERT, 1)


@pytest.fixture(scope="module")
def first_batch():
    return next(Sentences().epoch(0))


@pytest.mark.representative
def test_a_step_s_loss_is_that_of_the_formulas(models, first_batch):
    """Of another family, width and depth: each part against its NumPy reference, on the models' own outputs."""
    student, teacher = models
    d = Distillation(alpha=0.3, temperature=3.0, losses=(HiddenStates(0.2), HiddenStates(0.1, "cosine", ((-1, -1),))))
    step = DistillStep(student, teacher, FitConfig(), d, one_device())
    state = step.init_state()
    projections = jax.device_get(state["params"]["projections"])
    state, known = step(state, step.put(first_batch), 1e-3)
    known = jax.device_get(known)

    read = {name: first_batch[name] for name in ("input_ids", "attention_mask")}
    mine = jaxnlp.compiled(student)(**read, output_hidden_states=True)
    theirs = jaxnlp.compiled(teacher)(**read, token_type_ids=first_batch["token_type_ids"], output_hidden_states=True)
    weights, mask = first_batch["sample_weight"], first_batch["attention_mask"]

    def mean(name, *values, mask=None, **options):
        total, count = getattr(reference, name)(*map(np.asarray, values), mask=mask, sample_weight=weights, **options)
        return total / count

    logits = np.asarray(mine["logits"], np.float64)
    own = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, first_batch["labels"][:, None], 1)[:, 0]
    states = [np.asarray(x) @ projections[f"state_{i}"]["kernel"] for i, x in enumerate(mine["hidden_states"])]
    pairs = [(states[0], theirs["hidden_states"][0]), (states[1], theirs["hidden_states"][2])]
    expected = {
        "student_loss": np.mean(own * weights),
        "distillation_loss": 9 * mean("kl_divergence_sum", logits, theirs["logits"], temperature=3.0),
        "hidden_mse": np.mean([mean("hidden_mse_sum", *pair, mask=mask) for pair in pairs]),
        "hidden_cosine": mean("hidden_cosine_sum", *pairs[1], mask=mask),
    }
    # each part is logged as it is, without its weight
    for name, value in expected.items():
        assert known[name] == pytest.approx(value, rel=2e-5), name
    total = (
        0.3 * expected["student_loss"] + 0.7 * expected["distillation_loss"] + 0.2 * expected["hidden_mse"]
        + 0.1 * expected["hidden_cosine"]
    )  # fmt: skip
    assert known["loss"] == pytest.approx(total, rel=2e-5)


def test_every_mesh_and_piece_takes_the_same_steps(models):
    """Eight devices, or two pieces, make of a batch what one does; all losses, the teacher's layers sharded, too."""
    student, teacher = model(BERT | {"num_hidden_layers": 1}, 2), models[1]

    def curve(mesh, **changes):
        config = FitConfig(learning_rate=1e-2, **changes)
        step = DistillStep(student, teacher, config, EVERYTHING, mesh)
        state, losses = step.init_state(), []
        for _ in range(2):
            for batch in Sentences().epoch(0):
                state, known = step(state, step.put(batch), 1e-2)
                losses.append(float(known["loss"]))
        return losses

    expected = curve(one_device())
    assert expected[-1] < expected[0]
    for mesh in ({"data": 4, "fsdp": 2}, {"data": 2, "tensor": 2}):
        np.testing.assert_allclose(
            curve(make_mesh(mesh, jax.devices()[: np.prod([*mesh.values()])])), expected, rtol=1e-5
        )
    np.testing.assert_allclose(curve(one_device(), accumulation=2), expected, rtol=1e-5)


def test_the_step_is_a_pure_function_that_gives_up_its_state_alone(models, first_batch):
    student, teacher = models
    plan, params, frozen = distill_plan(student, teacher)
    before = jax.device_get(frozen)
    state = plan.fresh(jax.tree.map(jax.numpy.array, params))
    new, known = distill_step(plan, state, frozen, first_batch, np.float32(1e-3), np.uint32(0))
    assert set(known) == {"loss", "gradient_norm", "student_loss", "distillation_loss"} and int(new["step"]) == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state["params"]))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), before)
    again = distill_plan(student, teacher)[0]
    assert again == plan and hash(again) == hash(plan)  # so that it is not compiled a second time


def test_logits_that_were_kept_are_those_of_the_teacher(models, tmp_path):
    student, teacher = models
    batches = jaxnlp.cached_teacher_logits(teacher, Sentences(), tmp_path / "logits")
    settings = FitConfig(epochs=1, learning_rate=1e-2, log_every=1)
    options = {"mesh": one_device(), "log": {"console": False}}
    asked = distill(student, teacher, Sentences(), settings, folder=tmp_path / "asked", **options)
    kept = distill(student, None, batches, settings, folder=tmp_path / "kept", **options)
    for name, value in jaxnlp.parameter_tree(asked.model).items():
        np.testing.assert_allclose(value, jaxnlp.parameter_tree(kept.model)[name], atol=1e-5)
    swapped = student.config.replace(labels=student.config.labels[::-1])
    found = next(reorder_for_student(batches, swapped).epoch(0))["teacher_logits"]
    np.testing.assert_array_equal(found, next(batches.epoch(0))["teacher_logits"][:, ::-1])


@pytest.mark.representative
def test_a_run_goes_on_where_it_stopped(models, tmp_path):
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


def test_what_does_not_go_together_is_refused(models):
    student, teacher = models
    with pytest.raises(InputError, match="hidden_mse look inside the teacher, and there is none"):
        distill(student, None, Sentences(), distillation=Distillation(losses=(HiddenStates(),)))
    with pytest.raises(InputError, match="no teacher_logits; give a teacher"):
        distill(student, None, Sentences(), FitConfig(epochs=1), mesh=one_device())
    with pytest.raises(InputError, match="label"):
        distill(model(BERT | {"num_labels": 4}, 1), teacher, Sentences(), mesh=one_device())
    pieces = DistillStep(student, teacher, FitConfig(accumulation=2), Distillation(alpha=0.0), one_device())
    with pytest.raises(InputError, match=r"3 rows does not divide among 2 .*no labels mark padding rows"):
        pieces.put({"input_ids": np.ones((3, 4), np.int32)})


def test_weights_of_rows_are_respected_without_a_teacher(first_batch):
    """In fit, too: a row of weight 2 is two rows, but for the count."""
    student = model(BERT | {"num_hidden_layers": 1}, 2)
    step = FitStep(student, FitConfig(), one_device())
    twice = first_batch | {"sample_weight": np.full(8, 2, np.float32)}
    plain = {name: values for name, values in first_batch.items() if name != "sample_weight"}
    losses = [float(step(step.init_state(), step.put(batch), 0.0)[1]["loss"]) for batch in (twice, plain)]
    assert losses[0] == pytest.approx(2 * losses[1], rel=1e-6)
    result = fit(student, Sentences(), FitConfig(epochs=1, accumulation=2), mesh=one_device())
    assert np.isfinite(result.loss)


def test_rows_without_labels_only_fill_up_a_batch_of_several_labels(models, first_batch):
    """Of the loss and of the teacher's; in pieces, too, one of which has nothing but such rows."""
    changes = {"problem_type": "multi_label_classification"}
    student, teacher = model(BERT | changes | {"num_hidden_layers": 1}, 2), model(BERT | changes, 1)
    labels = np.eye(3, dtype=np.float32)[first_batch["labels"]]
    real = {"input_ids": first_batch["input_ids"][:4], "labels": labels[:4]}
    filled = {
        "input_ids": first_batch["input_ids"][:5].repeat([1, 1, 1, 1, 4], 0),
        "labels": np.full((8, 3), -100.0, "f4"),
    }
    filled["input_ids"], filled["labels"] = filled["input_ids"][[0, 4, 1, 5, 2, 6, 3, 7]], filled["labels"]
    filled["labels"][::2] = labels[:4]
    losses = []
    for batch, pieces in ((real, 1), (filled, 1), (filled, 2)):
        step = DistillStep(student, teacher, FitConfig(accumulation=pieces), Distillation(), one_device())
        losses.append(float(step(step.init_state(), step.put(batch), 0.0)[1]["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6) and losses[2] == pytest.approx(losses[0], rel=1e-6)
