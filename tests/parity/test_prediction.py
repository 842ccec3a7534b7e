"""Logits of many texts, in their order, in both frameworks; a teacher's are computed once and kept."""

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
    """Five texts in batches of two, the last of which is filled up; another order in each epoch."""

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
    made = {
        package: package.AutoModelForSequenceClassification.from_config(BERT | {"num_labels": 4}, seed=3)
        for package in (jaxnlp, tfnlp)
    }
    texts = Texts()
    logits = jaxnlp.compiled(made[jaxnlp])(input_ids=texts.ids, attention_mask=np.ones_like(texts.ids))["logits"]
    return made, np.asarray(logits)


@PACKAGES
def test_logits_are_in_the_order_of_the_texts(models, package):
    made, expected = models
    found = package.predict(made[package], Texts())
    assert found.shape == (5, 4) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_teacher_is_asked_once_by_either_package(models, tmp_path, monkeypatch):
    made, expected = models
    jaxnlp.cached_teacher_logits(made[jaxnlp], Texts(), tmp_path)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr("tfnlp.prediction.predict", lambda *_, **__: pytest.fail("it was kept"))
    batches = tfnlp.cached_teacher_logits(made[tfnlp], Texts(), tmp_path)
    rows = batches.order(1)
    for part, batch in zip(rows[1:], batches.epoch(1, 1), strict=True):
        assert set(batch) == {"input_ids", "attention_mask", "labels", NAME}
        np.testing.assert_allclose(batch[NAME], expected[np.maximum(part, 0)], atol=1e-5)
    assert len(batches) == 3 and [file] == list(tmp_path.iterdir())


def test_another_teacher_and_a_damaged_file_are_computed_anew(models, tmp_path):
    made, expected = models
    jaxnlp.cached_teacher_logits(made[jaxnlp], Texts(), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    batches = jaxnlp.cached_teacher_logits(made[jaxnlp], Texts(), tmp_path)
    np.testing.assert_allclose(batches.logits, expected, atol=1e-5)
    other = jaxnlp.AutoModelForSequenceClassification.from_config(BERT | {"num_labels": 4}, seed=4)
    jaxnlp.cached_teacher_logits(other, Texts(), tmp_path)
    half = jaxnlp.AutoModelForSequenceClassification.from_config(BERT | {"num_labels": 4}, seed=4, dtype="bfloat16")
    jaxnlp.cached_teacher_logits(half, Texts(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_does_not_go_together_is_refused(models):
    made, _ = models

    class LeftOut(Texts):
        def order(self, number):
            return super().order(number)[:2]

        def __len__(self):
            return 2

    with pytest.raises(InputError, match=r"drop_last"):
        jaxnlp.predict(made[jaxnlp], LeftOut())
    for name, value, message in (("drop_last", True, "drop_last"), ("hosts", (1, 2), "the share of host 1 of 2")):
        some = Texts()
        setattr(some, name, value)  # as LabelledBatches have it
        with pytest.raises(InputError, match=message):
            jaxnlp.predict(made[jaxnlp], some)
        with pytest.raises(InputError, match=message):
            TeacherLogits(some, np.zeros((5, 2), np.float32))
    with pytest.raises(InputError, match=r"have no order\(n\), which tells the text of each row"):
        tfnlp.predict(made[tfnlp], list(Texts().epoch(0)))
    with pytest.raises(InputError, match="logits are of 4 texts, but the batches have 5"):
        TeacherLogits(Texts(), np.zeros((4, 2), np.float32))
