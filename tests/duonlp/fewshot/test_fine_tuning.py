"""Fine-tuning on few labels, with and without adaptation, in both engines."""

import importlib
import shutil
from dataclasses import replace

import numpy as np
import pytest

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.data import LabelledBatches, LabelledTexts
from duonlp.errors import CheckpointError, InputError
from duonlp.fewshot import FewShotData, load_classifier, method_class
from duonlp.fewshot.fine_tuning import (
    AdaptedFineTuning,
    FineTuning,
    WeightedBatches,
    fingerprint_of,
    head_bias,
    positive_weights,
)
from tests.cases import Case
from tests.reference import record_pipelines as reference

BERT = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 32, "pad_token_id": 0, "hidden_dropout_prob": 0.1, "initializer_range": 0.2,
}  # fmt: skip
NAMES = ("code", "craft", "people")
TEXTS = [
    "Ada wrote the first program.",
    "The loom weaves.",
    "A program is a text.",
    "Weaving needs a loom.",
    "Ada met Charles.",
]
SEVERAL = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
ONE = np.array([0, 1, 0, 1, 2], np.int32)
SMALL = {"min_steps": 60, "max_steps": 60, "batch_size": 4, "max_length": 12, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return the folder of a tiny random encoder, and of one with a head for the same labels."""
    tokenizer = reference.load_tokenizer("wordpiece")
    folder = tmp_path_factory.mktemp("base")
    Case("base", BERT | {"vocab_size": len(tokenizer)}, "base").write(folder / "base")
    labels = {"id2label": {"0": "code", "1": "craft", "2": "people"}, "label2id": {"code": 0, "craft": 1, "people": 2}}
    head = (
        BERT | {"vocab_size": len(tokenizer), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} | labels
    )
    Case("tuned", head, "sequence-classification").write(folder / "tuned")
    for name in ("base", "tuned"):
        tokenizer.save_pretrained(folder / name)
    return folder


def few(labels, rows=slice(None), **more):
    texts = LabelledTexts(TEXTS, labels, NAMES).take(range(5)[rows])
    return FewShotData(texts, **more)


@pytest.mark.parametrize("engine", ["jaxnlp", "tfnlp"])
def test_a_trained_classifier_fits_its_texts_and_loads_again(base, engine, tmp_path):
    package = pytest.importorskip(engine)
    method = FineTuning(str(base / "base"), **SMALL)
    classifier = method.fit(package, few(SEVERAL), seed=3)
    scores = classifier.scores(TEXTS)
    assert scores.dtype == np.float32 and classifier.multi_label and classifier.label_names == NAMES
    np.testing.assert_array_equal(scores > 0.5, SEVERAL > 0.5)
    short = replace(method, min_steps=2, max_steps=2)
    first, again = (short.fit(package, few(SEVERAL), seed=3).scores(TEXTS) for _ in range(2))
    np.testing.assert_allclose(first, again, atol=1e-6)
    classifier.save(tmp_path / "saved")
    np.testing.assert_allclose(load_classifier(tmp_path / "saved", package).scores(TEXTS), scores, atol=1e-6)
    assert classifier.scores([]).shape == (0, 3)
    with pytest.raises(InputError, match="which runs a model; pass package=tfnlp or jaxnlp"):
        load_classifier(tmp_path / "saved")
    single = FineTuning(str(base / "base"), **SMALL | {"keep_best": True})
    classifier = single.fit(package, few(ONE, validation=few(ONE).train))
    np.testing.assert_array_equal(classifier.scores(TEXTS).argmax(1), ONE)
    np.testing.assert_allclose(classifier.scores(TEXTS).sum(1), 1, atol=1e-6)


def test_the_engines_agree_without_dropout(base):
    method = FineTuning(
        str(base / "tuned"), **SMALL | {"min_steps": 5, "max_steps": 5, "learning_rate": 1e-3, "positive_weight": 0.5}
    )
    ours = [
        method.fit(pytest.importorskip(engine), few(SEVERAL), seed=1).scores(TEXTS) for engine in ("jaxnlp", "tfnlp")
    ]
    np.testing.assert_allclose(ours[0], ours[1], atol=1e-4)


def test_a_trained_head_keeps_its_labels_and_a_new_one_starts_at_their_frequencies(base):
    jaxnlp = pytest.importorskip("jaxnlp")
    tuned = FineTuning(str(base / "tuned"), **SMALL | {"min_steps": 1, "max_steps": 1, "learning_rate": 1e-12})
    classifier = tuned.fit(jaxnlp, few(ONE))
    model = jaxnlp.AutoModelForSequenceClassification.from_pretrained(base / "tuned")
    batches = LabelledBatches(TEXTS, open_checkpoint(base / "tuned").tokenizer(), 5, max_length=12, shuffle=False)
    logits = jaxnlp.predict(model, batches)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(classifier.scores(TEXTS), expected, atol=1e-5)
    fresh = replace(tuned, model=str(base / "base")).fit(jaxnlp, few(SEVERAL))
    from jaxnlp.pretrained import parameter_tree

    frequency = (SEVERAL.sum(0) + 0.5) / 6
    np.testing.assert_allclose(
        np.asarray(parameter_tree(fresh.model)["classifier/bias"]), np.log(frequency / (1 - frequency)), atol=1e-6
    )
    assert head_bias(model.config, few(ONE).train) == {}


def test_labels_that_a_text_has_weigh_by_their_frequency(base):
    texts = few(SEVERAL).train
    frequency = (SEVERAL.sum(0) + 0.5) / 6
    weights = positive_weights(texts, 0.5)
    np.testing.assert_allclose(weights, np.sqrt((1 - frequency) / frequency), rtol=1e-6)
    batches = WeightedBatches(
        LabelledBatches(texts, open_checkpoint(base / "base").tokenizer(), 4, max_length=12), weights
    )
    batch = next(batches.epoch(0))
    np.testing.assert_array_equal(batch["sample_weight"], np.where(batch["labels"] > 0, weights, 1))
    assert len(batches) == 2


def test_a_checkpoint_that_replaced_another_of_its_size_is_told_from_it(base, tmp_path):
    folder = shutil.copytree(base / "base", tmp_path / "model")
    before = fingerprint_of(str(folder))
    assert before == fingerprint_of(str(base / "base"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert fingerprint_of(str(folder)) != before


@pytest.mark.parametrize("engine", ["jaxnlp", "tfnlp"])
def test_an_adapted_model_is_made_once_for_all_slices(base, engine, tmp_path, monkeypatch):
    package = pytest.importorskip(engine)
    fine_tuning = importlib.import_module("duonlp.fewshot.fine_tuning")
    runs, adapt = [], fine_tuning.adapt
    monkeypatch.setattr(fine_tuning, "adapt", lambda *args, **options: runs.append(1) or adapt(*args, **options))
    small = SMALL | {"min_steps": 2, "max_steps": 2}
    method = AdaptedFineTuning(str(base / "base"), **small, adaptation_epochs=1, cache=str(tmp_path / "cache"))
    others = [*TEXTS, *(f"The loom of Ada has {word} programs." for word in ("no", "ten", "two", "old", "new"))]
    scores = method.fit(package, few(SEVERAL, slice(2), unlabelled=others)).scores(TEXTS)
    assert scores.shape == (5, 3) and np.isfinite(scores).all()
    method.fit(package, few(SEVERAL, unlabelled=others[::-1]), seed=1)
    assert len(runs) == 1
    (folder,) = (tmp_path / "cache").iterdir()
    adapted = package.AutoModelForMaskedLM.from_pretrained(folder / "best")
    assert adapted.head == "masked-lm"
    with pytest.raises(InputError, match="there are 0 unlabeled texts, but this method needs at least 1"):
        method.fit(package, few(SEVERAL))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, "model is empty"),
        ({"min_steps": 0}, "min_steps is 0; it must be a positive integer"),
        ({"min_steps": 9, "max_steps": 8}, "min_steps is 9 and max_steps 8; swap them"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ({"positive_weight": 2.0}, "positive_weight is 2.0; it must be an exponent from 0 to 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        FineTuning(**settings)


def test_bad_input(base, tmp_path):
    jaxnlp = pytest.importorskip("jaxnlp")
    assert method_class("fine-tune") is FineTuning and method_class("adapt") is AdaptedFineTuning
    with pytest.raises(InputError, match="fine-tune trains a model; pass package=tfnlp or jaxnlp"):
        FineTuning(str(base / "base")).fit(None, few(ONE))
    with pytest.raises(InputError, match="max_length is 64; the model reads at most 32 tokens"):
        FineTuning(str(base / "base"), max_length=64).fit(jaxnlp, few(ONE))
    with pytest.raises(InputError, match="keep_best needs validation texts to evaluate"):
        FineTuning(str(base / "base"), max_length=12, keep_best=True).fit(jaxnlp, few(ONE))
    with pytest.raises(CheckpointError):
        FineTuning(str(tmp_path / "none")).fit(jaxnlp, few(ONE))
    with pytest.raises(InputError, match="initial_values has 'head/bias', which is not a parameter of the model"):
        jaxnlp.AutoModel.from_pretrained(base / "base", initial_values={"head/bias": np.zeros(3)})
    with pytest.raises(InputError, match=r"has shape \[2\]; it must be \[3\]"):
        jaxnlp.AutoModelForSequenceClassification.from_pretrained(
            base / "tuned", initial_values={"classifier/bias": np.zeros(2)}
        )
