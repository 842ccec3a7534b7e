"""Span corruption and text infilling: targets hold what sources lack, and seed and position determine the mask."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duonlp.data.objectives.denoising import SpanCorruption, TextInfilling, block_length_for
from duonlp.data.objectives.language_modelling import objective
from duonlp.errors import InputError
from tests.duonlp.data.objective_blocks import BOS, EOS, FIRST, MASK, PAD, SIZE, STOP, blocks, tokenizer

TOKENIZER = tokenizer()
NUMBER = {TOKENIZER.convert_tokens_to_ids(f"<extra_id_{i}>"): i for i in range(12)}


def real(batch):
    """Return the sources and targets of a batch as lists of ids, without padding."""
    sources = [row[mask == 1].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"])]
    return sources, [row[row != -100].tolist() for row in batch["labels"]]


def check_batch(batch, start):
    """Check what every objective promises: shapes, dtypes, padding and decoder inputs."""
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int32)}
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["decoder_input_ids"].shape == batch["labels"].shape
    mask, labels = batch["attention_mask"], batch["labels"]
    assert (np.diff(mask, axis=1) <= 0).all() and (batch["input_ids"][mask == 0] == PAD).all()
    assert (batch["decoder_input_ids"][:, 0] == start).all()
    shifted = labels[:, :-1]
    moved = np.where((shifted == -100) | (labels[:, 1:] == -100), PAD, shifted)
    assert np.array_equal(batch["decoder_input_ids"][:, 1:], moved)
    assert all(row[-1] == EOS for rows in real(batch) for row in rows)


def filled(source, target):
    """Rebuild the text: replace each sentinel of the source by its span in the target."""
    spans, text = {}, []
    for token in target[:-1]:
        if token in NUMBER:
            assert NUMBER[token] == len(spans), "sentinels come in order, each once"
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    for token in source[:-1]:
        text += spans.pop(token) if token in NUMBER else [token]
    assert not spans
    return text


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 150), st.floats(0.01, 0.3), st.floats(1.5, 8), st.integers(0, 2**64 - 1), st.floats(0, 0.1))
def test_source_and_target_rebuild_the_text(length, density, span, seed, specials):
    ids = blocks(3, length, seed % 1000, specials)
    made = SpanCorruption(TOKENIZER, noise_density=density, mean_span=span)
    try:
        shape = made.lengths(length)
    except InputError as error:  # more spans than the twelve sentinels
        assert "sentinels" in str(error)
        return
    batch = made(ids, None, np.arange(3), seed)
    check_batch(batch, PAD)
    assert (batch["input_ids"].shape[1], batch["labels"].shape[1]) == shape
    for text, source, target in zip(ids.tolist(), *real(batch)):
        if len(target) == shape[1]:  # no span was dropped for lack of room
            assert filled(source, target) == text and len(source) == shape[0]
        assert EOS not in target[:-1]


def test_t5s_numbers_for_its_own_length():
    """compute_input_and_target_lengths(512, 0.15, 3) of the T5 code says 568 and 114."""
    assert block_length_for(512) == 568
    special = ("<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(100)))
    many = tokenizer(without=("bos_token", "mask_token"), special=special)
    assert SpanCorruption(many).lengths(568) == (512, 114)
    assert objective("span-corruption", many).lengths(512) == (462, 104)
    with pytest.raises(InputError, match="source_length is 1"):
        block_length_for(1)


def test_all_masks_of_a_length_are_equally_likely():
    """With 2 of 6 tokens hidden in 2 spans, each of the 3 ways to split the 4 visible tokens occurs a third of the time."""
    ids = blocks(3000, 6)
    made = SpanCorruption(TOKENIZER, noise_density=0.3, mean_span=1.0)
    sources, targets = real(made(ids, None, np.arange(3000), 5))
    assert {len(source) for source in sources} == {7} and {len(target) for target in targets} == {5}
    first = np.bincount([next(i for i, t in enumerate(source) if t in NUMBER) for source in sources])
    assert first[0] == 0 and len(first) == 4
    assert (np.abs(first[1:] - 1000) < 4 * np.sqrt(3000 * (1 / 3) * (2 / 3))).all()


def test_number_and_length_of_spans():
    ids = blocks(300, 80)
    _, targets = real(objective("span-corruption", TOKENIZER)(ids, None, np.arange(300), 1))
    for target in targets:
        assert sum(t in NUMBER for t in target) == 4 and len(target) == 4 + 12 + 1  # 12 = 0.15 x 80, in spans of 3


def test_no_span_covers_a_special_token_where_there_are_many():
    ids = blocks(50, 100, specials=0.15)
    made = SpanCorruption(TOKENIZER)
    batch = made(ids, None, np.arange(50), 1)
    check_batch(batch, PAD)
    whole = 0
    for text, source, target in zip(ids.tolist(), *real(batch)):
        assert EOS not in target[:-1]
        if len(target) == made.lengths(100)[1]:
            whole += 1
            assert filled(source, target) == text
    assert whole > 40
    nothing = made(np.full((1, 20), EOS, dtype=np.int32), None, np.arange(1), 1)
    assert real(nothing)[1] == [[EOS]]


def covered(source, text):
    """Return whether replacing spans of a text by single masks can give this source."""
    reached = {0}  # text positions that the source so far may reach
    for token in source:
        if token == MASK:
            reached = set(range(min(reached), len(text) + 1)) if reached else set()
        else:
            reached = {i + 1 for i in reached if i < len(text) and text[i] == token}
    return len(text) in reached


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 150), st.floats(0.01, 0.9), st.floats(0.5, 8), st.integers(0, 2**64 - 1), st.floats(0, 0.3))
def test_masks_replace_the_hidden_spans(length, share, span, seed, specials):
    ids = blocks(3, length, seed % 1000, specials)
    made = TextInfilling(TOKENIZER, mask_share=share, mean_span=span)
    batch = made(ids, None, np.arange(3), seed)
    check_batch(batch, EOS)
    sources, targets = real(batch)
    hidden = math.ceil(share * length)
    for text, source, target in zip(ids.tolist(), sources, targets):
        assert target == [BOS, *text, EOS] and source[0] == BOS
        if len(source) < made.lengths(length)[0]:  # not cut
            assert covered(source[1:-1], text)
            ordinary = [t for t in text if t != EOS]
            assert sum(t not in (MASK, EOS) for t in source[1:-1]) == len(ordinary) - min(hidden, len(ordinary))
            assert source[1:-1].count(EOS) == text.count(EOS)


def test_span_lengths_are_poisson_distributed():
    ids = np.tile(np.arange(FIRST, SIZE, dtype=np.int32), (2000, 1))
    ids = np.concatenate([ids, ids + 0], axis=1)[:, :60]  # all tokens differ, so the gaps are visible
    sources, _ = real(objective("text-infilling", TOKENIZER)(ids, None, np.arange(2000), 2))
    masks = np.asarray([source.count(MASK) for source in sources])
    # 18 of 60 tokens in spans of 3 on average, empty ones included and the last one shortened.
    lengths = np.random.default_rng(0).poisson(3.0, (20000, 60))
    expected = (np.cumsum(lengths, axis=1) < 18).sum(axis=1) + 1
    assert abs(masks.mean() - expected.mean()) < 4 * expected.std() / np.sqrt(2000)
    assert abs(masks.std() / expected.std() - 1) < 0.1
    # A mask between two neighbors of the text is an empty span: exp(-3) of all spans.
    inserted = sum(
        a != MASK != c and c - a == 1 for s in sources for a, b, c in zip(s[1:], s[2:], s[3:-1]) if b == MASK
    )
    assert 0.03 < inserted / masks.sum() < 0.06
    # Away from the ends, every token is hidden equally often.
    kept = np.bincount(np.concatenate([s[1:-1] for s in sources]), minlength=SIZE)[FIRST + 10 : FIRST + 50] / 2000
    assert abs(kept - kept.mean()).max() < 4.5 * np.sqrt(0.3 * 0.7 / 2000) and abs(kept.mean() - 0.7) < 0.03


def split(ids, end):
    """Split a list of ids after each run of `end`, in plain Python."""
    parts = [[]]
    for token in ids:
        if parts[-1][-1:] == [end] != [token]:
            parts.append([])
        parts[-1].append(token)
    return [part for part in parts if part]


def test_sentences_are_shuffled_within_their_document():
    ids = blocks(100, 60, specials=0.03, stops=0.15)
    shares = []
    for share in (1e-9, 0.5, 1.0):
        made = TextInfilling(TOKENIZER, permute_sentences=share)
        permuted = np.stack(
            [
                made._permute_sentences(row, row == EOS, made._ends, np.random.default_rng(i))
                for i, row in enumerate(ids)
            ]
        )
        assert np.array_equal(permuted == EOS, ids == EOS)
        for before, after in zip(ids.tolist(), permuted.tolist()):
            for old, new in zip(split(before, EOS), split(after, EOS), strict=True):
                assert sorted(old) == sorted(new)
                text = f" {' '.join(map(str, new))} "
                old = [token for token in old if token != EOS]
                assert all(f" {' '.join(map(str, sentence))} " in text for sentence in split(old, STOP))
        shares.append((permuted != ids).mean())
    assert shares[0] == 0 and 0.1 < shares[1] < shares[2]


def test_sentence_ends_default_to_the_tokenizers():
    ids = blocks(20, 60, stops=0.2)
    named = objective("text-infilling", TOKENIZER, permute_sentences=1.0, sentence_ends=["."])
    default = objective("text-infilling", TOKENIZER, permute_sentences=1.0)
    other = objective("text-infilling", TOKENIZER, permute_sentences=1.0, sentence_ends=["?"])
    results = [made(ids, None, np.arange(20), 3)["input_ids"] for made in (named, default, other)]
    assert np.array_equal(*results[:2]) and not np.array_equal(*results[1:])
    with pytest.raises(InputError, match=r"sentence_ends contains '!', which is not in the vocabulary"):
        objective("text-infilling", TOKENIZER, permute_sentences=1.0, sentence_ends=["!"])


def test_no_bos_token_when_it_equals_eos():
    same = tokenizer(without=("bos_token",))
    same.bos_token = "</s>"
    sources, targets = real(objective("text-infilling", same)(blocks(2, 30), None, np.arange(2), 0))
    assert all(row[0] != EOS for row in (*sources, *targets)) and all(len(t) == 31 for t in targets)


@pytest.mark.parametrize("name", ["span-corruption", "text-infilling", "gap-sentences"])
def test_a_row_depends_on_seed_and_position_alone(name):
    ids, made = (
        blocks(6, 60, specials=0.05, stops=0.1),
        objective(name, TOKENIZER, **({"strategy": "random"} if name[0] == "g" else {})),
    )
    whole = made(ids, None, np.arange(100, 106), 5)
    for row in range(6):
        part = made(ids[row : row + 1], None, np.asarray([100 + row]), 5)
        assert all(np.array_equal(part[key][0], whole[key][row]) for key in whole)
    for positions, seed in ((np.arange(100, 106), 6), (np.arange(106, 112), 5)):
        assert (made(ids, None, positions, seed)["input_ids"] != whole["input_ids"]).any()
    made(ids, None, np.arange(6), 2**64 - 1)


def test_errors_name_what_is_wrong():
    with pytest.raises(InputError, match=r"15 spans .* needs 15 sentinels, <extra_id_0> to <extra_id_14>; it has 12"):
        objective("span-corruption", TOKENIZER).lengths(300)
    with pytest.raises(InputError, match="does not support blocks with segment_ids"):
        objective("span-corruption", TOKENIZER)(blocks(1, 20), np.ones((1, 20)), np.arange(1), 0)
    with pytest.raises(InputError, match="the tokenizer that the blocks were made with"):
        objective("span-corruption", TOKENIZER)(np.full((1, 20), SIZE, dtype=np.int32), None, np.arange(1), 0)
    with pytest.raises(InputError, match="fewer visible tokens than spans"):
        objective("span-corruption", TOKENIZER, noise_density=0.9, mean_span=1.0).lengths(20)
    for options, message in (
        ({"noise_density": 1.0}, "noise_density is 1.0"), ({"mean_span": 0.5}, "mean_span is 0.5"),
        ({"mean_span": float("nan")}, "mean_span is nan"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            objective("span-corruption", TOKENIZER, **options)
    for options, message in (
        ({"mask_share": 0}, "mask_share is 0"), ({"mean_span": 0.0}, "mean_span is 0"), ({"permute_sentences": 2}, "is 2"),
        ({"permute_sentences": 1, "sentence_ends": "."}, "give a list"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            objective("text-infilling", TOKENIZER, **options)
    for role, name in (
        ("eos_token", "span-corruption"),
        ("pad_token", "text-infilling"),
        ("mask_token", "text-infilling"),
    ):
        with pytest.raises(InputError, match=role.replace("_token", ".token")):
            objective(name, tokenizer(without=(role,)))
