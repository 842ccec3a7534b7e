"""Stratified splits and nested slices: partition, sizes, evenness, coverage, determinism."""

import itertools
import time

import numpy as np
import pytest

from duonlp.data import LabelledTexts, balanced_split, nested_slices, stratified_split
from duonlp.data.labelled.splits import indicators
from duonlp.errors import InputError

FRACTIONS = (0.7, 0.2, 0.1)


def uneven(count, classes=12, seed=0, multi=True):
    """Return texts whose labels have very different frequencies; some of the multi-label ones have none."""
    rng = np.random.default_rng(seed)
    frequencies = 0.6 / np.arange(1, classes + 1) ** 1.3
    if multi:
        labels = (rng.random((count, classes)) < frequencies).astype(np.float32)
    else:
        labels = rng.choice(classes, count, p=frequencies / frequencies.sum()).astype(np.int32)
    return LabelledTexts([f"text {i}" for i in range(count)], labels, tuple(f"label {i}" for i in range(classes)))


def rows_of(texts):
    return [int(id) for id in texts.ids]


def deviation(texts, parts):
    """Return how far, on average, a part's share of a label is from its share of all texts."""
    totals = indicators(texts).sum(0)
    present = totals > 0
    shares = [indicators(part).sum(0)[present] / totals[present] - len(part) / len(texts) for part in parts]
    return float(np.abs(shares).mean())


@pytest.mark.parametrize("multi", [True, False])
@pytest.mark.parametrize("count", [3, 11, 40, 333])
def test_parts_are_a_partition_with_exact_sizes(count, multi):
    texts = uneven(count, multi=multi)
    fractions = FRACTIONS if count > 3 else (0.4, 0.3, 0.3)
    for seed in range(3):
        parts = stratified_split(texts, fractions, seed)
        assert sorted(row for part in parts for row in rows_of(part)) == list(range(count))
        assert all(abs(len(part) - share * count) < 1 for part, share in zip(parts, fractions, strict=True))
        for part in parts:
            assert rows_of(part) == sorted(rows_of(part)) and part.label_names == texts.label_names
            np.testing.assert_array_equal(part.labels, texts.labels[rows_of(part)])
        assert [rows_of(part) for part in stratified_split(texts, fractions, seed)] == [rows_of(part) for part in parts]
    assert count < 40 or any(
        rows_of(stratified_split(texts, fractions, seed)[0]) != rows_of(parts[0]) for seed in range(2)
    )


@pytest.mark.parametrize("multi", [True, False])
def test_labels_are_spread_more_evenly_than_at_random(multi):
    texts = uneven(400, multi=multi)
    sizes = [len(part) for part in stratified_split(texts, FRACTIONS)]
    for seed in range(20):
        stratified = deviation(texts, stratified_split(texts, FRACTIONS, seed))
        order = np.random.default_rng(seed).permutation(len(texts))
        at_random = deviation(texts, [texts.take(rows) for rows in np.split(order, np.cumsum(sizes)[:-1])])
        assert stratified < at_random / 1.5, (seed, stratified, at_random)


def test_the_definition_of_iterative_stratification():
    """Where nothing is tied, the rarest label is assigned first, to the parts that lack most of it."""
    labels = np.zeros((10, 2), np.float32)
    labels[:4, 0] = 1  # the rare label
    labels[2:, 1] = 1
    train, test = balanced_split(LabelledTexts([str(i) for i in range(10)], labels, ("a", "b")), 0.25)
    assert (len(train), len(test)) == (8, 2) or (len(train), len(test)) == (7, 3)
    assert train.counts()["a"] == 3 and test.counts()["a"] == 1


def test_rare_labels():
    labels = np.zeros((20, 3), np.float32)
    labels[:, 0] = 1
    labels[5, 1] = labels[[7, 8], 2] = 1  # once and twice
    parts = stratified_split(LabelledTexts([str(i) for i in range(20)], labels, ("a", "b", "c")), (0.6, 0.2, 0.2))
    assert [part.counts()["b"] for part in parts] == [1, 0, 0], "the largest part has it"
    assert sum(part.counts()["c"] for part in parts) == 2


def test_many_labels_with_few_texts_each():
    """Rounding is not the same for every label, so none of them makes up for the others."""
    labels = np.repeat(np.arange(150), 8).astype(np.int32)
    texts = LabelledTexts([str(i) for i in range(1200)], labels, tuple(map(str, range(150))))
    train, validation, test = stratified_split(texts, (0.7, 0.15, 0.15))
    assert (len(train), len(validation), len(test)) == (840, 180, 180)
    assert set(train.counts().values()) == {5, 6}
    assert set(validation.counts().values()) == set(test.counts().values()) == {1, 2}


@pytest.mark.parametrize("multi", [True, False])
def test_nested_slices(multi):
    texts = uneven(300, multi=multi)
    present = {name for name, count in texts.counts().items() if count}
    for seed in range(5):
        slices = nested_slices(texts, (8, 16, 32, 64, 128, "all"), seed)
        assert [len(part) for part in slices] == [8, 16, 32, 64, 128, 300]
        for small, large in itertools.pairwise(slices):
            assert set(rows_of(small)) < set(rows_of(large))
        for part in slices[1:]:
            assert {name for name, count in part.counts().items() if count} == present, "12 labels, 16 texts"
        assert [rows_of(part) for part in nested_slices(texts, (8, 16, 32, 64, 128, "all"), seed)] == list(
            map(rows_of, slices)
        )
        shares = indicators(slices[4]).mean(0) - indicators(texts).mean(0)
        assert np.abs(shares).max() < 0.04, "balanced"
    assert [len(part) for part in nested_slices(texts, (64, 8, 64))] == [64, 8, 64]
    assert {name for name, n in nested_slices(texts, (12,))[0].counts().items() if n} == present
    (first,) = nested_slices(texts, (4,))
    assert len({name for name, n in first.counts().items() if n}) >= 4, "as many as fit"


def test_one_text_and_no_labels():
    one = LabelledTexts(["a"], np.zeros((1, 2), np.float32), ("x", "y"))
    assert nested_slices(one, ("all",))[0].texts == ["a"] and len(nested_slices(one, (1,))[0]) == 1
    assert [len(part) for part in stratified_split(one, (1.0,))] == [1]


def test_100_000_texts_take_seconds():
    texts = uneven(100_000, 50)
    start = time.process_time()
    stratified_split(texts, (0.7, 0.15, 0.15))
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: nested_slices(t, (8, 400)), r"a slice of 400 texts is larger than the data, 40 texts; give sizes up to 40"),
        (lambda t: nested_slices(t, ()), "sizes are"),
        (lambda t: nested_slices(t, "all"), "give a list of numbers"),
        (lambda t: nested_slices(t, (0,)), "has the size 0"),
        (lambda t: nested_slices(t, (2.5,)), "has the size 2.5"),
        (lambda t: nested_slices(t, ("some",)), "has the size 'some'"),
        (lambda t: nested_slices(t, (8,), seed=-1), "seed is -1"),
        (lambda t: stratified_split(t, (0.5, 0.4)), r"fractions are \(0.5, 0.4\); give numbers above 0 that add up to 1"),
        (lambda t: stratified_split(t, (1.5, -0.5)), "add up to 1"),
        (lambda t: stratified_split(t, "0.5,0.5"), "add up to 1"),
        (lambda t: stratified_split(t, (0.99, 0.005, 0.005)), "leave a part of 40 texts empty"),
        (lambda t: balanced_split(t, 1.0), "fraction is 1.0; give a number between 0 and 1"),
        (lambda t: balanced_split(t, True), "fraction is True"),
    ],
)  # fmt: skip
def test_invalid_arguments(call, message):
    with pytest.raises(InputError, match=message):
        call(uneven(40))
