"""Test predict and cached_teacher_logits in both engines."""

import numpy as np
import pytest

import jaxnlp
import tfnlp
from duonlp.distillation.teacher_logits import NAME, TeacherLogits
from duonlp.errors import InputError
from tests.cases import cases

BERT = next(case for case in cases() if case.name == "bert-sequence-classification").hf
PACKAGES = pytest.mark.parametrize("package", [jaxnlp, tfnlp])


class Texts:
    """Five texts in batches of two, the last batch padded with an empty row, in another order in each epoch."""

    def __init__(self):
        self.ids = np.random.default_rng(0).integers(5, 55, (5, 6)).astype(np.int32)

    def __len__(self):
        return 3

    def order(self, number):
        return np.append(np.random.default_rng(number).permutation(5), -1).reshape(3, 2)

    def epoch(self, number, first=0):
        for rows in self.order(number)[first:]:
            ids = self.ids[np.maximum(rows, 0)]
            yield {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": np.where(rows < 0, -100, 1)}


@pytest.fixture(scope="module")
def models():
    by_package = {
        package: package.AutoModelForSequenceClassification.from_config(BERT | {"num_labels": 4}, seed=3)
        for package in (jaxnlp, tfnlp)
    }
    texts = Texts()
    logits = jaxnlp.compiled(by_package[jaxnlp])(input_ids=texts.ids, attention_mask=np.ones_like(texts.ids))["logits"]
    return by_package, np.asarray(logits)


@PACKAGES
def test_predict_returns_logits_in_the_order_of_the_texts(models, package):
    by_package, expected = models
    logits = package.predict(by_package[package], Texts())
    assert logits.shape == (5, 4) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_teacher_logits_are_cached_for_both_engines(models, tmp_path, monkeypatch):
    by_package, expected = models
    jaxnlp.cached_teacher_logits(by_package[jaxnlp], Texts(), tmp_path)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr("tfnlp.prediction.predict", lambda *_, **__: pytest.fail("the cached logits were not used"))
    batches = tfnlp.cached_teacher_logits(by_package[tfnlp], Texts(), tmp_path)
    rows = batches.order(1)
    for texts, batch in zip(rows[1:], batches.epoch(1, 1), strict=True):
        assert set(batch) == {"input_ids", "attention_mask", "labels", NAME}
        np.testing.assert_allclose(batch[NAME], expected[np.maximum(texts, 0)], atol=1e-5)
    assert len(batches) == 3 and [file] == list(tmp_path.iterdir())


def test_logits_are_recomputed_for_another_teacher_or_a_damaged_file(models, tmp_path):
    by_package, expected = models
    jaxnlp.cached_teacher_logits(by_package[jaxnlp], Texts(), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    batches = jaxnlp.cached_teacher_logits(by_package[jaxnlp], Texts(), tmp_path)
    np.testing.assert_allclose(batches.logits, expected, atol=1e-5)
    other = jaxnlp.AutoModelForSequenceClassification.from_config(BERT | {"num_labels": 4}, seed=4)
    jaxnlp.cached_teacher_logits(other, Texts(), tmp_path)
    half = jaxnlp.AutoModelForSequenceClassification.from_config(BERT | {"num_labels": 4}, seed=4, dtype="bfloat16")
    jaxnlp.cached_teacher_logits(half, Texts(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_invalid_batches_and_logits_raise(models):
    by_package, _ = models

    class IncompleteTexts(Texts):
        def order(self, number):
            return super().order(number)[:2]

        def __len__(self):
            return 2

    with pytest.raises(InputError, match=r"drop_last"):
        jaxnlp.predict(by_package[jaxnlp], IncompleteTexts())
    for name, value, message in (("drop_last", True, "drop_last"), ("hosts", (1, 2), "the share of host 1 of 2")):
        texts = Texts()
        setattr(texts, name, value)  # an attribute of LabelledBatches
        with pytest.raises(InputError, match=message):
            jaxnlp.predict(by_package[jaxnlp], texts)
        with pytest.raises(InputError, match=message):
            TeacherLogits(texts, np.zeros((5, 2), np.float32))
    with pytest.raises(InputError, match=r"have no order\(n\), which tells the text of each row"):
        tfnlp.predict(by_package[tfnlp], list(Texts().epoch(0)))
    with pytest.raises(InputError, match="logits are of 4 texts, but the batches have 5"):
        TeacherLogits(Texts(), np.zeros((4, 2), np.float32))
