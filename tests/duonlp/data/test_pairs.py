"""PairCollator and PairBatches: arrays, truncation, order, padding, hosts, and that cached texts are not tokenized again."""

import itertools
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duonlp.data.pairs.batches import PairBatches
from duonlp.data.pairs.collator import PairCollator, token_ids
from duonlp.data.pairs.summaries import Pair
from duonlp.data.rows.token_rows import TokenRows
from duonlp.errors import InputError
from duonlp.tokenizers.train import train_tokenizer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "dogs", "ran", "over", "it", "while", "nobody", "saw"]


def pair(number: int, words: int = 9, summary: int = 3) -> Pair:
    def text(count, start):
        return " ".join(WORDS[(start + i * i) % len(WORDS)] for i in range(count))

    return Pair(text(words, number), (text(summary, number + 1), "another"), f"p{number}")


@dataclass(frozen=True)
class Config:
    """Stand-in with the attributes of TransformerConfig that the collator reads."""

    max_length: int = 64
    decoder_length: int = 32
    pad_token_id: int | None = 0
    vocab_size: int = 1000
    starts_with_last: bool = False
    target_vocab_size: int | None = None
    model_type = "stand-in"

    @property
    def embedding(self):
        return SimpleNamespace(vocab_size=self.vocab_size)

    @property
    def decoder(self):
        words = SimpleNamespace(vocab_size=self.target_vocab_size or self.vocab_size)
        return SimpleNamespace(
            max_length=self.decoder_length, start_token_id=5, starts_with_last=self.starts_with_last, embedding=words
        )


@pytest.fixture(scope="module")
def t5():
    """Return a tokenizer that ends every text with </s>."""
    return train_tokenizer([" ".join(WORDS)] * 9, "unigram", 60)


@pytest.fixture(scope="module")
def gpt2():
    """Return a tokenizer that adds no special tokens."""
    return train_tokenizer([" ".join(WORDS)] * 9, "bpe", 300, special_tokens={"pad_token": "<pad>"})


def test_a_batch_by_hand(t5):
    collate = PairCollator(t5, Config(max_length=99, decoder_length=70), prefix="mat: ")
    pairs = [pair(0), pair(1, words=20, summary=17)]
    batch = collate(pairs)
    assert {name: (values.dtype, values.shape) for name, values in batch.items()} == {
        "input_ids": (np.int32, batch["attention_mask"].shape),
        "attention_mask": (np.int32, batch["input_ids"].shape),
        "decoder_input_ids": (np.int32, batch["labels"].shape),
        "labels": (np.int32, batch["decoder_input_ids"].shape),
    }
    for row, example in enumerate(pairs):
        source = t5("mat: " + example.document)["input_ids"]
        target = t5(text_target=example.summaries[0])["input_ids"]
        assert target[-1] == t5.eos_token_id
        got = batch["input_ids"][row], batch["attention_mask"][row], batch["labels"][row]
        assert got[0].tolist() == source + [0] * (len(got[0]) - len(source))
        assert got[1].tolist() == [1] * len(source) + [0] * (len(got[0]) - len(source))
        assert got[2].tolist() == target + [-100] * (len(got[2]) - len(target))
        expected = [5, *target, *[0] * len(got[2])][: len(got[2])]
        assert batch["decoder_input_ids"][row].tolist() == expected
    assert batch["input_ids"].shape[1] in (96, 99) and batch["labels"].shape[1] in (64, 70)


def test_targets_end_with_eos(gpt2, t5):
    assert token_ids(gpt2, ["the cat"], targets=True)[0] == [*gpt2("the cat")["input_ids"], gpt2.eos_token_id]
    assert token_ids(gpt2, ["the cat"])[0] == gpt2("the cat")["input_ids"]
    for tokenizer in (gpt2, t5):
        cut = token_ids(tokenizer, ["the cat sat on a mat"], 3, targets=True)[0]
        assert len(cut) == 3 and cut[-1] == tokenizer.eos_token_id
        assert token_ids(tokenizer, []) == []


def test_long_documents_and_summaries(t5):
    long = pair(7, words=200, summary=60)
    collate = PairCollator(t5, Config())
    with pytest.raises(
        InputError,
        match=r"pair 1 \(id 'p7'\): its summary has \d+ tokens.* only 32 positions; pass max_target_length=32",
    ):
        collate([pair(0), long])
    batch = PairCollator(t5, Config(), max_target_length=20)([long])
    assert batch["labels"].shape == (1, 20) and batch["labels"][0, -1] == t5.eos_token_id, (
        "truncated, with the end-of-text token"
    )
    assert batch["input_ids"].shape == (1, 64), "sources are truncated to the model's positions"
    assert PairCollator(t5, Config(), 40, 20)([long])["input_ids"].shape == (1, 40)
    unlimited = Config(max_length=10**30, decoder_length=10**30)  # T5
    assert PairCollator(t5, unlimited)([long])["input_ids"].shape[1] > 200
    tokenizer = train_tokenizer([" ".join(WORDS)] * 9, "unigram", 60, max_length=48)
    assert PairCollator(tokenizer, unlimited)([long])["input_ids"].shape == (1, 48), "the tokenizer's own limit"
    for lengths, message in [
        ((65, None), "max_source_length is 65, but the model has only 64 positions"),
        ((None, 33), "max_target_length is 33"),
        ((None, 1), "max_target_length is 1; it must be an integer of at least 2"),
        ((0, 8), "max_source_length is 0"),
    ]:
        with pytest.raises(InputError, match=message):
            PairCollator(t5, Config(), *lengths)


def test_invalid_pairs_and_models(t5):
    collate = PairCollator(t5, Config(), prefix="the ")
    for bad, message in [
        (Pair(" ", ("a",), "x"), r"pair 1 \(id 'x'\): its document is empty"),
        (Pair("a", ("\n",), "x"), r"pair 1 \(id 'x'\): its summary is empty"),
        (Pair("a", (), "x"), r"its summary is empty"),
        (Pair("\u200b\x01", ("a",), "x"), r"its document is empty, '\\u200b"),
    ]:
        with pytest.raises(InputError, match=message):
            collate([pair(0), bad])
    bare = PairCollator(t5, Config(), 2, prefix="the cat ")
    with pytest.raises(
        InputError, match=r"pair 0 \(id 'p0'\): its document has no tokens of its own: once truncated to 2"
    ):
        bare([pair(0)])
    with pytest.raises(
        InputError, match=r"has the id \d+, but the model's ids end at 9; use the model's own tokenizer"
    ):
        PairCollator(t5, Config(vocab_size=10))([pair(0)])
    with pytest.raises(InputError, match=r"its summary has the id \d+, but the model's ids end at 4;"):
        PairCollator(t5, Config(target_vocab_size=5))([pair(0)])  # Marian's two vocabularies
    with pytest.raises(InputError, match=r"its document has the id"):
        PairCollator(t5, Config(vocab_size=10, target_vocab_size=1000))([pair(0)])
    with pytest.raises(InputError, match="no pad_token_id"):
        PairCollator(t5, Config(pad_token_id=None))
    with pytest.raises(InputError, match="'bert' has no decoder"):
        PairCollator(t5, SimpleNamespace(model_type="bert", decoder=None))


def pairs_of(count: int) -> list[Pair]:
    random = np.random.RandomState(0)
    return [pair(i, *(1 + random.randint([50, 20]))) for i in range(count)]


@pytest.mark.parametrize("count, size", [(101, 8), (16, 8), (3, 8), (9, 1)])
def test_an_epoch_has_every_pair_once_in_an_order_of_its_own(t5, count, size):
    batches = PairBatches(iter(pairs_of(count)), PairCollator(t5, Config(), max_target_length=32), size, seed=3)
    orders = [batches.order(epoch) for epoch in range(3)]
    for order in orders:
        assert order.shape == (len(batches), size) == (-(-count // size), size)
        assert sorted(order[order >= 0]) == list(range(count))
    assert count < 9 or not np.array_equal(orders[0], orders[1])
    np.testing.assert_array_equal(orders[2], batches.order(2))
    seen = []
    for rows, batch in zip(orders[1], batches.epoch(1), strict=True):
        for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
            if row >= 0:
                assert ids[: len(batches.sources[row])].tolist() == batches.sources[row].tolist()
                assert labels[labels >= 0].tolist() == batches.targets[row].tolist()
            else:
                assert (labels == -100).all() and ids.any(), "filler has no label but must have tokens to attend to"
        seen += rows[rows >= 0].tolist()
    assert len(seen) == count
    assert batches.ids == [f"p{i}" for i in range(count)] and len(batches.documents) == count
    assert batches.references[0] == pair(0, *(1 + np.random.RandomState(0).randint([50, 20]))).summaries


def test_resuming_within_an_epoch(t5):
    batches = PairBatches(pairs_of(40), PairCollator(t5, Config(), max_target_length=32), 8)
    rest = list(itertools.islice(batches.epoch(4), 3, None))
    for ours, theirs in zip(batches.epoch(4, first=3), rest, strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert list(batches.epoch(4, first=5)) == []
    for wrong in ((-1, 0), (0, 6), (0, -1)):
        with pytest.raises(
            InputError, match=r"epoch is -1; it must be a non-neg|first is (6|-1); it must be from 0 to 5"
        ):
            batches.epoch(*wrong)


def test_few_shapes_and_little_padding(t5):
    batches = PairBatches(pairs_of(800), PairCollator(t5, Config(), max_target_length=32), 8)
    shapes, real, padded = set(), 0, 0
    for batch in batches.epoch(0):
        shapes.add(batch["input_ids"].shape + batch["labels"].shape)
        real += batch["attention_mask"].sum()
        padded += batch["attention_mask"].size
    assert len(shapes) <= 6 and real / padded > 0.75
    straight = PairBatches(pairs_of(20), PairCollator(t5, Config(), max_target_length=32), 8, shuffle=False)
    assert straight.order(1).ravel().tolist() == [*range(20), *[-1] * 4]


def test_drop_last(t5):
    collate = PairCollator(t5, Config(), max_target_length=32)
    batches = PairBatches(pairs_of(21), collate, 8, drop_last=True)
    assert len(batches) == len(list(batches.epoch(0))) == 2 and (batches.order(0) >= 0).all()
    with pytest.raises(InputError, match="batch_size is 8, but there are only 3 pairs"):
        PairBatches(pairs_of(3), collate, 8, drop_last=True)
    with pytest.raises(InputError, match="there are no pairs"):
        PairBatches([], collate, 8)
    with pytest.raises(InputError, match="multiple of the number of hosts"):
        PairBatches(pairs_of(3), collate, 3, host_count=2)


@pytest.mark.parametrize("starts_with_last", [False, True])
def test_hosts_share_each_batch(t5, starts_with_last):
    collate = PairCollator(t5, Config(starts_with_last=starts_with_last), max_target_length=32)
    whole = PairBatches(pairs_of(10), collate, 8).epoch(0)
    hosts = [PairBatches(pairs_of(10), collate, 8, host_index=i, host_count=4).epoch(0) for i in range(4)]
    for batch, *parts in zip(whole, *hosts, strict=True):
        for name in batch:
            together = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(together, batch[name])


def test_the_cache_is_memory_mapped_and_keyed_by_content(t5, tmp_path, monkeypatch):
    collate, pairs = PairCollator(t5, Config(), max_target_length=32), pairs_of(30)

    def made(collator=collate, pairs=pairs):
        return PairBatches(iter(pairs), collator, 8, cache=tmp_path / "ids")

    first = made()
    assert isinstance(first.sources.values, np.memmap)
    (folder,) = (tmp_path / "ids").iterdir()
    calls = []
    monkeypatch.setattr(PairCollator, "encode", lambda self, pairs, *more: calls.append(pairs))
    again = made()
    assert not calls and again.ids == first.ids and again.references == first.references
    for ours, theirs in zip(again.epoch(0), PairBatches.epoch(first, 0), strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    monkeypatch.undo()
    changed = [replace(pairs[0], document="dogs"), *pairs[1:]]
    for others in (
        {"collator": PairCollator(t5, Config(), 30, 32)},
        {"collator": PairCollator(t5, Config(), None, 30)},
        {"collator": PairCollator(t5, Config(), None, 32, "mat ")},
        {"collator": PairCollator(train_tokenizer([" ".join(WORDS)] * 9, "unigram", 50), Config(), None, 32)},
        {"pairs": changed},
    ):
        before = set((tmp_path / "ids").iterdir())
        made(**others)
        assert len(set((tmp_path / "ids").iterdir()) - before) == 1
    file = folder / "sources.values.npy"
    file.write_bytes(file.read_bytes()[:-4])  # damaged, so it is rebuilt
    fresh = PairBatches(pairs, collate, 8)
    np.testing.assert_array_equal(made().sources.values, fresh.sources.values)
    assert not list((tmp_path / "ids").glob(".*"))


def test_texts_can_be_discarded(t5):
    batches = PairBatches(pairs_of(5), PairCollator(t5, Config(), max_target_length=32), 2, texts=False)
    assert len(batches.ids) == 5
    with pytest.raises(InputError, match="texts=True"):
        _ = batches.references


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), min_size=1, max_size=8), st.data())
def test_padded_rows(rows, data):
    table = TokenRows.of(rows)
    assert [row.tolist() for row in table] == rows and table.lengths.tolist() == list(map(len, rows))
    indices = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
    padded = table.padded(np.array(indices), 6, -100)
    assert padded.dtype == np.int32
    assert padded.tolist() == [rows[i] + [-100] * (6 - len(rows[i])) for i in indices]


def test_values_must_match_offsets():
    with pytest.raises(InputError, match=r"offsets int64 \[2\]"):
        TokenRows(np.zeros(3, np.int32), np.array([0, 2]))
