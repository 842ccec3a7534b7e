"""LabelledBatches: arrays, order, padding, hosts, and that cached texts are not tokenized again."""

import itertools

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from duonlp.data.labelled.batches import LabelledBatches, TextInputs
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError

WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "what", "is", "my", "balance", "please", "block", "the", "card", "now")
CLS, SEP = 1, 2


def tokenizer(types=True, words=WORDS, **options):
    """Return a word-level tokenizer with [CLS] and [SEP], and with token types (BERT) or without (DistilBERT)."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )  # fmt: skip
    options = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"} | options
    names = ["input_ids", *["token_type_ids"] * types, "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=names, **options)


BERT = tokenizer()


def texts(count: int, most: int = 28, multi: bool = False) -> LabelledTexts:
    random = np.random.default_rng(0)
    made = [" ".join(random.choice(WORDS[4:], random.integers(1, most + 1))) for _ in range(count)]
    labels = (random.random((count, 3)) < 0.4).astype(np.float32) if multi else random.integers(0, 3, count, np.int32)
    return LabelledTexts(made, labels, ("balance", "block", "oos"))


def test_a_batch_by_hand():
    data = LabelledTexts(["my balance please", "block"], np.array([0, 1], np.int32), ("balance", "block"))
    (batch,) = LabelledBatches(data, BERT, 3, max_length=16, sort=False, shuffle=False).epoch(0)
    assert {name: (values.dtype, values.shape) for name, values in batch.items()} == {
        "input_ids": (np.int32, (3, 8)),
        "attention_mask": (np.int32, (3, 8)),
        "token_type_ids": (np.int32, (3, 8)),
        "labels": (np.int32, (3,)),
    }
    assert batch["input_ids"][0].tolist() == [CLS, 6, 7, 8, SEP, 0, 0, 0]
    assert batch["input_ids"][1:].tolist() == [[CLS, 9, SEP, *[0] * 5], [CLS, 6, 7, 8, SEP, 0, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [5, 3, 5] and not batch["token_type_ids"].any()
    assert batch["labels"].tolist() == [0, 1, -100], "the last row is filler"


def test_pairs_of_texts_and_padding_on_the_left():
    data = LabelledTexts([("my balance", "please"), ("block", "now")], np.zeros(2, np.int32), ("yes",))
    left = tokenizer(padding_side="left")
    left._pad_token_type_id = 7  # XLNet's is 3
    (batch,) = LabelledBatches(data, left, 2, max_length=9, shuffle=False, sort=False).epoch(0)
    assert batch["input_ids"].tolist() == [[0, 0, CLS, 6, 7, SEP, 8, SEP], [0, 0, 0, CLS, 9, SEP, 12, SEP]]
    assert batch["token_type_ids"].tolist() == [[7, 7, 0, 0, 0, 0, 1, 1], [7, 7, 7, 0, 0, 0, 1, 1]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1]]
    with pytest.raises(InputError, match=r"text 1 is 'now'; give only texts or only pairs of texts"):
        LabelledBatches([("a", "b"), "now"], BERT, 2, max_length=9)


@pytest.mark.parametrize("count, size", [(101, 8), (16, 8), (3, 8), (9, 1)])
@pytest.mark.parametrize("sort", [True, False])
def test_an_epoch_has_every_text_once_in_an_order_of_its_own(count, size, sort):
    data = texts(count)
    batches = LabelledBatches(data, BERT, size, max_length=32, seed=3, sort=sort)
    orders = [batches.order(epoch) for epoch in range(3)]
    for order in orders:
        assert order.shape == (len(batches), size) == (-(-count // size), size)
        assert sorted(order[order >= 0]) == list(range(count))
    assert count < 9 or not np.array_equal(orders[0], orders[1])
    again = LabelledBatches(data, BERT, size, max_length=32, seed=3, sort=sort)
    np.testing.assert_array_equal(orders[2], again.order(2))
    assert count < 9 or not np.array_equal(orders[0], LabelledBatches(data, BERT, size, max_length=32, seed=4).order(0))
    for rows, batch in zip(orders[1], batches.epoch(1), strict=True):
        for row, ids, mask, label in zip(
            rows, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            if row >= 0:
                assert ids[mask == 1].tolist() == BERT(data.texts[row])["input_ids"] and label == data.labels[row]
            else:
                assert label == -100 and mask.any(), "filler has no label but must have tokens to attend to"


def test_resuming_within_an_epoch():
    batches = LabelledBatches(texts(40), BERT, 8, max_length=32)
    rest = list(itertools.islice(batches.epoch(4), 3, None))
    for ours, theirs in zip(batches.epoch(4, first=3), rest, strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    for wrong in ((-1, 0), (0, 6), (0, -1)):
        with pytest.raises(
            InputError, match=r"epoch is -1; it must be a non-neg|first is (6|-1); it must be from 0 to 5"
        ):
            batches.epoch(*wrong)


def padding(batches) -> float:
    masks = [batch["attention_mask"] for batch in batches.epoch(0)]
    return 1 - sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)


def test_few_shapes_and_little_padding():
    data = texts(800)
    batches = LabelledBatches(data, BERT, 8, max_length=64)
    assert batches.widths == (8, 12, 16, 24, 32)
    assert {batch["input_ids"].shape[1] for batch in batches.epoch(0)} <= set(batches.widths)
    assert padding(batches) < 0.2 < padding(LabelledBatches(data, BERT, 8, max_length=64, sort=False))
    evaluated = LabelledBatches(data, BERT, 8, max_length=64, shuffle=False)
    lengths = batches.rows.lengths[evaluated.order(0).ravel()]
    assert (np.diff(lengths) >= 0).all() and padding(evaluated) < 0.2, "the shortest first"
    np.testing.assert_array_equal(evaluated.order(0), evaluated.order(5))
    own = LabelledBatches(texts(20), BERT, 8, max_length=64, shuffle=False, sort=False)
    assert own.order(1).ravel().tolist() == [*range(20), *[-1] * 4]
    # A single long text adds one shape and widens no other.
    long = LabelledTexts([*data.texts, "now " * 500], np.append(data.labels, 0).astype(np.int32), data.label_names)
    assert LabelledBatches(long, BERT, 8, max_length=300).widths[:5] == batches.widths
    assert LabelledBatches(long, BERT, 8, max_length=300).widths[-1] == 300, "at most max_length"
    assert LabelledBatches(long, BERT, 8, max_length=20).widths[-1] == 20, "max_length lies between two widths"
    assert LabelledBatches(texts(99, 500), BERT, 8, max_length=512).widths == (128, 192, 256, 384, 512)
    single = LabelledBatches(data, BERT, 8, max_length=32, widths=(32,))
    assert {batch["input_ids"].shape for batch in single.epoch(0)} == {(8, 32)}


def test_multi_label_filler_and_weights():
    data = texts(5, multi=True)
    *_, batch = LabelledBatches(data, BERT, 2, max_length=32, shuffle=False, sort=False).epoch(0)
    np.testing.assert_array_equal(batch["labels"][0], data.labels[4])
    assert batch["labels"].dtype == np.float32 and "sample_weight" not in batch
    assert (batch["labels"] == -100).all(axis=1).tolist() == [False, True]
    weighted = LabelledBatches(texts(3), BERT, 2, max_length=32, shuffle=False, sort=False, sample_weight=[0.5, 2, 3])
    first, last = weighted.epoch(0)
    assert [first["sample_weight"].tolist(), last["sample_weight"].tolist()] == [[0.5, 2], [3, 0]]
    assert last["labels"].tolist() == [texts(3).labels[2], -100]
    for wrong in ([1, 2], [1, 2, -1], [1, 2, np.nan]):
        with pytest.raises(InputError, match=r"for 3 texts; give one finite, non-negative number per text"):
            LabelledBatches(texts(3), BERT, 2, max_length=32, sample_weight=wrong)


def test_texts_without_labels():
    batches = LabelledBatches(["my card", "now"], BERT, 3, max_length=32)
    (batch,) = batches.epoch(0)
    assert batches.labels is None and batches.label_names == ()
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "sample_weight"}
    assert batch["sample_weight"].tolist() == (batches.order(0)[0] >= 0).tolist() == [1, 1, 0]


def test_a_teacher_with_another_tokenizer():
    teacher = tokenizer(types=True, words=(*WORDS[:4], *WORDS[:3:-1]))
    data = texts(20)
    batches = LabelledBatches(data, tokenizer(types=False), 8, max_length=32, teacher_tokenizer=teacher)
    for rows, batch in zip(batches.order(0), batches.epoch(0), strict=True):
        assert set(batch) == {"labels", "input_ids", "attention_mask"} | {
            f"teacher_{name}" for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        for row, ids, mask in zip(rows, batch["teacher_input_ids"], batch["teacher_attention_mask"], strict=True):
            assert row < 0 or ids[mask == 1].tolist() == teacher(data.texts[row])["input_ids"]


@pytest.mark.parametrize("multi", [False, True])
def test_hosts_share_each_batch(multi):
    whole = LabelledBatches(texts(10, multi=multi), BERT, 8, max_length=32).epoch(0)
    hosts = [
        LabelledBatches(texts(10, multi=multi), BERT, 8, max_length=32, host_index=i, host_count=4).epoch(0)
        for i in range(4)
    ]
    for batch, *parts in zip(whole, *hosts, strict=True):
        counted = (batch["labels"] >= 0).reshape(len(batch["labels"]), -1).all(axis=1)
        for name in batch:
            together = np.concatenate([part[name] for part in parts])
            assert together.shape == batch[name].shape
            np.testing.assert_array_equal(together[counted], batch[name][counted])


def test_the_cache_is_memory_mapped_and_keyed_by_content(tmp_path, monkeypatch):
    data = texts(30)

    def made(data=data, tokenizer=BERT, max_length=16):
        return LabelledBatches(data, tokenizer, 8, max_length=max_length, cache=tmp_path / "ids")

    first = made()
    assert isinstance(first.rows.values, np.memmap)
    (folder,) = (tmp_path / "ids").iterdir()
    monkeypatch.setattr(TextInputs, "_tokenize", lambda *arguments: pytest.fail("tokenized again"))
    relabelled = LabelledTexts(data.texts, np.zeros(30, np.int32), ("all",))
    for ours, theirs in zip(made(relabelled).epoch(0), first.epoch(0), strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs if name != "labels")
        assert set(ours["labels"]) <= {0, -100}
    monkeypatch.undo()
    for others in (
        {"max_length": 15},
        {"tokenizer": tokenizer(types=False)},
        {"tokenizer": tokenizer(words=(*WORDS, "more"))},
        {"data": ["now", *data.texts[1:]]},
    ):
        before = set((tmp_path / "ids").iterdir())
        made(**others)
        assert len(set((tmp_path / "ids").iterdir()) - before) == 1
    file = folder / "ids.values.npy"
    file.write_bytes(file.read_bytes()[:-4])  # damaged, so it is rebuilt
    np.testing.assert_array_equal(made().rows.values, LabelledBatches(data, BERT, 8, max_length=16).rows.values)
    assert not list((tmp_path / "ids").glob(".*"))


def test_a_cache_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    LabelledBatches(["now"], BERT, 1, max_length=8, cache="~/ids")
    assert [path.name for path in tmp_path.iterdir()] == ["ids"]


@pytest.mark.parametrize("cached", [False, True])
def test_unpaired_surrogates_are_rejected(tmp_path, cached):
    for given in (["now", "a\ud800"], [("now", "now"), ("now", "a\ud800")]):
        with pytest.raises(
            InputError, match=r"text 1 has an unpaired surrogate at character 1, .*fix or drop the text"
        ) as error:
            LabelledBatches(given, BERT, 2, max_length=8, cache=tmp_path if cached else None)
        assert error.value.__context__ is None, "no trace of the cache miss"


def test_invalid_arguments():
    no_pad = tokenizer()
    no_pad.pad_token = None
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[PAD]": 1})), pad_token="[PAD]"
    )
    for given, options, message in [
        ([], {}, "there are no texts to batch"),
        ("now", {}, "texts is the string 'now'; give a list"),
        (["now", 3], {}, "text 1 is 3; give only texts"),
        (["now"], {"max_length": 2}, r"max_length is 2; it must be an integer of at least 3, for 2 special tokens"),
        (["now"], {"drop_last": True}, "batch_size is 2, but there are only 1 texts; .* set drop_last=False"),
        (["now"], {"widths": (2,)}, r"widths are \(2,\), but the longest text has 3 tokens"),
        (["now"], {"tokenizer": no_pad}, "no padding token; set pad_token"),
        (["a", ""], {"tokenizer": bare}, "text 1 has no tokens: ''; drop it"),
    ]:
        with pytest.raises(InputError, match=message):
            LabelledBatches(given, **({"tokenizer": BERT, "batch_size": 2, "max_length": 8} | options))
