"""Select documents by an allow-list of SPDX licenses, stated in the file header or by the corpus."""

import re
from dataclasses import dataclass

from duonlp.errors import InputError

# Permissive licenses from The Stack (Kocetkov et al. 2022, "The Stack: 3 TB of permissively licensed source code").
PERMISSIVE = (
    "0BSD", "Apache-2.0", "Artistic-2.0", "BlueOak-1.0.0", "BSD-1-Clause", "BSD-2-Clause", "BSD-3-Clause",
    "BSD-3-Clause-Clear", "BSD-4-Clause", "BSL-1.0", "CC0-1.0", "ECL-2.0", "HPND", "ISC", "MIT", "MIT-0", "NCSA", "PostgreSQL",
    "PSF-2.0", "Python-2.0", "Unlicense", "UPL-1.0", "W3C", "WTFPL", "X11", "Zlib", "ZPL-2.1",
)  # fmt: skip

HEADER_CHARACTERS = 4096
_SPDX_LINE = re.compile(r"SPDX-License-Identifier:[ \t]*([^\r\n]+)", re.IGNORECASE)
_TOKEN = re.compile(r"\(|\)|[A-Za-z0-9.+:-]+")


@dataclass(frozen=True)
class LicenceConfig:
    """Allowed licenses.

    Attributes:
        allowed: SPDX identifiers (case-insensitive).
        keep_unknown: Keep documents whose license is stated neither in the header nor by the corpus.

    Raises:
        InputError: If `allowed` is empty or a string.
    """

    allowed: tuple[str, ...] = PERMISSIVE
    keep_unknown: bool = False

    def __post_init__(self):
        if isinstance(self.allowed, str) or not self.allowed:
            raise InputError(
                f"allowed is {self.allowed!r}; give SPDX identifiers in a tuple, such as ('MIT', 'Apache-2.0')"
            )


def spdx_of_header(text: str) -> str | None:
    """Return the SPDX expression in a file's header, or None; several identifier lines are joined by AND."""
    header = text[:HEADER_CHARACTERS]
    if "license-identifier" not in header.lower():
        return None
    expressions = [match.strip(" \t*/#-><!\"'") for match in _SPDX_LINE.findall(header)]
    return " AND ".join(f"({expression})" for expression in expressions) or None


def is_allowed(expression: str, allowed: frozenset[str]) -> bool:
    """Return whether an SPDX expression can be satisfied with allowed licenses; False for an invalid expression.

    Args:
        expression: SPDX expression such as "MIT", "(MIT OR GPL-3.0-only) AND BSD-3-Clause" or
            "Apache-2.0 WITH LLVM-exception". Exceptions are ignored, since they only add permissions.
        allowed: Identifiers in lower case.
    """
    tokens = _TOKEN.findall(expression.lower())
    if not tokens or "".join(tokens) != re.sub(r"\s+", "", expression.lower()):
        return False
    try:
        result = _parse_or(tokens, allowed)
    except (IndexError, ValueError, RecursionError):
        return False
    return result and not tokens


def _parse_or(tokens: list[str], allowed: frozenset[str]) -> bool:
    result = _parse_and(tokens, allowed)
    while tokens and tokens[0] == "or":
        tokens.pop(0)
        result = _parse_and(tokens, allowed) or result
    return result


def _parse_and(tokens: list[str], allowed: frozenset[str]) -> bool:
    result = _parse_licence(tokens, allowed)
    while tokens and tokens[0] == "and":
        tokens.pop(0)
        result = _parse_licence(tokens, allowed) and result
    return result


def _parse_licence(tokens: list[str], allowed: frozenset[str]) -> bool:
    token = tokens.pop(0)
    if token == "(":
        result = _parse_or(tokens, allowed)
        if tokens.pop(0) != ")":
            raise ValueError("unclosed parenthesis")
        return result
    if token in (")", "and", "or", "with"):
        raise ValueError(f"expected a license, found {token!r}")
    if tokens and tokens[0] == "with":
        tokens.pop(0)
        tokens.pop(0)
    return token in allowed


def licence_reason_to_drop(text: str, licence: str | None, config: LicenceConfig) -> str | None:
    """Return why a document's license rules it out, or None if it is allowed. The file's header takes precedence.

    Args:
        text: Text of the whole file.
        licence: SPDX expression that the corpus states for the document.
        config: Allowed licenses.
    """
    expression = spdx_of_header(text) or licence
    if not expression or expression.lower() in ("noassertion", "unknown", "none", "no_license"):
        return None if config.keep_unknown else "licence unknown"
    allowed = frozenset(name.lower() for name in config.allowed)
    return None if is_allowed(expression, allowed) else "licence not allowed"
