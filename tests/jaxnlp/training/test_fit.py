"""Fine-tuning: the model learns, runs resume, the best model is saved, and sums are exact however a batch is split."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxnlp
from duonlp.errors import InputError, NonFiniteLossError
from duonlp.training.log.learning_curve import read_learning_curve
from duonlp.training.log.metrics_file import read_metrics
from jaxnlp.heads import HEADS
from jaxnlp.training import FitConfig, FitStep, GenerationScorer, fit, loss_terms, make_mesh
from tests.cases import cases
from tests.pairs import T5, pair_batches, share_of_words, tokenizer

BERT = next(case for case in cases() if case.name == "bert-sequence-classification").hf
SMALL = {
    "num_hidden_layers": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,
}


class Sentences:
    """Rows whose first id determines the label, in a different order in each epoch."""

    def __init__(self, rows=24, size=8):
        rng = np.random.default_rng(0)
        self.ids, self.size = rng.integers(5, 55, (rows, 6)).astype(np.int32), size

    def __len__(self):
        return -(-len(self.ids) // self.size)

    def epoch(self, number):
        order = np.random.default_rng(number).permutation(len(self.ids))
        for start in range(0, len(order), self.size):
            ids = self.ids[order[start : start + self.size]]
            yield {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": (ids[:, 0] < 30).astype(np.int32)}


def one_device():
    return make_mesh({}, jax.devices()[:1])


def classifier(**changes):
    return jaxnlp.AutoModelForSequenceClassification.from_config(BERT | SMALL | changes, seed=1)


def settings(**changes):
    return FitConfig(**({"epochs": 4, "learning_rate": 3e-2, "log_every": 1} | changes))


def run(
    folder=None, model=None, batches=None, validation=True, mesh=None, evaluate=None, on_evaluation=None, **changes
):
    return fit(
        classifier() if model is None else model, Sentences() if batches is None else batches, settings(**changes), folder,
        validation=Sentences() if validation else None, evaluate=evaluate, mesh=one_device() if mesh is None else mesh,
        on_evaluation=on_evaluation, log={"console": False},
    )  # fmt: skip


def losses(folder):
    return [record["loss"] for record in read_metrics(folder) if record["kind"] == "step"]


def values(model):
    return {path: np.asarray(value) for path, value in jaxnlp.parameter_tree(model).items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run(folder)


@pytest.mark.representative
def test_it_learns_and_logs_steps_and_evaluations(finished):
    folder, result = finished
    assert (result.steps, result.examples, result.preempted, result.stopped_early) == (12, 96, False, False)
    evaluations = [record["loss"] for record in result.history]
    assert evaluations[-1] < 0.7 * evaluations[0] and [record["step"] for record in result.history] == [3, 6, 9, 12]
    records = read_metrics(folder)
    assert len(losses(folder)) == 12 and losses(folder)[-1] == pytest.approx(result.loss)
    assert [r["loss"] for r in records if r["kind"] == "evaluation"] == pytest.approx(evaluations)
    assert records[-2]["examples"] == 96 and records[-2]["examples_per_second"] > 0 and "perplexity" not in records[-2]
    assert json.loads((folder / "run.json").read_text())["config"]["learning_rate"] == 3e-2


def test_the_learning_curve_has_the_training_loss_of_each_epoch(finished):
    folder, result = finished
    curve, steps = result.learning_curve, np.reshape(losses(folder), (4, 3))
    assert [record["train_loss"] for record in curve] == pytest.approx(steps.mean(axis=1), rel=1e-6)
    assert [record["loss"] for record in curve] == [record["loss"] for record in result.history]
    assert [(record["epoch"], record["step"], record["examples"]) for record in curve] == [
        (i, 3 * i, 24 * i) for i in range(1, 5)
    ]
    assert read_learning_curve(folder) == curve


def test_results_of_an_evaluation_never_replace_each_other(tmp_path):
    evaluations = []
    scores = {"loss": 99.0, "step": 7, "accuracy": np.float32(0.5)}
    options = {"epochs": 1, "on_evaluation": lambda *evaluation: evaluations.append(evaluation)}
    result = run(tmp_path / "run", evaluate=lambda model: scores, **options)
    (record,) = result.history
    assert record["loss"] < 9 and record["loss"] == result.best["value"] and record["step"] == 3
    assert (record["evaluate_loss"], record["evaluate_step"], record["accuracy"]) == (99, 7, 0.5)
    assert result.learning_curve[0]["evaluate_loss"] == 99 and evaluations[0][1]["loss"] == record["loss"]
    by_name = run(tmp_path / "by", evaluate=lambda model: scores, best_metric="evaluate_loss", **options)
    assert (
        by_name.best["value"]
        == 99
        == run(evaluate=lambda model: scores, best_metric="step", **options).best["value"] + 92
    )
    with pytest.raises(InputError, match="rename one of them"):
        run(tmp_path / "bad", evaluate=lambda model: scores | {"evaluate_loss": 1.0}, save_every=0, **options)
    again = run(tmp_path / "bad", save_every=0, **options)  # its training is kept
    assert again.steps == 3 and losses(tmp_path / "bad") == losses(tmp_path / "run")


def test_a_record_of_several_steps_weighs_labels_not_batches(tmp_path):
    """Batches of 8, 8 and 1 rows, on one device and on four, of which three have no row of the last batch."""
    for parallelism, mesh in (("jit", one_device()), ("pmap", make_mesh({"data": 4}, jax.devices()[:4]))):
        changes = {"epochs": 1, "learning_rate": 1e-9, "log_every": 3, "parallelism": parallelism}
        result = fit(
            classifier(), Sentences(rows=17), settings(**changes), tmp_path / parallelism, mesh=mesh,
            validation=Sentences(rows=17, size=17), log={"console": False},
        )  # fmt: skip
        assert losses(tmp_path / parallelism) == [pytest.approx(result.history[-1]["loss"], rel=1e-5)]


@pytest.mark.representative
def test_the_best_model_is_in_hugging_face_layout(finished):
    folder, result = finished
    assert result.best_folder == folder / "best" and result.best["value"] == min(r["loss"] for r in result.history)
    loaded = jaxnlp.AutoModelForSequenceClassification.from_pretrained(result.best_folder)
    assert result.best["step"] == result.steps
    for path, value in values(result.model).items():
        np.testing.assert_array_equal(value, values(loaded)[path])


def test_the_model_passed_in_is_not_changed():
    model = classifier()
    before = values(model)
    run(model=model, epochs=1, validation=False)
    after = values(model)
    assert all(np.array_equal(before[path], after[path]) for path in before)


@pytest.mark.parametrize("stop", [4, 6], ids=["in an epoch", "between epochs"])
def test_resuming_is_bit_identical(finished, tmp_path, monkeypatch, stop):
    class PreemptedOnce:
        """Preemption with SIGTERM at a known step."""

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731
        requested = staticmethod(lambda step: step == stop)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["jaxnlp.training.loop"], "Preemption", PreemptedOnce)
        first = run(tmp_path / "run")
    assert first.preempted and first.steps == stop
    second = run(tmp_path / "run")
    assert second.steps == 12 and second.examples == 96 and second.best == finished[1].best
    assert losses(tmp_path / "run") == losses(finished[0])
    assert second.learning_curve == finished[1].learning_curve == read_learning_curve(tmp_path / "run")
    third = run(tmp_path / "run")
    assert third.steps == 12 and not third.history
    for path, value in values(third.model).items():
        np.testing.assert_array_equal(value, values(finished[1].model)[path])
    with pytest.raises(InputError, match=r"was started with learning_rate=0.03 \(now 0.5\)"):
        run(tmp_path / "run", learning_rate=0.5)


@pytest.fixture(scope="module")
def uneven():
    """The loss of a run whose labels are uneven over 6 rows, for which a mean of means would differ."""
    case = next(case for case in cases() if case.name == "bert-token-classification")
    model = jaxnlp.AutoModelForTokenClassification.from_config(case.hf | SMALL, seed=1)
    rng, ids = np.random.default_rng(0), np.random.default_rng(1).integers(5, 55, (6, 7)).astype(np.int32)
    is_labeled = np.arange(7) < np.array([7, 1, 2, 7, 3, 7])[:, None]
    batch = {"input_ids": ids, "labels": np.where(is_labeled, rng.integers(0, 3, ids.shape), -100).astype(np.int32)}

    def loss(devices, **changes):
        mesh = make_mesh({"data": devices}, jax.devices()[:devices])
        changes |= {"label_smoothing": 0.1, "clip_norm": None, "epochs": 3}
        return run(model=model, batches=[batch], validation=False, mesh=mesh, **changes).loss

    return loss


def test_accumulation_and_devices_do_not_change_the_loss(uneven):
    expected = pytest.approx(uneven(1), rel=1e-5)
    assert uneven(2, accumulation=2) == expected


CASES_OF_LOSSES = (
    "bert-sequence-classification", "bert-sequence-classification[problem_type=multi_label_classification]",
    "bert-sequence-classification[problem_type=regression,num_labels=1]", "bert-token-classification",
    "bert-question-answering", "bert-pretraining", "electra-replaced-token-detection", "gpt2-causal-lm", "t5-seq2seq-lm",
)  # fmt: skip


@pytest.mark.parametrize("case", [case for case in cases() if case.name in CASES_OF_LOSSES], ids=lambda case: case.name)
def test_the_loss_of_a_head_is_the_sum_of_its_terms(case):
    model = HEADS[case.head].from_config(case.hf, seed=1)
    apply, params = jaxnlp.functional(model)

    @jax.jit
    def loss_and_terms(params, inputs):
        outputs = apply(params, **inputs)
        return outputs["loss"], loss_terms(case.head, model.config, outputs, inputs)

    loss, terms = loss_and_terms(params, {name: jnp.asarray(value) for name, value in case.inputs().items()})
    assert sum(float(total / count) for total, count in terms) == pytest.approx(float(loss), rel=1e-5)


def test_early_stopping_by_a_custom_metric(tmp_path):
    scores, evaluations = iter([0.1, 0.5, 0.4, float("nan"), 0.5, 0.9]), []
    result = run(
        tmp_path / "run", evaluate=lambda model: {"rougeL": next(scores)},
        on_evaluation=lambda *evaluation: evaluations.append(evaluation),
        best_metric="rougeL", patience=3, epochs=9,
    )  # fmt: skip
    np.testing.assert_equal([{"step": step, **results} for step, results in evaluations], result.history)
    assert result.best == {"value": 0.5, "step": 6} and result.stopped_early and result.steps == 15
    best = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert best["architectures"] == ["BertForSequenceClassification"]
    again = run(tmp_path / "run", evaluate=lambda model: {}, best_metric="rougeL", patience=3, epochs=9)
    assert again.steps == 15 and again.stopped_early


def test_the_seed_determines_dropout():
    model = classifier(hidden_dropout_prob=0.2)
    one, same, other = (run(model=model, epochs=1, validation=False, seed=seed).loss for seed in (0, 0, 1))
    assert one == same != other


def cross_entropy_times(outputs, batch):
    """Weighted cross-entropy, a custom loss with an entry of the batch that is no input of the model."""
    losses = -jnp.take_along_axis(jax.nn.log_softmax(outputs["logits"]), batch["labels"][:, None], axis=1)[:, 0]
    return ((jnp.sum(losses * batch["weight"]), jnp.float32(len(losses))),)


def test_a_non_finite_loss_stops_the_run_and_is_never_saved(tmp_path):
    batches = [batch | {"weight": np.ones(8, np.float32)} for n in (0, 1) for batch in Sentences().epoch(n)]
    options = {"mesh": one_device(), "log": {"console": False}, "loss": cross_entropy_times}
    good = fit(classifier(), batches, settings(epochs=1), **options)
    assert good.loss == pytest.approx(
        run(batches=[*Sentences().epoch(0), *Sentences().epoch(1)], epochs=1).loss, rel=1e-5
    )
    batches[4]["weight"][3] = np.nan
    with pytest.raises(NonFiniteLossError, match="step 5 has a loss of nan"):
        fit(
            classifier(), batches, settings(epochs=1, save_every=2, evaluate_every=3), tmp_path / "run",
            validation=batches[:2], **options,
        )  # fmt: skip
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]
    best = jaxnlp.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "best")
    assert all(np.isfinite(value).all() for value in values(best).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": []}, "there are no batches to train on"),
        ({"batches": iter(()), "steps": 3}, "there are no batches in epoch 0"),
        ({"batches": iter(())}, "set steps in the FitConfig"),
        ({"batches": [{"input_ids": np.full((2, 3), 99, np.int32)}]}, "input_ids contains 99"),
        ({"best_metric": "rougeL"}, "best_metric is 'rougeL' but nothing computes it"),
        ({"validation": False, "patience": 2}, "patience is 2 but nothing is evaluated"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"evaluate_every": "steps"}, "evaluate_every is 'steps'"),
    ],
)
def test_invalid_arguments(options, message):
    with pytest.raises(InputError, match=message):
        run(**options)


def test_parameters_in_bfloat16_are_refused():
    model = jaxnlp.AutoModelForSequenceClassification.from_config(BERT | SMALL, param_dtype="bfloat16")
    with pytest.raises(InputError, match="param_dtype='float32' and dtype='bfloat16'"):
        run(model=model)
    with pytest.raises(InputError, match="a base model has no labels"):
        FitStep(jaxnlp.AutoModel.from_config(BERT | SMALL), settings(), one_device())


@pytest.mark.representative
def test_an_encoder_decoder_is_evaluated_by_generating(tmp_path):
    validation = pair_batches(8, shuffle=False)
    scorer = GenerationScorer(validation, tokenizer(), share_of_words, max_new_tokens=4)
    result = fit(
        jaxnlp.AutoModelForSeq2SeqLM.from_config(T5, seed=1), pair_batches(),
        settings(epochs=8, evaluate_every=12, best_metric="words", label_smoothing=0.1), tmp_path / "run",
        validation=validation, evaluate=scorer, tokenizer=tokenizer(), mesh=one_device(), log={"console": False},
    )  # fmt: skip
    assert [record["step"] for record in result.history] == [12, 24]
    assert set(result.history[0]) == {"step", "loss", "words", "generated_length"}
    assert scorer.references[0] == list(validation.references[0]) and len(scorer.predictions) == 8
    best = jaxnlp.AutoModelForSeq2SeqLM.from_pretrained(result.best_folder)
    assert scorer(best)["words"] == result.best["value"] > 0.4
    assert (result.best_folder / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        (
            lambda predictions, references: {"bleu": 1},
            {},
            "best_metric is 'words' but the evaluation computes only loss, bleu",
        ),
        (lambda predictions, references: {"words": "many"}, {}, "the metric returned words='many'"),
        (3, {}, "metric is a int"),
        (share_of_words, {"num_return_sequences": 2, "num_beams": 2}, "evaluation needs one text per source"),
    ],
)
def test_an_unusable_metric_fails_before_the_first_step(metric, options, message):
    with pytest.raises(InputError, match=message):
        fit(
            jaxnlp.AutoModelForSeq2SeqLM.from_config(T5, seed=1), pair_batches(), settings(best_metric="words"),
            validation=pair_batches(8), mesh=one_device(),
            evaluate=GenerationScorer(pair_batches(8), tokenizer(), metric, max_new_tokens=4, **options),
        )  # fmt: skip


def test_labels_and_weights_of_other_forms_train_alike():
    """As in tfnlp; see tests/duonlp/test_labels.py for what is refused."""
    (batch,) = Sentences(8).epoch(0)
    ids, labels, weights = batch["input_ids"], batch["labels"], np.arange(8, dtype=np.float32)
    step = FitStep(classifier(), settings(), one_device())
    logits = np.asarray(classifier()(ids)["logits"], np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(8), labels]
    for form in (labels, labels[:, None].astype("uint8"), labels.tolist(), labels.astype(bool)):
        for row_weights in (weights, weights[:, None], weights.tolist()):
            one = {"input_ids": ids, "labels": form, "sample_weight": row_weights}
            loss = step.evaluate(step.init_state()["params"], [one])["loss"]
            assert loss == pytest.approx((losses * weights).mean(), rel=1e-5)
    for name, value in (
        ("labels", labels.astype("f4")),
        ("labels", np.eye(3, dtype=int)[labels]),
        ("sample_weight", np.ones(3)),
    ):
        with pytest.raises(InputError, match=f"{name} "):
            step.put(batch | {name: value})
