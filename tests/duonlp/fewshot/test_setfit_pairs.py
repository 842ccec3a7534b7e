"""Pairs of SetFit: counts of setfit 1.2, each pair as often as its strategy says, and random access."""

import itertools
from collections import Counter

import numpy as np
import pytest

from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError
from duonlp.fewshot.setfit_pairs import ContrastiveBatches, PairSampler
from tests import intents

LABELS = {
    "two": [0] * 8 + [1] * 8,
    "uneven": [0] * 2 + [1] * 7 + [2],
    "once": [0, 1, 2, 3, 0],
    "multi": [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [1, 1, 1]],
    "empty": [[1, 0], [0, 0], [1, 1], [0, 0], [0, 1]],
}

# Recorded from setfit 1.2.0, for each of the labels:
#   d = setfit.sampler.ContrastiveDataset(texts, labels, multilabel, sampling_strategy=strategy)
#   len(d.pos_pairs), len(d.neg_pairs), {strategy: (d.len_pos_pairs, d.len_neg_pairs)}; "iterations" is num_iterations=3
SETFIT = {
    "two": (72, 64, {"oversampling": (72, 72), "undersampling": (64, 64), "unique": (72, 64), "iterations": (48, 48)}),
    "uneven": (
        32,
        23,
        {"oversampling": (32, 32), "undersampling": (23, 23), "unique": (32, 23), "iterations": (30, 30)},
    ),
    "once": (6, 9, {"oversampling": (9, 9), "undersampling": (6, 6), "unique": (6, 9), "iterations": (15, 15)}),
    "multi": (14, 7, {"oversampling": (14, 14), "undersampling": (7, 7), "unique": (14, 7), "iterations": (18, 18)}),
    "empty": (5, 10, {"oversampling": (10, 10), "undersampling": (5, 5), "unique": (5, 10), "iterations": (15, 15)}),
}


def sampler(labels, strategy, **options):
    if strategy == "iterations":
        return PairSampler(labels, iterations=3, **options)
    return PairSampler(labels, strategy, **options)


def all_pairs(labels):
    """Return setfit's pairs, {(i, j): 1.0 or 0.0} with i <= j."""
    labels = np.asarray(labels)
    common = labels[:, None] == labels if labels.ndim == 1 else (labels[:, None] * labels).any(-1)
    pairs = itertools.combinations_with_replacement(range(len(labels)), 2)
    return {pair: float(common[pair]) for pair in pairs}


@pytest.mark.parametrize("strategy", ["oversampling", "undersampling", "unique", "iterations"])
@pytest.mark.parametrize("name", LABELS)
def test_the_counts_are_those_of_setfit(name, strategy):
    pairs = sampler(LABELS[name], strategy)
    positives, negatives, drawn = SETFIT[name]
    assert (pairs.positives, pairs.negatives, pairs.drawn) == (positives, negatives, drawn[strategy])
    assert len(pairs) == sum(drawn[strategy])


@pytest.mark.parametrize("strategy", ["oversampling", "undersampling", "unique", "iterations"])
@pytest.mark.parametrize("name", LABELS)
def test_an_epoch_has_the_pairs_of_its_strategy(name, strategy):
    expected, pairs = all_pairs(LABELS[name]), sampler(LABELS[name], strategy, seed=3)
    first, second, similarity = pairs.pairs(np.arange(len(pairs)), epoch=2)
    drawn = Counter(tuple(sorted(pair)) for pair in zip(first.tolist(), second.tolist()))
    assert all(expected[tuple(sorted(p))] == s for p, s in zip(zip(first.tolist(), second.tolist()), similarity))
    for value, count in zip((1.0, 0.0), pairs.drawn):
        of_kind = [pair for pair in expected if expected[pair] == value]
        assert {drawn[pair] for pair in of_kind} <= {count // len(of_kind), -(-count // len(of_kind))}
        assert sum(drawn[pair] for pair in of_kind) == count
    alone = [pairs.pairs(np.array([number]), epoch=2) for number in range(len(pairs))]
    np.testing.assert_array_equal(np.concatenate([pair[0] for pair in alone]), first)
    np.testing.assert_array_equal(np.concatenate([pair[1] for pair in alone]), second)


def test_random_label_sets_give_every_pair_once():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = (rng.random((rng.integers(2, 20), rng.integers(1, 6))) < 0.4).astype(np.float32)
        expected = all_pairs(labels)
        if len(set(expected.values())) < 2:
            continue
        pairs = PairSampler(labels, "unique")
        first, second, similarity = pairs.pairs(np.arange(len(pairs)))
        found = {tuple(sorted(pair)): s for *pair, s in zip(first.tolist(), second.tolist(), similarity.tolist())}
        assert found == expected and len(pairs) == len(expected)


def test_the_order_depends_on_the_seed_and_the_epoch():
    orders = [
        tuple(PairSampler(LABELS["two"], seed=seed).pairs(np.arange(20), epoch)[1])
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert len(set(orders)) == 3


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_million_texts(multi_label):
    labels = np.random.default_rng(0).integers(0, 9, 1_000_000)
    if multi_label:
        labels = np.eye(9, dtype=np.float32)[labels]
        labels[::3, 0] = 1
    pairs = PairSampler(labels)
    first, second, similarity = pairs.pairs(np.linspace(0, len(pairs) - 1, 2000).astype(np.int64))
    common = labels[first] == labels[second] if labels.ndim == 1 else (labels[first] * labels[second]).any(-1)
    np.testing.assert_array_equal(similarity, common)
    assert pairs.positives + pairs.negatives == 1_000_000 * 1_000_001 // 2
    assert len(np.unique(first)) > 1900


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0], {}, "each of the 1 texts has a label in common"),
        ([1, 1, 1], {}, "add texts with another label"),
        ([[1, 1], [0, 1]], {}, "no negative pairs"),
        ([[0, 0], [0, 0]], {}, "none of the 2 texts has a label"),
        ([], {}, "at least one text"),
        ([0, 1], {"strategy": "over"}, "strategy is 'over'; it must be one of oversampling"),
        ([0, 1], {"iterations": 0}, "iterations is 0"),
        ([0, 1], {"seed": -1}, "seed is -1"),
    ],
)
def test_invalid_labels_and_settings(labels, options, message):
    with pytest.raises(InputError, match=message):
        PairSampler(labels, **options)


def labelled_texts(count, labels=None):
    rows = intents.queries(count)
    ids = np.array([intents.LABELS.index(label) for _, label in rows], np.int32)
    return LabelledTexts([text for text, _ in rows], ids if labels is None else labels, intents.LABELS)


@pytest.mark.parametrize("widths", [None, (16,)])
def test_batches_have_every_pair_of_the_epoch_and_resume_anywhere(widths):
    texts, tokenizer = labelled_texts(22), intents.tokenizer()
    batches = ContrastiveBatches(texts, tokenizer, 8, strategy="unique", max_length=16, widths=widths, seed=1)
    epoch = list(batches.epoch(1))
    assert len(epoch) == len(batches) == -(-22 * 23 // 2 // 8)
    drawn = Counter()
    ids = {tuple(row): number for number, row in enumerate(tokenizer(texts.texts)["input_ids"])}
    for batch in epoch:
        assert batch["input_ids"].shape[:2] == batch["attention_mask"].shape[:2] == (8, 2)
        names = ("input_ids", "attention_mask", "similarity", "row_mask")
        for rows, mask, similarity, real in zip(*(batch[name] for name in names)):
            pair = [ids[tuple(row[row_mask != 0])] for row, row_mask in zip(rows, mask)]
            assert not real or similarity == (texts.labels[pair[0]] == texts.labels[pair[1]])
            drawn[tuple(rows.ravel())] += real
    assert sum(drawn.values()) == len(batches.sampler)
    for first in (1, len(epoch) - 1, len(epoch)):
        for ours, theirs in itertools.zip_longest(batches.epoch(1, first), epoch[first:]):
            for name in theirs:
                np.testing.assert_array_equal(ours[name], theirs[name])
    assert any((a["input_ids"].shape, a["input_ids"].sum()) != (b["input_ids"].shape, b["input_ids"].sum())
               for a, b in zip(epoch, batches.epoch(0)))  # fmt: skip


def test_invalid_batches():
    texts, tokenizer = labelled_texts(8), intents.tokenizer()
    with pytest.raises(InputError, match="batch_size is 0"):
        ContrastiveBatches(texts, tokenizer, 0, max_length=8)
    batches = ContrastiveBatches(texts, tokenizer, 4, max_length=8)
    with pytest.raises(InputError, match="first is 99; it must be from 0"):
        batches.epoch(0, 99)
    with pytest.raises(InputError, match="epoch is -1"):
        batches.epoch(-1)
