"""How well a tokenizer suits some texts: measured on texts it was not trained on, alone or beside another.

A *word*, here and in every figure below, is a longest run of letters, digits and underscores (`\\w+`): a word of prose, a
number, a keyword, an identifier. Punctuation and white space lie between words.
"""

import keyword
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np

from duonlp.errors import InputError

WORD = re.compile(r"\w+")
CHUNK = 1_000_000
"""Characters tokenized at once: a million's tokens and their places take some 100 MB."""

LISTED = 15
"""How many of the longest and the last tokens a report names."""


@dataclass(frozen=True)
class TokenizerReport:
    """What a tokenizer makes of some texts.

    vocab_size: with special tokens. texts, words, characters, bytes (UTF-8), tokens: of the texts; no special tokens added.
    fertility: tokens per word: how many tokens a word's characters are spread over, on average; 1 at best (Rust et al.
        2021, arXiv:2012.15613). A token that reaches over two words counts for both.
    continued_words: share of words that take two tokens or more (the same paper).
    characters_per_token, bytes_per_token: over the whole texts, white space and punctuation too; more is shorter input.
    unknown_rate: share of tokens that stand for something the tokenizer cannot spell.
    exact_round_trips: share of texts that decoding the ids gives back unchanged.
    listed_words, covered_words: how many words of a list there are, and how many of them are one token, at the beginning
        of a text or after a space. missing_words: the others.
    longest_tokens, last_tokens: the longest of the vocabulary in characters, the longest first; and those with the
        highest ids, the last first: what was learnt last ("bpe", "wordpiece") or is least likely ("unigram").
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
        """Share of the listed words that are one token."""
        return self.covered_words / self.listed_words if self.listed_words else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"coverage": self.coverage if self.listed_words else None}

    def table(self, name: str = "tokenizer"):
        """A rich Table of the figures; printing a report with rich prints it."""
        return _table({name: self})

    def __rich__(self):
        return self.table()


@dataclass(frozen=True)
class TokenizerComparison:
    """Reports of several tokenizers on the same texts, by name; printing it with rich prints them side by side."""

    reports: Mapping[str, TokenizerReport]

    def to_dict(self) -> dict[str, Any]:
        """Name -> plain values for JSON."""
        return {name: report.to_dict() for name, report in self.reports.items()}

    def table(self):
        """A rich Table with a column for each tokenizer."""
        return _table(self.reports)

    def __rich__(self):
        return self.table()


def tokenizer_report(tokenizer, texts: Iterable[str], words: Sequence[str] | None = None) -> TokenizerReport:
    """Measures a tokenizer on texts it has not seen.

    Args:
        tokenizer: a `transformers` fast tokenizer; it stays as it is.
        texts: held-out texts, read once, a million characters at a time.
        words: words that had better be one token; Python's keywords by default.

    Raises:
        InputError: a tokenizer that is not a fast one, texts without a word or a token, or a text that is none.
    """
    backend = _backend(tokenizer)
    listed = tuple(keyword.kwlist if words is None else words)
    unknown = _unknown_id(backend)
    counts = dict.fromkeys(
        ("texts", "words", "characters", "bytes", "tokens", "pieces", "continued", "unknown", "exact"), 0
    )
    for chunk in _chunks(texts):
        encodings = backend.encode_batch(chunk, add_special_tokens=False)
        decoded = backend.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
        for text, encoding, back in zip(chunk, encodings, decoded, strict=True):
            touching = tokens_of_words(text, encoding.offsets)
            counts["texts"] += 1
            counts["words"] += len(touching)
            counts["characters"] += len(text)
            counts["bytes"] += len(text.encode())
            counts["tokens"] += len(encoding)
            counts["pieces"] += int(touching.sum())
            counts["continued"] += int((touching > 1).sum())
            counts["unknown"] += encoding.ids.count(unknown) if unknown is not None else 0
            counts["exact"] += back == text
    if not counts["words"] or not counts["tokens"]:
        raise InputError(f"the {counts['texts']} texts have no word in them; give held-out texts to measure on")
    missing = _missing(backend, listed, unknown)
    longest, last = _vocabulary(backend)
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
    """Reports of tokenizers on the same texts, side by side.

    Args:
        tokenizers: name -> `transformers` fast tokenizer.
        texts: held-out texts; they are kept in memory, for each tokenizer reads them.
        words: as in `tokenizer_report`.

    Raises:
        InputError: as `tokenizer_report`, or no tokenizer at all.
    """
    if not tokenizers:
        raise InputError("tokenizers is empty; give at least one, by name")
    texts = texts if isinstance(texts, str) else list(texts)
    return TokenizerComparison({name: tokenizer_report(each, texts, words) for name, each in tokenizers.items()})


def tokens_of_words(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """How many tokens each word of a text has, int64 [words].

    Args:
        offsets: (first character, one past the last) of each token, in order.
    """
    spans = np.fromiter(chain.from_iterable(m.span() for m in WORD.finditer(text)), np.int64).reshape(-1, 2)
    places = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2)
    # Tokens that begin before a word's end, without those that end by its beginning: both columns grow along a text.
    return np.searchsorted(places[:, 0], spans[:, 1]) - np.searchsorted(places[:, 1], spans[:, 0], side="right")


def _backend(tokenizer):
    """The `tokenizers.Tokenizer` inside, without whatever cutting and padding an earlier call has set."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"tokenizer is a {type(tokenizer).__name__}; a report needs a fast one, which has offsets")
    if backend.truncation is not None or backend.padding is not None:
        backend = type(backend).from_str(backend.to_str())
        backend.no_truncation()
        backend.no_padding()
    return backend


def _unknown_id(backend) -> int | None:
    """The id of what cannot be spelt; None where everything can, as over bytes."""
    # Not the tokenizer's unk_token: GPT-2's is its end of text, which stands for nothing unknown.
    token = getattr(backend.model, "unk_token", None)
    if token is None and type(backend.model).__name__ == "Unigram":
        import json

        model = json.loads(backend.to_str())["model"]
        token = None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
    return None if token is None else backend.token_to_id(token)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists of about CHUNK characters."""
    if isinstance(texts, (str, bytes)):
        raise InputError("texts is one text; give an iterable of texts, such as [text]")
    chunk, size = [], 0
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {number} is a {type(text).__name__}; each must be a str")
        chunk.append(text)
        size += len(text)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _missing(backend, words: Sequence[str], unknown: int | None) -> tuple[str, ...]:
    """Words that are not one token, neither at the beginning of a text nor after a space."""
    forms = [form for word in words for form in (word, f" {word}")]
    ids = [encoding.ids for encoding in backend.encode_batch(forms, add_special_tokens=False)]
    one = [len(each) == 1 and each[0] != unknown for each in ids]
    return tuple(word for i, word in enumerate(words) if not (one[2 * i] or one[2 * i + 1]))


def _vocabulary(backend) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The longest tokens and the last ones, as text; special and other added tokens left out."""
    added = backend.get_added_tokens_decoder()
    ids = sorted(set(backend.get_vocab().values()) - added.keys())
    pieces = [backend.id_to_token(i) for i in ids]
    if "ByteLevel" in str(type(backend.decoder)):  # letters that stand for bytes: what they spell is wanted
        pieces = backend.decode_batch([[i] for i in ids], skip_special_tokens=False)
    order = sorted(range(len(ids)), key=lambda i: (-len(pieces[i]), ids[i]))
    return tuple(pieces[i] for i in order[:LISTED]), tuple(pieces[: -LISTED - 1 : -1])


def _named(tokens: Sequence[str]) -> str:
    """The first few, the long ones cut."""
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
    "not in one token": lambda r: ", ".join(r.missing_words[:LISTED]) + (" ..." if r.missing_words[LISTED:] else ""),
    "longest tokens": lambda r: _named(r.longest_tokens),
    "last tokens": lambda r: _named(r.last_tokens),
}
"""Rows of a table: what they are called, and what they show of a report."""


def _table(reports: Mapping[str, TokenizerReport]):
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in reports:
        table.add_column(escape(name), justify="right", overflow="fold")
    for row, show in ROWS.items():
        table.add_row(row, *(escape(show(report)) for report in reports.values()))
    return table
