"""Split texts into sentences, for lead baselines, chunks of long documents and ROUGE-Lsum."""

import itertools
import re

from duonlp.errors import InputError, MissingExtraError

SPEAKER = re.compile(r"\s*[^\s:][^:\n]{0,39}?\s?:(?:\s|$)")
"""Start of a dialogue turn: "Amanda: ", "#Person1#: "."""

# English abbreviations that sentencex does not know: they end no sentence before a lower-case letter or a digit.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\-])(?:approx|avg|ch|eq|esp|est|ext|incl|max|min|resp|tel|temp|vol|"  # and US states, as news abbreviates them
    r"Ala|Ariz|Ark|Calif|Colo|Conn|Del|Fla|Ga|Ill|Ind|Kan|Ky|La|Md|Mass|Mich|Minn|Miss|Mo|Mont|Neb|Nev|Okla|Ore|Pa|Tenn|"
    r"Va|Vt|Wash|Wis|Wyo)\.\s*$"
)
_NUMBERED = re.compile(r"\s*\(?(?:\d{1,3}|[a-z])[.)]\s*$")  # "1." alone starts a list item; it is not a sentence
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:[-_][A-Za-z0-9]+)*")

WRAPPED = range(40, 133)
"""Widths, in characters, at which prose is usually wrapped."""


def split_sentences(text: str, language: str = "en", *, lines: bool | None = None) -> list[str]:
    """Split a text into sentences with the `sentencex` library's rules for its language.

    "U.S.", "Dr.", "e.g.", "3.5" and "J. K. Rowling" end no sentence; neither does a quotation or bracket that is followed
    by more of the same sentence ("Stop." he said). A line break does, as between turns of a dialogue and highlights of a
    news story, unless the lines are prose wrapped at a fixed width.

    Ambiguous cases are decided by these heuristics: an abbreviation that may also end a sentence does so before a word that
    often starts one ("in the U.S. It was") and not before others ("the U.S. Senate"), so that "in the U.S. Senators" is not
    split and "at 5 p.m. Friday" is; "..." ends a sentence before a capital letter; a quotation of several sentences is one
    sentence with its context, and an unclosed one extends to the end of its line; "?" and "!" end a quoted sentence
    before a name ('"Stop!" John said' is two); a full stop without a space after it may not end a sentence.

    Args:
        text: The text, with \\n or \\r\\n line breaks.
        language: ISO 639 code of its language; English rules apply to languages that `sentencex` does not support.
        lines: Whether a line break ends a sentence. None: unless all lines of the paragraph are wrapped at a width of 40
            to 132 characters. The end of a paragraph (an empty line) always does.

    Returns:
        The sentences in order, stripped, with line breaks within a sentence replaced by spaces; none for a blank text.

    Raises:
        InputError: `text` is not a string of valid Unicode, or `language` is not a language code.
        MissingExtraError: sentencex is not installed.
    """
    return [sentence for line in sentences_by_line(text, language, lines=lines) for sentence in line]


def sentences_by_line(text: str, language: str = "en", *, lines: bool | None = None) -> list[list[str]]:
    """Split a text like :func:`split_sentences`, grouped by line, or by paragraph if its lines are wrapped."""
    if not isinstance(text, str):
        raise InputError(f"text is a {type(text).__name__}; give a str")
    if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
        raise InputError(f'language is {language!r}; give its ISO 639 code, such as "en"')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text is not valid Unicode: lone surrogate at character {error.start}; encode it correctly"
        ) from error
    try:
        import sentencex
    except ImportError as error:
        raise MissingExtraError(
            'sentences are split with sentencex, which is not installed; pip install "duonlp[summarization]"'
        ) from error
    # The library takes the language code alone of a tag such as "pt_BR" or "zh-Hans".
    code = re.split("[-_]", language)[0]
    by_line = []
    for line in _lines(text, lines):
        # pyrefly: ignore[missing-attribute]  # a compiled module without stubs
        pieces = [piece for piece in sentencex.segment(code, line) if piece.strip()]
        if sentences := [" ".join(piece.split("\n")).strip() for piece in _join_pieces(pieces, code)]:
            by_line.append(sentences)
    return by_line


def is_dialogue(text: str) -> bool:
    """Return whether a text is a dialogue: at least two lines, most of which start with a speaker and a colon."""
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) > 1 and 2 * sum(bool(SPEAKER.match(line)) for line in lines) > len(lines)


def _lines(text: str, lines: bool | None) -> list[str]:
    """Split a text where a sentence ends for certain: at line breaks, or at the ends of wrapped paragraphs."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    pieces: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = [line.strip() for line in paragraph.split("\n") if line.strip()]
        split_lines = not _is_wrapped(paragraph) if lines is None else lines
        pieces += paragraph if split_lines else ["\n".join(paragraph)]
    return pieces


def _is_wrapped(lines: list[str]) -> bool:
    """Return whether lines are wrapped prose: no line had room for the first word of the next."""
    if len(lines) < 2 or is_dialogue("\n".join(lines)):
        return False
    width = max(map(len, lines))
    room = (len(line) + 1 + len(after.split(maxsplit=1)[0]) for line, after in itertools.pairwise(lines))
    return width in WRAPPED and all(needed > width for needed in room)


def _join_pieces(pieces: list[str], language: str) -> list[str]:
    """Rejoin sentences that were split after a list number or an abbreviation."""
    sentences: list[str] = []
    for piece in pieces:
        start = piece.lstrip()[0]
        continues = language == "en" and (start.islower() or start.isdigit() or start == "(")
        if sentences and (_NUMBERED.match(sentences[-1]) or (continues and _ABBREVIATION.search(sentences[-1]))):
            sentences[-1] += piece
        else:
            sentences.append(piece)
    return sentences
