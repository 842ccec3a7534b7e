"""Test back-translation with two word-by-word translators."""

import pytest

from duonlp.augmentation import BackTranslation
from duonlp.errors import InputError
from tests.augmentation import FORTH, fill_mask, translator

BACK = {german: english for english, german in FORTH.items()} | {"help": "please"}


def both(**settings) -> BackTranslation:
    return BackTranslation(translator(FORTH), translator(BACK), **settings)


def test_copies_are_translations_of_the_best_translations():
    text = "the model is slow"
    assert both().augment([text], 4) == [
        ["the model is slow", "model is slow the", "is slow the model", "slow the model is"]
    ]
    two = ["the model is slow", "model is slow the"]
    assert both().augment([text, "help", text], 2) == [two, ["please"] * 2, two]
    assert both(sampling=True, beams=1).augment([text], 2, seed=3) == both().augment([text], 2)


def test_lines_marks_and_code_stay():
    text = "## the model\n\n- is slow  \r\n```\nthe model\n```\n\tand memory"
    assert both().augment([text], 2)[0][1] == "## model the\n\n- slow is  \r\n```\nthe model\n```\n\tmemory and"


def test_spaces_between_sentences_stay():
    copies = both().augment(["the model is slow .  and memory grows ."], 2)[0]
    assert "  " in copies[0] and copies[0].split() == ["the", "model", "is", "slow", ".", "and", "memory", "grows", "."]


def test_a_sentence_stays_where_a_protected_part_is_lost():
    forth = translator(FORTH | {"`x_1`": "memory"})
    copies = BackTranslation(forth, translator(BACK)).augment(["`x_1` is slow", "is slow"], 2)
    assert copies == [["`x_1` is slow"] * 2, ["is slow", "slow is"]]
    assert both().augment(["`x_1` is slow"], 2)[0][1] == "is slow `x_1`"


def test_long_sentences_are_translated_in_parts():
    text = " ".join(["the model is slow and"] * 12)
    copy = both().augment([text], 2)[0]
    assert copy[0] == text and copy[1] != text and sorted(copy[1].split()) == sorted(text.split())


def test_texts_without_words():
    texts = ["", " \n", "`x_1`", "42"]
    assert both().augment(texts, 2) == [[text] * 2 for text in texts]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: both(beams=2).augment(["help"], 3), "per_text is 3, but beam search has 2 beams"),
        (lambda: both(beams=0), "beams is 0"),
        (lambda: both(sampling=1), "sampling is 1"),
        (lambda: both(language="English!"), "ISO 639"),
        (lambda: both(forward_options={"num_beams": 3}), "without num_return_sequences, num_beams"),
        (lambda: both(forward_options={"nun_beams": 3}), "no option 'nun_beams'"),
        (lambda: both(names="one"), "names of the two models"),
        (lambda: BackTranslation(fill_mask(), translator(BACK)), "forward is Pipeline"),
        (lambda: both().settings(), "pass name"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_settings_name_models_and_options():
    named = both(names=("a", "b"))
    assert named.settings() == both(names=("a", "b")).settings() != both(names=("a", "b"), beams=3).settings()
    assert named.settings() != both(names=("a", "b"), forward_options={"max_new_tokens": 9}).settings()
