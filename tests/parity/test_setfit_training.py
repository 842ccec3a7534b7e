"""SetFit in both engines from the same weights and texts: the same curves and scores, and files that both engines read."""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")
pytest.importorskip("sklearn")

import jaxnlp
import jaxnlp.training
import tfnlp
import tfnlp.training
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import CheckpointError, InputError
from duonlp.fewshot import FewShotData, load_classifier, method_class
from duonlp.fewshot.model_classifier import few_widths
from duonlp.fewshot.setfit import SentenceEncoder, SetFit
from duonlp.fewshot.setfit_pairs import ContrastiveBatches
from duonlp.training.fit_config import FitConfig
from duonlp.training.log.metrics_file import read_metrics
from duonlp.training.objectives.contrastive import PairSimilarity
from tests import intents

ENGINES = [jaxnlp, tfnlp]
pytestmark = pytest.mark.filterwarnings("ignore:.*has no modules.json")


def texts_of(count, seed=0, multi_label=False):
    rows = intents.queries(count, seed)
    labels = np.array([intents.LABELS.index(label) for _, label in rows], np.int32)
    if multi_label:  # a text is also about music if it has the word "some"; one has no label
        labels = np.eye(4, dtype=np.float32)[labels]
        labels[["some" in text for text, _ in rows], intents.LABELS.index("music")] = 1
        labels[0] = 0
    return LabelledTexts([text for text, _ in rows], labels, intents.LABELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return intents.checkpoint(tmp_path_factory.mktemp("body"), num_hidden_layers=1)


def method(folder, **settings):
    defaults = {"max_steps": 20, "batch_size": 8, "learning_rate": 1e-3, "max_length": 8}
    return SetFit(model=str(folder), **defaults | settings)


@pytest.fixture(scope="module")
def classifiers(folder):
    return [method(folder).fit(package, FewShotData(texts_of(16)), seed=1) for package in ENGINES]


def test_both_engines_learn_the_same(classifiers):
    test = texts_of(40, seed=9)
    ours, theirs = (classifier.scores(test.texts) for classifier in classifiers)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    np.testing.assert_allclose(ours.sum(axis=1), 1, atol=1e-5)
    assert not classifiers[0].multi_label and ours.dtype == np.float32


def test_the_curves_agree(folder, tmp_path):
    texts, losses = texts_of(16), []
    for package in ENGINES:
        model = package.AutoModel.from_pretrained(folder)
        batches = ContrastiveBatches(texts, intents.tokenizer(), 10, max_length=8)
        config = FitConfig(epochs=1, learning_rate=1e-3, log_every=1, evaluate_every=0, save_every=0)
        run = tmp_path / package.__name__
        package.training.fit(model, batches, config, run, objective=PairSimilarity(), log={"console": False})
        losses.append([record["loss"] for record in read_metrics(run)])
    assert len(losses[0]) == len(batches) == 20 and len(batches.sampler) == 192  # the last batch has padding rows
    assert np.mean(losses[0][-5:]) < 0.9 * np.mean(losses[0][:5])
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-4)


def test_the_other_engine_reads_the_files(classifiers, tmp_path):
    texts = texts_of(12, seed=5).texts
    for classifier, other in zip(classifiers, reversed(ENGINES)):
        folder = tmp_path / other.__name__
        classifier.save(folder)
        loaded = load_classifier(folder, other)
        np.testing.assert_allclose(loaded.scores(texts), classifier.scores(texts), atol=1e-4)
        types = [module["type"].rsplit(".", 1)[-1] for module in json.loads((folder / "body/modules.json").read_text())]
        assert types == ["Transformer", "Pooling"] and loaded.label_names == intents.LABELS
        loaded.save(folder)  # over the files it was loaded from
        np.testing.assert_array_equal(load_classifier(folder, other).scores(texts), loaded.scores(texts))


def test_the_same_seed_gives_the_same_classifier(classifiers, folder):
    again = method(folder).fit(jaxnlp, FewShotData(texts_of(16)), seed=1)
    np.testing.assert_array_equal(again.coefficients, classifiers[0].coefficients)


@pytest.mark.parametrize("package", ENGINES)
def test_several_labels_and_a_head_trained_with_the_encoder(package, folder):
    settings = {"differentiable_head": True, "head_epochs": 20, "temperature": 0.5, "iterations": 4}
    data = FewShotData(texts_of(40, multi_label=True))
    trained = method(folder, **settings).fit(package, data)
    start = method(folder, **settings | {"differentiable_head": False}).fit(package, data)
    texts, labels = data.train.texts, data.train.labels
    losses = []
    for classifier in (start, trained):
        scores = np.clip(classifier.scores(texts), 1e-6, 1 - 1e-6)
        losses.append(-np.mean(labels * np.log(scores) + (1 - labels) * np.log(1 - scores)))
    assert trained.multi_label and losses[1] < 0.8 * losses[0]


def test_names_of_labels_alone(folder):
    names = ("hello", "song", "rain")
    empty = LabelledTexts([], np.zeros(0, np.int32), names)
    classifier = method(folder, template="now {} please").fit(jaxnlp, FewShotData(empty))
    assert classifier.scores([f"now {name} please" for name in names]).argmax(axis=1).tolist() == [0, 1, 2]
    several = LabelledTexts([], np.zeros((0, 3), np.float32), names)
    scores = (
        method(folder, template="now {} please", max_steps=0).fit(jaxnlp, FewShotData(several)).scores(["now rain"])
    )
    assert scores.argmax() == 2


def test_labels_without_texts_and_with_one(folder):
    texts = texts_of(9).take([0, 1, 4, 8])  # 3 greetings, 1 about music
    scores = method(folder, max_steps=0).fit(jaxnlp, FewShotData(texts)).scores(texts.texts)
    counts = np.array(list(texts.counts().values()))
    assert not scores[:, counts == 0].any() and (scores[:, counts > 0] > 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "all"}, "strategy is 'all'"),
        ({"max_steps": -1}, "max_steps is -1; it must be an integer of at least 0"),
        ({"epochs": True}, "epochs is True"),
        ({"learning_rate": 0}, "learning_rate is 0; it must be a positive number"),
        ({"loss": "cos"}, "loss is 'cos'; it must be one of cosine, contrastive"),
        ({"template": "It is"}, "template is 'It is'; it must contain {}"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(InputError, match=message):
        SetFit(**settings)


def test_invalid_data_and_models(folder, tmp_path):
    one = texts_of(1)
    for texts, message in [
        (one, "each of the 1 texts has a label in common"),
        (one.take([]), "there are no training texts; add some, or set a template"),
        (replace(texts_of(4), labels=np.zeros(4, np.int32)), "add texts with another label"),
        (replace(texts_of(4), labels=np.zeros((4, 4), np.float32)), "none of the 4 texts has a label"),
    ]:
        with pytest.raises(InputError, match=message):
            method(folder).fit(jaxnlp, FewShotData(texts))
    with pytest.raises(InputError, match="pass package=tfnlp or jaxnlp"):
        method(folder).fit(None, FewShotData(texts_of(4)))
    with pytest.raises(CheckpointError):
        method(tmp_path / "none").fit(jaxnlp, FewShotData(texts_of(4)))
    assert method_class("setfit") is SetFit


def test_damaged_files(classifiers, tmp_path):
    classifiers[0].save(tmp_path / "whole")
    about = json.loads((tmp_path / "whole/classifier.json").read_text())
    (tmp_path / "whole/classifier.json").write_text(json.dumps(about | {"settings": {"max_length": 0}}))
    with pytest.raises(CheckpointError, match="max_length is 0"):
        load_classifier(tmp_path / "whole", jaxnlp)
    (tmp_path / "whole/classifier.json").write_text(json.dumps(about | {"label_names": ["one"]}))
    with pytest.raises(CheckpointError, match="'coefficients' is float64"):
        load_classifier(tmp_path / "whole", jaxnlp)
    (tmp_path / "whole/classifier.json").write_text(json.dumps(about))
    (tmp_path / "whole/body").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="has no body"):
        load_classifier(tmp_path / "whole", jaxnlp)


def test_slices_of_all_sizes_share_their_shapes(folder):
    """Each shape is a program to compile, so it must not depend on how long and how many the texts are."""
    encoder = SentenceEncoder(jaxnlp, str(folder), 8)
    shapes = [
        {batch["input_ids"].shape for batch in method(folder)._batches(texts_of(count), encoder, 0).epoch(0)}
        for count in (6, 16, 30)
    ]
    assert set.union(*shapes) <= {(8, 2, width) for width in few_widths(8)}
