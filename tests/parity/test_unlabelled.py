"""Learning from unlabeled texts in both frameworks: predictions with dropout, UDA and UST from texts to saved classifiers."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxnlp
import tfnlp
from duonlp.data.labelled.batches import LabelledBatches
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import CheckpointError, InputError
from duonlp.fewshot import FewShotData, load_classifier
from duonlp.fewshot.uda import UDA
from duonlp.fewshot.ust import UST
from tests.objectives import BERT
from tests.reference.record_pipelines import load_tokenizer

PACKAGES = pytest.mark.parametrize("package", [jaxnlp, tfnlp], ids=lambda package: package.__name__)
NOUNS = ("loom", "engine", "program")
TEXTS = [f"the {noun} wrote {other}" for noun in NOUNS for other in ("leaves", "flowers", "patterns")]
LABELS = np.arange(9, dtype=np.int32) // 3
UNLABELLED = [f"{other} the {noun}" for noun in NOUNS for other in ("who wrote", "which", "leaves and", "patterns of")]
DATA = {
    False: FewShotData(LabelledTexts(TEXTS, LABELS, NOUNS), None, UNLABELLED),
    True: FewShotData(LabelledTexts(TEXTS, np.eye(3, dtype=np.float32)[LABELS], NOUNS), None, UNLABELLED),
}


class Same:
    """An augmenter whose copies are the texts themselves."""

    def augment(self, texts, per_text=1, seed=0):
        return [[text] * per_text for text in texts]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny encoder with dropout."""
    folder, tokenizer = tmp_path_factory.mktemp("encoder"), load_tokenizer("wordpiece")
    hf = BERT | {"vocab_size": len(tokenizer), "hidden_dropout_prob": 0.2}
    jaxnlp.AutoModel.from_config(hf, seed=1).save_pretrained(folder, tokenizer)
    return str(folder)


@PACKAGES
def test_predictions_with_dropout_are_samples(package, checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the head is new
        model = package.AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
    batches = LabelledBatches(TEXTS, load_tokenizer("wordpiece"), 4, max_length=8, widths=(8,), shuffle=False)
    plain = package.predict(model, batches)
    first, again, *others = (package.predict(model, batches, dropout_seed=seed) for seed in (1, 1, *range(2, 60)))
    assert np.array_equal(first, again) and np.array_equal(package.predict(model, batches), plain)
    assert not np.array_equal(first, others[0]) and abs(np.mean([first, *others], axis=0) - plain).max() < 0.5
    repeated = LabelledBatches([TEXTS[0]] * 8, load_tokenizer("wordpiece"), 4, max_length=8, shuffle=False)
    rows = package.predict(model, repeated, dropout_seed=1)
    assert len(np.unique(rows[:, 0])) == 8  # neither rows nor batches share their masks


def probability_of_truth(classifier, texts):
    return classifier.scores(texts)[np.arange(9), LABELS].mean()


@PACKAGES
def test_uda_learns_and_is_loaded_again(package, checkpoint, tmp_path):
    method = UDA(checkpoint, steps=30, batch_size=4, ratio=2, learning_rate=1e-2, tsa="log", max_length=8)
    classifier = method.fit(package, DATA[False], seed=1)
    scores = classifier.scores(UNLABELLED)
    assert scores.dtype == np.float32 and np.allclose(scores.sum(-1), 1, atol=1e-6)
    assert probability_of_truth(classifier, TEXTS) > 0.4
    assert classifier.scores([]).shape == (0, 3)
    classifier.save(tmp_path / "saved")
    loaded = load_classifier(tmp_path / "saved", package)
    assert (loaded.label_names, loaded.multi_label, loaded.method) == (NOUNS, False, "uda")
    np.testing.assert_array_equal(loaded.scores(UNLABELLED), scores)
    short = replace(method, steps=2, augmenter=Same(), most_unlabelled=5)
    first, again = (short.fit(package, DATA[False], seed=2).scores(TEXTS) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@PACKAGES
def test_ust_learns_and_is_loaded_again(package, checkpoint, tmp_path):
    """With several labels per text; validation texts whose labels are wrong choose the first of the models."""
    method = UST(
        checkpoint, teacher_steps=30, rounds=1, steps=4, batch_size=4, learning_rate=1e-2, passes=2, pool=10, selected=6,
        max_length=8,
    )  # fmt: skip
    classifier = method.fit(package, DATA[True], seed=1)
    scores = classifier.scores(UNLABELLED)
    assert probability_of_truth(classifier, TEXTS) > 0.4
    classifier.save(tmp_path / "saved")
    np.testing.assert_array_equal(load_classifier(tmp_path / "saved", package).scores(UNLABELLED), scores)
    short = replace(method, teacher_steps=2, restart=True, weighted=False, easy=False, per_class=False)
    wrong = replace(DATA[True].train, labels=1 - DATA[True].train.labels)
    first, again = (short.fit(package, replace(DATA[True], validation=wrong), seed=2).scores(TEXTS) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@PACKAGES
def test_models_and_labels_that_do_not_suit(package, checkpoint, tmp_path):
    data, names = DATA[False], ("a", "b", "c")
    classifier = UDA(checkpoint, steps=1, batch_size=1, ratio=1, max_length=8).fit(package, data)
    classifier.save(tmp_path / "saved")
    folder = tmp_path / "saved" / "model"
    others, renamed = (replace(data.train, label_names=labels) for labels in (names, NOUNS[::-1]))
    quiet = tmp_path / "quiet"
    hf = BERT | {"vocab_size": len(load_tokenizer("wordpiece"))}
    jaxnlp.AutoModel.from_config(hf, seed=1).save_pretrained(quiet, load_tokenizer("wordpiece"))
    for message, call in {
        "is fine-tuned for as many labels": lambda: UDA(folder).fit(package, replace(data, train=others)),
        "the same labels in another order": lambda: UST(folder).fit(package, replace(data, train=renamed)),
        "there are no training texts": lambda: UST(checkpoint).fit(package, replace(data, train=data.train.take([]))),
        "has no dropout, whose samples": lambda: UST(str(quiet)).fit(package, data),
        "pass package=tfnlp or jaxnlp": lambda: load_classifier(tmp_path / "saved"),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="has no model, the folder of its model"):
        load_classifier(tmp_path / "saved", package)
