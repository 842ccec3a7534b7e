"""Mask secrets and e-mail addresses in text.

The patterns for secrets are those of detect-secrets' plugins; the masks are those of Li et al. 2023,
"StarCoder: may the source be with you!", section 4. Running every pattern on every line takes about 15
ms per file, so a pattern is tried only on lines that contain a word that could be a key and one of the
pattern's anchors, strings that every match contains.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast

from duonlp.errors import MissingExtraError

EMAIL, KEY, PASSWORD = "<EMAIL>", "<KEY>", "<PASSWORD>"
KINDS = {EMAIL: "email", KEY: "key", PASSWORD: "password"}

# Plugin class of detect-secrets -> strings one of which is in every line that it matches, in lower case
# for patterns that ignore case. Classes not listed here, such as those of a newer version, are tried on
# the whole text.
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
# Plugins whose secrets can be shorter than LONG_WORD.
SHORT = ("ArtifactoryDetector", "BasicAuthDetector")
# Unused plugins: public IP addresses are rarely secret in code, and _PRIVATE_KEY masks private keys with
# their body.
NOT_USED = ("IPPublicDetector", "PrivateKeyDetector")
# Plugins whose first group is only a prefix; for the others it is the secret without the name it is
# assigned to.
WHOLE_MATCH = ("GitHubTokenDetector", "GitLabTokenDetector")

# Minimum length of a key's longest run of key characters: that of an AWS key id.
LONG_WORD = 20
_KEY_CHARACTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-"
_TO_SPACES = bytes(byte if byte in _KEY_CHARACTERS else 32 for byte in range(256))

_PRIVATE_KEY = re.compile(
    r"(-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----)([^<>{}()]{40,20000}?)(-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY)"
)
# Does not match `user@host`, matrix products (`a@b.transpose(...)`, `x@self.weight`), SSH addresses or
# high-resolution images (`logo@2x.png`).
_EMAIL = re.compile(
    r"(?<![\w.%+@/-])(?!git@)[A-Za-z0-9_][A-Za-z0-9._%+-]{0,63}@(?!self\.)(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
    r"(?!(?:png|jpe?g|gif|svg|webp|js|css|py|T|dtype|shape)\b)[A-Za-z]{2,24}(?![\w(\[@-])(?!\.[A-Za-z0-9])"
)
_TOKEN_REST = re.compile(r"[A-Za-z0-9_.+/=-]*")


@dataclass(frozen=True)
class MaskingConfig:
    """What to mask.

    Attributes:
        emails: Replace e-mail addresses with <EMAIL>.
        secrets: Replace keys and tokens with <KEY>, and passwords in URLs with <PASSWORD>.
    """

    emails: bool = True
    secrets: bool = True


def mask(text: str, config: MaskingConfig) -> tuple[str, dict[str, int]]:
    """Mask the secrets and e-mail addresses of a text.

    Returns:
        The masked text, and the number of masks by kind, {"email" | "key" | "password": count}.

    Raises:
        MissingExtraError: If secrets are to be masked and detect-secrets is not installed.
    """
    spans: list[tuple[int, int, str]] = []
    if config.secrets:
        spans += [(*match.span(2), KEY) for match in _private_keys(text)]
        short, long, anywhere = _load_patterns()
        for pattern in short:
            for anchor in pattern.anchors:
                for start, end in _lines_with(text, anchor):
                    spans += _find_secrets(text[start:end], start, pattern)
        for start, end in _lines_with_long_words(text):
            line = text[start:end]
            lowered = line.lower()
            for pattern in long:
                searched = lowered if pattern.ignores_case else line
                if any(anchor in searched for anchor in pattern.anchors):
                    spans += _find_secrets(line, start, pattern)
        for pattern in anywhere:
            spans += _find_secrets(text, 0, pattern)
    if config.emails:
        for start, end in _lines_with(text, "@"):
            spans += [(start + m.start(), start + m.end(), EMAIL) for m in _EMAIL.finditer(text[start:end])]
    return _replace_spans(text, spans) if spans else (text, {})


def _lines_with_long_words(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of each line with a word that could be a key: long, and with a digit or all in one case.

    About 1 in 900 random base64 keys of 40 characters has no digit; these are missed.
    """
    lines = []
    position = 0
    # Words come in the order of the text, so the search for the next one starts at the end of this one.
    for word in [word for word in text.encode("utf-8").translate(_TO_SPACES).split() if len(word) >= LONG_WORD]:
        has_digit = len(word.translate(None, b"0123456789")) < len(word)
        if has_digit or (word.isalpha() and (word.islower() or word.isupper())):
            start = text.find(word.decode(), position)
            position = start + len(word)
            if not lines or start > lines[-1][1]:
                end = text.find("\n", start)
                lines.append((text.rfind("\n", 0, start) + 1, len(text) if end < 0 else end))
    return lines


def _lines_with(text: str, anchor: str) -> list[tuple[int, int]]:
    """Return (start, end) of each line that contains the anchor."""
    lines = []
    position = text.find(anchor)
    while position >= 0:
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        lines.append((text.rfind("\n", 0, position) + 1, end))
        position = text.find(anchor, end)
    return lines


def _private_keys(text: str) -> Iterable[re.Match[str]]:
    return _PRIVATE_KEY.finditer(text) if "PRIVATE KEY" in text else ()


def _find_secrets(line: str, offset: int, pattern: "_Pattern") -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, mask) of each secret in a line that begins at `offset` of the text."""
    for match in pattern.regex.finditer(line):
        group = 0 if pattern.whole or not pattern.regex.groups or match[1] is None else 1
        start, end = match.span(group)
        if pattern.check is not None:
            if not pattern.check(match[0]):
                continue
            # The pattern for JSON web tokens stops before the signature.
            signature = _TOKEN_REST.match(line, end)
            end = signature.end() if signature else end
        while start < end and line[start] in " \t=:\"'":
            start += 1
        while end > start and line[end - 1] in " \t\"'":
            end -= 1
        # Template placeholders such as {password} or <password> are not secrets, nor are parts of longer
        # words, such as 20 letters of a DNA sequence.
        if start == end or line[start] in "{<%$*[":
            continue
        before, after = line[max(0, start - 2) : start], line[end : end + 1]
        if (before[-1:].isalnum() and before not in ("\\n", "\\r", "\\t")) or after.isalnum():
            continue
        yield offset + start, offset + end, pattern.mask


def _replace_spans(text: str, spans: list[tuple[int, int, str]]) -> tuple[str, dict[str, int]]:
    """Replace spans with their masks.

    Of overlapping spans the first wins, then a secret over an e-mail address, then the longest.
    """
    pieces: list[str] = []
    counts: dict[str, int] = {}
    position = 0
    for start, end, label in sorted(spans, key=lambda span: (span[0], span[2] == EMAIL, -span[1])):
        if start < position:
            continue
        pieces += (text[position:start], label)
        counts[KINDS[label]] = counts.get(KINDS[label], 0) + 1
        position = end
    return "".join((*pieces, text[position:])), counts


class _Pattern(NamedTuple):
    """A pattern of a detect-secrets plugin.

    Attributes:
        regex: Compiled pattern.
        anchors: As in `ANCHORS`.
        ignores_case: Whether `regex` ignores case, so that anchors are looked for in the lowercased line.
        whole: Whether the secret is the whole match rather than its first group.
        check: Validates the matched text, where the plugin has such a check.
        mask: Replacement of the secret, `KEY` or `PASSWORD`.
    """

    regex: re.Pattern[str]
    anchors: tuple[str, ...]
    ignores_case: bool
    whole: bool
    check: Callable[[str], bool] | None
    mask: str


@cache
def _load_patterns() -> tuple[list[_Pattern], list[_Pattern], list[_Pattern]]:
    """Return the patterns for lines with an anchor, for lines with a long word and an anchor, and for whole texts.

    Raises:
        MissingExtraError: If detect-secrets is not installed.
    """
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
        from detect_secrets.plugins.base import RegexBasedDetector
    except ImportError as error:
        raise MissingExtraError(
            'masking secrets requires detect-secrets; install it with pip install "duonlp[data]", '
            "or set MaskingConfig(secrets=False)"
        ) from error
    short: list[_Pattern] = []
    long: list[_Pattern] = []
    anywhere: list[_Pattern] = []
    for detector in get_mapping_from_secret_type_to_class().values():
        name = detector.__name__
        if not issubclass(detector, RegexBasedDetector) or name in NOT_USED:
            continue
        patterns = anywhere if name not in ANCHORS else short if name in SHORT else long
        for regex in cast(Any, detector).denylist:  # an abstract property of the base class, a list on plugin classes
            patterns.append(
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
