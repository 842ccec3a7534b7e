"""Test augmented copies of labeled texts: as texts, and in the batches of training."""

import itertools

import numpy as np
import pytest

from duonlp.augmentation import AugmentedBatches, Chain, RandomEdits, Synonyms, augment_texts, cached, compose
from duonlp.data.labelled import LabelledBatches, LabelledTexts
from duonlp.errors import InputError
from tests.augmentation import TEXTS, tokenizer

TOKENS = tokenizer("wordpiece")


def data(count: int = 11, multi: bool = False) -> LabelledTexts:
    texts = [f"{TEXTS[number % 4]} {TEXTS[number % 3][: number * 5]}" for number in range(count)]
    labels = np.eye(3, dtype=np.float32)[np.arange(count) % 3] if multi else np.arange(count, dtype=np.int32) % 3
    return LabelledTexts(texts, labels, ("a", "b", "c"))


def batches(**settings) -> AugmentedBatches:
    settings = {"probability": 0.5, "max_length": 64, "seed": 3} | settings
    return AugmentedBatches(data(), TOKENS, 4, RandomEdits(), **settings)


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("multi", [False, True])
def test_copies_have_labels_and_ids(multi):
    texts = data(multi=multi)
    result = augment_texts(texts, RandomEdits(), 2, seed=1)
    assert result.ids[:4] == ["0", "0+1", "0+2", "1"] and len(result) == 33
    assert np.array_equal(result.labels, np.repeat(texts.labels, 3, axis=0))
    assert result.texts[::3] == texts.texts
    alone = augment_texts(texts, RandomEdits(), 2, seed=1, originals=False)
    assert alone.texts == [text for number, text in enumerate(result.texts) if number % 3]


def test_copies_that_are_not_new_are_dropped():
    texts = LabelledTexts(["hello", "`code`", "two words"], np.array([0, 1, 1], np.int32), ("a", "b"))
    assert augment_texts(texts, RandomEdits(), 3).ids[:3] == ["0", "0+1", "1"]
    assert len(augment_texts(texts, RandomEdits(), 3, keep_unchanged=True)) == 12
    with pytest.raises(InputError, match="no copy of the 1 texts differs"):
        augment_texts(texts.take([1]), RandomEdits())


def test_pairs():
    texts = LabelledTexts([("one two", "three four")] * 2, np.zeros(2, np.int32), ("a",))
    result = augment_texts(texts, RandomEdits(), 1)
    assert isinstance(result.texts[1], tuple) and result.texts[1] != result.texts[0]
    next(AugmentedBatches(texts, TOKENS, 2, RandomEdits(), max_length=32, probability=1.0).epoch(0))


def test_any_batch_is_found_by_epoch_and_number():
    for settings in ({}, {"copies": 2}, {"sort": False}):
        made = batches(**settings)
        epochs = [list(made.epoch(number)) for number in range(3)]
        assert not all(map(equal, epochs[0], epochs[1]))
        for number, first in itertools.product(range(3), range(4)):
            assert all(map(equal, batches(**settings).epoch(number, first), epochs[number][first:]))
    with pytest.raises(InputError, match="first is 4"):
        made.epoch(0, 4)


def test_labels_and_order_are_those_of_the_texts():
    plain = LabelledBatches(data(), TOKENS, 4, max_length=64, seed=3)
    for ours, theirs in zip(batches().epoch(1), plain.epoch(1), strict=True):
        assert np.array_equal(ours["labels"], theirs["labels"]) and ours.keys() == theirs.keys()


def test_probability_and_copies():
    texts = data(200)
    made = AugmentedBatches(texts, TOKENS, 8, RandomEdits(), probability=0.3, max_length=64)
    rows = np.arange(200)
    shares = [np.mean([a != b for a, b in zip(made.epoch_texts(rows, epoch), texts.texts)]) for epoch in range(5)]
    assert abs(np.mean(shares) - 0.3) < 0.05
    few = AugmentedBatches(texts, TOKENS, 8, RandomEdits(), probability=1.0, copies=2, max_length=64)
    seen = {few.epoch_texts(rows[:1], epoch)[0] for epoch in range(20)}
    assert seen == {*RandomEdits().augment(texts.texts[:1], 2, few.seed)[0]}


def test_rows_hold_the_tokens_of_the_copies():
    made = batches(probability=1.0, shuffle=False, sort=False)
    copies = made.epoch_texts(np.arange(11), 2)
    for number, batch in enumerate(made.epoch(2)):
        for row in range(min(4, 11 - 4 * number)):
            length = batch["attention_mask"][row].sum()
            expected = TOKENS(copies[4 * number + row], truncation=True, max_length=64)["input_ids"]
            assert batch["input_ids"][row, :length].tolist() == expected
    assert {batch["input_ids"].shape[1] for batch in made.epoch(2)} <= {*made.widths}


def test_cached_copies_in_batches(tmp_path):
    plain, stored = batches(copies=2), cached(RandomEdits(), tmp_path)
    again = AugmentedBatches(data(), TOKENS, 4, stored, probability=0.5, max_length=64, seed=3, copies=2)
    assert all(map(equal, plain.epoch(1), again.epoch(1)))


def test_chain():
    chain = compose(Synonyms({"error": ["fault"]}), RandomEdits(operations=["swap"]))
    text = "There was an error in the tokenizer"
    copies = chain.augment([text, text], 3, seed=2)
    assert copies[0] == copies[1] and all("fault" in copy for copy in copies[0]) and len({*copies[0]}) > 1
    assert chain.augment([text], 1, seed=2) == [copies[0][:1]]
    assert chain.settings()["augmenters"][1]["augmenter"] == "edits"
    with pytest.raises(InputError, match="nonempty list"):
        Chain([])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probability": 0}, "probability is 0"),
        ({"copies": 0}, "copies is 0"),
        ({"host_count": 2}, "host_count; omit it"),
        ({"augmenter": "edits"}, "pass an augmenter"),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(InputError, match=message):
        AugmentedBatches(data(), TOKENS, 4, **({"augmenter": RandomEdits(), "max_length": 64} | settings))
