"""Stop strings: walking the table token by token agrees with searching the decoded bytes."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from duonlp.errors import InputError
from duonlp.generation.stop_strings import STATES_MULTIPLE, StopStrings, build_automaton, token_bytes
from duonlp.tokenizers.train import train_tokenizer

TEXTS = ["the cat sat on the mat, then the dog stopped at the top", "un été à l'île, naïve façade", "stop! don't stop."]


def byte_level():
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, min_frequency=0)
    tokenizer.add_tokens(["<two words>"])
    return tokenizer


def metaspace():
    """Train a tokenizer like Llama's: sentencepiece BPE with byte fallback."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False)
    )
    vocabulary = tokenizer.to_str()  # byte tokens are special only for the trainer
    tokenizer = Tokenizer.from_str(_without_special_bytes(vocabulary))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def _without_special_bytes(text):
    state = json.loads(text)
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return json.dumps(state)


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[SEP]"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", sep_token="[SEP]")


TOKENIZERS = {"byte-level": byte_level(), "metaspace": metaspace(), "wordpiece": wordpiece()}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def walk(stops, ids, state=0):
    """Return the index of the token that stops the text, or None."""
    for number, token in enumerate(ids):
        state = stops.transitions[state, token]
        if state == stops.accept:
            return number
    return None


def search(tokenizer, prompt, ids, strings):
    """Return the same by searching the bytes: the first new token in which an occurrence ends."""
    pieces = token_bytes(tokenizer)
    text = b"".join(pieces[i] for i in prompt)
    for number, token in enumerate(ids):
        before, text = len(text), text + pieces[token]
        for string in strings:
            pattern = string.encode()
            if text.find(pattern, max(0, before - len(pattern) + 1)) >= 0:
                return number
    return None


def tokens_of(tokenizer, *tokens):
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    assert tokenizer.unk_token_id not in ids or tokenizer.unk_token in tokens
    return ids


def test_token_bytes_join_to_the_text(tokenizer):
    ids = tokenizer("the cat, un été", add_special_tokens=False)["input_ids"]
    pieces = token_bytes(tokenizer)
    joined = b"".join(pieces[i] for i in ids).decode()
    assert joined.strip() == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert len(pieces) == len(tokenizer)


def test_token_bytes_by_vocabulary():
    pieces = {name: token_bytes(t) for name, t in TOKENIZERS.items()}

    def read(name, token):
        return pieces[name][TOKENIZERS[name].convert_tokens_to_ids(token)]

    assert read("byte-level", "Ġthe") == b" the" and read("byte-level", "Ã") == b"\xc3"
    assert read("byte-level", "<|endoftext|>") == b"<|endoftext|>"
    assert read("byte-level", "<two words>") == b"<two words>"  # a space is not in the byte alphabet
    assert read("metaspace", "▁the") == b" the" and read("metaspace", "<0xC3>") == b"\xc3"
    assert read("metaspace", "</s>") == b"</s>"
    assert read("wordpiece", "the") == b" the" and read("wordpiece", "##t") == b"t"
    assert read("wordpiece", ",") == b","  # its decoder removes that space
    assert read("wordpiece", "[SEP]") == b" [SEP]"


def test_token_bytes_without_a_decoder_and_with_a_suffix():
    backend = Tokenizer(models.BPE({"a</w>": 0, "b": 1, "<unk>": 3}, [], unk_token="<unk>"))
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert token_bytes(plain) == [b" a</w>", b" b", b"", b" <unk>"]
    backend.decoder = decoders.BPEDecoder()
    suffixed = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert token_bytes(suffixed) == [b"a ", b"b", b"", b"<unk>"]


def test_added_tokens_are_seen():
    tokenizer = byte_level()
    assert len(token_bytes(tokenizer)) == len(tokenizer)
    StopStrings.build(tokenizer, "x", len(tokenizer))
    tokenizer.add_tokens(["<later>"])
    assert token_bytes(tokenizer)[-1] == b"<later>"
    stops = StopStrings.build(tokenizer, "ate", len(tokenizer))
    assert walk(stops, [len(tokenizer) - 1]) == 0


def test_transformers_own_examples():
    words = ("st", "op", "stop", "opera", "sto", "pper", "las", "topper", "s", "to", "pped", "at", "tion")
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="s"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    stops = StopStrings.build(tokenizer, "stop", 13)
    for words in ("st op", "stop", "st opera", "sto pper", "las topper", "s to pped"):
        ids = tokens_of(tokenizer, *words.split())
        assert walk(stops, ids) == len(ids) - 1, words
    for words in ("stop at", "st op at", "st opera tion"):  # before the last token
        ids = tokens_of(tokenizer, *words.split())
        assert walk(stops, ids) < len(ids) - 1, words
    assert walk(stops, tokens_of(tokenizer, "st", "at", "op", "to")) is None


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_walking_the_table_is_searching_the_text(data):
    tokenizer = TOKENIZERS[data.draw(st.sampled_from(sorted(TOKENIZERS)))]
    vocabulary = st.lists(st.integers(0, len(tokenizer) - 1), max_size=12)
    # few letters, so that strings overlap each other and themselves; or substrings of the text
    few = st.sampled_from(tokens_of_few_letters(tokenizer))
    draws = st.one_of(vocabulary, st.lists(few, max_size=16))
    prompt, ids = data.draw(draws), data.draw(draws)
    text = tokenizer.decode(prompt + ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    options = [st.text("aste ", min_size=1, max_size=5), st.text(min_size=1, max_size=3)]
    if text:
        begins = st.integers(0, len(text) - 1)
        options.append(st.builds(lambda b, n: text[b : b + n], begins, st.integers(1, 8)))
    strings = data.draw(st.lists(st.one_of(options), min_size=1, max_size=3))
    stops = StopStrings.build(tokenizer, strings, len(tokenizer))
    padded = np.array([[0] * 3 + prompt], np.int32)
    mask = np.array([[0] * 3 + [1] * len(prompt)])
    state = stops.start(padded, mask)
    assert state.dtype == np.int32 and state.shape == (1,)
    assert walk(stops, ids, state[0]) == search(tokenizer, prompt, ids, stops.strings)


def tokens_of_few_letters(tokenizer):
    pieces = token_bytes(tokenizer)
    return [i for i, piece in enumerate(pieces) if piece and set(piece) <= set(b"aste ")]


def test_the_end_of_a_prompt_counts_but_not_what_it_contains():
    tokenizer = TOKENIZERS["byte-level"]
    s, t, o, p = tokens_of(tokenizer, *"stop")
    stops = StopStrings.build(tokenizer, ["stop", "pp"], len(tokenizer))
    prompts = np.array([[s, t, o, p], [0, 0, s, t], [p, p, p, s]])
    mask = np.array([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
    start = stops.start(prompts, mask)
    assert stops.accept not in start
    assert walk(stops, [p], start[0]) == 0  # the prompt's last p is the first of "pp"
    assert walk(stops, [o, p], start[1]) == 1
    assert walk(stops, [o, p], start[2]) is None
    assert walk(stops, [t, o, p], start[2]) == 2
    assert (stops.start(prompts[:1]) == start[:1]).all()
    # left padding is not text
    assert stops.start(np.array([[s, t]]), np.array([[0, 1]])) == 0
    with pytest.raises(InputError, match=r"\(3, 4\).*\(3, 2\)"):
        stops.start(prompts, mask[:, :2])


def test_shape_of_the_table(tokenizer):
    beyond = len(tokenizer) + 5
    stops = StopStrings.build(tokenizer, "stop", beyond)
    table = stops.transitions
    assert table.dtype == np.int32 and table.shape == (STATES_MULTIPLE, beyond) and stops.accept == STATES_MULTIPLE - 1
    assert (table[stops.accept] == stops.accept).all()
    assert (table[: stops.accept, len(tokenizer) :] == 0).all()  # ids of the model that the tokenizer lacks
    assert table.min() == 0 and table.max() == stops.accept
    assert StopStrings.build(tokenizer, "x" * 14, beyond).transitions.shape[0] == STATES_MULTIPLE
    assert StopStrings.build(tokenizer, "x" * 15, beyond).transitions.shape[0] == 2 * STATES_MULTIPLE
    assert StopStrings.build(tokenizer, "stop", 7).transitions.shape == (STATES_MULTIPLE, 7)


def test_tables_are_cached_while_the_tokenizer_lives():
    import gc
    import weakref

    tokenizer = byte_level()
    first = StopStrings.build(tokenizer, ["stop"], 300)
    assert StopStrings.build(tokenizer, "stop", 300) is first
    assert StopStrings.build(tokenizer, "stop", 301) is not first
    for i in range(8):
        StopStrings.build(tokenizer, f"stop {i}", 300)
    assert StopStrings.build(tokenizer, "stop", 300) is not first
    alive = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert alive() is None


def test_automaton_falls_back_to_the_longest_suffix():
    goto, completes = build_automaton([b"aab", b"ab", b"b"])
    node = 0
    ends = []
    for byte in b"aaabab":
        node = goto[node, byte]
        ends.append(bool(completes[node]))
    assert ends == [False, False, False, True, False, True]


def test_a_large_vocabulary_is_fast():
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = {"".join(rng.choice(letters, n)) for n in rng.integers(4, 10, 50_000)}
    vocabulary = {f"Ġ{word}": i for i, word in enumerate(sorted(words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="Ġa"))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    begin = time.perf_counter()
    stops = StopStrings.build(tokenizer, ["\n\nQuestion: ", "<|end_of_turn|>", "Observation"], len(vocabulary))
    assert stops.transitions.shape[0] == 48
    assert time.perf_counter() - begin < 5  # under one second on an idle machine


@pytest.mark.parametrize("strings", [[], "", ["a", ""], [1], None, b"stop", 3, ["a", None], "\ud800", {"a": 1}])
def test_invalid_strings(strings):
    with pytest.raises(InputError, match=r"stop.string"):
        StopStrings.build(TOKENIZERS["wordpiece"], strings, 10)


def test_tables_that_are_too_large_and_slow_tokenizers():
    with pytest.raises(InputError, match="MiB"):
        StopStrings.build(TOKENIZERS["wordpiece"], "a" * 10_000, 50_000)
    with pytest.raises(InputError, match="object has no backend_tokenizer"):
        StopStrings.build(object(), "a", 10)


@pytest.mark.parity
def test_transformers_stops_at_the_same_token():
    import torch
    from transformers.generation import StopStringCriteria

    rng = np.random.default_rng(1)
    for name in ("byte-level", "metaspace"):
        tokenizer = TOKENIZERS[name]
        few = tokens_of_few_letters(tokenizer)
        for strings in (["st"], ["tse", "ea"], ["  "], ["at the", "ses"]):
            stops = StopStrings.build(tokenizer, strings, len(tokenizer))
            criteria = StopStringCriteria(tokenizer, strings)
            for ids in rng.choice(few, (20, 24)):
                prompt, new = ids[:6], ids[6:]
                theirs = next(
                    (n for n in range(len(new)) if criteria(torch.tensor(ids[None, : 7 + n].astype(int)), None)), None
                )
                assert walk(stops, new, stops.start(prompt[None])[0]) == theirs, (name, strings, ids)
