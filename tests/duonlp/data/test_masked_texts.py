"""Batches of single texts for masked language modeling: masks, epochs, resuming and fillers."""

import numpy as np
import pytest

from duonlp.data import LabelledBatches, MaskedLM, MaskedTexts
from duonlp.errors import InputError
from tests.reference import record_pipelines as reference

TEXTS = [f"Ada wrote the program number {number}." for number in range(5)]


@pytest.fixture(scope="module")
def tokenizer():
    return reference.load_tokenizer("wordpiece")


def make(tokenizer, **options):
    return MaskedTexts(TEXTS, tokenizer, 2, **{"max_length": 12, "seed": 3, "probability": 0.5} | options)


def same(left, right):
    return all(np.array_equal(a[name], b[name]) for a, b in zip(left, right, strict=True) for name in a)


def test_rows_are_texts_as_a_classifier_sees_them_with_masks_of_their_epoch(tokenizer):
    batches = make(tokenizer)
    plain = list(LabelledBatches(TEXTS, tokenizer, 2, max_length=12, seed=3).epoch(1))
    masked = list(batches.epoch(1))
    for ours, expected in zip(masked, plain, strict=True):
        hidden = ours["labels"] != -100
        np.testing.assert_array_equal(
            np.where(hidden, ours["labels"], ours["input_ids"])[:1], expected["input_ids"][:1]
        )
        assert (
            ours["input_ids"][:, 0] == tokenizer.cls_token_id
        ).all()  # neither [CLS] nor [SEP] nor padding is hidden
        assert not hidden[np.isin(expected["input_ids"], tokenizer.all_special_ids)].any()
        assert set(ours) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert (masked[-1]["labels"][1] == -100).all()  # fills up the last batch
    assert any((batch["labels"] != -100).any() for batch in masked)
    assert not same(masked, list(batches.epoch(2)))
    row = int(batches.order(1)[0][0])
    objective = MaskedLM(tokenizer, probability=0.5)
    expected = objective(plain[0]["input_ids"][:1], None, np.array([len(TEXTS) + row]), 3)
    np.testing.assert_array_equal(masked[0]["input_ids"][:1], expected["input_ids"])


def test_batches_depend_on_seed_and_epoch_alone_and_resume(tokenizer):
    batches = make(tokenizer)
    first = list(batches.epoch(0))
    assert same(first, list(make(tokenizer).epoch(0))) and same(first[1:], list(batches.epoch(0, 1)))
    assert not same(first, list(make(tokenizer, seed=4).epoch(0)))
    whole = make(tokenizer, whole_words=True)
    assert whole.objective.whole_words and len(list(whole.epoch(0))) == len(whole) == 3
    with pytest.raises(InputError, match="epoch is -1"):
        batches.epoch(-1)
    with pytest.raises(InputError, match="probability is 2; it must be between 0 and 1"):
        make(tokenizer, probability=2)
