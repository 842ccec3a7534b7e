"""Test the substitution of words by a masked language model; the predictions are random numbers."""

import re

import numpy as np
import pytest

from duonlp.augmentation import MaskedSubstitution, Protection, count_unchanged
from duonlp.augmentation.masked_words import WholeWords, Windows
from duonlp.errors import InputError, NonFiniteOutputError
from duonlp.pipelines import Pipeline, make_pipeline
from tests.augmentation import KINDS, TEXTS, fill_mask, tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_only_words_change(kind):
    masked = MaskedSubstitution(fill_mask(kind), share=0.4, protect=Protection(words=["training"]))
    copies = masked.augment(TEXTS, 3, seed=1)
    for text, of_text in zip(TEXTS, copies, strict=True):
        pieces = masked.protect.pieces(text)
        count = max(1, int(0.4 * (len(pieces) // 2)))
        pattern = "".join(r"([\w'\u2019]+)" if number % 2 else re.escape(piece) for number, piece in enumerate(pieces))
        for copy in of_text:
            match = re.fullmatch(pattern, copy)
            assert match, (text, copy)
            changed = [(old, new) for old, new in zip(pieces[1::2], match.groups(), strict=True) if old != new]
            assert len(changed) == count
            assert all(old.casefold() != new.casefold() and old.isupper() == new.isupper() for old, new in changed)
            assert not any(new.casefold() == "training" for _, new in changed)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_do_not_depend_on_batches(kind):
    copies = MaskedSubstitution(fill_mask(kind), share=0.3).augment(TEXTS, 4, seed=5)
    again = MaskedSubstitution(fill_mask(kind, batch_size=3), share=0.3)
    assert again.augment(TEXTS[::-1], 4, seed=5)[::-1] == copies
    assert [again.augment([text], 2, seed=5)[0] for text in TEXTS] == [of_text[:2] for of_text in copies]
    assert again.augment(TEXTS[:2] * 2, 1, seed=5) == [[copies[0][0]], [copies[1][0]]] * 2


def test_a_word_of_several_pieces_is_one_mask():
    words, tokens = WholeWords(tokenizer("wordpiece"), Protection()), tokenizer("wordpiece")
    text = "the unbelievably network"
    pieces = tokens.tokenize("unbelievably")
    assert len(pieces) > 1
    (row,) = Windows(tokens, 32, words.marker).rows([text], [{1: (4, 16)}])
    expected = [
        tokens.cls_token,
        *tokens.tokenize("the"),
        tokens.mask_token,
        *tokens.tokenize("network"),
        tokens.sep_token,
    ]
    assert tokens.convert_ids_to_tokens(row.ids.tolist()) == expected
    assert row.ids[row.masks[0].position] == tokens.mask_token_id and row.masks[0].word == "unbelievably"


def test_every_candidate_is_a_whole_word():
    for kind in KINDS:
        tokens, words = tokenizer(kind), WholeWords(tokenizer(kind), Protection())
        for index, word in words.texts.items():
            assert word.isalpha() and not tokens.convert_ids_to_tokens(index).startswith("##")


def test_windows_of_long_texts_have_every_word_inside():
    tokens = tokenizer("wordpiece")
    text = " ".join(TEXTS[:4]) * 3
    spans = Protection().word_spans(text)
    masks = dict(enumerate(spans))
    for size in (16, 31, 64):
        rows = [Windows(tokens, size, "").rows([text], [{piece: span}])[0] for piece, span in masks.items()]
        for row, (_, end) in zip(rows, spans, strict=True):
            (mask,) = row.masks
            assert len(row.ids) <= size and row.ids[mask.position] == tokens.mask_token_id
            after = row.ids[mask.position + 1 : -1]
            following = tokens(text[end:], add_special_tokens=False)["input_ids"]
            assert tokens.decode(after).split()[:1] == tokens.decode(following[: len(after)]).split()[:1]
    long = MaskedSubstitution(fill_mask(), max_length=16).augment([text, text[:300]], 2)
    assert count_unchanged([text, text[:300]], long).new == 4


def test_candidates_are_the_models_best_words():
    pipe, text = fill_mask(), "The download hangs"
    masked = MaskedSubstitution(pipe, share=0.4, top_k=1)
    (copy,) = masked.augment([text])[0]
    (changed,) = [i for i, (a, b) in enumerate(zip(text.split(), copy.split())) if a != b]
    words = text.split()
    masks = " ".join(pipe.tokenizer.mask_token if i == changed else word for i, word in enumerate(words))
    ranking = [answer["token_str"] for answer in pipe(masks, top_k=len(pipe.tokenizer))]
    allowed = [word for word in ranking if word in masked._words.texts.values() and word != words[changed].lower()]
    assert allowed[0] == copy.split()[changed].lower()


def test_without_candidates_the_text_is_its_own_copy():
    copies = MaskedSubstitution(fill_mask(), min_probability=1.0).augment(TEXTS, 2)
    assert copies == [[text, text] for text in TEXTS]
    assert (
        MaskedSubstitution(fill_mask()).augment(["", " ", "`x`", "[MASK] [SEP]", "日本"], 2, 1)[3]
        == ["[MASK] [SEP]"] * 2
    )


def test_temperature_and_share():
    greedy, warm = (MaskedSubstitution(fill_mask(), temperature=t, top_k=5).augment(TEXTS, 9) for t in (0.001, 100))
    assert greedy != warm
    one = MaskedSubstitution(fill_mask(), share=0.001).augment(["please see the new network now"], 5)[0]
    assert all(
        sum(a != b for a, b in zip(["please", "see", "the", "new", "network", "now"], copy.split())) == 1
        for copy in one
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0}, "share is 0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"min_probability": 2}, "min_probability is 2"),
        ({"max_length": 4}, "max_length is 4, which leaves 2 tokens"),
        ({"pipe": "model"}, "pass a pipeline"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        MaskedSubstitution(**({"pipe": fill_mask()} | settings))


def test_a_model_in_memory_needs_a_name():
    with pytest.raises(InputError, match="pass name="):
        MaskedSubstitution(fill_mask()).settings()
    assert MaskedSubstitution(fill_mask(), name="mine").settings()["model"] == "mine"


def test_predictions_that_are_not_finite():
    pipe = fill_mask()

    def forward(batch):
        return {"logits": np.full((*batch["input_ids"].shape, len(pipe.tokenizer)), np.nan, np.float32)}

    with pytest.raises(NonFiniteOutputError):
        MaskedSubstitution(make_pipeline("fill-mask", forward, pipe.tokenizer, pipe.config)).augment(TEXTS[:1])


def test_logits_are_computed_at_the_masks_alone():
    pipe, shapes = fill_mask(), []

    def select(batch):
        inputs = dict(batch)
        positions = inputs.pop("logit_positions", None)
        shapes.append((batch["input_ids"].shape, None if positions is None else positions.shape))
        logits = pipe.forward(inputs)["logits"]
        return {"logits": logits if positions is None else np.take_along_axis(logits, positions[:, :, None], 1)}

    selecting = Pipeline(pipe.task, select, batch_size=pipe.batch_size)
    for options in ({}, {"share": 1.0, "masked_at_once": 0.4}, {"share": 1.0, "masked_at_once": 1.0}):
        expected = MaskedSubstitution(pipe, **options).augment(TEXTS, 2, seed=1)
        assert MaskedSubstitution(selecting, **options).augment(TEXTS, 2, seed=1) == expected
    parts = {"all" if of_masks is None else inputs[1] / of_masks[1] for inputs, of_masks in shapes}
    assert 8 in parts and parts <= {"all", 2, 4, 8}
