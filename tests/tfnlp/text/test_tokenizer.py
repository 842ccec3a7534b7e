"""Tokenizers in a graph give the ids, token types and offsets of Hugging Face's."""

import numpy as np
import pytest
import tensorflow as tf
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from duonlp.errors import InputError
from duonlp.util.tokenization import tokenize
from tests.fuzz_texts import differences
from tests.graph_tokenizers import TOKENIZERS, bert, gpt2, roberta

pytest.importorskip("tensorflow_text")

from tfnlp.text.tokenizer import GraphTokenizer


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_those_of_the_tokenizer(name):
    assert not list(differences(TOKENIZERS[name](), 400, seed=2, chunk=400))


@pytest.mark.parametrize("strategy", ["longest_first", "only_first"])
def test_pairs_are_truncated_as_by_the_tokenizer(strategy):
    options = {"max_length": 40, "strategy": strategy} if strategy == "longest_first" else {}
    assert not list(differences(bert(), 200, seed=3, pairs=True, chunk=200, **options))


def test_texts_that_are_not_utf8_are_read_as_python_reads_them():
    texts = [b"a\xffb", b"\xe4\xbd the", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf film"]
    rows = GraphTokenizer(gpt2()).rows(tf.constant(texts))
    expected = tokenize(gpt2(), [text.decode("utf-8", "replace") for text in texts])["input_ids"]
    assert rows.ids.numpy().tolist() == [number for ids in expected for number in ids]


@pytest.mark.parametrize("hf", [bert, gpt2], ids=["right", "left"])
def test_inputs_are_padded_as_by_the_tokenizer(hf):
    tokenizer, texts = hf(), ["the film", "a", "it's \u6771\u4eac!"]
    graph = GraphTokenizer(tokenizer)
    inputs = graph.inputs(graph.rows(tf.constant(texts)))
    expected = tokenize(tokenizer, texts, padding=True, return_tensors="np")
    assert inputs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(inputs[name], value)


def unigram(**parts) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False))
    for name, part in parts.items():
        setattr(backend, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: unigram(normalizer=normalizers.Replace(Regex("a+b"), "c")), "normalizer.*Replace"),
        (lambda: unigram(pre_tokenizer=pre_tokenizers.UnicodeScripts()), "pre-tokenizer.*UnicodeScripts"),
        (lambda: unigram(pre_tokenizer=pre_tokenizers.ByteLevel()), "ByteLevel with Unigram"),
        (lambda: unigram(model=models.WordLevel({"<unk>": 0}, "<unk>")), "a WordLevel tokenizer"),
        (lambda: unigram(model=models.Unigram([("a", -1.0)], 0, True)), "byte_fallback"),
        (lambda: unigram(model=models.BPE({"a": 0}, [], end_of_word_suffix="</w>")), "end_of_word_suffix"),
    ],
)  # fmt: skip
def test_what_cannot_be_put_in_a_graph_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        GraphTokenizer(make())


def test_added_tokens_that_must_be_words_are_refused():
    tokenizer = unigram()
    tokenizer.add_tokens(AddedToken("film", single_word=True))
    with pytest.raises(InputError, match="single_word"):
        GraphTokenizer(tokenizer)


def test_a_length_without_room_is_refused():
    with pytest.raises(InputError, match="2 special tokens"):
        GraphTokenizer(roberta()).rows(tf.constant(["a"]), max_length=1)
