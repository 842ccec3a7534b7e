"""Find the words of a text that may be changed, outside of code, links, identifiers, numbers and other protected parts."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from duonlp.errors import InputError
from duonlp.tasks.base import describe

PATTERNS = (
    r"(?ms)^[ \t]*(?P<fence>`{3,}|~{3,}).*?(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)",  # a fenced block of code
    r"(?s)(?<!`)(?P<ticks>`+)(?!`).{1,1000}?(?<!`)(?P=ticks)(?!`)",  # code in backticks
    r"</?[A-Za-z!][^<>]{0,1000}>",  # a tag
    r"(?<=\])\([^()\s]{0,2000}\)",  # the target of a link in Markdown
    r"(?i)\b(?:https?|ftp|file)://\S+|\bwww\.\S+",
    r"[\w.+-]{1,64}@[\w.-]+",
    r"[@#][\w/-]+",
    r"\{[^{}\n]{0,200}\}",  # a placeholder
)
"""Regular expressions of what is protected by default, beside identifiers and numbers."""

_IDENTIFIER = re.compile(r"\d|_|\w[./\\:]+\w|\w\(|[a-z][A-Z]|[\\$%^|=]")  # within a run of characters without spaces
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Characters of scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
_ASCII_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
_APOSTROPHES = "'\u2019"


@dataclass(frozen=True)
class Protection:
    """Which parts of a text no augmenter changes.

    Words are runs of letters, with apostrophes between them. Writing systems without spaces between words have none.

    Attributes:
        words: Words and phrases to protect wherever they occur, in upper or lower case, such as the names of the labels.
        patterns: Regular expressions of further parts; the default ones are code, tags, links, addresses and mentions.
        identifiers: Whether to protect everything between two spaces that has a digit, an underscore, a dot, slash or colon
            between letters, a call's parenthesis, or a capital after a small letter: ``read_csv``, ``v2``, ``numpy.dot``.

    Raises:
        InputError: A word is empty, or a pattern is no regular expression or matches the empty text.
    """

    words: Sequence[str] = ()
    patterns: Sequence[str] = PATTERNS
    identifiers: bool = True

    def __post_init__(self) -> None:
        for name in ("words", "patterns"):
            values = getattr(self, name)
            if isinstance(values, str) or not all(isinstance(value, str) and value.strip() for value in values):
                raise InputError(f"{name} is {describe(values)}; give a list of nonempty texts")
            object.__setattr__(self, name, tuple(values))
        for pattern in self.patterns:
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise InputError(f"the pattern {pattern!r} is not a regular expression: {error}; correct it") from None
            if compiled.search("") is not None:
                raise InputError(f"the pattern {pattern!r} matches the empty text; write one that needs a character")

    @cached_property
    def _compiled(self) -> list[re.Pattern[str]]:
        compiled = [re.compile(pattern) for pattern in self.patterns]
        if self.words:
            longest_first = sorted(self.words, key=lambda word: (-len(word), word))
            choices = "|".join(r"\s+".join(map(re.escape, word.split())) for word in longest_first)
            compiled.append(re.compile(rf"(?i)(?<!\w)(?:{choices})(?!\w)"))
        return compiled

    @cached_property
    def single_words(self) -> frozenset[str]:
        """The protected words in lower case, which no augmenter inserts either."""
        return frozenset(word.casefold() for word in self.words)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return the (start, end) characters of the protected parts, in order, without overlaps."""
        merged = _merged([match.span() for pattern in self._compiled for match in pattern.finditer(text)])
        if not self.identifiers:
            return merged
        rest, last = [], 0  # the text with spaces in place of what is protected
        for start, end in merged:
            rest += [text[last:start], " " * (end - start)]
            last = end
        chunks = re.finditer(r"\S+", "".join([*rest, text[last:]]))
        return _merged(merged + [chunk.span() for chunk in chunks if _IDENTIFIER.search(chunk[0].rstrip(".:"))])

    def word_spans(self, text: str) -> list[tuple[int, int]]:
        """Return the (start, end) characters of the words that may be changed, in order; none touches a protected part."""
        spans, number, result = self.spans(text), 0, []
        for start, end in find_words(text):
            while number < len(spans) and spans[number][1] < start:
                number += 1
            if number == len(spans) or spans[number][0] > end:
                result.append((start, end))
        return result

    def pieces(self, text: str) -> list[str]:
        """Return a text in pieces: at odd indices the words that may be changed, at even ones what is between them."""
        pieces, last = [], 0
        for start, end in self.word_spans(text):
            pieces += [text[last:start], text[start:end]]
            last = end
        return [*pieces, text[last:]]


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans in order, those that overlap or touch as one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def find_words(text: str) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) characters of all words of a text."""
    if text.isascii():
        yield from (match.span() for match in _ASCII_WORD.finditer(text))
        return
    start = None
    for index, character in enumerate(text):
        if is_letter(character) and (start is not None or unicodedata.category(character)[0] == "L"):
            start = index if start is None else start
        elif start is not None:
            joins = character in _APOSTROPHES and index + 1 < len(text) and is_letter(text[index + 1])
            if not joins:
                if _UNSPACED.search(text, start, index) is None:
                    yield start, index
                start = None
    if start is not None and _UNSPACED.search(text, start) is None:
        yield start, len(text)


@lru_cache(maxsize=4096)
def is_letter(character: str) -> bool:
    """Return whether a character is part of a word: a letter, or a mark such as an accent or a vowel sign."""
    return unicodedata.category(character)[0] in "LM"


def is_word(text: str) -> bool:
    """Return whether a text is one word that may take the place of another: at least two letters and nothing else."""
    return len(text) > 1 and all(map(is_letter, text)) and next(find_words(text), None) == (0, len(text))


def with_case_of(word: str, original: str) -> str:
    """Return a word in the case of the one that it replaces: small, Capitalized or UPPER CASE; otherwise as it is."""
    if original.islower():
        return word.lower()
    if len(original) > 1 and original.isupper():
        return word.upper()
    if original[:1].isupper() and (len(original) == 1 or original[1:].islower()):
        return word[:1].upper() + word[1:].lower()
    return word
