"""Sentences of a text: for baselines that take the first of them, long documents cut between them, and ROUGE-Lsum."""

import itertools
import re

from duonlp.errors import InputError, MissingExtraError

SPEAKER = re.compile(r"\s*[^\s:][^:\n]{0,39}?\s?:(?:\s|$)")
"""How a turn of a dialogue begins: "Amanda: ", "#Person1#: "."""

# English abbreviations that sentencex does not know: joined to what follows in lower case or digits, where nothing begins.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\-])(?:approx|avg|ch|eq|esp|est|ext|incl|max|min|resp|tel|temp|vol|"  # and the states, as news has them
    r"Ala|Ariz|Ark|Calif|Colo|Conn|Del|Fla|Ga|Ill|Ind|Kan|Ky|La|Md|Mass|Mich|Minn|Miss|Mo|Mont|Neb|Nev|Okla|Ore|Pa|Tenn|"
    r"Va|Vt|Wash|Wis|Wyo)\.\s*$"
)
_NUMBERED = re.compile(r"\s*\(?(?:\d{1,3}|[a-z])[.)]\s*$")  # "1." alone is how an item begins, not a sentence
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:[-_][A-Za-z0-9]+)*")

WRAPPED = range(40, 133)
"""Widths, in characters, that people break the lines of prose at."""


def split_sentences(text: str, language: str = "en", *, lines: bool | None = None) -> list[str]:
    """Splits a text into sentences, by the rules of the `sentencex` library for its language.

    "U.S.", "Dr.", "e.g.", "3.5" and "J. K. Rowling" end no sentence; nor does what is between quotes or brackets and is
    followed by more of the same sentence ("Stop." he said). The end of a line does, as between the turns of a dialogue and
    the highlights of a news story, unless the lines are prose broken at a width.

    What is left to guess, and guessed: an abbreviation that may also end a sentence does so before a word that often
    begins one ("in the U.S. It was"), not before another ("the U.S. Senate"), so that "in the U.S. Senators" stays whole and
    "at 5 p.m. Friday" does not; "..." ends a sentence before a capital; a quotation of several sentences is one sentence
    with what it belongs to, and one that is never closed reaches to the end of its line; "?" and "!" end a quotation's
    sentence before a name ('"Stop!" John said' is two); a full stop without a space behind it may end nothing.

    Args:
        text: any text; line ends may be \\n or \\r\\n.
        language: its ISO 639 code; English rules for a language that `sentencex` has none for.
        lines: whether the end of a line ends a sentence; None: unless a paragraph's lines are filled up to a width of 40
            to 132 characters. The end of a paragraph (an empty line) always does.

    Returns:
        The sentences in order, stripped of white space, a line end within one as a space; none for a blank text.

    Raises:
        InputError: `text` is not a string of valid Unicode, or `language` is no code of a language.
        MissingExtraError: sentencex is not installed.
    """
    return [sentence for line in sentences_by_line(text, language, lines=lines) for sentence in line]


def sentences_by_line(text: str, language: str = "en", *, lines: bool | None = None) -> list[list[str]]:
    """As `split_sentences`, the sentences of each line (or of each paragraph, where its lines are broken at a width)."""
    if not isinstance(text, str):
        raise InputError(f"text is a {type(text).__name__}; give a str")
    if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
        raise InputError(f'language is {language!r}; give its ISO 639 code, such as "en"')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the text is not valid Unicode: half of a surrogate pair at {error.start}") from error
    try:
        import sentencex
    except ImportError as error:
        raise MissingExtraError(
            'sentences are split with sentencex, which is missing; pip install "duonlp[summarization]"'
        ) from error
    # One language code of a tag such as "pt_BR" or "zh-Hans" is what the library goes by.
    code = re.split("[-_]", language)[0]
    found = []
    for line in _lines(text, lines):
        pieces = [piece for piece in sentencex.segment(code, line) if piece.strip()]
        if sentences := [" ".join(piece.split("\n")).strip() for piece in _joined(pieces, code)]:
            found.append(sentences)
    return found


def is_dialogue(text: str) -> bool:
    """Whether a text is a conversation: two lines or more, most of which begin with a speaker and a colon."""
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) > 1 and 2 * sum(bool(SPEAKER.match(line)) for line in lines) > len(lines)


def _lines(text: str, lines: bool | None) -> list[str]:
    """Pieces of a text whose ends end a sentence."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = [line.strip() for line in paragraph.split("\n") if line.strip()]
        apart = not _is_wrapped(paragraph) if lines is None else lines
        found += paragraph if apart else ["\n".join(paragraph)]
    return found


def _is_wrapped(lines: list[str]) -> bool:
    """Whether the lines are prose broken at a width: the next line's first word had no room on any of them."""
    if len(lines) < 2 or is_dialogue("\n".join(lines)):
        return False
    width = max(map(len, lines))
    room = (len(line) + 1 + len(after.split(maxsplit=1)[0]) for line, after in itertools.pairwise(lines))
    return width in WRAPPED and all(needed > width for needed in room)


def _joined(pieces: list[str], language: str) -> list[str]:
    """Sentences, with what was cut behind a number or an abbreviation put back."""
    found: list[str] = []
    for piece in pieces:
        start = piece.lstrip()[0]
        goes_on = language == "en" and (start.islower() or start.isdigit() or start == "(")
        if found and (_NUMBERED.match(found[-1]) or (goes_on and _ABBREVIATION.search(found[-1]))):
            found[-1] += piece
        else:
            found.append(piece)
    return found
