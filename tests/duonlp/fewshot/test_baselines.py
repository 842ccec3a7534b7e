"""The baselines against scikit-learn's own estimators, and their files."""

import json
import shutil

import numpy as np
import pytest

from duonlp.data import LabelledTexts
from duonlp.errors import CheckpointError, InputError
from duonlp.fewshot import FewShotData, load_classifier, method_class
from duonlp.fewshot.baselines import EmbeddingRegression, NaiveBayes, TfidfRegression
from duonlp.pipelines import TextEncoder
from tests.intents import checkpoint

pytest.importorskip("sklearn")
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB

TEXTS = [
    "the download hangs forever", "docs for the download are wrong", "please add a new dataset", "typo in the docs",
    "add streaming and fix the download", "crash: the dataset hangs, the dataset crashes",
]  # fmt: skip
OTHERS = ["the docs hang", "add the dataset", "nothing of this was seen", "", "new new new"]
NAMES = ("bug", "docs", "enhancement", "never", "always")
SEVERAL = np.array(
    [[1, 0, 0, 0, 1], [0, 1, 0, 0, 1], [0, 0, 1, 0, 1], [0, 1, 0, 0, 1], [1, 0, 1, 0, 1], [1, 0, 0, 0, 1]], np.float32
)
ONE = np.array([0, 1, 2, 1, 2, 0], np.int32)

METHODS = [NaiveBayes(), NaiveBayes(0.1, 2, True), TfidfRegression(), TfidfRegression(3.0, False, 2, True)]


def fitted(method, labels):
    return method.fit(None, FewShotData(LabelledTexts(TEXTS, labels, NAMES)))


def of_sklearn(method):
    """Return a vectorizer and an estimator of scikit-learn with a method's settings."""
    words = {"ngram_range": (1, method.longest_ngram), "stop_words": "english" if method.stop_words else None}
    if isinstance(method, NaiveBayes):
        return CountVectorizer(**words), MultinomialNB(alpha=method.smoothing)
    weight = "balanced" if method.balanced else None
    return TfidfVectorizer(sublinear_tf=True, **words), LogisticRegression(
        C=method.inverse_penalty, class_weight=weight, max_iter=1000
    )


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_scores_are_those_of_scikit_learn(method, tmp_path):
    vectorizer, model = of_sklearn(method)
    train, test = vectorizer.fit_transform(TEXTS), vectorizer.transform(OTHERS)
    several = fitted(method, SEVERAL)
    scores = several.scores(OTHERS)
    assert scores.dtype == np.float32 and scores.shape == (5, 5) and several.multi_label
    for label in range(3):
        expected = model.fit(train, SEVERAL[:, label]).predict_proba(test)[:, 1]
        np.testing.assert_allclose(scores[:, label], expected, atol=1e-6)
    assert (scores[:, 3] == 0).all() and (scores[:, 4] == 1).all()  # without positive and without negative texts

    single = fitted(method, ONE)
    np.testing.assert_allclose(single.scores(OTHERS)[:, :3], model.fit(train, ONE).predict_proba(test), atol=1e-6)
    assert (single.scores(OTHERS)[:, 3:] == 0).all() and not single.multi_label
    two = fitted(method, ONE // 2)  # a binary problem
    np.testing.assert_allclose(two.scores(OTHERS)[:, :2], model.fit(train, ONE // 2).predict_proba(test), atol=1e-6)
    for number, classifier in enumerate((several, single, two)):
        classifier.save(tmp_path / f"{number}")
        loaded = load_classifier(tmp_path / f"{number}")
        assert type(loaded) is method_class(method.name).classifier and loaded.label_names == NAMES
        assert (loaded.scores(OTHERS) == classifier.scores(OTHERS)).all()


@pytest.mark.parametrize("method", [NaiveBayes(), TfidfRegression()], ids=repr)
def test_slices_with_constant_labels(method, tmp_path):
    same = fitted(method, np.zeros(6, np.int32))
    assert same.scores(OTHERS).tolist() == [[1, 0, 0, 0, 0]] * 5
    nothing = fitted(method, np.zeros((6, 5), np.float32))
    assert not nothing.scores(OTHERS).any()
    nothing.save(tmp_path / "nothing")
    assert not load_classifier(tmp_path / "nothing").scores(TEXTS).any()
    one = method.fit(None, FewShotData(LabelledTexts(TEXTS[:1], SEVERAL[:1], NAMES)))
    assert one.scores(OTHERS).tolist() == [[1, 0, 0, 0, 1]] * 5 and one.scores([]).shape == (0, 5)


@pytest.mark.parametrize("engine", ["jaxnlp", "tfnlp"])
@pytest.mark.filterwarnings("ignore")
def test_embeddings(engine, tmp_path):
    package = pytest.importorskip(engine)
    folder = checkpoint(tmp_path / "bert", num_hidden_layers=1)
    texts, others = ["pay the bill", "send money", "hello", "hi"], ["please pay", "hello hi"]
    targets = np.array([0, 0, 1, 1], np.int32)
    data = FewShotData(LabelledTexts(texts, targets, ("pay", "greet")))
    method = EmbeddingRegression(folder, 2.0, max_length=8, batch_size=4, pooling="max")
    classifier = method.fit(package, data)
    encoder = TextEncoder(package, folder, "max", 8, 4)
    model = LogisticRegression(C=2.0, class_weight="balanced", max_iter=1000).fit(encoder(texts), targets)
    np.testing.assert_allclose(classifier.scores(others), model.predict_proba(encoder(others)), atol=1e-5)
    classifier.save(tmp_path / "x")
    shutil.rmtree(folder)  # the classifier has a copy
    loaded = load_classifier(tmp_path / "x", package)
    np.testing.assert_allclose(loaded.scores(others), classifier.scores(others), atol=1e-6)
    with pytest.raises(InputError, match="pass package=tfnlp or jaxnlp"):
        load_classifier(tmp_path / "x")
    with pytest.raises(InputError, match="pass package=tfnlp or jaxnlp"):
        method.fit(None, data)
    with pytest.raises(InputError, match="pooling is 'sum'"):
        EmbeddingRegression(folder, pooling="sum")
    shutil.rmtree(tmp_path / "x/encoder")
    with pytest.raises(CheckpointError, match="encoder"):
        load_classifier(tmp_path / "x", package)


def test_settings_and_texts_are_checked():
    for settings, message in (
        ({"smoothing": 0}, "smoothing is 0; it must be"), ({"smoothing": float("nan")}, "smoothing is nan"),
        ({"longest_ngram": 0}, "longest_ngram"), ({"stop_words": "english"}, "stop_words"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            NaiveBayes(**settings)
    for settings, message in (({"inverse_penalty": -1.0}, "inverse_penalty is -1.0"), ({"balanced": 1}, "balanced")):
        with pytest.raises(InputError, match=message):
            TfidfRegression(**settings)
    with pytest.raises(InputError, match="the 2 training texts have no words"):
        NaiveBayes().fit(None, FewShotData(LabelledTexts(["a", "?"], ONE[:2], NAMES)))
    with pytest.raises(InputError, match="there are no training texts"):
        TfidfRegression().fit(None, FewShotData(LabelledTexts([], ONE[:0], NAMES)))
    for texts in ("one text", [None], [("a", "b")]):
        with pytest.raises(InputError, match="give a list of texts"):
            fitted(NaiveBayes(), ONE).scores(texts)


def test_damaged_files(tmp_path):
    fitted(TfidfRegression(), ONE).save(tmp_path / "x")
    file = tmp_path / "x/classifier.json"
    about = json.loads(file.read_text())

    def damage(**settings):
        file.write_text(json.dumps(about | {"settings": about["settings"] | settings}))

    words = about["settings"]["vocabulary"]
    for settings, message in (
        ({"vocabulary": words[:-1]}, "it must be float64"), ({"vocabulary": words[:-1] + words[:1]}, "a word twice"),
        ({"vocabulary": []}, "vocabulary"), ({"features": "letters"}, "features"), ({"longest_ngram": 10**9}, "longest_ngram"),
    ):  # fmt: skip
        damage(**settings)
        with pytest.raises(CheckpointError, match=message):
            load_classifier(tmp_path / "x")
    damage()
    classifier = load_classifier(tmp_path / "x")
    classifier.coefficients[0, 0] = np.nan
    classifier.save(tmp_path / "x")
    with pytest.raises(CheckpointError, match="not finite"):
        load_classifier(tmp_path / "x")
