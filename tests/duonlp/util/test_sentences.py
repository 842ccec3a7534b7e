"""Sentence splitting: abbreviations, quotations, lists, lines and languages."""

import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duonlp.errors import InputError, MissingExtraError
from duonlp.util.sentences import is_dialogue, sentences_by_line, split_sentences

HARD = """
The U.S. Senate voted.| It passed.
He lives in the U.S. and works there.
I was born in the U.S.| It was nice.
U.K. Prime Minister Cameron met U.S. President Obama.| They talked.
Dr. Smith met Mr. Jones and Lt. Col. Lee on St. Mary's Rd. near Mt. Hood.| They talked.
George W. Bush and J. K. Rowling met J.R.R. Tolkien.| He left.
Use fruit, e.g. apples, i.e. good ones, etc. and more (cf. Fig. 3).| Eat.
It is 3.5 km or $3.5 million.| Then 4.
Apple Inc. said so on Jan. 5 and Sept. 11.| Foo Ltd. and Bar Co. did not.
"Stop." he said.| "Go on!" she cried.| Fine.
“Stop.”| He ran.
He said "I left. I ran." and sat.| Then he slept.
(He left. She stayed.) Then they met.
Well... maybe.| Wait ... what?
Yahoo! is a company.| Really?!| Yes!!
See example.com or www.example.com/news.| Now.
Python 3.11.| It is new.
No. 5 is best.| No.| It is not.
Sen. McCain, R-Ariz. said so in Phoenix, Ariz.| He left.
The temp. is -3.5 and approx. 5 kg (vol. 2, ch. 3, eq. (5), max. 4).| Cold.
1. First item.| 2. Second item.
#Person1#: Hi.| How are you?
By .| Ted Thornhill .| Hi there .
no full stop here
"""


@pytest.mark.parametrize("line", HARD.strip().splitlines())
def test_hard_cases(line):
    assert split_sentences(line.replace("|", "")) == [sentence.strip() for sentence in line.split("|")]


def test_a_line_break_ends_a_sentence_unless_prose_is_wrapped():
    dialogue = "Ann: Dr. Lee is here. Come!\r\nBob: ok\r\nAnn: bye"
    assert split_sentences(dialogue) == ["Ann: Dr. Lee is here.", "Come!", "Bob: ok", "Ann: bye"]
    assert sentences_by_line(dialogue)[0] == ["Ann: Dr. Lee is here.", "Come!"]
    assert split_sentences("Rain on Monday\nSun later\n\n\nA storm") == ["Rain on Monday", "Sun later", "A storm"]
    whole = ["The senators of the United States of America voted late on Monday.", "It was a very long night for them."]
    prose = textwrap.fill(" ".join(whole), 50) + "\n\nThen they\nleft"
    assert split_sentences(prose) == [*whole, "Then they", "left"], "the second paragraph is too narrow to be wrapped"
    assert split_sentences(prose, lines=False) == [*whole, "Then they left"]
    assert len(split_sentences(prose, lines=True)) == 5
    assert split_sentences(" \n\n") == split_sentences("") == []


def test_a_dialogue_has_speakers():
    assert is_dialogue("#Person1#: Hi.\n#Person2#: Hello: you?\nwell")
    assert is_dialogue("Tom & Ann: hi\n\nBob:\n")
    assert not is_dialogue("Ann: hi")
    assert not is_dialogue("He said: no.\nThen he left.\nAnd she stayed.")
    assert not is_dialogue("See http://a.b\nSee http://c.d")


def test_languages():
    assert split_sentences("Das ist z.B. gut. Ja!", "de") == ["Das ist z.B. gut.", "Ja!"]
    assert split_sentences("你好。再见。", "zh-Hans") == ["你好。", "再见。"]
    for language in ("english", "", None, "EN"):
        with pytest.raises(InputError, match="ISO 639"):
            split_sentences("a", language)


@given(st.text(alphabet=st.one_of(st.sampled_from(".?!\"'()[]“”\n\r 1aA:"), st.characters(codec="utf-8")), max_size=80))
def test_no_character_is_lost_or_added(text):
    for lines in (None, False, True):
        assert "".join("".join(split_sentences(text, lines=lines)).split()) == "".join(text.split())


def test_invalid_text_and_a_missing_library(monkeypatch):
    with pytest.raises(InputError, match="lone surrogate at character 1"):
        split_sentences("a\ud800")
    with pytest.raises(InputError, match="bytes"):
        split_sentences(b"a")
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with pytest.raises(MissingExtraError, match=r"duonlp\[summarization\]"):
        split_sentences("a")
