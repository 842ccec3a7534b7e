"""Which documents their licence lets us train on: an allow-list over SPDX identifiers, of the file or of its repository."""

import re
from dataclasses import dataclass

from duonlp.errors import InputError

# Permissive licences of The Stack's list (Kocetkov et al. 2022, "The Stack: 3 TB of permissively licensed source code").
PERMISSIVE = (
    "0BSD", "Apache-2.0", "Artistic-2.0", "BlueOak-1.0.0", "BSD-1-Clause", "BSD-2-Clause", "BSD-3-Clause",
    "BSD-3-Clause-Clear", "BSD-4-Clause", "BSL-1.0", "CC0-1.0", "ECL-2.0", "HPND", "ISC", "MIT", "MIT-0", "NCSA", "PostgreSQL",
    "PSF-2.0", "Python-2.0", "Unlicense", "UPL-1.0", "W3C", "WTFPL", "X11", "Zlib", "ZPL-2.1",
)  # fmt: skip

HEADER_CHARACTERS = 4096
_SPDX_LINE = re.compile(r"SPDX-License-Identifier:[ \t]*([^\r\n]+)", re.IGNORECASE)
_WORD = re.compile(r"\(|\)|[A-Za-z0-9.+:-]+")


@dataclass(frozen=True)
class LicenceConfig:
    """The licences that are allowed.

    allowed: SPDX identifiers, in any case.
    keep_unknown: keep documents of which neither the header nor the corpus says a licence.

    Raises:
        InputError: allowed is empty, or one string.
    """

    allowed: tuple[str, ...] = PERMISSIVE
    keep_unknown: bool = False

    def __post_init__(self):
        if isinstance(self.allowed, str) or not self.allowed:
            raise InputError(f"allowed is {self.allowed!r}; give SPDX identifiers, such as ('MIT', 'Apache-2.0')")


def spdx_of_header(text: str) -> str | None:
    """Returns the SPDX expression in a file's first lines, or None. Several lines of it all hold."""
    header = text[:HEADER_CHARACTERS]
    if "license-identifier" not in header.lower():
        return None
    found = [match.strip(" \t*/#-><!\"'") for match in _SPDX_LINE.findall(header)]
    return " AND ".join(f"({each})" for each in found) or None


def is_allowed(expression: str, allowed: frozenset[str]) -> bool:
    """Whether an SPDX expression can be satisfied with allowed licences alone.

    Args:
        expression: such as "MIT", "(MIT OR GPL-3.0-only) AND BSD-3-Clause", "Apache-2.0 WITH LLVM-exception": an
            exception only adds to what a licence permits.
        allowed: identifiers in lower case.

    Returns:
        False for an expression that is none, too: what it means is not known.
    """
    words = _WORD.findall(expression.lower())
    if not words or "".join(words) != re.sub(r"\s+", "", expression.lower()):
        return False
    try:
        result = _alternatives(words, allowed)
    except (IndexError, ValueError, RecursionError):
        return False
    return result and not words


def _alternatives(words: list[str], allowed: frozenset[str]) -> bool:
    result = _conjunction(words, allowed)
    while words and words[0] == "or":
        words.pop(0)
        result = _conjunction(words, allowed) or result
    return result


def _conjunction(words: list[str], allowed: frozenset[str]) -> bool:
    result = _licence(words, allowed)
    while words and words[0] == "and":
        words.pop(0)
        result = _licence(words, allowed) and result
    return result


def _licence(words: list[str], allowed: frozenset[str]) -> bool:
    word = words.pop(0)
    if word == "(":
        result = _alternatives(words, allowed)
        if words.pop(0) != ")":
            raise ValueError("a parenthesis is not closed")
        return result
    if word in (")", "and", "or", "with"):
        raise ValueError(f"{word!r} where a licence belongs")
    if words and words[0] == "with":
        words.pop(0)
        words.pop(0)
    return word in allowed


def licence_reason_to_drop(text: str, licence: str | None, config: LicenceConfig) -> str | None:
    """Returns why a document's licence forbids it, or None. What the file's own header says goes before the repository's.

    Args:
        text: the whole file.
        licence: what the corpus says of the document: an SPDX expression.
        config: what is allowed.
    """
    expression = spdx_of_header(text) or licence
    if not expression or expression.lower() in ("noassertion", "unknown", "none", "no_license"):
        return None if config.keep_unknown else "licence unknown"
    allowed = frozenset(name.lower() for name in config.allowed)
    return None if is_allowed(expression, allowed) else "licence not allowed"
