"""Stop strings as a transition table for a compiled loop: a byte automaton lifted to tokens.

A stop string may begin and end in the middle of tokens, so it cannot be matched on ids. The automaton of
Aho and Corasick (1975) reads the UTF-8 bytes of the text and tracks how much of each string it has just
seen. It has few states and every token's bytes are known, so the transitions by token are computed once and
a loop needs one lookup per token. Texts stop at the same token as with Transformers'
``StopStringCriteria``.
"""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from duonlp.errors import InputError

STATES_MULTIPLE = 16
"""The number of states is a multiple of this, so that another stop string does not recompile."""

MAX_TABLE_ENTRIES = 2**27
"""Maximum number of table entries, of 4 bytes each: 512 MiB."""

MAX_CACHED_TABLES = 8
"""Maximum number of cached tables per tokenizer."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_cache: WeakKeyDictionary[Any, "_TokenizerCache"] = WeakKeyDictionary()
_lock = threading.RLock()
"""Guards the cache and its tables: reading a vocabulary takes a moment, so that threads wait for the first."""


def byte_alphabet() -> dict[str, int]:
    """Return the byte of each character of a byte-level vocabulary: the inverse of GPT-2's ``bytes_to_unicode``."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = byte_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """Return the bytes of a token of a byte-level vocabulary; added tokens with other characters are literal text."""
    try:
        return bytes([BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()


def fallback_byte(token: str) -> bytes | None:
    """Return the byte that a sentencepiece token such as ``<0xE2>`` represents; None for any other token."""
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else None


def decoder_types(tokenizer: Any) -> set[str]:
    """Return the names of a fast tokenizer's decoders, such as {"Sequence", "ByteFallback"}; empty if it has none."""
    return set(_walk_types(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]))


def _walk_types(decoder: Any) -> Iterator[str]:
    if isinstance(decoder, dict):
        yield decoder.get("type", "")
        for part in decoder.values():
            yield from _walk_types(part)
    elif isinstance(decoder, list):
        for part in decoder:
            yield from _walk_types(part)


def token_bytes(tokenizer: Any) -> list[bytes]:
    """Return the UTF-8 bytes that each id adds to a text; part of a character if tokens split it.

    Byte-level, sentencepiece (with or without byte fallback) and WordPiece vocabularies are read as the
    tokenizer's ``decode`` reads them in the middle of a text, where a word begins with its space. Special
    and added tokens are literal text. Ids that the tokenizer lacks, below its largest id, give b"".

    Raises:
        InputError: The tokenizer is not a fast tokenizer of transformers.
    """
    return [text or b"" for text in _vocabulary(tokenizer)]


@dataclass
class _TokenizerCache:
    """Values cached for one tokenizer.

    Attributes:
        size: Size of the vocabulary when ``tokens`` was read.
        tokens: Bytes of each id, None for ids that the tokenizer lacks.
        tables: The last used tables, by stop strings and size of the logits.
    """

    size: int
    tokens: tuple[bytes | None, ...]
    tables: "dict[tuple[tuple[str, ...], int], StopStrings]" = field(default_factory=dict)


def _vocabulary(tokenizer: Any) -> tuple[bytes | None, ...]:
    """Return the bytes of each id as in :func:`token_bytes`, and None for ids that the tokenizer lacks."""
    return _cached(tokenizer).tokens


def _cached(tokenizer: Any) -> _TokenizerCache:
    """Return the cache entry of a tokenizer, created anew if tokens were added since."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(
            f"token texts are read from a fast tokenizer, but {type(tokenizer).__name__} has no backend_tokenizer; load it "
            "with transformers.AutoTokenizer.from_pretrained(..., use_fast=True)"
        )
    vocabulary = tokenizer.get_vocab()
    with _lock:
        entry = _cache.get(tokenizer)
        if entry is None or entry.size != len(vocabulary):
            entry = _cache[tokenizer] = _TokenizerCache(len(vocabulary), _read_tokens(tokenizer, vocabulary))
        return entry


def _read_tokens(tokenizer: Any, vocabulary: dict[str, int]) -> tuple[bytes | None, ...]:
    decoder, types = tokenizer.backend_tokenizer.decoder, decoder_types(tokenizer)
    decode = " ".join if decoder is None else decoder.decode
    # Decoders treat the first and the last token of a text specially, so decode each token between two others.
    head, tail = decode(["a"]), decode(["a", "a"])[len(decode(["a"])) :]
    tokens: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        text = fallback_byte(token) if "ByteFallback" in types else None
        if text is None and "ByteLevel" in types:
            text = byte_level_bytes(token)
        if text is None:
            joined = decode(["a", token, "a"])
            intact = joined.startswith(head) and joined.endswith(tail) and len(joined) >= len(head) + len(tail)
            text = (joined[len(head) : len(joined) - len(tail)] if intact else token).encode()
        tokens[token_id] = text
    return tuple(tokens)


@dataclass(frozen=True, eq=False)
class StopStrings:
    """Transition table of a set of stop strings: the next state for each state and token. Create it with
    :meth:`build`.

    A loop starts from ``start`` and computes ``state = transitions[state, token]``. State ``accept`` means
    that the token completed a stop string, and is never left. State 0 means that no stop string has begun.
    """

    strings: tuple[str, ...]
    transitions: np.ndarray = field(repr=False)  # int32 [states, vocab_size]
    tokens: tuple[bytes | None, ...] = field(repr=False)  # bytes of each id, None for ids that the tokenizer lacks
    goto: np.ndarray = field(repr=False)  # int32 [nodes, 256], transitions by byte without accepting, for prompts

    @property
    def accept(self) -> int:
        """The last state: a stop string was completed."""
        return self.transitions.shape[0] - 1

    @classmethod
    def build(cls, tokenizer: Any, strings: str | Sequence[str], vocab_size: int) -> "StopStrings":
        """Return the table of a tokenizer and its stop strings; the last few tables are cached.

        Args:
            tokenizer: A fast tokenizer of transformers.
            strings: One string or several.
            vocab_size: Size of the model's logits; ids that the tokenizer lacks lead to state 0.

        Raises:
            InputError: There is no string, a string is empty or not a str, the strings are too long, or the
                tokenizer is slow.
        """
        strings = check_strings(strings)
        cache = _cached(tokenizer)
        with _lock:
            table = cache.tables.pop((strings, vocab_size), None) or cls._build(cache.tokens, strings, vocab_size)
            cache.tables[strings, vocab_size] = table  # moves it to the end: most recently used
            while len(cache.tables) > MAX_CACHED_TABLES:
                del cache.tables[next(iter(cache.tables))]
        return table

    @classmethod
    def _build(cls, tokens: tuple[bytes | None, ...], strings: tuple[str, ...], vocab_size: int) -> "StopStrings":
        patterns = [string.encode() for string in strings]
        length = sum(map(len, patterns))
        if length * vocab_size > MAX_TABLE_ENTRIES:
            raise InputError(
                f"stop strings of {length} bytes in total need a table of {length * vocab_size * 4 / 2**20:.0f} MiB for "
                f"{vocab_size} tokens, more than {MAX_TABLE_ENTRIES * 4 // 2**20} MiB; pass fewer or shorter ones"
            )
        goto, completes = build_automaton(patterns)
        return cls(strings, token_transitions(goto, completes, tokens, vocab_size), tokens, goto)

    def start(self, ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """Return the state after each prompt, int32 [batch].

        A stop string inside the prompt does not stop the text, but its end may begin one that does.

        Args:
            ids: int [batch, length].
            attention_mask: [batch, length], 0 on padding; None for no padding.

        Raises:
            InputError: The shapes do not match.
        """
        ids = np.asarray(ids)
        mask = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask) != 0
        if ids.ndim != 2 or mask.shape != ids.shape:
            raise InputError(f"ids has shape {ids.shape} and attention_mask {mask.shape}; both must be [batch, length]")
        longest = max(len(string.encode()) for string in self.strings)
        states = np.zeros(len(ids), np.int32)
        for row in range(len(ids)):
            text = b""  # a state depends only on the last `longest` bytes
            for token in ids[row, mask[row]][::-1].tolist():
                piece = self.tokens[token] if 0 <= token < len(self.tokens) else None
                if piece is None or len(text) >= longest:
                    break
                text = piece + text
            for byte in text:
                states[row] = self.goto[states[row], byte]
        return states


def check_strings(strings: Any) -> tuple[str, ...]:
    """Return stop strings as a tuple without duplicates.

    Raises:
        InputError: They are not a non-empty string or a sequence of at least one of these.
    """
    several = (strings,) if isinstance(strings, str) else strings
    if not isinstance(several, Sequence) or isinstance(several, (bytes, bytearray)) or not several:
        raise InputError(f"stop_strings={strings!r} must be a string or a non-empty list of strings")
    for string in several:
        if not isinstance(string, str) or not string:
            raise InputError(f"stop_strings={strings!r} contains {string!r}; each must be a non-empty string")
        try:
            string.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"stop string {string!r} contains an unpaired surrogate, which cannot be encoded; pass complete characters"
            ) from error
    return tuple(dict.fromkeys(several))


def build_automaton(patterns: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Build the Aho-Corasick automaton over bytes.

    Returns:
        goto: int32 [nodes, 256], the node after a byte; node 0 is the root.
        completes: bool [nodes], whether the text read so far ends in one of the patterns.
    """
    children: list[dict[int, int]] = [{}]
    ends = [False]
    for pattern in patterns:
        node = 0
        for byte in pattern:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                ends.append(False)
            node = children[node][byte]
        ends[node] = True
    goto, completes = np.zeros((len(children), 256), np.int32), np.array(ends)
    fallback = [0] * len(children)  # node of the longest proper suffix that is also a node
    queue = [0]
    for node in queue:  # breadth first: a node's fallback is processed before it
        if node:
            goto[node] = goto[fallback[node]]
            completes[node] |= completes[fallback[node]]
        for byte, child in children[node].items():
            fallback[child] = int(goto[node, byte])
            goto[node, byte] = child
            queue.append(child)
    return goto, completes


def token_transitions(
    goto: np.ndarray, completes: np.ndarray, tokens: Sequence[bytes | None], vocab_size: int
) -> np.ndarray:
    """Return the automaton's transitions by token instead of by byte: int32 [states, vocab_size], as in StopStrings."""
    nodes = len(goto)
    states = -(-(nodes + 1) // STATES_MULTIPLE) * STATES_MULTIPLE
    accept = states - 1
    step = np.vstack([np.where(completes[goto], nodes, goto), np.full((1, 256), nodes)]).astype(np.int32)
    # Longest first, so that the tokens with a byte at a position are a prefix of the list.
    texts = [(i, text) for i, text in enumerate(tokens[:vocab_size]) if text is not None]
    texts.sort(key=lambda pair: len(pair[1]), reverse=True)
    ids = [i for i, _ in texts]
    lengths = np.array([len(text) for _, text in texts], np.int64)
    begins = np.cumsum(lengths) - lengths
    data = np.frombuffer(b"".join(text for _, text in texts), np.uint8)
    reached = np.repeat(np.arange(nodes, dtype=np.int32)[:, None], len(ids), axis=1)  # [nodes, ids]
    for position in range(lengths.max(initial=0)):
        active = int(np.count_nonzero(lengths > position))
        reached[:, :active] = step[reached[:, :active], data[begins[:active] + position]]
    reached[reached == nodes] = accept
    table = np.zeros((states, vocab_size), np.int32)
    table[:nodes, ids] = reached
    table[accept] = accept
    return table
