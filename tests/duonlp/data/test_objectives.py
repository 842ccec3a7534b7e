"""CausalLM and MaskedLM: inputs, labels, word boundaries and errors."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from duonlp.data.objectives.language_modelling import OBJECTIVES, PRETRAINED_HEADS, CausalLM, head_of, objective
from duonlp.errors import InputError
from tests.duonlp.data.objective_blocks import tokenizer as seq2seq_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROLES = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL))


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ROLES)


def vocabulary(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(SPECIAL + tokens)}


def word_piece(tokens=tuple("abcdefgh") + tuple("##" + c for c in "abcdefgh")):
    return fast(Tokenizer(models.WordPiece(vocabulary(list(tokens)), unk_token="[UNK]")))


def byte_level(tokens):
    tokenizer = Tokenizer(models.BPE(vocabulary(list(tokens)), [], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return fast(tokenizer)


def unigram(tokens):
    tokenizer = Tokenizer(models.Unigram([(token, 0.0) for token in SPECIAL + list(tokens)], unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return fast(tokenizer)


def blocks(rows=64, length=128, size=21, seed=0):
    ids = np.random.default_rng(seed).integers(5, size, (rows, length)).astype(np.int32)
    ids[:, ::16] = np.random.default_rng(seed).integers(0, 5, ids[:, ::16].shape)  # special tokens among them
    return ids


def test_causal_labels_are_the_next_tokens():
    ids = blocks(3, 8)
    batch = objective("causal-lm")(ids, None, np.arange(3), 0)
    assert set(batch) == {"input_ids", "labels"} and {v.dtype for v in batch.values()} == {np.dtype(np.int32)}
    assert np.array_equal(batch["labels"][:, :-1], ids[:, 1:]) and (batch["labels"][:, -1] == -100).all()
    assert np.array_equal(batch["input_ids"], ids)


def test_causal_labels_end_with_their_document():
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    segments = np.asarray([[1, 1, 2, 2, 2, 3], [1, 1, 1, 1, 1, 1]])
    batch = CausalLM()(ids, segments, np.arange(2), 0)
    assert batch["labels"].tolist() == [[1, -100, 3, 4, -100, -100], [7, 8, 9, 10, 11, -100]]
    assert np.array_equal(batch["segment_ids"], segments) and batch["segment_ids"].dtype == np.int32


@pytest.mark.parametrize("whole_words", [False, True])
def test_shares_of_masked_replaced_and_kept(whole_words):
    ids = blocks(400, 128)
    batch = objective("masked-lm", word_piece(), whole_words=whole_words)(ids, None, np.arange(400), 7)
    ordinary, chosen = ids >= 5, batch["labels"] != -100
    count = ordinary.sum()
    assert not (chosen & ~ordinary).any()
    # Four standard deviations; whole words of about two tokens vary twice as much.
    assert abs(chosen.sum() / count - 0.15) < 4 * np.sqrt(0.15 * 0.85 / count * (3 if whole_words else 1))
    masked = batch["input_ids"][chosen] == 4
    changed = (batch["input_ids"][chosen] != ids[chosen]) & ~masked
    n = chosen.sum()
    assert abs(masked.mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / n)
    # One in 16 random tokens equals the original.
    share = 0.1 * 15 / 16
    assert abs(changed.mean() - share) < 4 * np.sqrt(share * (1 - share) / n)
    assert np.array_equal(batch["labels"][chosen], ids[chosen])
    assert np.array_equal(batch["input_ids"][~chosen], ids[~chosen])


def test_replacements_are_drawn_evenly_from_ordinary_tokens():
    ids = blocks(400, 128)
    batch = objective("masked-lm", word_piece(), mask_share=0.0, random_share=1.0)(ids, None, np.arange(400), 1)
    drawn = np.bincount(batch["input_ids"][batch["labels"] != -100], minlength=21)
    assert (drawn[:5] == 0).all()
    expected = drawn.sum() / 16
    assert ((drawn[5:] - expected) ** 2 / expected).sum() < 15 + 4 * np.sqrt(30)


def test_shares_of_zero_and_one():
    ids, tokenizer = blocks(8), word_piece()
    kept = objective("masked-lm", tokenizer, mask_share=0.0, random_share=0.0)(ids, None, np.arange(8), 1)
    assert np.array_equal(kept["input_ids"], ids) and (kept["labels"] != -100).any()
    masked = objective("masked-lm", tokenizer, mask_share=1.0, random_share=0.0)(ids, None, np.arange(8), 1)
    assert (masked["input_ids"][masked["labels"] != -100] == 4).all()


def test_a_row_depends_on_seed_and_position_alone():
    ids, chosen = blocks(8), objective("masked-lm", word_piece())
    whole = chosen(ids, None, np.arange(100, 108), 5)
    parts = [chosen(ids[r : r + 1], None, np.asarray([100 + r]), 5) for r in reversed(range(8))]
    for key in whole:
        assert np.array_equal(whole[key], np.concatenate([part[key] for part in reversed(parts)]))
    for positions, seed in ((np.arange(100, 108), 6), (np.arange(108, 116), 5)):
        other = chosen(ids, None, positions, seed)["labels"]
        assert all((other[r] != whole["labels"][r]).any() for r in range(8))
    # Swapping seed and position gives another row, and the largest seed works.
    a, b = (chosen(ids[:1], None, np.asarray([p]), s)["labels"] for p, s in ((3, 4), (4, 3)))
    assert (a != b).any()
    chosen(ids, None, np.arange(8), 2**64 - 1)


def words_of(tokens: list[str], tokenizer, words: list[list[str]], **options):
    """Assert that over many draws the tokens of a word are selected together, and no two words always together."""
    ids = np.asarray([tokenizer.convert_tokens_to_ids(tokens)] * 300, dtype=np.int32)
    labels = objective("masked-lm", tokenizer, whole_words=True, probability=0.5)(
        ids, options.get("segment_ids"), np.arange(300), 9
    )["labels"]
    chosen = labels != -100  # [300, T]
    assert [t for word in words for t in word] == tokens
    borders = np.cumsum([0, *map(len, words)])
    columns = []
    for word, start, end in zip(words, borders[:-1], borders[1:]):
        if word[0] in SPECIAL:
            assert not chosen[:, start:end].any()
            continue
        assert (chosen[:, start:end] == chosen[:, start : start + 1]).all(), word
        columns.append(chosen[:, start])
    for i, one in enumerate(columns):
        assert all((one != other).any() for other in columns[i + 1 :])


def test_whole_words_of_word_piece():
    words = [["[CLS]"], ["a", "##b", "##c"], ["d"], ["e", "##f"], ["[SEP]"], ["##g", "##h"], ["a"]]
    words_of([t for word in words for t in word], word_piece(), words)


def test_whole_words_of_byte_level_tokens_are_split_as_gpt2_splits():
    words = [["im", "port"], ["Ġnum", "py"], ["Ċ"], ["ĠĠĠ"], ["Ġx", "y"], ["_"], ["z"], ["1", "2"], ["Ġ=", "="]]
    words += [["ĠÃ", "©", "t"], ["().", ")"], ["Ċ", ], ["im"], ["[SEP]"], ["port"], ["Ġ", "y"]]  # fmt: skip
    tokens = [t for word in words for t in word]
    words_of(tokens, byte_level(dict.fromkeys(t for t in tokens if t not in SPECIAL)), words)


def test_whole_words_of_unigram():
    words = [["▁un", "believ", "able"], ["▁so", ","], ["▁", "x"], ["[SEP]"], ["able"]]
    tokens = [t for word in words for t in word]
    words_of(tokens, unigram(dict.fromkeys(t for t in tokens if t not in SPECIAL)), words)


def test_whole_words_end_with_their_document():
    words = [["a", "##b"], ["##c"], ["d"]]
    segments = np.asarray([[1, 1, 2, 2]] * 300)
    words_of(["a", "##b", "##c", "d"], word_piece(), words, segment_ids=segments)


def test_repr_is_the_same_in_another_process():
    """A resumed run compares it: options, and no memory address."""
    made = [repr(objective("masked-lm", word_piece(), probability=p)) for p in (0.15, 0.15, 0.2)]
    assert made[0] == made[1] != made[2] and "0x" not in made[0] + repr(objective("causal-lm"))


def test_objectives_heads_options_and_reprs():
    assert OBJECTIVES == ("causal-lm", "masked-lm", "span-corruption", "text-infilling", "gap-sentences")
    assert PRETRAINED_HEADS == ("causal-lm", "masked-lm", "seq2seq-lm")
    assert [head_of(name) for name in OBJECTIVES] == ["causal-lm", "masked-lm", *["seq2seq-lm"] * 3]
    with pytest.raises(InputError, match="causal-lm, masked-lm, span-corruption"):
        head_of("mlm")
    described = {}
    for name, options in (
        ("span-corruption", {"noise_density": 0.2}),
        ("text-infilling", {"sentence_ends": ["."]}),
        ("gap-sentences", {"ratio": [0.15, 0.45]}),
    ):
        made = [
            repr(objective(name, seq2seq_tokenizer(), **more))
            for more in ({}, {}, options, {"decoder_start_token_id": 7})
        ]
        assert made[0] == made[1] and len(set(made)) == 3 and not any("0x" in text for text in made)
        described[name] = made[2]
        with pytest.raises(
            InputError, match=f"{name} has no option probability; its options are .*decoder_start_token_id"
        ):
            objective(name, seq2seq_tokenizer(), probability=0.1)
        with pytest.raises(InputError, match="needs a tokenizer to know the special tokens"):
            objective(name)
    assert described == {
        "span-corruption": "SpanCorruption(noise_density=0.2, mean_span=3.0, decoder_start_token_id=0)",
        "text-infilling": "TextInfilling(mask_share=0.3, mean_span=3.0, permute_sentences=0.0, sentence_ends=('.',), "
        "decoder_start_token_id=1)",
        "gap-sentences": "GapSentences(ratio=(0.15, 0.45), strategy='ind-orig', noise=0.0, target_share=0.5, "
        "sentence_ends=None, decoder_start_token_id=0)",
    }


def test_errors_name_what_is_wrong():
    tokenizer = word_piece()
    for probability in (0, 1, 15, -0.1, float("nan")):
        with pytest.raises(InputError, match="probability is"):
            objective("masked-lm", tokenizer, probability=probability)
    for shares in ((0.9, 0.2), (-0.1, 0.1), (float("nan"), 0.1)):
        with pytest.raises(InputError, match="mask_share is"):
            objective("masked-lm", tokenizer, mask_share=shares[0], random_share=shares[1])
    with pytest.raises(InputError, match="causal-lm, masked-lm"):
        objective("mlm")
    with pytest.raises(InputError, match="needs a tokenizer to know the special tokens"):
        objective("masked-lm")
    with pytest.raises(InputError, match="no option probability"):
        objective("causal-lm", probability=0.1)
    with pytest.raises(InputError, match="the tokenizer that the blocks were made with"):
        objective("masked-lm", tokenizer)(np.full((1, 4), 21, dtype=np.int32), None, np.arange(1), 0)
    with pytest.raises(InputError, match="seed is -1"):
        objective("masked-lm", tokenizer)(blocks(1), None, np.arange(1), -1)
    unmarked = Tokenizer(models.WordLevel(vocabulary(["a"]), unk_token="[UNK]"))
    with pytest.raises(InputError, match="mark where words begin"):
        objective("masked-lm", fast(unmarked), whole_words=True)
    none = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(InputError, match="mask token"):
        objective("masked-lm", none)
