"""Tokenizer reports against figures counted by hand, and comparisons of tokenizers."""

import io
import json
import keyword

import numpy as np
import pytest
from rich.console import Console

from duonlp.errors import InputError
from duonlp.tokenizers.report import WORD, compare_tokenizers, tokenizer_report, tokens_of_words
from duonlp.tokenizers.train import train_tokenizer

TEXTS = ["def weave(pattern):\n    return pattern\n", "for x in pattern:\n    weave(x)\n"] * 10
HELD_OUT = ["def weave(x):\n    return weave\n", "naïve 你好 🙂\n", "x"]


@pytest.fixture(scope="module")
def bpe():
    return train_tokenizer(TEXTS, "bpe", 300)


@pytest.fixture(scope="module")
def wordpiece():
    return train_tokenizer(TEXTS, "wordpiece", 80, lowercase=True)


@pytest.mark.parametrize("name", ["bpe", "wordpiece"])
def test_figures_match_counting_by_hand(name, request):
    tokenizer = request.getfixturevalue(name)
    report = tokenizer_report(tokenizer, iter(HELD_OUT))
    pieces, tokens = [], 0
    for text in HELD_OUT:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens += len(encoded["input_ids"])
        for word in WORD.finditer(text):
            pieces.append(sum(a < word.end() and b > word.start() for a, b in encoded["offset_mapping"]))
    assert report.texts == 3 and report.words == len(pieces) == 8 and report.tokens == tokens
    assert report.fertility == pytest.approx(np.mean(pieces))
    assert report.continued_words == pytest.approx(np.mean(np.array(pieces) > 1))
    assert report.characters == sum(map(len, HELD_OUT)) and report.bytes == len("".join(HELD_OUT).encode())
    assert report.characters_per_token == pytest.approx(report.characters / tokens)
    assert report.bytes_per_token == pytest.approx(report.bytes / tokens)


def test_unknown_tokens_and_round_trips(bpe, wordpiece):
    exact, lossy = tokenizer_report(bpe, HELD_OUT), tokenizer_report(wordpiece, HELD_OUT)
    assert exact.unknown_rate == 0 and exact.exact_round_trips == 1
    assert lossy.unknown_rate == pytest.approx(4 / lossy.tokens) and lossy.exact_round_trips == pytest.approx(1 / 3)
    # GPT-2's unk_token is its end-of-text token, which does not mean unknown where a text contains it.
    assert tokenizer_report(bpe, ["a <|endoftext|> b"]).unknown_rate == 0
    unigram = train_tokenizer(TEXTS, "unigram", 40)
    assert tokenizer_report(unigram, ["weave 🙂"]).unknown_rate > 0


def test_coverage_of_a_word_list(bpe, wordpiece):
    report = tokenizer_report(bpe, HELD_OUT)
    assert report.listed_words == len(keyword.kwlist) and "nonlocal" in report.missing_words
    assert report.covered_words + len(report.missing_words) == report.listed_words
    custom = tokenizer_report(bpe, HELD_OUT, ["def", "pattern", "zebra"])
    assert custom.missing_words == ("zebra",) and custom.coverage == pytest.approx(2 / 3)
    assert tokenizer_report(wordpiece, HELD_OUT, ["weave", "你"]).missing_words == (
        "你",
    )  # a single token, but the unknown one
    assert tokenizer_report(bpe, HELD_OUT, []).to_dict()["coverage"] is None


def test_longest_and_last_tokens_are_texts(bpe):
    report = tokenizer_report(bpe, HELD_OUT)
    lengths = [len(token) for token in report.longest_tokens]
    assert lengths == sorted(lengths, reverse=True) and " pattern" in report.longest_tokens
    assert report.last_tokens[0] == bpe.decode([len(bpe) - 1]) and "<|endoftext|>" not in report.longest_tokens


def test_truncation_of_earlier_calls_is_ignored_and_kept(bpe):
    whole = tokenizer_report(bpe, HELD_OUT)
    bpe(HELD_OUT, truncation=True, max_length=2, padding=True)
    assert bpe.backend_tokenizer.truncation is not None
    assert tokenizer_report(bpe, HELD_OUT) == whole
    assert bpe.backend_tokenizer.truncation is not None


def test_a_token_over_two_words_counts_for_both():
    np.testing.assert_array_equal(tokens_of_words("ab cd, ef", [(0, 5), (5, 6), (6, 8), (8, 9)]), [1, 1, 2])
    assert len(tokens_of_words("...", [(0, 3)])) == 0
    np.testing.assert_array_equal(tokens_of_words("é", [(0, 1), (0, 1)]), [2])  # two bytes of one character


def test_comparison(bpe, wordpiece):
    compared = compare_tokenizers({"one": bpe, "two": wordpiece}, iter(HELD_OUT))
    assert compared.reports["two"] == tokenizer_report(wordpiece, HELD_OUT)
    assert json.loads(json.dumps(compared.to_dict()))["one"]["fertility"] == compared.reports["one"].fertility
    out = io.StringIO()
    Console(file=out, width=160).print(compared)
    assert "one" in out.getvalue() and "tokens per word" in out.getvalue() and "100.0%" in out.getvalue()
    Console(file=out).print(compared.reports["one"])


def test_invalid_input_is_an_error(bpe):
    for texts, part in (([], "0 texts"), (["..."], "no word"), ("text", "single text"), ([1], "text 0")):
        with pytest.raises(InputError, match=part):
            tokenizer_report(bpe, texts)
    with pytest.raises(InputError, match="fast"):
        tokenizer_report(object(), HELD_OUT)
    with pytest.raises(InputError, match="empty"):
        compare_tokenizers({}, HELD_OUT)
