"""Training tokenizers: three kinds, saving and loading, special tokens, and errors."""

import pytest
from transformers import AutoTokenizer

from duonlp.errors import InputError
from duonlp.tokenizers.train import KINDS, train_new_from, train_tokenizer

TEXTS = [
    "The engine weaves algebraic patterns just as the loom weaves flowers and leaves.\n",
    "def weave(pattern, loom):\n    return [loom.weave(flower) for flower in pattern]\n",
    "Ada wrote the first program; Ada's notes are longer than the paper she translated.\n",
] * 5
STRANGE = "def g(é, 你好):\n\treturn  🙂 + 1\r\n"
SIZES = {"bpe": 320, "wordpiece": 150, "unigram": 120}


@pytest.fixture(scope="module", params=KINDS)
def trained(request):
    return request.param, train_tokenizer(iter(TEXTS), request.param, SIZES[request.param], max_length=64)


@pytest.mark.parametrize("model_type", [None, "gpt2", "bert", "t5"])
def test_saving_and_loading_preserves_a_tokenizer(trained, tmp_path, model_type):
    _, tokenizer = trained
    tokenizer.save_pretrained(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map and loaded.model_max_length == 64
    for pair in ((TEXTS[0],), (TEXTS[1], STRANGE)):
        assert dict(loaded(*pair)) == dict(tokenizer(*pair))
    ids = tokenizer(STRANGE)["input_ids"]
    assert loaded.decode(ids) == tokenizer.decode(ids)


def test_the_vocabulary_is_at_most_the_requested_size(trained):
    kind, tokenizer = trained
    assert SIZES[kind] // 2 < len(tokenizer) <= SIZES[kind]
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_bpe_restores_any_text_and_has_one_special_token():
    tokenizer = train_tokenizer(TEXTS, "bpe", 300)
    assert tokenizer.decode(tokenizer(STRANGE)["input_ids"]) == STRANGE
    assert set(tokenizer.special_tokens_map.values()) == {"<|endoftext|>"} and tokenizer.eos_token_id == 0
    again = train_tokenizer(iter(TEXTS), "bpe", 300)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_wordpiece_matches_bert():
    tokenizer = train_tokenizer(TEXTS, "wordpiece", 150, lowercase=True)
    encoded = tokenizer("The LOOM wéaves", "loom")
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert tokens[0] == "[CLS]" and tokens.count("[SEP]") == 2 and tokens[-1] == "[SEP]"
    assert encoded["token_type_ids"] == [0] * (tokens.index("[SEP]") + 1) + [1] * (
        len(tokens) - tokens.index("[SEP]") - 1
    )
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == "the loom weaves loom"
    assert any(token.startswith("##") for token in tokenizer.get_vocab())
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    assert tokenizer("你")["input_ids"] == [2, 1, 3]
    cased = train_tokenizer(TEXTS, "wordpiece", 150)
    assert "Ada" in cased.decode(cased("Ada")["input_ids"])


def test_unigram_matches_t5_or_albert():
    tokenizer = train_tokenizer(TEXTS, "unigram", 120)
    ids = tokenizer("the  loom")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the loom"
    assert tokenizer.unk_token_id in tokenizer("🙂")["input_ids"]
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "eos_token": None}
    albert = train_tokenizer(TEXTS, "unigram", 120, special_tokens=special, lowercase=True)
    encoded = albert("THE", "loom")
    assert albert.decode(encoded["input_ids"]).startswith("[CLS] the[SEP]") and set(encoded["token_type_ids"]) == {0, 1}
    assert albert.eos_token is None


def test_special_tokens_with_and_without_a_role():
    tokenizer = train_tokenizer(
        TEXTS, "bpe", 300, special_tokens={"mask_token": "<mask>"}, extra_special_tokens=["<a>", "<b>"]
    )
    ids = tokenizer("x<mask><b>y")["input_ids"]
    assert (
        tokenizer.mask_token_id in ids and tokenizer.convert_tokens_to_ids(["<a>", "<b>"]) == [2, 3] and len(ids) == 4
    )
    assert tokenizer.decode(ids, skip_special_tokens=True) == "xy"


def test_retraining_keeps_everything_but_the_vocabulary(trained):
    kind, tokenizer = trained
    before = tokenizer.backend_tokenizer.to_str()
    new = train_new_from(tokenizer, iter(["zebra zebras zigzag quagga, zebra!\n"] * 9), 290 if kind == "bpe" else 60)
    assert tokenizer.backend_tokenizer.to_str() == before and len(new) < len(tokenizer)
    assert new.special_tokens_map == tokenizer.special_tokens_map and new.model_max_length == 64
    assert len(new.tokenize("zebra")) <= 2 and "zebra" in new.decode(new("zebra")["input_ids"])
    around = {"bpe": 0, "wordpiece": 3, "unigram": 2}[kind]
    assert len(new("zebra", "quagga")["input_ids"]) == around + len(new.tokenize("zebra")) + len(new.tokenize("quagga"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("texts", "part"), [([], "no texts"), (["", " \n"], "2 texts"), ("one text", "single text"), (["a", 3], "text 1")]
)
def test_a_stream_must_have_texts(kind, texts, part):
    with pytest.raises(InputError, match=part):
        train_tokenizer(texts, kind, 300)


def test_errors_of_the_stream_propagate():
    def broken():
        yield "a"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        train_tokenizer(broken(), "bpe", 300)
    with pytest.raises(InputError, match="UTF-8"):
        train_tokenizer(["a\ud800"], "bpe", 300)


@pytest.mark.parametrize(
    ("kind", "size", "part"), [("bpe", 256, "257"), ("wordpiece", 20, "at least"), ("unigram", 20, "20")]
)
def test_the_alphabet_must_fit(kind, size, part):
    with pytest.raises(InputError, match=part):
        train_tokenizer(TEXTS, kind, size)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"kind": "word"}, "'word'.*bpe, wordpiece, unigram"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"lowercase": True}, "lowercase"),
        ({"special_tokens": {"beginning": "<s>"}}, "'beginning'"),
        ({"special_tokens": {"pad_token": ""}}, "pad_token"),
        ({"special_tokens": {"cls_token": "<s>"}}, "sep_token"),
        ({"kind": "unigram", "special_tokens": {"unk_token": None}}, "unk_token"),
    ],
)
def test_invalid_options_are_an_error(options, part):
    with pytest.raises(InputError, match=part):
        train_tokenizer(TEXTS, **{"kind": "bpe", "vocab_size": 300} | options)
    with pytest.raises(InputError, match="fast"):
        train_new_from(object(), TEXTS, 300)
