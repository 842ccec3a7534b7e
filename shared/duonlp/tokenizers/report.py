"""Measure how well a tokenizer fits held-out texts, alone or next to others.

A *word*, here and in all figures below, is a maximal run of letters, digits and underscores (`\\w+`): a
word of prose, a number, a keyword or an identifier. Punctuation and whitespace separate words.
"""

import json
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.errors import InputError
from duonlp.util.tokenization import private_backend

if TYPE_CHECKING:
    from rich.table import Table
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

WORD = re.compile(r"\w+")
CHUNK_CHARACTERS = 1_000_000
"""Number of characters tokenized at a time; the tokens and offsets of a million take about 100 MB."""

LISTED_TOKENS = 15
"""Number of longest and of last tokens in a report."""


@dataclass(frozen=True)
class TokenizerReport:
    """Statistics of a tokenizer on some texts.

    Attributes:
        vocab_size: Size of the vocabulary, including special tokens.
        texts: Number of texts.
        words: Number of words.
        characters: Number of characters.
        bytes: Number of bytes in UTF-8.
        tokens: Number of tokens, without added special tokens.
        fertility: Mean number of tokens that a word's characters are spread over, at best 1 (Rust et
            al. 2021, arXiv:2012.15613). A token that spans two words counts for both.
        continued_words: Fraction of words that take two or more tokens (same paper).
        characters_per_token: Characters per token over the whole texts, including whitespace and punctuation.
        bytes_per_token: Bytes per token over the whole texts. The higher, the shorter the input.
        unknown_rate: Fraction of tokens that are the unknown token.
        exact_round_trips: Fraction of texts that decoding restores exactly.
        listed_words: Number of words in the word list.
        covered_words: Number of listed words that are a single token, at the start of a text or after a space.
        missing_words: The other listed words.
        longest_tokens: Longest tokens in characters, longest first.
        last_tokens: Tokens with the highest ids, last first: those learned last ("bpe", "wordpiece") or
            the least likely ("unigram").
    """

    vocab_size: int
    texts: int
    words: int
    characters: int
    bytes: int
    tokens: int
    fertility: float
    continued_words: float
    characters_per_token: float
    bytes_per_token: float
    unknown_rate: float
    exact_round_trips: float
    listed_words: int
    covered_words: int
    missing_words: tuple[str, ...]
    longest_tokens: tuple[str, ...]
    last_tokens: tuple[str, ...]

    @property
    def coverage(self) -> float:
        """Fraction of the listed words that are a single token; nan for an empty list."""
        return self.covered_words / self.listed_words if self.listed_words else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dict."""
        return asdict(self) | {"coverage": self.coverage if self.listed_words else None}

    def table(self, name: str = "tokenizer") -> "Table":
        """Return a `rich.table.Table` of the figures, which printing the report with rich shows."""
        return _build_table({name: self})

    def __rich__(self) -> "Table":
        return self.table()


@dataclass(frozen=True)
class TokenizerComparison:
    """Reports of several tokenizers on the same texts; printing it with rich shows them side by side.

    Attributes:
        reports: Report of each tokenizer, by name.
    """

    reports: Mapping[str, TokenizerReport]

    def to_dict(self) -> dict[str, Any]:
        """Return {name: report} as a JSON-serializable dict."""
        return {name: report.to_dict() for name, report in self.reports.items()}

    def table(self) -> "Table":
        """Return a `rich.table.Table` with a column per tokenizer."""
        return _build_table(self.reports)

    def __rich__(self) -> "Table":
        return self.table()


def tokenizer_report(
    tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str], words: Sequence[str] | None = None
) -> TokenizerReport:
    """Measure a tokenizer on held-out texts.

    Args:
        tokenizer: A `transformers` fast tokenizer; not modified.
        texts: Held-out texts, consumed once, a million characters at a time.
        words: Words that should be single tokens (default: Python's keywords).

    Raises:
        InputError: If the tokenizer is not a fast one, the texts contain no word or no token, or a text
            is not a str.
    """
    backend = _plain_backend(tokenizer)
    listed = tuple(keyword.kwlist if words is None else words)
    unknown = _unknown_id(backend)
    counts = dict.fromkeys(
        ("texts", "words", "characters", "bytes", "tokens", "pieces", "continued", "unknown", "exact"), 0
    )
    for chunk in _chunks(texts):
        encodings = backend.encode_batch(chunk, add_special_tokens=False)
        decoded = backend.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
        for text, encoding, round_trip in zip(chunk, encodings, decoded, strict=True):
            pieces = tokens_of_words(text, encoding.offsets)  # [words]
            counts["texts"] += 1
            counts["words"] += len(pieces)
            counts["characters"] += len(text)
            counts["bytes"] += len(text.encode())
            counts["tokens"] += len(encoding)
            counts["pieces"] += int(pieces.sum())
            counts["continued"] += int((pieces > 1).sum())
            counts["unknown"] += encoding.ids.count(unknown) if unknown is not None else 0
            counts["exact"] += round_trip == text
    if not counts["words"] or not counts["tokens"]:
        raise InputError(f"the {counts['texts']} texts contain no word; give held-out texts with words to measure")
    missing = _missing_words(backend, listed, unknown)
    longest, last = _notable_tokens(backend)
    return TokenizerReport(
        vocab_size=len(tokenizer),
        **{name: counts[name] for name in ("texts", "words", "characters", "bytes", "tokens")},
        fertility=counts["pieces"] / counts["words"],
        continued_words=counts["continued"] / counts["words"],
        characters_per_token=counts["characters"] / counts["tokens"],
        bytes_per_token=counts["bytes"] / counts["tokens"],
        unknown_rate=counts["unknown"] / counts["tokens"],
        exact_round_trips=counts["exact"] / counts["texts"],
        listed_words=len(listed),
        covered_words=len(listed) - len(missing),
        missing_words=missing,
        longest_tokens=longest,
        last_tokens=last,
    )


def compare_tokenizers(
    tokenizers: Mapping[str, Any], texts: Iterable[str], words: Sequence[str] | None = None
) -> TokenizerComparison:
    """Measure several tokenizers on the same texts.

    Args:
        tokenizers: `transformers` fast tokenizers by name.
        texts: Held-out texts, held in memory because every tokenizer reads them.
        words: As in `tokenizer_report`.

    Raises:
        InputError: As in `tokenizer_report`, or if there is no tokenizer.
    """
    if not tokenizers:
        raise InputError("tokenizers is empty; give at least one, by name")
    texts = texts if isinstance(texts, str) else list(texts)
    return TokenizerComparison(
        {name: tokenizer_report(tokenizer, texts, words) for name, tokenizer in tokenizers.items()}
    )


def tokens_of_words(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the number of tokens that overlap each word of a text, int64 [words].

    Args:
        text: Text that was tokenized.
        offsets: (start, end) of each token in characters, in order.
    """
    spans = np.fromiter(chain.from_iterable(m.span() for m in WORD.finditer(text)), np.int64).reshape(-1, 2)
    tokens = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2)
    # Tokens that start before a word's end, minus those that end at or before its start; both columns are sorted.
    return np.searchsorted(tokens[:, 0], spans[:, 1]) - np.searchsorted(tokens[:, 1], spans[:, 0], side="right")


def _plain_backend(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer":
    """Return the inner `tokenizers.Tokenizer` without truncation and padding that earlier calls have set."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(
            f"tokenizer is a {type(tokenizer).__name__}; give a fast tokenizer, since a report needs offsets"
        )
    return private_backend(tokenizer)


def _unknown_id(backend: "Tokenizer") -> int | None:
    """Return the id of the unknown token, or None if any text can be spelled, as over bytes."""
    # Not `tokenizer.unk_token`, which GPT-2 sets to its end-of-text token although nothing is unknown to it.
    token = getattr(backend.model, "unk_token", None)
    if token is None and type(backend.model).__name__ == "Unigram":
        model = json.loads(backend.to_str())["model"]
        token = None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
    return None if token is None else backend.token_to_id(token)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the texts in lists of about `CHUNK_CHARACTERS` characters."""
    if isinstance(texts, (str, bytes)):
        raise InputError("texts is a single text; give an iterable of texts, such as [text]")
    chunk, size = [], 0
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {number} has type {type(text).__name__}; expected str")
        chunk.append(text)
        size += len(text)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _missing_words(backend: "Tokenizer", words: Sequence[str], unknown: int | None) -> tuple[str, ...]:
    """Return the words that are not a single token, neither at the start of a text nor after a space."""
    forms = [form for word in words for form in (word, f" {word}")]
    encodings = backend.encode_batch(forms, add_special_tokens=False)
    single = [len(encoding.ids) == 1 and encoding.ids[0] != unknown for encoding in encodings]
    return tuple(word for i, word in enumerate(words) if not (single[2 * i] or single[2 * i + 1]))


def _notable_tokens(backend: "Tokenizer") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the longest and the last tokens as text, without special and other added tokens."""
    added = backend.get_added_tokens_decoder()
    ids = sorted(set(backend.get_vocab().values()) - added.keys())
    pieces = [backend.id_to_token(i) or "" for i in ids]
    if "ByteLevel" in str(type(backend.decoder)):  # tokens are spelled in letters that stand for bytes
        pieces = backend.decode_batch([[i] for i in ids], skip_special_tokens=False)
    order = sorted(range(len(ids)), key=lambda i: (-len(pieces[i]), ids[i]))
    return tuple(pieces[i] for i in order[:LISTED_TOKENS]), tuple(pieces[: -LISTED_TOKENS - 1 : -1])


def _format_words(words: Sequence[str]) -> str:
    return ", ".join(words[:LISTED_TOKENS]) + (" ..." if words[LISTED_TOKENS:] else "")


def _format_tokens(tokens: Sequence[str]) -> str:
    """Return the first five tokens, truncated to 20 characters each."""
    return " ".join(repr(token if len(token) <= 20 else f"{token[:17]}...") for token in tokens[:5])


ROWS = {
    "vocabulary": lambda r: f"{r.vocab_size:,}",
    "tokens": lambda r: f"{r.tokens:,}",
    "tokens per word": lambda r: f"{r.fertility:.3f}",
    "continued words": lambda r: f"{r.continued_words:.1%}",
    "characters per token": lambda r: f"{r.characters_per_token:.3f}",
    "bytes per token": lambda r: f"{r.bytes_per_token:.3f}",
    "unknown tokens": lambda r: f"{r.unknown_rate:.3%}",
    "exact round trips": lambda r: f"{r.exact_round_trips:.1%}",
    "listed words in one token": lambda r: f"{r.covered_words} of {r.listed_words}",
    "not in one token": lambda r: _format_words(r.missing_words),
    "longest tokens": lambda r: _format_tokens(r.longest_tokens),
    "last tokens": lambda r: _format_tokens(r.last_tokens),
}
"""Rows of a table: label -> formatter of a report."""


def _build_table(reports: Mapping[str, TokenizerReport]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in reports:
        table.add_column(Text(name), justify="right", overflow="fold")
    for row, show in ROWS.items():
        table.add_row(row, *(Text(show(report)) for report in reports.values()))
    return table
