"""Distiller: the parts of its loss, its inputs, and what it trains, saves and leaves unchanged."""

from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnlp
from duonlp.distillation import reference_losses as reference
from duonlp.distillation.pair import Attentions, Distillation, HiddenStates, Relations, uniform_map
from duonlp.errors import InputError
from duonlp.training.fit_config import FitConfig
from tests.cases import SIZES, VOCABULARY
from tfnlp.distillation.distiller import Distiller, distill
from tfnlp.distillation.students import init_student

pytestmark = [
    pytest.mark.usefixtures("eagerly"),
    pytest.mark.filterwarnings(
        "ignore:Even though the .* option is set, this option does not apply to tf.data:UserWarning"
    ),
]
BERT = {
    "model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 20, "num_labels": 3,
}  # fmt: skip
DISTILBERT = {"model_type": "distilbert", **SIZES["distilbert"], "n_layers": 1, "num_labels": 3}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "qa_dropout": 0.0}
SEQUENCES = tfnlp.AutoModelForSequenceClassification
ROWS, LENGTH = 8, 6


def teacher(auto=SEQUENCES, **changes):
    """Return a teacher with dropout, which must never be active."""
    return auto.from_config(BERT | changes, seed=7, initializer_range=0.3)


def student(auto=SEQUENCES, dtype=None, **changes):
    return auto.from_config(DISTILBERT | NO_DROPOUT | changes, seed=8, initializer_range=0.2, dtype=dtype)


def inputs(rows=ROWS):
    rng = np.random.default_rng(0)
    mask = (np.arange(LENGTH) < rng.integers(3, LENGTH + 1, (rows, 1))).astype(np.int32)
    ids = (rng.integers(5, 55, mask.shape) * mask).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": rng.integers(0, 2, mask.shape, np.int32) * mask}


def labelled(rows=ROWS):
    batch = inputs(rows)
    return batch | {"labels": (batch["input_ids"][:, 0] % 3).astype(np.int32)}


def values_of(model):
    return {path: variable.numpy() for path, variable in tfnlp.parameter_tree(model).items()}


def evaluated(distiller, *batch, **options):
    return distiller.evaluate(*batch, batch_size=ROWS, verbose=0, return_dict=True, **options)


@pytest.fixture(scope="module")
def bert():
    return teacher()


@pytest.mark.representative
def test_a_step_matches_the_reference_loss_and_leaves_the_teacher_unchanged(bert, tmp_path, compiled):
    """Every loss, for models of different widths, depths and inputs, with row weights; then a training compiled with XLA."""
    small, batch = student(), labelled()
    weights = np.linspace(0, 2, ROWS).astype(np.float32)
    losses = HiddenStates(0.5), HiddenStates(0.25, "cosine", ((1, 2),)), Attentions(2.0), Relations(0.3, heads=8)
    distiller = Distiller(small, bert)
    distiller.compile(
        keras.optimizers.Adam(1e-2), ["accuracy"], None, losses, alpha=0.3, temperature=3.0, jit_compile=True
    )

    flags = {"output_hidden_states": True, "output_attentions": True}
    mine = tf.nest.map_structure(np.asarray, small({n: batch[n] for n in ("input_ids", "attention_mask")}, **flags))
    theirs = tf.nest.map_structure(np.asarray, bert({n: batch[n] for n in inputs()}, training=False, **flags))
    kernels = [kernel.numpy() for kernel in distiller.trainable_variables[:2]]
    row_losses = keras.losses.sparse_categorical_crossentropy(batch["labels"], mine["logits"], from_logits=True)
    expected = {"student_loss": np.mean(row_losses * weights)}

    def mean(function, a, b, *options, mask=batch["attention_mask"]):
        total, count = function(a, b, *options, mask, weights)
        return total / count

    expected["distillation_loss"] = 9 * mean(
        reference.kl_divergence_sum, mine["logits"], theirs["logits"], 3.0, mask=None
    )
    states = mine["hidden_states"], theirs["hidden_states"]
    expected["hidden_mse"] = np.mean(
        [mean(reference.hidden_mse_sum, states[0][i] @ kernels[i], states[1][j]) for i, j in uniform_map(1, 2)]
    )
    expected["hidden_cosine"] = mean(reference.hidden_cosine_sum, states[0][1] @ kernels[1], states[1][2])
    expected["attention_kl"] = mean(reference.attention_kl_sum, mine["attentions"][0], theirs["attentions"][1])
    last_layers = [m.encoder.layer_0 if m is small else m.encoder.layer_1 for m in (small, bert)]
    pairs = [[np.asarray(getattr(layer.attention, name)(s[-2])) for layer, s in zip(last_layers, states)] for name in
             ("query", "key", "value")]  # fmt: skip
    expected["relation_kl"] = np.mean([mean(reference.relation_kl_sum, *pair, 8) for pair in pairs])
    factors = {"student_loss": 0.3, "distillation_loss": 0.7, "hidden_mse": 0.5, "hidden_cosine": 0.25, "attention_kl": 2.0,
               "relation_kl": 0.3}  # fmt: skip
    expected["loss"] = sum(factors[name] * value for name, value in expected.items())
    expected["accuracy"] = np.mean(mine["logits"].argmax(-1) == batch["labels"])

    teacher_before, student_before, kernels_before = values_of(bert), values_of(small), kernels
    labels = batch.pop("labels")
    history = distiller.fit(batch, labels, sample_weight=weights, batch_size=ROWS, epochs=5, verbose=0).history
    assert {name: values[0] for name, values in history.items()} == pytest.approx(expected, rel=1e-5)
    assert history["loss"][-1] < 0.8 * expected["loss"]
    assert len(distiller.weights) == len(small.weights) + 2
    for path, value in values_of(bert).items():
        np.testing.assert_array_equal(value, teacher_before[path])
    assert all((value != student_before[path]).any() for path, value in values_of(small).items() if "kernel" in path)
    assert all((kernel.numpy() != old).any() for kernel, old in zip(distiller.trainable_variables[:2], kernels_before))
    assert bert.trainable and len(bert.trainable_variables) == len(bert.weights)

    distiller.save_pretrained(tmp_path / "student")
    again = SEQUENCES.from_pretrained(tmp_path / "student")
    distiller.run_eagerly = True
    predicted = distiller.predict(batch | {"labels": labels}, verbose=0)
    np.testing.assert_allclose(
        predicted["logits"], again(batch["input_ids"], batch["attention_mask"])["logits"], atol=1e-6
    )
    with pytest.raises(InputError, match="cannot be saved as a whole"):
        distiller.save(tmp_path / "whole.keras")


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer:UserWarning")
def test_a_killed_training_resumes_from_its_backup(bert, tmp_path):
    """Keras' own backup has the student, the projections and the optimizer, but not the teacher."""
    batch, losses = labelled(), (HiddenStates(layers=((1, 2),)),)

    def run(*callbacks):
        distiller = Distiller(student(), bert)
        distiller.compile(keras.optimizers.Adam(1e-2), ["accuracy"], distillation_losses=losses)
        options = {"batch_size": ROWS, "epochs": 3, "shuffle": False, "verbose": 0, "validation_data": (batch, None)}
        return distiller, distiller.fit(batch, callbacks=callbacks, **options).history

    def kill(epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt

    whole, expected = run()
    assert {name for name in expected if name.startswith("val_")} == {f"val_{n}" for n in expected if "val_" not in n}
    with pytest.raises(KeyboardInterrupt):
        run(keras.callbacks.BackupAndRestore(tmp_path), keras.callbacks.LambdaCallback(on_epoch_begin=kill))
    (file,) = tmp_path.glob("*.h5")
    with h5py.File(file) as stored:
        assert "teacher" not in stored and set(stored["vars"]) == {"state_1"} and "optimizer" in stored
    other = Distiller(student(), bert)
    other.compile("sgd")
    with pytest.raises(ValueError, match=r"has the projections \['state_1'\] but this Distiller has \[\]"):
        other.load_weights(file)
    again, history = run(keras.callbacks.BackupAndRestore(tmp_path))
    assert history == {name: values[2:] for name, values in expected.items()}
    for ours, theirs in zip(again.trainable_variables, whole.trainable_variables, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=theirs.path)


def test_every_form_of_batch_gives_the_same_loss(bert):
    batch, weights = labelled(), np.linspace(0, 2, ROWS).astype(np.float32)
    distiller = Distiller(student(), bert)
    distiller.compile("sgd")
    x, y = {name: batch[name] for name in inputs()}, batch["labels"]
    plain, weighted = evaluated(distiller, x, y), evaluated(distiller, x, y, sample_weight=weights)
    assert plain["loss"] == pytest.approx((plain["student_loss"] + plain["distillation_loss"]) / 2)
    assert evaluated(distiller, batch) == pytest.approx(plain, rel=1e-5)
    assert evaluated(distiller, batch | {"sample_weight": weights}) == pytest.approx(weighted, rel=1e-5)
    assert weighted["distillation_loss"] != pytest.approx(plain["distillation_loss"], rel=1e-2)
    logits = bert(x, training=False)["logits"].numpy()
    others = {f"teacher_{name}": value for name, value in x.items()}
    garbled = others | {
        "input_ids": x["input_ids"][:, ::-1].copy(),
        "attention_mask": x["attention_mask"][:, ::-1].copy(),
    }
    assert evaluated(distiller, garbled, y)["distillation_loss"] != pytest.approx(plain["distillation_loss"], rel=1e-2)
    alone = Distiller(distiller.student)
    alone.compile("sgd")
    assert evaluated(alone, batch | {"teacher_logits": logits}) == pytest.approx(plain, rel=1e-5)
    with pytest.raises(InputError, match="teacher_logits has shape"):
        evaluated(alone, batch | {"teacher_logits": logits[:2]})
    with pytest.raises(InputError, match="neither a teacher nor teacher_logits in the batch"):
        evaluated(alone, batch)
    with pytest.raises(InputError, match="no labels to learn from"):
        evaluated(distiller, x)
    distiller.compile("sgd", alpha=0)  # needs no labels
    assert evaluated(distiller, x) == pytest.approx(
        {"loss": plain["distillation_loss"], "distillation_loss": plain["distillation_loss"]}, rel=1e-5
    )


def test_the_teachers_labels_may_be_in_another_order(bert):
    names = {"id2label": {0: "b", 1: "c", 2: "a"}, "num_labels": 3}
    other = SEQUENCES.from_config(BERT | {"id2label": {0: "a", 1: "b", 2: "c"}}, seed=7, initializer_range=0.3)
    distiller = Distiller(student(**names), other)
    distiller.compile("sgd", alpha=0.0, temperature=1.0)
    x = inputs()
    mine, theirs = distiller.student(x["input_ids"], x["attention_mask"])["logits"], other(**x)["logits"].numpy()
    total, count = reference.kl_divergence_sum(mine.numpy(), theirs[:, [1, 2, 0]])
    assert evaluated(distiller, x)["loss"] == pytest.approx(total / count, rel=1e-5)


def tokens(batch):
    return np.where(batch["attention_mask"] * (batch["input_ids"] % 3 > 0) > 0, batch["input_ids"], -100).astype(
        np.int32
    )


MULTI = {"problem_type": "multi_label_classification"}
HEADS = {
    "multi-label": (SEQUENCES, MULTI, lambda b: {"labels": (np.arange(ROWS * 3).reshape(-1, 3) % 2).astype(np.float32)}),
    "regression": (SEQUENCES, {"num_labels": 1}, lambda b: {"labels": np.linspace(-1, 1, ROWS).astype(np.float32)}),
    "token-classification": (tfnlp.AutoModelForTokenClassification, {},
                             lambda b: {"labels": np.where(tokens(b) < 0, -100, tokens(b) % 3).astype(np.int32)}),
    "masked-lm": (tfnlp.AutoModelForMaskedLM, {}, lambda b: {"labels": tokens(b)}),
    "causal-lm": (tfnlp.AutoModelForCausalLM, {"is_decoder": True}, lambda b: {"labels": tokens(b)}),
    "question-answering": (tfnlp.AutoModelForQuestionAnswering, {"num_labels": 2}, lambda b: {
        "start_positions": np.arange(ROWS, dtype=np.int32) % 3, "end_positions": np.arange(ROWS, dtype=np.int32) % 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_every_head(name):
    """The student's own loss, the loss on the teacher's logits, and steps that lower their total."""
    auto, changes, labels = HEADS[name]
    big = teacher(auto, **changes)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    small = auto.from_config(BERT | changes | no_dropout | {"num_hidden_layers": 1}, seed=9, initializer_range=0.2)
    d = Distillation.distilbert() if name == "masked-lm" else Distillation(0.25, 2.0)
    distiller = Distiller(small, big)
    distiller.compile(keras.optimizers.Adam(1e-2), distillation_losses=d.losses, alpha=d.alpha, temperature=2.0)
    x = inputs()
    y = labels(x)
    mine, theirs = small(**x), big(**x, training=False)
    mine, theirs = ({n: v.numpy() for n, v in out.items()} for out in (mine, theirs))
    if name == "multi-label":
        total, count = reference.bernoulli_kl_divergence_sum(mine["logits"], theirs["logits"], 2.0)
    elif name == "regression":
        total, count = reference.squared_error_sum(mine["logits"], theirs["logits"])
        total /= 4
    elif name == "question-answering":
        total = count = 0
        for logits in ("start_logits", "end_logits"):
            pair = (np.where(x["attention_mask"], out[logits], -1e9) for out in (mine, theirs))
            part = reference.kl_divergence_sum(*pair, 2.0)
            total, count = total + part[0], count + part[1]
    else:
        mask = x["attention_mask"] if name == "masked-lm" else y["labels"] != -100
        pair = mine["logits"], theirs["logits"]
        if name == "causal-lm":
            pair, mask = [logits[:, :-1] for logits in pair], mask[:, 1:]
        total, count = reference.kl_divergence_sum(*pair, 2.0, mask)
    logs = evaluated(distiller, x | y)
    assert logs["distillation_loss"] == pytest.approx(4 * total / count, rel=1e-4)
    assert logs["student_loss"] == pytest.approx(float(small(**x, **y)["loss"]), rel=1e-5)
    hidden_loss = logs.get("hidden_cosine", 0.0) / 7
    expected = d.alpha * logs["student_loss"] + (1 - d.alpha) * logs["distillation_loss"] + hidden_loss
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
    assert distiller.fit(x | y, batch_size=ROWS, epochs=3, verbose=0).history["loss"][-1] < logs["loss"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_and_accumulation(bert, dtype):
    batch, losses = labelled(), (HiddenStates(0.2), Relations())
    exact, low = Distiller(student(), bert), Distiller(student(dtype=dtype), bert)
    exact.compile("sgd", distillation_losses=losses)
    optimizer = keras.optimizers.Adam(3e-3, gradient_accumulation_steps=2)
    low.compile(optimizer, ["accuracy"], distillation_losses=losses)
    assert isinstance(low.optimizer, keras.optimizers.LossScaleOptimizer) == (dtype == "float16")
    logs = evaluated(low, batch)
    logs.pop("accuracy")
    assert logs == pytest.approx(evaluated(exact, batch), rel=0.02)
    history = low.fit(batch, batch_size=ROWS // 2, epochs=4, shuffle=False, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


def run_steps(strategy=None):
    """Return logs and weights after two steps on rows that give replicas different numbers of tokens.

    The teacher is created under no strategy.
    """
    big, batch = teacher(num_hidden_layers=1), labelled(2 * ROWS)
    with (strategy or tf.distribute.get_strategy()).scope():
        small = student()
        small.classifier.kernel.regularizer = keras.regularizers.L2(0.1)
        distiller = Distiller(small, big)
        losses = HiddenStates(0.5), Relations(0.5, heads=4)
        # not Adam, which turns the rounding noise of zero gradients into steps
        distiller.compile(keras.optimizers.SGD(0.1), ["accuracy"], distillation_losses=losses, jit_compile=False)
    rows = tf.data.Dataset.from_tensor_slices(batch).batch(ROWS)
    history = distiller.fit(rows, verbose=0).history
    logs = distiller.evaluate(rows, verbose=0, return_dict=True)
    return {f"fit {n}": v for n, v in history.items()} | logs | {f"weight {n}": v for n, v in values_of(small).items()}


def test_distill_trains_evaluates_saves_the_best_and_resumes(tmp_path):
    big = teacher(num_hidden_layers=1)
    batches = [{name: value[i : i + 4] for name, value in labelled().items()} for i in (0, 4)]
    d = Distillation(0.5, 2.0, (HiddenStates(0.1),))
    config = FitConfig(epochs=2, learning_rate=1e-2, warmup_share=0.0, schedule="constant", weight_decay=0.0)
    options = {"validation": batches, "evaluate": lambda model: {"rows": float(model.num_parameters())}}

    def run(config):
        return distill(student(), big, batches, config, d, tmp_path / "run", log={"console": False}, **options)

    result = run(config)
    assert result.steps == 4 and result.examples == 16 and result.model.head == "sequence-classification"
    names = {"step", "loss", "student_loss", "distillation_loss", "hidden_mse", "rows"}
    assert [set(metrics) for metrics in result.history] == [names, names]
    assert result.history[1]["loss"] < result.history[0]["loss"]
    last = result.history[-1]
    parts = last["student_loss"] + last["distillation_loss"]
    assert last["loss"] == pytest.approx(parts / 2 + 0.1 * last["hidden_mse"], rel=1e-4)
    best = SEQUENCES.from_pretrained(result.best_folder)
    for path, value in values_of(best).items():
        np.testing.assert_array_equal(value, values_of(result.model)[path])
    again = run(config)  # a finished run is restored, not trained
    for path, value in values_of(again.model).items():
        np.testing.assert_array_equal(value, values_of(result.model)[path])
    d = Distillation(0.25)
    with pytest.raises(InputError, match="distillation"):
        run(config)


def test_the_decoder_reads_shifted_labels():
    hf = {"model_type": "t5", **SIZES["t5"], "dropout_rate": 0.0}
    big = tfnlp.AutoModelForSeq2SeqLM.from_config(hf, seed=1)
    small = init_student(big, num_layers=1, decoder_layers=1)
    batch = {name: value for name, value in inputs().items() if name != "token_type_ids"}
    batch["labels"] = np.where(batch["attention_mask"], batch["input_ids"], -100)[:, :4]
    distiller = Distiller(small, big)
    distiller.compile("sgd", distillation_losses=(HiddenStates(kind="cosine", layers=((-1, -1),)),))
    logs = evaluated(distiller, batch)
    assert logs["student_loss"] == pytest.approx(float(small(**batch)["loss"]), rel=1e-5)
    pair = (model(**batch)["logits"].numpy() for model in (small, big))
    total, count = reference.kl_divergence_sum(*pair, 2.0, batch["labels"] != -100)
    assert logs["distillation_loss"] == pytest.approx(4 * total / count, rel=1e-4)


def test_losses_on_hidden_states_of_a_base_model_need_no_labels():
    big = tfnlp.AutoModel.from_config(BERT, seed=7, initializer_range=0.3)
    small = init_student(big, num_layers=1)
    distiller = Distiller(small, big)
    distiller.compile(keras.optimizers.Adam(1e-3), distillation_losses=(HiddenStates(2.0, layers=((-1, -1),)),))
    logs = evaluated(distiller, inputs())
    assert logs["loss"] == pytest.approx(2 * logs["hidden_mse"]) and set(logs) == {"loss", "hidden_mse"}
    with pytest.raises(InputError, match="nothing is learned from the teacher"):
        distiller.compile("sgd")


def test_compiling_again_keeps_the_projections(bert):
    distiller = Distiller(student(), bert)
    losses = (HiddenStates(layers=((1, 2),)),)
    distiller.compile("sgd", distillation_losses=losses)
    kernel = distiller.trainable_variables[0]
    assert kernel.shape == (24, 32) and kernel.name == "projection_state_1"
    kernel.assign(np.ones((24, 32)))
    distiller.compile("sgd")
    assert len(distiller.trainable_variables) == len(distiller.student.trainable_variables)
    distiller.compile("sgd", distillation_losses=losses)
    assert distiller.trainable_variables[0] is kernel and kernel.numpy().all()
    assert [metric.name for metric in distiller.metrics] == ["loss", "student_loss", "distillation_loss", "hidden_mse"]


def test_a_keras_loss_replaces_the_heads_own(bert):
    distiller, batch = Distiller(student(), bert), labelled()
    own = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile("sgd", ["accuracy"], own, temperature=1.0)
    logs = evaluated(distiller, batch)
    distiller = Distiller(distiller.student, bert)
    distiller.compile("sgd", ["accuracy"], temperature=1.0)
    assert evaluated(distiller, batch) == pytest.approx(logs, rel=1e-5)
    kernel = distiller.student.classifier.kernel
    kernel.regularizer = keras.regularizers.L2(0.5)  # adds to the total, not to the student's share
    logs["loss"] += 0.5 * float(np.sum(np.square(kernel)))
    assert evaluated(distiller, batch) == pytest.approx(logs, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"temperature": 0}, "temperature is 0"),
        ({"distillation_losses": ("kl",)}, "'kl' is not a loss"),
        ({"distillation_losses": (HiddenStates(layers=((2, 2),)),)}, "no hidden state 2"),
    ],
)
def test_invalid_settings_are_refused(bert, settings, message):
    with pytest.raises(InputError, match=message):
        Distiller(student(), bert).compile("sgd", **settings)


def test_incompatible_models_are_refused(bert):
    with pytest.raises(InputError, match="the labels differ: the student has 2"):
        Distiller(student(num_labels=2), bert).compile("sgd")
    with pytest.raises(InputError, match="cannot compute hidden_mse without a teacher"):
        Distiller(student()).compile("sgd", distillation_losses=(HiddenStates(),))
    with pytest.raises(InputError, match="are the same model"):
        Distiller(bert, bert)
    words = [SimpleNamespace(get_vocab=lambda words=words: dict.fromkeys(words, 0)) for words in ("abc", "abd")]
    tokenizers = {"student_tokenizer": words[0], "teacher_tokenizer": words[1]}
    for other in (Distiller(student(vocab_size=70), bert), Distiller(student(), bert, **tokenizers)):
        other.compile("sgd")  # only batches show whether the teacher has its own inputs
        with pytest.raises(InputError, match="the tokenizers differ"):
            evaluated(other, labelled())
