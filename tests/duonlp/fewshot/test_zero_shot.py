"""Zero-shot methods: formulas, what they take from texts without labels, files, and bad input."""

import json

import numpy as np
import pytest

from duonlp.data import LabelledTexts
from duonlp.errors import CheckpointError, InputError
from duonlp.fewshot import FewShotData, load_classifier, method_class
from duonlp.fewshot.zero_shot import (
    SHIFT,
    EmbeddingZeroShot,
    EntailmentZeroShot,
    best_threshold,
    classify_by_embeddings,
    expected_threshold,
    label_texts,
)
from duonlp.pipelines import TextEncoder
from tests.cases import Case
from tests.duonlp.fewshot.test_lookup import BERT, MULTI, NAMES, TEXTS, encoder  # noqa: F401
from tests.reference import record_pipelines as reference

DESCRIPTIONS = {"code": "programs and computers", "people": "Ada and Charles"}
SINGLE = np.array([0, 1, 0, 1, 2], np.int32)
PACKAGES = ("jaxnlp", "tfnlp")


def empty(multi_label: bool) -> LabelledTexts:
    return LabelledTexts([], np.zeros((0, 3), np.float32) if multi_label else np.zeros(0, np.int32), NAMES)


@pytest.fixture(scope="module")
def nli(tmp_path_factory):
    """Return the folder of a tiny random classifier of premise and hypothesis."""
    names, tokenizer = reference.NLI_LABELS[0], reference.load_tokenizer("wordpiece")
    hf = BERT | {"vocab_size": len(tokenizer), "id2label": {str(i): name for i, name in enumerate(names)}}
    folder = Case("nli", hf, "sequence-classification").write(tmp_path_factory.mktemp("nli"))
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("package", PACKAGES)
def test_entailment_scores_are_those_of_the_pipeline(package, nli, tmp_path):
    engine = pytest.importorskip(package)
    pipe = engine.pipeline("zero-shot-classification", nli)
    for multi_label in (True, False):
        method = EntailmentZeroShot(nli, DESCRIPTIONS, template="It is about {}.")
        classifier = method.fit(engine, FewShotData(empty(multi_label)))
        scores = classifier.scores(TEXTS[:2])
        labels = ["programs and computers", "craft", "Ada and Charles"]
        for row, text in zip(scores, TEXTS[:2], strict=True):
            result = pipe(text, labels, hypothesis_template="It is about {}.", multi_label=multi_label)
            expected = dict(zip(result["labels"], result["scores"], strict=True))
            np.testing.assert_allclose(row, [expected[label] for label in labels], rtol=1e-4)
        assert scores.dtype == np.float32 and classifier.scores([]).shape == (0, 3)
    classifier.save(tmp_path / "saved")
    loaded = load_classifier(tmp_path / "saved", engine)
    np.testing.assert_allclose(loaded.scores(TEXTS[:2]), scores, rtol=1e-5)
    assert (loaded.label_names, loaded.multi_label) == (NAMES, False)


@pytest.mark.parametrize("package", PACKAGES)
def test_embedding_scores_equal_the_formula(package, encoder, tmp_path):  # noqa: F811
    engine = pytest.importorskip(package)
    embed = TextEncoder(engine, encoder)
    described = embed(["programs and computers", "craft", "Ada and Charles"])
    cosines = embed(TEXTS) @ described.T
    method = method_class("zero-shot")(encoder, DESCRIPTIONS, temperature=0.1)
    one = method.fit(engine, FewShotData(empty(False)))
    powers = np.exp(cosines / 0.1)
    np.testing.assert_allclose(one.scores(TEXTS), powers / powers.sum(1, keepdims=True), rtol=1e-4)
    several = method.fit(engine, FewShotData(empty(True)))
    np.testing.assert_allclose(several.scores(TEXTS), 1 / (1 + np.exp((SHIFT - cosines) / 0.1)), rtol=1e-4)
    unlabelled = method.fit(engine, FewShotData(empty(True), None, TEXTS))
    assert (unlabelled.scores(TEXTS) >= 0.5).sum() == len(TEXTS)  # one label per text on average
    tuned = method.fit(engine, FewShotData(empty(True), LabelledTexts(TEXTS, MULTI, NAMES)))
    best = best_threshold(cosines, MULTI)
    np.testing.assert_array_equal(tuned.scores(TEXTS) >= 0.5, cosines >= best)
    unlabelled.save(tmp_path / "saved")
    loaded = load_classifier(tmp_path / "saved", engine)
    np.testing.assert_allclose(loaded.scores(TEXTS), unlabelled.scores(TEXTS), rtol=1e-5)
    about = json.loads((tmp_path / "saved" / "classifier.json").read_text())
    about["settings"]["temperature"] = 0
    (tmp_path / "saved" / "classifier.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="temperature is 0"):
        load_classifier(tmp_path / "saved", engine)

    results = classify_by_embeddings(
        embed.pipe, TEXTS[:1], dict(zip(NAMES, ("programs and computers", "craft", "Ada and Charles")))
    )
    order = np.argsort(-cosines[0])
    assert results[0]["sequence"] == TEXTS[0] and results[0]["labels"] == [NAMES[i] for i in order]
    powers = np.exp(cosines[0] / 0.05)
    np.testing.assert_allclose(results[0]["scores"], (powers / powers.sum())[order], rtol=1e-4)
    assert classify_by_embeddings(embed.pipe, TEXTS[:1], "code, craft")[0]["labels"][0] in ("code", "craft")


def test_the_temperature_is_chosen_on_validation_texts(encoder):  # noqa: F811
    jaxnlp = pytest.importorskip("jaxnlp")
    validation = LabelledTexts(TEXTS, SINGLE, NAMES)
    chosen = EmbeddingZeroShot(encoder).fit(jaxnlp, FewShotData(empty(False), validation))

    def loss(temperature):
        scores = (
            EmbeddingZeroShot(encoder, temperature=temperature).fit(jaxnlp, FewShotData(empty(False))).scores(TEXTS)
        )
        return -np.log(scores[np.arange(5), SINGLE]).mean()

    assert all(loss(chosen.temperature) <= loss(other) + 1e-5 for other in (0.01, 0.05, 0.1, 0.5))


def test_thresholds_equal_a_search():
    rng = np.random.default_rng(0)
    for _ in range(20):
        similarities = rng.random((6, 4)).round(1).astype(np.float32)  # with ties
        labels = (rng.random((6, 4)) < 0.4).astype(np.float32)

        def micro_f1(threshold, similarities=similarities, labels=labels):
            predicted = similarities >= threshold
            return 2 * (predicted * labels).sum() / max(predicted.sum() + labels.sum(), 1)

        best = max(micro_f1(threshold) for threshold in np.unique(similarities))
        assert micro_f1(best_threshold(similarities, labels)) == pytest.approx(best)
    distinct = rng.permutation(24).reshape(6, 4).astype(np.float32)
    for per_text in (0.5, 1, 2, 4, 9):
        assert (distinct >= expected_threshold(distinct, per_text)).sum() == min(24, per_text * 6)


def test_bad_input(encoder, nli):  # noqa: F811
    assert label_texts(NAMES, {"code": "programs"}, "About {}") == ["About programs", "About craft", "About people"]
    with pytest.raises(InputError, match="descriptions has 'cod', which is no label; did you mean 'code'"):
        label_texts(NAMES, {"cod": "programs"})
    with pytest.raises(InputError, match="the labels 'code' and 'craft' are both described as 'craft'"):
        label_texts(NAMES, {"code": "craft"})
    with pytest.raises(InputError, match="description of 'code' is an empty text"):
        label_texts(NAMES, {"code": " "})
    with pytest.raises(InputError, match="descriptions is"):
        label_texts(NAMES, ["programs"])
    for settings, message in (
        ({"template": "no label"}, "it must have one"),
        ({"temperature": 0}, "temperature is 0"),
        ({"labels_per_text": -1}, "labels_per_text is -1"),
        ({"pooling": "sum"}, "pooling is 'sum'"),
        ({"center": 2}, "center is 2"),
    ):
        with pytest.raises(InputError, match=message):
            EmbeddingZeroShot(encoder, **settings)
    with pytest.raises(InputError, match="it must have one"):
        EntailmentZeroShot(nli, template="no label")
    with pytest.raises(InputError, match="pass package=tfnlp or jaxnlp"):
        EntailmentZeroShot(nli).fit(None, FewShotData(empty(True)))
    jaxnlp = pytest.importorskip("jaxnlp")
    with pytest.raises(InputError, match="has no sequence-classification head, so its results would be random"):
        EntailmentZeroShot(encoder).fit(jaxnlp, FewShotData(empty(True)))
    with pytest.raises(InputError, match="candidate_labels is"):
        classify_by_embeddings(TextEncoder(jaxnlp, encoder).pipe, TEXTS, {})
