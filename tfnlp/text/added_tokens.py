"""Added tokens, which are found in a text before it is tokenized."""

from typing import NamedTuple

import tensorflow as tf

from duonlp.errors import InputError
from tfnlp.text.subwords import string_table, tensorflow_text

WHITESPACE = r"\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
"""Unicode's White_Space, in the syntax of RE2."""


class Sections(NamedTuple):
    """What strings consist of.

    Attributes:
        ids: int32 [k], the id of each section that is an added token, or -1 for the text between them.
        lengths: int32 [k], number of its characters.
        counts: int32 [n], number of sections of each string.
    """

    ids: tf.Tensor
    lengths: tf.Tensor
    counts: tf.Tensor


class AddedTokens(tf.Module):
    """Find added tokens in strings: of those that begin first, the longest.

    Args:
        contents: Id of each token, by what it is in a string.
        strips: For each, whether it takes the whitespace before it and that after it.

    Raises:
        InputError: Tokens of this kind cannot be put in a graph.
    """

    def __init__(self, contents: dict[str, int], strips: dict[str, tuple[bool, bool]]) -> None:
        super().__init__()
        alternatives = []
        for content in sorted(contents, key=lambda text: -len(text.encode())):
            left, right = strips[content]
            alternatives.append(f"[{WHITESPACE}]*" * left + quote(content) + f"[{WHITESPACE}]*" * right)
        self._strips = any(any(sides) for sides in strips.values())
        self._check(contents, strips)
        self._pattern = "|".join(alternatives)
        self._table = string_table(contents)

    def _check(self, contents: dict[str, int], strips: dict[str, tuple[bool, bool]]) -> None:
        if any(code in content for content in contents for code in "\0\1"):
            raise InputError("an added token with the character U+0000 or U+0001 cannot be put in a graph; remove it")
        for content, (left, right) in strips.items():
            if left and any(other != content and other.startswith(content) for other in contents):
                raise InputError(
                    f"the added token {content!r} takes the whitespace before it and is the beginning of another one, which "
                    "cannot be put in a graph; remove one of them"
                )
            if (left or right) and any(other != other.strip() for other in contents):
                raise InputError(
                    f"the added token {content!r} takes the whitespace beside it while another begins or ends with whitespace, "
                    "which cannot be put in a graph; remove one of them"
                )

    def __call__(self, texts: tf.Tensor) -> Sections:
        """Return the sections of texts, string [n]."""
        texts = tf.strings.regex_replace(texts, r"\x00", "\x01")  # at which RegexSplitWithOffsets would stop
        sections, _, _ = tensorflow_text().regex_split_with_offsets(texts, f"({self._pattern})", "(?s).*")
        names = sections.flat_values
        if self._strips:
            names = tf.strings.regex_replace(names, f"^[{WHITESPACE}]+|[{WHITESPACE}]+$", "")
        ids = tf.cast(self._table.lookup(names), tf.int32)
        lengths = tf.strings.length(sections.flat_values, unit="UTF8_CHAR")
        return Sections(ids, lengths, tf.cast(sections.row_lengths(), tf.int32))


def quote(text: str) -> str:
    """Return a pattern of RE2 that matches a text literally."""
    return "".join(c if c.isalnum() and c.isascii() else f"\\x{{{ord(c):X}}}" for c in text)
