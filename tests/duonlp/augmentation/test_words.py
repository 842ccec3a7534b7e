"""Test which parts of a text may be changed."""

import pytest

from duonlp.augmentation.words import Protection, is_word, with_case_of
from duonlp.errors import InputError


def editable(text: str, **settings) -> list[str]:
    return [text[start:end] for start, end in Protection(**settings).word_spans(text)]


def test_code_links_identifiers_and_numbers_are_protected():
    text = (
        "Call `model fit` or read_csv with camelCase in numpy.dot(x), see https://a.org/some-page and\n"
        "```\nsome code here\n```\nor [the docs](docs/page) by @some-body in v2 and {a name} <b>bold</b> at 99% it's x=y done"
    )
    assert editable(text) == [
        "Call",
        "or",
        "with",
        "in",
        "see",
        "and",
        "or",
        "the",
        "docs",
        "by",
        "in",
        "and",
        "at",
        "it's",
        "done",
    ]


def test_an_open_code_block_reaches_to_the_end():
    assert editable("Before.\n```python\nsome code") == ["Before"]


def test_words_that_touch_a_protected_part_are_protected_too():
    assert editable("all `Model`s here") == ["all", "here"]


def test_phrases_are_protected_in_any_case_and_spacing():
    assert editable("A Feature\nrequest, featured", words=["feature request"]) == ["A", "featured"]


def test_words_of_other_scripts():
    assert editable("naïve Übersetzung हिन्दी 日本語 текст") == ["naïve", "Übersetzung", "हिन्दी", "текст"]


def test_nothing_is_lost_between_pieces():
    text = " a\tb -- it\u2019s  (c)\n"
    pieces = Protection().pieces(text)
    assert "".join(pieces) == text and pieces[1::2] == ["a", "b", "it\u2019s", "c"]


def test_long_runs_of_characters_take_linear_time():
    for run in ("a" * 200_000, "`" * 200_000, "<a" * 100_000, "a." * 100_000, "{" * 100_000, "~~~\n" * 20_000):
        Protection().word_spans(run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": "bug"}, "give a list"),
        ({"words": [""]}, "give a list"),
        ({"patterns": ["("]}, "not a regular expression"),
        ({"patterns": ["x*"]}, "matches the empty text"),
    ],
)
def test_wrong_protections(settings, message):
    with pytest.raises(InputError, match=message):
        Protection(**settings)


def test_case():
    cases = {"model": "other", "Model": "Other", "GPU": "OTHER", "I": "Other", "eBay": "otHer"}
    assert {original: with_case_of("otHer", original) for original in cases} == cases
    assert is_word("naïve") and not any(map(is_word, ("a", "x1", "don't", "日本", "two words", "")))
