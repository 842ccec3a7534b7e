"""TextStream: the joined pieces equal the text decoded at once, for any ids and chunks."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from duonlp.errors import InputError
from duonlp.generation.streaming import TextStream
from duonlp.tokenizers.train import train_tokenizer

TEXTS = [
    "the cat sat on the mat, then the dog doesn't stop",
    "un été à l'île . . . naïve ? façade !",
    "  two   spaces 🙂",
]
LLAMA = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


def byte_level():
    tokenizer = train_tokenizer(TEXTS, vocab_size=290, min_frequency=0)
    tokenizer.add_tokens(["<two words>", "é"])
    return tokenizer


def sentencepiece(decoder, byte_fallback):
    tokenizer = Tokenizer(models.BPE(byte_fallback=byte_fallback, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoder
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False)
    )
    state = json.loads(tokenizer.to_str())  # byte tokens are special only for the trainer
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), unk_token="<unk>", eos_token="</s>"
    )
    tokenizer.add_tokens(["<plain>"])
    return tokenizer


def wordpiece(cleanup):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    special = ["[UNK]", "[SEP]"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", sep_token="[SEP]")


def openai_gpt():
    """Create a tokenizer whose words end in a suffix, so that their space comes with the next word."""
    vocabulary = {"the</w>": 0, "ca": 1, "t</w>": 2, "dog</w>": 3, "<unk>": 4}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.BPEDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def no_decoder():
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "▁": 1, "b": 2}, "a")))


def byte_level_in_sequence():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return tokenizer


TOKENIZERS = {
    "byte-level": byte_level(),
    "byte-level in a sequence": byte_level_in_sequence(),
    "llama": sentencepiece(LLAMA, True),
    "metaspace": sentencepiece(decoders.Metaspace(), False),
    "metaspace, nothing prepended": sentencepiece(decoders.Metaspace(prepend_scheme="never"), False),
    "wordpiece": wordpiece(True),
    "wordpiece, no clean-up": wordpiece(False),
    "suffix": openai_gpt(),
    "no decoder": no_decoder(),
}


def pieces(tokenizer, chunks, **options):
    stream = TextStream(tokenizer, **options)
    return [*(stream.put(chunk) for chunk in chunks), stream.end()]


def chunked(data, ids):
    chunks = []
    while ids:
        size = data.draw(st.integers(1, 4))
        chunks, ids = [*chunks, ids[:size]], ids[size:]
    return chunks


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_ids_in_any_chunks(name, data):
    tokenizer = TOKENIZERS[name]
    # also ids beyond the vocabulary, which decode omits
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 1), max_size=24))
    skip = data.draw(st.booleans())
    out = pieces(tokenizer, chunked(data, ids), skip_special_tokens=skip)
    assert "".join(out) == tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", ["byte-level", "llama"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_text(name, data):
    tokenizer = TOKENIZERS[name]
    emoji = st.sampled_from(["🙂", "👩‍🚀", "🏳️‍🌈", "é", "e\u0301", "字", "�", " ", "\n"])
    text = data.draw(st.one_of(st.text(max_size=20), st.lists(emoji, max_size=8).map("".join)))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    out = pieces(tokenizer, chunked(data, ids))
    assert "".join(out) == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if name == "byte-level" and "é" not in text:  # an added token, which decodes to an incomplete character
        assert "".join(out) == text and out[-1] == ""  # every character came as soon as it was complete


def test_an_emoji_is_held_back_until_it_is_complete():
    tokenizer = train_tokenizer(["abc"], vocab_size=260, min_frequency=0)
    ids = tokenizer("a👍b")["input_ids"]
    assert len(ids) == 6
    assert pieces(tokenizer, ids) == ["a", "", "", "", "👍", "b", ""]
    # if truncated, it comes at the end, as decode returns it
    assert pieces(tokenizer, ids[:4]) == ["a", "", "", "", "�"]
    # bytes that can no longer become a character are not held back
    assert pieces(tokenizer, [ids[1], ids[0]]) == ["", "�a", ""]


def test_byte_fallback_is_decoded_as_a_run():
    tokenizer = TOKENIZERS["llama"]
    a, *emoji = (tokenizer.convert_tokens_to_ids(t) for t in ("a", "<0xF0>", "<0x9F>", "<0x91>", "<0x8D>"))
    assert pieces(tokenizer, [a, *emoji, a]) == ["a", "", "", "", "", "👍a", ""]
    assert pieces(tokenizer, [a, *emoji]) == ["a", "", "", "", "", "👍"]
    # one more byte invalidates the run, which is why it is held back
    assert pieces(tokenizer, [a, *emoji, emoji[0], a]) == ["a", "", "", "", "", "", "�����a", ""]
    assert pieces(tokenizer, [[a, *emoji], [], [a]]) == ["a", "", "👍a", ""]


def test_spaces_come_with_their_word():
    words = TOKENIZERS["wordpiece"]
    ids = words("the cat, then", add_special_tokens=False)["input_ids"]
    assert [piece for piece in pieces(words, ids) if piece.startswith(" ")]
    assert pieces(words, ids)[0] in ("the", "t")
    llama = TOKENIZERS["llama"]
    space, the, end = llama.convert_tokens_to_ids(["▁", "▁the", "</s>"])
    assert llama.unk_token_id not in (space, the, end)
    assert pieces(llama, [the, the]) == ["the", " the", ""]
    assert pieces(llama, [end, the, end, the]) == ["", "the", "", " the", ""]
    assert pieces(llama, [space, space, the]) == ["", " ", " the", ""]
    assert pieces(llama, [end, the], skip_special_tokens=False) == ["</s>", " the", ""]
    suffix = TOKENIZERS["suffix"]
    assert pieces(suffix, [0, 1, 2]) == ["the", " ca", "t", ""]


def test_kinds_of_ids():
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer("the cat")["input_ids"]
    for variant in (ids, np.array(ids), np.array(ids, np.int32), tuple(ids), np.array(ids, np.uint16)):
        assert pieces(tokenizer, [variant]) == ["the cat", ""]
    stream = TextStream(tokenizer)
    assert stream.put(np.int32(ids[0])) + stream.put([]) + stream.put(ids[1:]) + stream.end() == "the cat"
    for invalid in ("the", 1.5, [[1, 2]], None, [True]):
        with pytest.raises(InputError, match="pass one id or a list of ids"):
            stream.put(invalid)


@pytest.mark.parametrize("name", ["llama", "wordpiece"])
def test_end_resets_the_stream(name):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    texts = [stream.put(ids) + stream.end() for _ in range(2)]
    assert texts == ["the cat", "the cat"]


@pytest.mark.parametrize("name", ["byte-level", "llama", "wordpiece", "metaspace"])
def test_the_cost_per_token_does_not_grow(name):
    tokenizer = TOKENIZERS[name]
    decoded = []

    class Counting:
        def __getattr__(self, attribute):
            return getattr(tokenizer, attribute)

        def decode(self, ids, **options):
            decoded.append(len(ids))
            return tokenizer.decode(ids, **options)

    stream = TextStream(Counting())
    decoded.clear()
    ids = tokenizer("the cat sat  . " * 40, add_special_tokens=False)["input_ids"]
    for token_id in ids:
        stream.put(token_id)
    stream.end()
    assert max(decoded, default=0) <= 3 and len(decoded) <= 2 * len(ids) + 4


def test_a_slow_tokenizer():
    class Slow:
        """GPT-2's bytes, decoded in Python."""

        all_special_ids = (0,)

        def get_vocab(self):
            return {f"<{i}>": i for i in range(257)}

        def decode(self, ids, skip_special_tokens, clean_up_tokenization_spaces):
            assert not clean_up_tokenization_spaces
            return bytes(i - 1 for i in ids if i).decode("utf-8", "replace")

    ids = [byte + 1 for byte in "é👍x".encode()]
    assert pieces(Slow(), [0, *ids]) == ["", "", "é", "", "", "", "👍", "x", ""]
    assert pieces(Slow(), ids[:3]) == ["", "é", "", "�"]
