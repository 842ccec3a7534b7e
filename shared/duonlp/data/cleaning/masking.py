"""Secrets and e-mail addresses in a text, replaced by masks before anything learns them.

The patterns of secrets are those of detect-secrets' plugins; the masks are those of Li et al. 2023, "StarCoder: may the
source be with you!", section 4. All the patterns on every line take some 15 ms a file; here one is tried on the few lines
that have a word that could be a key and a string that the pattern cannot match without.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from duonlp.errors import MissingExtraError

EMAIL, KEY, PASSWORD = "<EMAIL>", "<KEY>", "<PASSWORD>"
KINDS = {EMAIL: "email", KEY: "key", PASSWORD: "password"}

# Class of detect-secrets -> strings of which every line that it matches contains one; in lower case for the patterns
# that ignore case. A class that is not here, such as one of a newer version, is tried on the whole text.
ANCHORS = {
    "ArtifactoryDetector": ("AKC", "AP"),
    "AWSKeyDetector": ("AKIA", "ASIA", "ABIA", "ACCA", "A3T", "aws"),
    "AzureStorageKeyDetector": ("AccountKey=",),
    "BasicAuthDetector": ("://",),
    "CloudantDetector": ("cl",),
    "DiscordBotTokenDetector": (".",),
    "GitHubTokenDetector": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    "GitLabTokenDetector": (
        "glpat-", "gldt-", "glft-", "glsoat-", "glrt-", "GR1348941", "glcbt-", "glimt-", "glptt-", "glagent-", "gloas-",
    ),
    "IbmCloudIamDetector": ("key", "pwd", "password", "pass", "token"),
    "IbmCosHmacDetector": ("secret",),
    "JwtTokenDetector": ("eyJ",),
    "MailchimpDetector": ("-us",),
    "NpmDetector": ("_authToken",),
    "OpenAIDetector": ("T3BlbkFJ",),
    "PypiTokenDetector": ("pypi-AgE",),
    "SendGridDetector": ("SG.",),
    "SlackDetector": ("xox", "hooks.slack.com"),
    "SoftlayerDetector": ("sl", "softlayer"),
    "SquareOAuthDetector": ("sq0csp-",),
    "StripeDetector": ("k_live_",),
    "TelegramBotTokenDetector": (":AA",),
    "TwilioKeyDetector": ("AC", "SK"),
}  # fmt: skip
# Their secrets can be shorter than LONG_WORD.
SHORT = ("ArtifactoryDetector", "BasicAuthDetector")
# Left out: public IP addresses are hardly ever secret in code; a private key is masked with its body, below.
NOT_USED = ("IPPublicDetector", "PrivateKeyDetector")
# The groups of these hold a prefix, where those of the others hold the secret without the name it is assigned to.
WHOLE_MATCH = ("GitHubTokenDetector", "GitLabTokenDetector")

# Keys have at least this many characters in a row, those of an AWS key id.
LONG_WORD = 20
_KEY_CHARACTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-"
_TO_SPACES = bytes(byte if byte in _KEY_CHARACTERS else 32 for byte in range(256))

_PRIVATE_KEY = re.compile(
    r"(-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----)([^<>{}()]{40,20000}?)(-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY)"
)
# Neither `user@host` nor a product of matrices (`a@b.transpose(...)`, `x@self.weight`), an SSH address, or an image at
# twice the size (`logo@2x.png`).
_EMAIL = re.compile(
    r"(?<![\w.%+@/-])(?!git@)[A-Za-z0-9_][A-Za-z0-9._%+-]{0,63}@(?!self\.)(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
    r"(?!(?:png|jpe?g|gif|svg|webp|js|css|py|T|dtype|shape)\b)[A-Za-z]{2,24}(?![\w(\[@-])(?!\.[A-Za-z0-9])"
)
_TOKEN_REST = re.compile(r"[A-Za-z0-9_.+/=-]*")


@dataclass(frozen=True)
class MaskingConfig:
    """What is masked: e-mail addresses as <EMAIL>; keys and tokens as <KEY>, passwords in addresses as <PASSWORD>."""

    emails: bool = True
    secrets: bool = True


def mask(text: str, config: MaskingConfig) -> tuple[str, dict[str, int]]:
    """Returns the text with its secrets and addresses masked, and how many there were: {"email" | "key" | "password": n}.

    Raises:
        MissingExtraError: secrets are to be masked and detect-secrets is not installed.
    """
    spans: list[tuple[int, int, str]] = []
    if config.secrets:
        spans += [(*match.span(2), KEY) for match in _private_keys(text)]
        short, long, anywhere = _patterns()
        for pattern in short:
            for anchor in pattern.anchors:
                for start, end in _lines_with(text, anchor):
                    spans += _secrets_of(text[start:end], start, pattern)
        for start, end in _lines_with_long_words(text):
            line = text[start:end]
            lowered = line.lower()
            for pattern in long:
                looked_at = lowered if pattern.ignores_case else line
                if any(anchor in looked_at for anchor in pattern.anchors):
                    spans += _secrets_of(line, start, pattern)
        for pattern in anywhere:
            spans += _secrets_of(text, 0, pattern)
    if config.emails:
        for start, end in _lines_with(text, "@"):
            spans += [(start + m.start(), start + m.end(), EMAIL) for m in _EMAIL.finditer(text[start:end])]
    return _replaced(text, spans) if spans else (text, {})


def _lines_with_long_words(text: str) -> list[tuple[int, int]]:
    """(start, end) of each line with a word that could be a key: long, and with a digit or all in one case.

    Of the random keys of 40 letters, digits and two signs, one in 5,000 has no digit, and none of them is in one case.
    """
    lines = []
    position = 0
    # Long words come in order, so that the next one is at or after the end of this one.
    for word in [word for word in text.encode("utf-8").translate(_TO_SPACES).split() if len(word) >= LONG_WORD]:
        has_digit = len(word.translate(None, b"0123456789")) < len(word)
        if has_digit or (word.isalpha() and (word.islower() or word.isupper())):
            found = text.find(word.decode(), position)
            position = found + len(word)
            if not lines or found > lines[-1][1]:
                end = text.find("\n", found)
                lines.append((text.rfind("\n", 0, found) + 1, len(text) if end < 0 else end))
    return lines


def _lines_with(text: str, anchor: str) -> list[tuple[int, int]]:
    """(start, end) of each line that contains the anchor."""
    lines = []
    position = text.find(anchor)
    while position >= 0:
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        lines.append((text.rfind("\n", 0, position) + 1, end))
        position = text.find(anchor, end)
    return lines


def _private_keys(text: str):
    return _PRIVATE_KEY.finditer(text) if "PRIVATE KEY" in text else ()


def _secrets_of(line: str, offset: int, pattern: "_Pattern") -> Iterator[tuple[int, int, str]]:
    """(start, end, mask) of each secret in a line that begins at `offset` of its text."""
    for match in pattern.regex.finditer(line):
        group = 0 if pattern.whole or not pattern.regex.groups or match[1] is None else 1
        start, end = match.span(group)
        if pattern.check is not None:
            if not pattern.check(match[0]):
                continue
            # The pattern of web tokens ends before the signature.
            end = _TOKEN_REST.match(line, end).end()
        while start < end and line[start] in " \t=:\"'":
            start += 1
        while end > start and line[end - 1] in " \t\"'":
            end -= 1
        # A placeholder of a template, such as {password} or <password>, is no secret; nor is a part of a longer word,
        # such as 20 letters of a DNA sequence.
        if start == end or line[start] in "{<%$*[":
            continue
        before, after = line[max(0, start - 2) : start], line[end : end + 1]
        if (before[-1:].isalnum() and before not in ("\\n", "\\r", "\\t")) or after.isalnum():
            continue
        yield offset + start, offset + end, pattern.mask


def _replaced(text: str, spans: list[tuple[int, int, str]]) -> tuple[str, dict[str, int]]:
    """The text with each span replaced by its mask; of spans that overlap, the first, then a secret, then the longest."""
    pieces, counts, position = [], {}, 0
    for start, end, label in sorted(spans, key=lambda span: (span[0], span[2] == EMAIL, -span[1])):
        if start < position:
            continue
        pieces += (text[position:start], label)
        counts[KINDS[label]] = counts.get(KINDS[label], 0) + 1
        position = end
    return "".join((*pieces, text[position:])), counts


class _Pattern(NamedTuple):
    """A pattern of detect-secrets: anchors as in ANCHORS; whether the whole match is the secret; a check of a match."""

    regex: re.Pattern
    anchors: tuple[str, ...]
    ignores_case: bool
    whole: bool
    check: Callable[[str], bool] | None
    mask: str


@cache
def _patterns() -> tuple[list[_Pattern], list[_Pattern], list[_Pattern]]:
    """Patterns to try on lines with their anchors, on lines with long words and their anchors, and on whole texts."""
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
        from detect_secrets.plugins.base import RegexBasedDetector
    except ImportError as error:
        raise MissingExtraError(
            'secrets are found with detect-secrets, which is missing; pip install "duonlp[data]", '
            "or leave them in with MaskingConfig(secrets=False)"
        ) from error
    short, long, anywhere = [], [], []
    for detector in get_mapping_from_secret_type_to_class().values():
        name = detector.__name__
        if not issubclass(detector, RegexBasedDetector) or name in NOT_USED:
            continue
        kind = anywhere if name not in ANCHORS else short if name in SHORT else long
        for regex in detector.denylist:
            kind.append(
                _Pattern(
                    regex,
                    ANCHORS.get(name, ()),
                    bool(regex.flags & re.IGNORECASE),
                    name in WHOLE_MATCH,
                    getattr(detector, "is_formally_valid", None),
                    PASSWORD if name == "BasicAuthDetector" else KEY,
                )
            )
    return short, long, anywhere
