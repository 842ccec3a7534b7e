"""Private tokenizers: equal to their original, whatever is set on either, in any number of threads."""

import copy
import pickle
import threading

import pytest

from duonlp.util import tokenization
from duonlp.util.tokenization import private_tokenizer, tokenize
from tests.reference import record_pipelines as reference

TEXTS = [*reference.TEXTS, reference.LONG_TEXT]
NAMES = ("wordpiece", "bpe", "unigram", "gpt2")
SETTINGS = [
    {}, {"truncation": True, "max_length": 6}, {"padding": "max_length", "max_length": 12, "truncation": True},
    {"truncation": True, "max_length": 9, "stride": 2, "return_overflowing_tokens": True, "return_offsets_mapping": True},
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_calls_equal_those_of_the_original(name, settings):
    tokenizer = (
        reference.load_tokenizer(name, pad_token="<|endoftext|>") if name == "gpt2" else reference.load_tokenizer(name)
    )
    assert tokenize(tokenizer, TEXTS, **settings) == tokenizer(TEXTS, **settings)


def test_the_original_does_not_change():
    tokenizer = reference.load_tokenizer("wordpiece")
    tokenizer(TEXTS[0], truncation=True, max_length=4)
    before = tokenizer.backend_tokenizer.truncation
    assert len(tokenize(tokenizer, TEXTS[0])["input_ids"]) > 4
    assert tokenizer.backend_tokenizer.truncation == before


def test_changes_of_the_original_take_effect():
    tokenizer = copy.deepcopy(reference.load_tokenizer("wordpiece"))
    assert tokenize(tokenizer, "Ada") == tokenizer("Ada")
    tokenizer.add_tokens(["Lovelace"])
    tokenizer.truncation_side = "left"
    settings = {"truncation": True, "max_length": 4}
    assert tokenize(tokenizer, TEXTS[0], **settings) == tokenizer(TEXTS[0], **settings)
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.post_processor = None
    assert tokenize(tokenizer, TEXTS[0]) == tokenizer(TEXTS[0])
    assert pickle.loads(pickle.dumps(tokenizer))("Ada") == tokenizer("Ada")  # nothing of ours is attached to it


def test_private_tokenizers_are_reused_unless_a_call_fails():
    tokenizer = reference.load_tokenizer("wordpiece")
    tokenize(tokenizer, "Ada")
    ((_, backend),) = tokenization._idle[tokenizer]
    with private_tokenizer(tokenizer) as own:
        assert own._tokenizer is backend and own._tokenizer is not tokenizer._tokenizer
        with private_tokenizer(tokenizer) as other:
            assert other._tokenizer is not backend
    assert len(tokenization._idle[tokenizer]) == 2
    with pytest.raises(ValueError):
        tokenize(tokenizer, 3)
    assert len(tokenization._idle[tokenizer]) == 1


def test_threads_do_not_see_each_others_settings():
    tokenizer = reference.load_tokenizer("wordpiece")
    expected = {n: tokenizer(TEXTS, truncation=True, max_length=n)["input_ids"] for n in range(3, 11)}
    wrong, stop = [], threading.Event()

    def check(length):
        for _ in range(60):
            wrong.extend(
                [length]
                * (tokenize(tokenizer, TEXTS, truncation=True, max_length=length)["input_ids"] != expected[length])
            )

    def change():
        while not stop.is_set():
            tokenizer("Ada", truncation=True, max_length=3, padding="max_length")

    user = threading.Thread(target=change)
    threads = [threading.Thread(target=check, args=(length,)) for length in expected]
    for thread in (user, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    user.join()
    assert not wrong
