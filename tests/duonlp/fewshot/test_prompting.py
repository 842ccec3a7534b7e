"""Bad settings, models and data of methods with prompts, and their calibration; without a framework."""

from types import SimpleNamespace

import numpy as np
import pytest

from duonlp.errors import CheckpointError, InputError
from duonlp.fewshot import FewShotData, load_classifier, method_class
from duonlp.fewshot.classifier import ClassifierFiles, write_classifier
from duonlp.fewshot.prompt_classifier import PromptClassifier, with_prior
from duonlp.fewshot.prompting import Adapet, PromptTuning, PromptZeroShot
from duonlp.prompts import Verbalizer, as_patterns
from tests.intents import LABELS, WORDS, checkpoint
from tests.prompts import LENGTH, PATTERN, VOCABULARY, labelled, mask_tokenizer

ENGINE = SimpleNamespace(__name__="jaxnlp")


def classifier_of(logits: np.ndarray, multi_label: bool) -> PromptClassifier:
    """Return a classifier whose model has these logits, [V], at every mask of a text with words, and others without."""

    def compiled(model):
        def run(input_ids, attention_mask, logit_positions, **others):
            has_text = attention_mask.sum(1) > 8
            rows = np.where(has_text[:, None], logits, np.arange(len(logits)) % 3)
            return {"logits": np.repeat(rows[:, None].astype(np.float32), logit_positions.shape[1], 1)}

        return run

    config = SimpleNamespace(inputs=[SimpleNamespace(name="input_ids"), SimpleNamespace(name="attention_mask")])
    verbalizer = Verbalizer.of(LABELS)
    return PromptClassifier(
        SimpleNamespace(compiled=compiled), SimpleNamespace(config=config), mask_tokenizer(), as_patterns(PATTERN), verbalizer,
        multi_label, "mean", np.zeros((1, 4), np.float32), LENGTH, 2, "prompt",
    )  # fmt: skip


@pytest.mark.parametrize("multi_label", [False, True])
def test_calibration_divides_by_the_probabilities_without_a_text(multi_label):
    """Zhao et al. 2021: q is proportional to p / p without content; for several labels, the odds are divided."""
    logits = np.random.default_rng(0).normal(size=len(VOCABULARY))
    classifier = classifier_of(logits, multi_label)
    texts = ["play the song now please", "hello"]
    tokens = [VOCABULARY.index(name) for name in LABELS]
    own, empty = np.exp(logits), np.exp(np.arange(len(logits)) % 3)
    rest = [i for i in range(len(logits)) if i not in tokens]
    odds = [x[tokens] / (x[rest].sum() if multi_label else x[tokens].sum()) for x in (own, empty)]
    ratio = odds[0] / odds[1]
    expected = ratio / (1 + ratio) if multi_label else ratio / ratio.sum()
    scores = with_prior(classifier, ["", "a"]).scores(texts)
    np.testing.assert_allclose(scores[0], expected, rtol=1e-4)
    np.testing.assert_allclose(scores[1], 0.5 if multi_label else 0.25, rtol=1e-4)  # as without a text
    uncalibrated = odds[0] / (1 + odds[0]) if multi_label else odds[0]
    np.testing.assert_allclose(classifier.scores(texts)[0], uncalibrated, rtol=1e-4)
    assert classifier.scores([]).shape == (0, 4)
    with pytest.raises(InputError, match="text 1 is"):
        classifier.scores(["a", 3])


def test_bad_settings():
    for options, message in (
        ({"pattern": "{text}"}, "has {mask} 0 times"),
        ({"pattern": []}, "no pattern"),
        ({"combine": "product"}, "combine"),
        ({"max_length": 0}, "max_length"),
    ):
        for method in (PromptZeroShot, PromptTuning, Adapet):
            with pytest.raises(InputError, match=message):
                method("model", **options)
    with pytest.raises(InputError, match="calibrate"):
        PromptZeroShot("model", calibrate="x")
    with pytest.raises(InputError, match="alpha is 1"):
        PromptTuning("model", alpha=1)
    with pytest.raises(InputError, match="mask_share is 0"):
        Adapet("model", mask_share=0)
    with pytest.raises(InputError, match="learning_rate is 0"):
        Adapet("model", learning_rate=0)


def test_bad_models_and_data(tmp_path):
    data, folder = FewShotData(labelled(4)), checkpoint(tmp_path / "bert", words=(*WORDS, *LABELS))
    for method in (PromptZeroShot, PromptTuning, Adapet):
        with pytest.raises(InputError, match="pass package=tfnlp or jaxnlp"):
            method("model").fit(None, data)
        with pytest.raises(InputError, match="prompts need a tokenizer with a mask token"):
            method(str(folder), PATTERN).fit(ENGINE, data)
        with pytest.raises(InputError, match="no word for 'oos'"):
            method(str(folder), PATTERN, {name: name for name in LABELS[:2]} | {"weather": "rain"}).fit(ENGINE, data)
    for method in (PromptTuning, Adapet):
        with pytest.raises(InputError, match="no labeled texts to learn from"):
            method(str(folder)).fit(ENGINE, FewShotData(labelled(4).take([])))
    with pytest.raises(InputError, match="no unlabeled texts"):
        PromptZeroShot(str(folder), calibrate="unlabelled").fit(ENGINE, data)


def test_damaged_files(tmp_path):
    settings = {"patterns": [PATTERN], "words": [["a"], ["b"]], "combine": "mean", "max_length": 16, "batch_size": 4}
    assert method_class("adapet") is Adapet
    write_classifier(ClassifierFiles("prompt", ("x", "y", "z"), False, settings), tmp_path / "a")
    with pytest.raises(CheckpointError, match="words for 2 labels, but 3 label names"):
        load_classifier(tmp_path / "a", ENGINE)
    write_classifier(ClassifierFiles("prompt", ("x", "y"), False, settings | {"combine": "max"}), tmp_path / "b")
    with pytest.raises(CheckpointError, match="combine is 'max'"):
        load_classifier(tmp_path / "b", ENGINE)
